#include "backends/disk/throttle.h"

#include <errno.h>
#include <stdlib.h>

#define SECOND 1000000000ull

static uint64_t max_u64(uint64_t a, uint64_t b)
{
    return a > b ? a : b;
}

static bool moves_data(const struct disk_request *r)
{
    return r->op == DISK_READ || r->op == DISK_WRITE;
}

static uint64_t due(const struct disk_throttle *t)
{
    return max_u64(t->bytes_ns, t->operations_ns);
}

static void account(struct disk_throttle *t, const struct disk_request *r, uint64_t now)
{
    uint64_t saved = now > THROTTLE_BURST_NS ? now - THROTTLE_BURST_NS : 0;

    if (t->bytes_per_second && moves_data(r))
        t->bytes_ns = max_u64(t->bytes_ns, saved) +
                      (uint64_t)((unsigned __int128)r->length * SECOND / t->bytes_per_second);
    if (t->operations_per_second)
        t->operations_ns = max_u64(t->operations_ns, saved) + SECOND / t->operations_per_second;
}

bool throttle_pass(struct disk_throttle *t, struct disk_request *r)
{
    uint64_t now = clock_ns();

    if (r->op == DISK_FLUSH)
        return true;
    if (!t->waiting && due(t) <= now) {
        account(t, r, now);
        return true;
    }
    r->next = NULL;
    *t->waiting_end = r;
    t->waiting_end = &r->next;
    loop_timer_set(t->loop, &t->timer, due(t));
    return false;
}

static void go(struct disk_throttle *t)
{
    struct disk_request *r = t->waiting;

    if (!(t->waiting = r->next))
        t->waiting_end = &t->waiting;
    t->disk->ops->submit(t->disk, r);
}

static void tick(void *opaque)
{
    struct disk_throttle *t = opaque;
    uint64_t now = clock_ns();

    while (t->waiting && due(t) <= now) {
        account(t, t->waiting, now);
        go(t);
    }
    if (t->waiting)
        loop_timer_set(t->loop, &t->timer, due(t));
    disk_kick(t->disk);
}

void throttle_release(struct disk_throttle *t)
{
    loop_timer_cancel(t->loop, &t->timer);
    while (t->waiting)
        go(t);
}

int throttle_create(struct disk_throttle **out, struct disk *disk, struct loop *loop)
{
    const struct disk_spec *spec = &disk->spec;

    *out = NULL;
    if (!spec->bytes_per_second && !spec->operations_per_second)
        return 0;
    struct disk_throttle *t = calloc(1, sizeof *t);
    if (!t)
        return -ENOMEM;
    t->disk = disk;
    t->loop = loop;
    t->bytes_per_second = spec->bytes_per_second;
    t->operations_per_second = spec->operations_per_second;
    t->waiting_end = &t->waiting;
    loop_timer_init(&t->timer, tick, t);
    *out = t;
    return 0;
}

void throttle_destroy(struct disk_throttle *t)
{
    if (!t)
        return;
    loop_timer_cancel(t->loop, &t->timer);
    free(t);
}
