/* What all disks have in common: opening by words, checks of requests, the way back to the controller. */
#include "backends/disk.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "backends/disk/disk_int.h"
#include "backends/disk/disk_log.h"
#include "backends/disk/throttle.h"
#include "base/error.h"
#include "base/log.h"

int disk_open(struct disk **out, const char *words, struct loop *loop, char *err, size_t n)
{
    struct disk_spec spec;
    int failed = disk_parse(words, &spec, err, n);

    return failed ? failed : disk_open_parsed(out, &spec, loop, err, n);
}

int disk_open_parsed(struct disk **out, const struct disk_spec *spec, struct loop *loop, char *err, size_t n)
{
    int failed = disk_open_spec(out, spec, loop, err, n);

    if (failed)
        return failed;
    failed = throttle_create(&(*out)->throttle, *out, loop);
    if (failed) {
        disk_close(*out);
        return error_set(err, n, failed, "out of memory");
    }
    return 0;
}

int disk_open_spec(struct disk **out, const struct disk_spec *spec, struct loop *loop, char *err, size_t n)
{
    return disk_formats[spec->format].open(out, spec, loop, err, n);
}

void disk_init(struct disk *d, const struct disk_ops *ops, const struct disk_spec *spec)
{
    memset(d, 0, sizeof *d);
    d->ops = ops;
    d->spec = *spec;
    d->read_only = spec->read_only;
    d->away = spec->away;
    d->granularity = DISK_SECTOR;
    d->ready_end = &d->ready;
}

/* Controllers have checked already; this keeps a mistake there from becoming one in a file. */
static int check(const struct disk *d, const struct disk_request *r)
{
    if (d->away)
        return -EBUSY;
    if (d->read_only && r->op != DISK_READ && r->op != DISK_FLUSH)
        return -EROFS;
    if (r->op == DISK_FLUSH)
        return 0;
    if ((r->offset | r->length) % DISK_SECTOR || r->offset > d->size || r->length > d->size - r->offset)
        return -EINVAL;
    return r->n_iov > DISK_IOV_MAX ? -EINVAL : 0;
}

void disk_submit(struct disk *d, struct disk_request *r)
{
    int err = check(d, r);

    d->in_flight++;
    r->disk = d;
    if (d->log && !err)
        disk_log_note(d, r);
    if (err || (r->op != DISK_FLUSH && !r->length))
        disk_done_later(r, err);
    else if (!d->throttle || throttle_pass(d->throttle, r))
        d->ops->submit(d, r);
}

/* The guest sees an error and may be silent about it: whoever looks after the host reads the reason once. */
static void say(struct disk *d, const struct disk_request *r)
{
    static const char *const names[] = {[DISK_READ] = "a read",
                                        [DISK_WRITE] = "a write",
                                        [DISK_FLUSH] = "a flush",
                                        [DISK_DISCARD] = "a discard",
                                        [DISK_WRITE_ZEROES] = "a write of zeroes"};
    if (d->said || r->result == -EROFS)
        return;
    d->said = true;
    log_say("disk %s: %s failed, which the guest gets as an I/O error: %s", d->spec.path, names[r->op],
            strerror(-r->result));
}

/* Of READ and WRITE the length; discarding moves no bytes. */
static void count(struct disk_counters *c, const struct disk_request *r)
{
    uint64_t *const counts[] = {[DISK_READ] = &c->reads,
                                [DISK_WRITE] = &c->writes,
                                [DISK_FLUSH] = &c->flushes,
                                [DISK_DISCARD] = &c->others,
                                [DISK_WRITE_ZEROES] = &c->others};

    if (r->result) {
        c->errors++;
        return;
    }
    ++*counts[r->op];
    c->read_bytes += r->op == DISK_READ ? r->length : 0;
    c->written_bytes += r->op == DISK_WRITE ? r->length : 0;
}

void disk_done(struct disk_request *r, int result)
{
    struct disk *d = r->disk;

    r->result = result;
    d->in_flight--;
    count(&d->counters, r);
    if (result)
        say(d, r);
    r->done(r);
}

void disk_done_later(struct disk_request *r, int result)
{
    struct disk *d = r->disk;

    r->result = result;
    r->next = NULL;
    *d->ready_end = r;
    d->ready_end = &r->next;
}

static void deliver(struct disk *d)
{
    struct disk_request *r = d->ready, *next;

    d->ready = NULL;
    d->ready_end = &d->ready;
    for (; r; r = next) {
        next = r->next;
        disk_done(r, r->result);
    }
}

void disk_kick(struct disk *d)
{
    if (d->kicking) {
        d->again = true;
        return;
    }
    d->kicking = true;
    do {
        d->again = false;
        deliver(d);
        d->ops->kick(d);
    } while (d->again || d->ready);
    d->kicking = false;
}

void disk_drain(struct disk *d)
{
    do {
        if (d->throttle)
            throttle_release(d->throttle);
        disk_kick(d);
    } while (d->in_flight && d->ops->wait(d));
}

void disk_close(struct disk *d)
{
    if (!d)
        return;
    disk_drain(d);
    throttle_destroy(d->throttle);
    d->throttle = NULL;
    disk_log_end(d);
    d->ops->close(d);
}

/* On the heap, as a backend whose drain gives up may still have it. */
struct read_now {
    struct disk_request request;
    struct iovec iov;
    bool over, abandoned;
    uint8_t data[];
};

static void read_done(struct disk_request *r)
{
    struct read_now *now = (struct read_now *)r;

    now->over = true;
    if (now->abandoned)
        free(now);
}

int disk_read_now(struct disk *d, uint64_t offset, void *data, uint64_t length)
{
    struct read_now *now = malloc(sizeof *now + length);

    if (!now)
        return -ENOMEM;
    *now = (struct read_now){.iov = {now->data, length}};
    now->request = (struct disk_request){
        .op = DISK_READ, .offset = offset, .length = length, .iov = &now->iov, .n_iov = 1, .done = read_done};
    disk_submit(d, &now->request);
    disk_drain(d);
    if (!now->over) {
        now->abandoned = true;
        return -EIO;
    }
    int result = now->request.result;
    if (!result)
        memcpy(data, now->data, length);
    free(now);
    return result;
}
