/*
 * Post-copy, at the destination: the machine runs, and part of its memory is still at the source.  Whoever touches a
 * piece of it waits until it is here (memory/watch.h), and asks for it so that it comes before the rest; the streams
 * are those of migration_serve.c.
 *
 * Who waits may have the lock of the bus, and be the event loop itself.  So nothing here depends on it: threads that
 * receive; and a door, a socket of its own beside the control socket, by which a command brings new streams when they
 * were cut, or says that the source is dead:
 *
 *      RUNTIME/NAME.pages      ->  's' and the descriptors of streams        <-  'y', or 'n': not so
 *                              ->  'l': the source has died, its memory is lost
 *
 * What is lost is not made up: the process ends at that moment, as by a power cut, before anybody goes on with
 * something else than what was there.
 */
#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "base/error.h"
#include "base/log.h"
#include "host/sandbox.h"
#include "host/thread.h"
#include "host/unix.h"
#include "memory/faults.h"
#include "memory/memory.h"
#include "vm/confine.h"
#include "vm/life.h"
#include "vm/migration_int.h"

#define DOOR_MS 5000 /* who comes to the door says what for within that time */
#define TELL_MS 20000

struct arriving {
    struct incoming *incoming;
    _Atomic uint64_t left; /* chunks to come */
    pthread_t door;
    bool has_door;
    pthread_t server; /* of faults (memory/faults.h) */
    bool serves;
    _Atomic bool stop;
    _Atomic bool started; /* or new streams are being taken, which start by themselves */

    pthread_mutex_t lock; /* guards all below; taken with the lock of the watch held, never the other way round */
    bool open;            /* what is lacked has been said, and asking makes sense */
    uint8_t *waited_for;  /* by chunk */
    uint64_t received;    /* by streams that are no more */
};

/* --- asking ------------------------------------------------------------------------------------------------------- */

static struct wire *asking(struct arriving *a)
{
    return &a->incoming->streams[a->incoming->n_streams + 1].wire;
}

/* On the thread of who waits; one that cannot be sent is asked for again by the next streams. */
static void ask(void *opaque, uint64_t chunk)
{
    struct arriving *a = opaque;

    pthread_mutex_lock(&a->lock);
    if (!a->waited_for[chunk] && a->open)
        (void)wire_put_ask(asking(a), chunk);
    a->waited_for[chunk] = 1;
    pthread_mutex_unlock(&a->lock);
}

/* Says what is lacked, then what is waited for already. */
static int say_what_is_lacked(struct arriving *a)
{
    const struct incoming *in = a->incoming;
    const struct memory *m = machine_memory(in->vm->machine);
    size_t length = (in->n_chunks + 7) / 8;
    uint8_t *bits = calloc(1, length);
    int err = bits ? 0 : -ENOMEM;

    for (uint64_t i = 0; i < in->n_chunks && bits; i++)
        if (memory_lacks_chunk(m, i))
            bits[i / 8] |= (uint8_t)(1u << i % 8);
    if (!err)
        err = wire_put_lacks(asking(a), bits, (uint32_t)length);
    free(bits);
    pthread_mutex_lock(&a->lock);
    for (uint64_t i = 0; i < in->n_chunks && !err; i++)
        if (a->waited_for[i] && memory_lacks_chunk(m, i))
            err = wire_put_ask(asking(a), i);
    a->open = !err;
    pthread_mutex_unlock(&a->lock);
    return err;
}

/* --- receiving ---------------------------------------------------------------------------------------------------- */

static void close_streams(struct arriving *a)
{
    struct incoming *in = a->incoming;

    pthread_mutex_lock(&a->lock);
    a->open = false;
    for (unsigned i = 0; i < in->n_streams + in->n_extra; i++)
        shutdown(in->streams[i].wire.fd, SHUT_RDWR);
    pthread_mutex_unlock(&a->lock);
}

static void place(struct arriving *a, const struct wire_frame *f)
{
    struct incoming *in = a->incoming;

    if (!memory_bring_chunk(machine_memory(in->vm->machine), f->number, f->present, f->zeroes, f->bytes))
        return;
    if (--a->left == 0)
        (void)!write(in->notice[1], "", 1);
}

/* 0: the stream has ended as it should; *why may be set, else. */
static int receive(struct arriving *a, struct wire *w, const char **why)
{
    struct wire_frame f;
    int err;

    while (!(err = wire_get(w, &f, why)) && f.type != WIRE_END) {
        *why = f.type == WIRE_MEMORY ? incoming_check_memory(a->incoming, &f) : "something comes that is no memory";
        if (*why)
            return -EBADMSG;
        place(a, &f);
    }
    return err;
}

/* When one stream is cut all are of no use: the source sees that, and whoever is there brings others. */
static void *arriving_main(void *opaque)
{
    struct incoming_stream *s = opaque;
    struct incoming *in = s->incoming;
    struct arriving *a = in->arriving;
    const char *why = NULL;

    prctl(PR_SET_NAME, "arrive");
    int err = sandbox_thread(in->vm->sandbox, vm_vcpu_role(in->vm));
    if (!err && s == &in->streams[in->n_streams])
        err = say_what_is_lacked(a);
    if (!err)
        err = receive(a, &s->wire, &why);
    if (why)
        log_say("what comes of its memory is of no use, and is waited for again: %s", why);
    if (err)
        close_streams(a);
    return NULL;
}

static int start_threads(struct arriving *a)
{
    struct incoming *in = a->incoming;
    int err = 0;

    for (unsigned i = 0; i <= in->n_streams && !err; i++) { /* the last is only written to */
        in->streams[i].incoming = in;
        err = thread_start(&in->streams[i].thread, NULL, arriving_main, &in->streams[i]);
        in->streams[i].has_thread = !err;
    }
    return err;
}

static void end_threads(struct arriving *a)
{
    close_streams(a);
    incoming_threads_join(a->incoming);
}

/* --- the door ----------------------------------------------------------------------------------------------------- */

/* On the thread of the door, as all of this: it alone changes the streams. */
static int renew_streams(struct arriving *a, const int *fds, unsigned n)
{
    struct incoming *in = a->incoming;
    int err = 0;

    if (n < 1 + MIGRATION_EXTRA || n > MIGRATION_ALL_MAX)
        return -EINVAL;
    a->started = true;
    end_threads(a);
    pthread_mutex_lock(&a->lock);
    for (unsigned i = 0; i < in->n_streams + in->n_extra; i++) {
        a->received += in->streams[i].wire.bytes;
        close(in->streams[i].wire.fd);
        wire_close(&in->streams[i].wire);
    }
    in->n_streams = n - MIGRATION_EXTRA;
    for (unsigned i = 0; i < n; i++) {
        int failed = wire_open(&in->streams[i].wire, fds[i], false);
        err = err ? err : failed;
    }
    pthread_mutex_unlock(&a->lock);
    return err ? err : start_threads(a);
}

/* Whoever has the lock for so long waits for memory himself, and does nothing any more.  Returns when all of it has
 * come at the last moment. */
static void lose(struct arriving *a, int client)
{
    struct vm *vm = a->incoming->vm;
    struct timespec until;

    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_sec++;
    bool locked = !pthread_mutex_timedlock(&vm->bus->lock, &until);
    if (!a->left) {
        if (locked)
            pthread_mutex_unlock(&vm->bus->lock);
        return;
    }
    migration_decide(a->incoming->record, true); /* what there is of it, its disk, is here */
    vm->result->end = VM_FAILED;
    snprintf(
        vm->result->reason, sizeof vm->result->reason,
        "its source has died before all of its memory was here, and what was not is lost: `guise start %s` boots it "
        "from its disk",
        vm->config->life->record->name);
    life_ended(vm);
    log_say("%s", vm->result->reason);
    (void)!write(client, "y", 1);
    _exit(1);
}

static void serve(struct arriving *a, int client)
{
    int fds[MIGRATION_ALL_MAX];
    unsigned n = MIGRATION_ALL_MAX;
    struct ucred who;
    socklen_t size = sizeof who;
    char word = 0;

    if (getsockopt(client, SOL_SOCKET, SO_PEERCRED, &who, &size) || (who.uid && who.uid != a->incoming->owner) ||
        poll(&(struct pollfd){.fd = client, .events = POLLIN}, 1, DOOR_MS) <= 0)
        return;
    if (unix_receive_fds(client, &word, 1, fds, &n, MSG_DONTWAIT) != 1)
        n = 0;
    if (word == 'l')
        lose(a, client);
    int err = word == 's' ? renew_streams(a, fds, n) : -EINVAL;
    for (; err == -EINVAL && n; n--)
        close(fds[n - 1]);
    (void)!write(client, err ? "n" : "y", 1);
}

/* It keeps the process's own list of system calls: nobody else of its threads accepts connections. */
static void *door_main(void *opaque)
{
    struct arriving *a = opaque;
    int door = a->incoming->door;

    prctl(PR_SET_NAME, "door");
    while (poll(&(struct pollfd){.fd = door, .events = POLLIN}, 1, -1) >= 0 || errno == EINTR) {
        if (a->stop)
            break;
        int client = accept4(door, NULL, NULL, SOCK_CLOEXEC);
        if (client < 0)
            continue;
        serve(a, client);
        close(client);
    }
    return NULL;
}

int arriving_tell(const struct registry *r, const char *name, const int *fds, unsigned n_fds, char *err, size_t n)
{
    char path[108], answer = 0;
    int failed = registry_socket(r, name, MIGRATION_DOOR, path, err, n), fd = failed ? failed : unix_connect(path);

    if (fd < 0)
        return failed ? failed : error_sys(err, n, fd, "%s cannot be reached at %s", name, path);
    ssize_t sent = unix_send_fds(fd, n_fds ? "s" : "l", 1, fds, n_fds, 0);
    bool answered = sent == 1 && poll(&(struct pollfd){.fd = fd, .events = POLLIN}, 1, TELL_MS) > 0 &&
                    read(fd, &answer, 1) == 1;
    close(fd);
    return answered && answer == 'y' ? 0 : error_set(err, n, -EIO, "the process of %s takes no memory", name);
}

/* --- all of it ---------------------------------------------------------------------------------------------------- */

static bool is_absent(void *opaque, uint64_t chunk)
{
    const struct arriving *a = opaque;
    const struct section *s = sections_find(&a->incoming->sections, "absent", "memory");

    return s->bytes[chunk / 8] >> chunk % 8 & 1;
}

static void lost(void *opaque, int err)
{
    const struct arriving *a = opaque;

    vm_exhausted(a->incoming->vm);
}

static void *server_main(void *opaque)
{
    struct arriving *a = opaque;
    struct vm *vm = a->incoming->vm;

    prctl(PR_SET_NAME, "faults");
    if (sandbox_thread(vm->sandbox, vm_vcpu_role(vm)) == 0)
        memory_faults_serve(machine_memory(vm->machine));
    return NULL;
}

/* The guest of an engine that announces nothing waits by the host's kernel. */
static int begin_faults(struct arriving *a, struct memory *m)
{
    int err = memory_faults_begin(m);

    if (!err)
        err = thread_start(&a->server, NULL, server_main, a);
    a->serves = !err;
    return err;
}

static int begin(struct arriving *a)
{
    struct incoming *in = a->incoming;
    struct memory *m = machine_memory(in->vm->machine);
    const struct memory_source source = {.ask = ask, .lost = lost, .has = is_absent, .opaque = a};
    int err = memory_load_begin(m, &source);

    if (!err && !memory_is_announced(m))
        err = begin_faults(a, m);

    for (uint64_t i = 0; i < in->n_chunks && !err; i++)
        a->left += memory_lacks_chunk(m, i);
    if (!err)
        err = thread_start(&a->door, NULL, door_main, a);
    a->has_door = !err;
    return err;
}

int arriving_start(struct incoming *in)
{
    return atomic_exchange(&in->arriving->started, true) ? 0 : start_threads(in->arriving);
}

int arriving_begin(struct incoming *in, char *why, size_t n)
{
    const struct section *absent = sections_find(&in->sections, "absent", "memory");
    struct arriving *a;

    if (absent->version != 1 || absent->size != (in->n_chunks + 7) / 8 || in->n_extra != MIGRATION_EXTRA)
        return error_set(why, n, -EBADMSG, "what it says about its memory makes no sense");
    a = in->arriving = calloc(1, sizeof *a);
    if (!a)
        return error_sys(why, n, -ENOMEM, "its memory cannot be waited for");
    a->incoming = in;
    pthread_mutex_init(&a->lock, NULL);
    a->waited_for = calloc(in->n_chunks, 1);
    int err = a->waited_for ? begin(a) : -ENOMEM;
    return err ? error_sys(why, n, err, "its memory cannot be waited for") : 0;
}

void arriving_end(struct incoming *in)
{
    struct arriving *a = in->arriving;

    if (!a)
        return;
    a->stop = true;
    shutdown(in->door, SHUT_RDWR);
    if (a->has_door)
        pthread_join(a->door, NULL);
    end_threads(a);
    memory_load_end(machine_memory(in->vm->machine));
    memory_faults_end(machine_memory(in->vm->machine));
    if (a->serves)
        pthread_join(a->server, NULL);
    pthread_mutex_destroy(&a->lock);
    free(a->waited_for);
    free(a);
    in->arriving = NULL;
}

uint64_t arriving_left(const struct incoming *in)
{
    return in->arriving->left * WATCH_CHUNK;
}

uint64_t arriving_received(struct incoming *in)
{
    struct arriving *a = in->arriving;

    pthread_mutex_lock(&a->lock);
    uint64_t bytes = a->received;
    for (unsigned i = 0; i < in->n_streams + in->n_extra; i++)
        bytes += in->streams[i].wire.bytes;
    pthread_mutex_unlock(&a->lock);
    return bytes;
}
