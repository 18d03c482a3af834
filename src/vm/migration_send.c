/*
 * The threads that send a machine, one for each stream: chunk i of memory and of the disk is the business of stream
 * i modulo their number, so that what is sent of it twice arrives in that order.
 *
 * A page is read while the guest may write to it.  That it did is in the log, and so it comes again.
 */
#include <errno.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "backends/disk/disk_log.h"
#include "bus/bus.h"
#include "host/sandbox.h"
#include "host/thread.h"
#include "memory/memory.h"
#include "vm/migration_int.h"

static int send_memory(struct moving_stream *s, uint64_t chunk)
{
    struct moving *m = s->moving;
    uint8_t bytes[WATCH_CHUNK];
    bool fresh = !m->begun_chunks[chunk]; /* what is not there is not there either */

    if (!memory_read_chunk(machine_memory(m->vm->machine), chunk, bytes) && fresh)
        return 0;
    m->begun_chunks[chunk] = 1;
    m->carried_pages += (unsigned)__builtin_popcount(m->pages[chunk]);
    return wire_put_chunk(&s->wire, WIRE_MEMORY, chunk, bytes, m->pages[chunk], fresh);
}

struct place {
    int fd;
    uint64_t offset;
};

/* Where the granules of a piece are.  Whoever has the lock may be waiting for this thread: in the last round that is
 * so, and the disk at rest. */
static int find(struct moving *m, uint64_t piece, uint16_t *granules, struct place place[DISK_LOG_GRANULES])
{
    pthread_mutex_t *lock = &m->vm->bus->lock;

    while (!m->last && pthread_mutex_trylock(lock)) {
        if (m->stop)
            return -ECANCELED;
        nanosleep(&(struct timespec){.tv_nsec = 50000}, NULL);
    }
    for (unsigned i = 0; i < DISK_LOG_GRANULES; i++)
        if (*granules >> i & 1 &&
            !disk_overlay_find(m->vm->disks[0], piece * DISK_LOG_GRANULES + i, &place[i].fd, &place[i].offset))
            *granules &= (uint16_t) ~(1u << i); /* a write that has failed */
    if (!m->last)
        pthread_mutex_unlock(lock);
    return 0;
}

/* Behind the end of the file there are zeroes. */
static int read_granule(const struct place *p, uint8_t *out)
{
    ssize_t got = pread(p->fd, out, DISK_LOG_GRANULE, (off_t)p->offset);

    if (got < 0)
        return -errno;
    memset(out + got, 0, DISK_LOG_GRANULE - (size_t)got);
    return 0;
}

static int send_disk(struct moving_stream *s, uint64_t piece)
{
    struct moving *m = s->moving;
    struct place place[DISK_LOG_GRANULES];
    uint8_t bytes[WIRE_CHUNK];
    uint16_t granules = m->granules[piece];
    int err = find(m, piece, &granules, place);

    for (unsigned i = 0; i < DISK_LOG_GRANULES && !err; i++)
        if (granules >> i & 1)
            err = read_granule(&place[i], bytes + i * DISK_LOG_GRANULE);
    return err ? err : wire_put_chunk(&s->wire, WIRE_DISK, piece, bytes, granules, false);
}

static int send_all(struct moving_stream *s)
{
    struct moving *m = s->moving;
    int err = 0;

    for (uint64_t i = s->index; i < m->n_disk_chunks && !err && !m->stop; i += m->n_streams) {
        if (!m->granules[i])
            continue;
        err = send_disk(s, i);
        m->sent_pages += (unsigned)__builtin_popcount(m->granules[i]);
    }
    for (uint64_t i = s->index; i < m->n_chunks && !err && !m->stop && !m->disk_only; i += m->n_streams) {
        if (!m->pages[i])
            continue;
        err = send_memory(s, i);
        m->sent_pages += (unsigned)__builtin_popcount(m->pages[i]);
        m->pages[i] = 0;
    }
    if (!err && m->last && s->index == 0)
        for (unsigned i = 0; i < m->sections.n && !err; i++)
            err = wire_put_section(&s->wire, &m->sections.all[i]);
    if (!err && m->last)
        err = wire_put_end(&s->wire);
    return err;
}

/* The next round; false: there will be none. */
static bool wait_for_round(struct moving_stream *s)
{
    struct moving *m = s->moving;

    pthread_mutex_lock(&m->lock);
    while (m->round == s->round && !m->stop)
        pthread_cond_wait(&m->wake, &m->lock);
    bool more = !m->stop;
    s->round = m->round;
    pthread_mutex_unlock(&m->lock);
    return more;
}

static void round_done(struct moving *m, int err)
{
    pthread_mutex_lock(&m->lock);
    if (err && !m->failed)
        m->failed = err;
    bool all = --m->at_work == 0 || err;
    if (all)
        pthread_cond_signal(&m->sent);
    pthread_mutex_unlock(&m->lock);
    if (all)
        (void)!write(m->notice[1], "", 1);
}

static void *sender_main(void *opaque)
{
    struct moving_stream *s = opaque;
    int err;

    prctl(PR_SET_NAME, "migrate");
    err = sandbox_thread(s->moving->vm->sandbox, SANDBOX_WORKER);
    while (wait_for_round(s)) {
        if (!err)
            err = send_all(s);
        round_done(s->moving, err);
    }
    return NULL;
}

void moving_set_pace(struct moving *m, uint64_t bytes)
{
    for (unsigned i = 0; i < m->n_streams; i++)
        m->streams[i].wire.pace = bytes / m->n_streams;
}

int moving_threads_start(struct moving *m)
{
    int err = 0;

    for (unsigned i = 0; i < m->n_streams && !err; i++) {
        m->streams[i].moving = m;
        m->streams[i].index = i;
        err = thread_start(&m->streams[i].thread, NULL, sender_main, &m->streams[i]);
        m->streams[i].has_thread = !err;
    }
    return err;
}

void moving_round(struct moving *m, bool last)
{
    pthread_mutex_lock(&m->lock);
    m->sent_pages = m->carried_pages = 0;
    m->last = last;
    m->at_work = m->n_streams;
    m->round++;
    pthread_cond_broadcast(&m->wake);
    pthread_mutex_unlock(&m->lock);
}

int moving_wait(struct moving *m, uint64_t ns)
{
    struct timespec until;
    int err = 0;

    clock_gettime(CLOCK_REALTIME, &until);
    ns += (uint64_t)until.tv_nsec;
    until.tv_sec += (time_t)(ns / 1000000000);
    until.tv_nsec = (long)(ns % 1000000000);
    pthread_mutex_lock(&m->lock);
    while (m->at_work && !m->failed && !err)
        err = -pthread_cond_timedwait(&m->sent, &m->lock, &until);
    pthread_mutex_unlock(&m->lock);
    return m->failed ? m->failed : err;
}

static void tell_to_stop(struct moving *m)
{
    pthread_mutex_lock(&m->lock);
    m->stop = true;
    pthread_cond_broadcast(&m->wake);
    pthread_mutex_unlock(&m->lock);
}

static void join(struct moving *m)
{
    for (unsigned i = 0; i < m->n_streams + m->n_extra; i++) {
        if (m->streams[i].has_thread)
            pthread_join(m->streams[i].thread, NULL);
        m->streams[i].has_thread = false;
    }
}

void moving_threads_join(struct moving *m)
{
    tell_to_stop(m);
    join(m);
}

void moving_threads_stop(struct moving *m)
{
    tell_to_stop(m);
    for (unsigned i = 0; i < m->n_streams + m->n_extra; i++)
        shutdown(m->streams[i].wire.fd, SHUT_RDWR);
    join(m);
    for (unsigned i = 0; i < m->n_streams + m->n_extra; i++) {
        m->sent_before += m->streams[i].wire.bytes;
        close(m->streams[i].wire.fd);
        wire_close(&m->streams[i].wire);
    }
    m->n_streams = m->n_extra = 0;
}
