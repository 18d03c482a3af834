/*
 * Post-copy, at the source: the machine runs elsewhere already, and what is here of its memory is given out.
 *
 *      asking   destination -> source   first which chunks it lacks, then those that somebody waits for
 *      asked    source -> destination   the latter, at once: on a connection of its own, so that nothing is before them
 *      streams  source -> destination   the rest, at the pace that was asked for, going on behind what was last asked
 * for
 *
 * Memory is given out as it was when the vCPUs stopped.  Devices live on (a network card takes in frames), so a chunk
 * that they are about to change is copied aside (memory/watch.h), and can be given out as often as it takes: what was
 * sent into a network that was cut is lacked, and said to be so when the next streams are there.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include "host/sandbox.h"
#include "host/thread.h"
#include "memory/template.h"
#include "vm/migration_int.h"

#define NOWHERE UINT64_MAX

struct serving {
    struct moving *moving;
    pthread_mutex_t lock; /* guards known and stop, for who waits; and aside */
    pthread_cond_t wake;
    _Atomic bool known;
    bool stop;
    uint64_t since_ns, lacked_first; /* when that was known, and how many there were */
    uint8_t **aside;                 /* by chunk: what it was; NULL: it still is */
    _Atomic bool cut;
    _Atomic uint8_t *lacked;                      /* by chunk: it is lacked there, and not on its way */
    _Atomic uint64_t left;                        /* how many are */
    _Atomic uint64_t next[MIGRATION_STREAMS_MAX]; /* where each stream is to go on, or NOWHERE in particular */
};

/* --- memory as it was --------------------------------------------------------------------------------------------- */

static void room(void *opaque) {}

/* A device's thread: with the lock of the watch. */
static void keep(void *opaque, uint64_t chunk, const void *bytes, uint32_t length)
{
    struct serving *s = opaque;
    uint8_t *copy = calloc(1, WATCH_CHUNK);

    if (copy)
        memcpy(copy, bytes, length);
    else
        s->cut = true; /* it cannot be given out any more: read_chunk says so whenever it is asked for */
    pthread_mutex_lock(&s->lock);
    s->aside[chunk] = copy;
    pthread_mutex_unlock(&s->lock);
}

static int read_chunk(struct serving *s, uint64_t chunk, uint8_t out[WATCH_CHUNK])
{
    if (memory_keep_look(machine_memory(s->moving->vm->machine), chunk, out))
        return 0;
    pthread_mutex_lock(&s->lock);
    const uint8_t *copy = s->aside[chunk];
    if (copy)
        memcpy(out, copy, WATCH_CHUNK);
    pthread_mutex_unlock(&s->lock);
    return copy ? 0 : -ENOMEM;
}

/* Of chunks that were never sent those are absent that have contents. */
static void list_absent(struct moving *m, uint8_t *bits)
{
    struct memory *memory = machine_memory(m->vm->machine);
    uint64_t data = 0; /* the first chunk from here on that has some */

    for (uint64_t i = 0; i < m->n_chunks; i++) {
        if (data < i || !i)
            data = memory_next_data(memory, i << WATCH_SHIFT) >> WATCH_SHIFT;
        if (!m->begun_chunks[i] && data > i)
            m->pages[i] = 0;
        if (m->pages[i])
            bits[i / 8] |= (uint8_t)(1u << i % 8);
    }
}

int serving_begin(struct moving *m)
{
    struct serving *s = m->serving = calloc(1, sizeof *s);
    size_t length = (m->n_chunks + 7) / 8;
    uint8_t *bits = calloc(1, length);

    if (s) {
        s->moving = m;
        s->aside = calloc(m->n_chunks, sizeof *s->aside);
        s->lacked = calloc(m->n_chunks, sizeof *s->lacked);
        pthread_mutex_init(&s->lock, NULL);
        pthread_cond_init(&s->wake, NULL);
    }
    int err = s && bits && s->aside && s->lacked ? 0 : -ENOMEM;
    if (!err) {
        const struct memory_keeper keeper = {room, keep, s};
        list_absent(m, bits);
        err = memory_keep_begin(machine_memory(m->vm->machine), &keeper);
    }
    if (!err)
        err = sections_add(&m->sections, "absent", "memory", 1, bits, length);
    free(bits);
    return err;
}

void serving_end(struct moving *m)
{
    struct serving *s = m->serving;

    if (!s)
        return;
    serving_stop(m);
    memory_keep_end(machine_memory(m->vm->machine));
    for (uint64_t i = 0; s->aside && i < m->n_chunks; i++)
        free(s->aside[i]);
    free(s->aside);
    free(s->lacked);
    pthread_cond_destroy(&s->wake);
    pthread_mutex_destroy(&s->lock);
    free(s);
    m->serving = NULL;
}

uint64_t serving_left(const struct moving *m)
{
    return m->serving->left * WATCH_CHUNK;
}

uint64_t serving_rate(const struct moving *m)
{
    const struct serving *s = m->serving;

    return s->known ? (s->lacked_first - s->left) * WATCH_CHUNK * 1000000000 / (clock_ns() - s->since_ns + 1) : 0;
}

bool serving_is_cut(const struct moving *m)
{
    return m->serving->cut;
}

/* --- giving it out ------------------------------------------------------------------------------------------------ */

/* Is it lacked still?  Then it is the caller's to send. */
static bool claim(struct serving *s, uint64_t chunk)
{
    if (!s->lacked[chunk] || !atomic_exchange(&s->lacked[chunk], 0))
        return false;
    s->left--;
    return true;
}

static int send_chunk(struct serving *s, struct wire *w, uint64_t chunk)
{
    uint8_t bytes[WATCH_CHUNK];
    int err = read_chunk(s, chunk, bytes);

    return err ? err : wire_answer_chunk(w, chunk, bytes, s->moving->pages[chunk]);
}

/* From `at` on, and once around: false when there is none left for this stream. */
static bool claim_next(struct serving *s, unsigned stream, uint64_t *at)
{
    const struct moving *m = s->moving;
    uint64_t hint = atomic_exchange(&s->next[stream], NOWHERE);

    if (hint != NOWHERE)
        *at = hint;
    for (uint64_t i = stream; i < m->n_chunks; i += m->n_streams) {
        if (*at >= m->n_chunks)
            *at = stream;
        if (claim(s, *at))
            return true;
        *at += m->n_streams;
    }
    return false;
}

static int send_rest(struct moving_stream *stream)
{
    struct serving *s = stream->moving->serving;
    uint64_t at = stream->index;
    int err = 0;

    while (!err && !stream->moving->stop && claim_next(s, stream->index, &at))
        err = send_chunk(s, &stream->wire, at);
    return err ? err : wire_put_end(&stream->wire);
}

/* What it asks for is the first of more, mostly. */
static void go_on_behind(struct serving *s, uint64_t chunk)
{
    const unsigned n = s->moving->n_streams;

    for (uint64_t i = chunk + 1; i <= chunk + n; i++)
        s->next[i % n] = i;
}

static int take_list(struct serving *s, const struct wire_frame *f)
{
    struct moving *m = s->moving;
    uint64_t left = 0;

    if (f->length != (m->n_chunks + 7) / 8)
        return -EBADMSG;
    for (uint64_t i = 0; i < m->n_chunks; i++) {
        s->lacked[i] = f->bytes[i / 8] >> i % 8 & 1;
        left += s->lacked[i];
    }
    s->left = s->lacked_first = left;
    s->since_ns = clock_ns();
    pthread_mutex_lock(&s->lock);
    s->known = true;
    pthread_cond_broadcast(&s->wake);
    pthread_mutex_unlock(&s->lock);
    return 0;
}

static int answer(struct serving *s)
{
    struct moving *m = s->moving;
    struct wire_frame f;
    const char *why;
    int err;

    while (!(err = wire_get(&m->streams[m->n_streams + 1].wire, &f, &why))) {
        if (f.type == WIRE_LACKS && !s->known)
            err = take_list(s, &f);
        else if (f.type != WIRE_ASK || !s->known || f.number >= m->n_chunks)
            err = -EBADMSG;
        else if (claim(s, f.number)) {
            go_on_behind(s, f.number);
            err = send_chunk(s, &m->streams[m->n_streams].wire, f.number);
        }
        if (err)
            break;
    }
    return err;
}

/* --- threads ------------------------------------------------------------------------------------------------------ */

static void *asking_main(void *opaque)
{
    struct moving_stream *stream = opaque;
    struct serving *s = stream->moving->serving;

    prctl(PR_SET_NAME, "asked");
    if (!sandbox_thread(stream->moving->vm->sandbox, SANDBOX_WORKER))
        answer(s);
    s->cut = true; /* or over: who told it to begin hears that from the destination */
    return NULL;
}

static bool wait_until_known(struct serving *s)
{
    pthread_mutex_lock(&s->lock);
    while (!s->known && !s->stop)
        pthread_cond_wait(&s->wake, &s->lock);
    bool known = s->known && !s->stop;
    pthread_mutex_unlock(&s->lock);
    return known;
}

static void *serving_main(void *opaque)
{
    struct moving_stream *stream = opaque;
    struct serving *s = stream->moving->serving;
    int err;

    prctl(PR_SET_NAME, "serve");
    err = sandbox_thread(stream->moving->vm->sandbox, SANDBOX_WORKER);
    if (!err && wait_until_known(s))
        err = send_rest(stream);
    if (err)
        s->cut = true;
    return NULL;
}

int serving_start(struct moving *m)
{
    struct serving *s = m->serving;
    int err = 0;

    s->known = s->stop = false;
    s->cut = false;
    m->stop = false;
    for (unsigned i = 0; i < m->n_streams; i++)
        s->next[i] = NOWHERE;
    for (unsigned i = 0; i < m->n_streams + MIGRATION_EXTRA && !err; i++) {
        struct moving_stream *stream = &m->streams[i];
        stream->moving = m;
        stream->index = i;
        if (i == m->n_streams) /* what is asked for is sent by who reads that */
            continue;
        err = thread_start(&stream->thread, NULL, i < m->n_streams ? serving_main : asking_main, stream);
        stream->has_thread = !err;
    }
    s->cut = s->cut || err;
    return err;
}

void serving_stop(struct moving *m)
{
    struct serving *s = m->serving;

    pthread_mutex_lock(&s->lock);
    s->stop = true;
    m->stop = true;
    pthread_cond_broadcast(&s->wake);
    pthread_mutex_unlock(&s->lock);
    for (unsigned i = 0; i < m->n_streams + m->n_extra; i++) {
        shutdown(m->streams[i].wire.fd, SHUT_RDWR);
        if (m->streams[i].has_thread)
            pthread_join(m->streams[i].thread, NULL);
        m->streams[i].has_thread = false;
    }
}
