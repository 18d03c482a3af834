/*
 * The threads of a machine that is being received, one for each stream.  Memory is written to as it comes: nobody else
 * uses it yet.  The disk is written to by its own means, under the lock of its loop.
 *
 * What comes is a stranger's: migration_wire.c checks frames, here is checked what they mean for this machine.
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include "backends/disk/disk_log.h"
#include "base/error.h"
#include "host/sandbox.h"
#include "host/thread.h"
#include "memory/memory.h"
#include "vm/confine.h"
#include "vm/life.h"
#include "vm/migration_int.h"
#include "vm/prepare.h"

/* The bits behind the end of `size` bytes. */
static uint16_t beyond(uint64_t chunk, uint64_t size)
{
    uint64_t start = chunk * WIRE_CHUNK, pages = start < size ? (size - start + WIRE_PAGE - 1) / WIRE_PAGE : 0;

    return pages < WIRE_PAGES ? (uint16_t)(0xffffu << pages) : 0;
}

const char *incoming_check_memory(const struct incoming *in, const struct wire_frame *f)
{
    const struct memory *m = machine_memory(in->vm->machine);

    return f->number >= in->n_chunks || beyond(f->number, m->size) & (f->present | f->zeroes)
               ? "it has more memory than it said"
               : NULL;
}

static const char *take_memory(struct incoming *in, const struct wire_frame *f)
{
    struct memory *m = machine_memory(in->vm->machine);
    const uint8_t *from = f->bytes;
    const char *bad = incoming_check_memory(in, f);

    if (bad)
        return bad;
    for (unsigned i = 0; i < WIRE_PAGES; i++) {
        if (f->present >> i & 1) {
            memory_fill_page(m, f->number * WIRE_PAGES + i, from);
            from += WIRE_PAGE;
        } else if (f->zeroes >> i & 1) {
            memory_fill_page(m, f->number * WIRE_PAGES + i, NULL);
        }
    }
    return NULL;
}

static void done(struct disk_request *r) {}

/* A run of granules, which are all present, or all zeroes.  The last of a disk may be shorter. */
static int write_disk(struct disk *disk, enum disk_op op, uint64_t offset, const uint8_t *bytes, uint64_t length)
{
    if (length > disk->size - offset)
        length = disk->size - offset;
    struct iovec iov = {(void *)(uintptr_t)bytes, length};
    struct disk_request r = {.op = op,
                             .flags = op == DISK_WRITE_ZEROES ? DISK_UNMAP : 0,
                             .offset = offset,
                             .length = length,
                             .iov = &iov,
                             .n_iov = op == DISK_WRITE,
                             .done = done,
                             .result = -EIO};
    disk_submit(disk, &r);
    disk_drain(disk);
    return r.result;
}

static int write_runs(struct disk *disk, const struct wire_frame *f, uint16_t bits, enum disk_op op)
{
    const uint8_t *from = f->bytes;
    int err = 0;

    for (unsigned i = 0; i < WIRE_PAGES && !err;) {
        unsigned n = 0;
        while (i + n < WIRE_PAGES && bits >> (i + n) & 1)
            n++;
        if (n)
            err = write_disk(disk, op, f->number * WIRE_CHUNK + i * WIRE_PAGE, from, (uint64_t)n * WIRE_PAGE);
        from += n * WIRE_PAGE;
        i += n ? n : 1;
    }
    return err;
}

static const char *take_disk(struct incoming *in, const struct wire_frame *f, int *err)
{
    struct vm *vm = in->vm;

    if (!record_has_disk(vm->config->life->record))
        return "it has a disk that it did not speak of";
    struct disk *disk = vm->disks[0];
    if (disk->away)
        return "it sends a disk that stays where it is";
    if (f->number >= disk_log_pieces(disk) || beyond(f->number, disk->size) & (f->present | f->zeroes))
        return "it has a larger disk than it said";
    pthread_mutex_lock(&vm->bus->lock);
    *err = write_runs(disk, f, f->present, DISK_WRITE);
    if (!*err)
        *err = write_runs(disk, f, f->zeroes, DISK_WRITE_ZEROES);
    pthread_mutex_unlock(&vm->bus->lock);
    return NULL;
}

static const char *take_section(struct incoming *in, const struct wire_frame *f, int *err)
{
    const struct section *s = f->section;

    pthread_mutex_lock(&in->lock);
    bool twice = sections_find(&in->sections, s->kind, s->name) != NULL;
    *err = twice ? 0 : sections_add(&in->sections, s->kind, s->name, s->version, s->bytes, s->size);
    pthread_mutex_unlock(&in->lock);
    return twice ? "a part of it is there twice" : NULL;
}

/* 0, or -errno with a sentence. */
static int take(struct incoming *in, const struct wire_frame *f, char *why, size_t n)
{
    const char *bad = NULL;
    int err = 0;

    if (f->type == WIRE_MEMORY)
        bad = take_memory(in, f);
    else if (f->type == WIRE_DISK)
        bad = take_disk(in, f, &err);
    else if (f->type == WIRE_SECTION)
        bad = take_section(in, f, &err);
    else
        bad = "something comes that only a destination says";
    if (bad)
        return error_set(why, n, -EBADMSG, "%s", bad);
    return err ? error_sys(why, n, err, f->type == WIRE_DISK ? "its disk cannot be written" : "it cannot be kept") : 0;
}

static int receive_all(struct incoming_stream *s, char *why, size_t n)
{
    struct wire_frame f;
    const char *bad = NULL;

    for (;;) {
        int err = wire_get(&s->wire, &f, &bad);
        if (err)
            return bad ? error_set(why, n, err, "%s", bad)
                       : error_sys(why, n, err, "the source has gone before all was sent");
        if (f.type == WIRE_END)
            return 0;
        err = take(s->incoming, &f, why, n);
        if (err)
            return err;
    }
}

static void *receiver_main(void *opaque)
{
    struct incoming_stream *s = opaque;
    struct incoming *in = s->incoming;
    char why[ERROR_SIZE] = "its thread cannot enter the sandbox";

    prctl(PR_SET_NAME, "incoming");
    /* That of a vCPU's thread: it does what that does, use memory and drive disks. */
    int err = sandbox_thread(in->vm->sandbox, vm_vcpu_role(in->vm));
    if (!err)
        err = receive_all(s, why, sizeof why);
    pthread_mutex_lock(&in->lock);
    if (err && !in->failed) {
        in->failed = err;
        snprintf(in->reason, sizeof in->reason, "%.*s", (int)sizeof in->reason - 1, why);
    }
    bool all = ++in->ended == in->n_streams || err;
    pthread_mutex_unlock(&in->lock);
    if (all)
        (void)!write(in->notice[1], "", 1);
    return NULL;
}

int incoming_threads_start(struct incoming *in)
{
    int err = 0;

    for (unsigned i = 0; i < in->n_streams && !err; i++) {
        err = thread_start(&in->streams[i].thread, NULL, receiver_main, &in->streams[i]);
        in->streams[i].has_thread = !err;
    }
    return err;
}

void incoming_threads_join(struct incoming *in)
{
    for (unsigned i = 0; i < in->n_streams + in->n_extra; i++) {
        if (in->streams[i].has_thread)
            pthread_join(in->streams[i].thread, NULL);
        in->streams[i].has_thread = false;
    }
}

/* A thread may be waiting for the lock of the bus, which the caller has. */
void incoming_threads_stop(struct incoming *in)
{
    for (unsigned i = 0; i < in->n_streams + in->n_extra; i++)
        shutdown(in->streams[i].wire.fd, SHUT_RDWR);
    incoming_threads_join(in);
    for (unsigned i = 0; i < in->n_streams + in->n_extra; i++) {
        close(in->streams[i].wire.fd);
        wire_close(&in->streams[i].wire);
    }
    in->n_streams = in->n_extra = 0;
}
