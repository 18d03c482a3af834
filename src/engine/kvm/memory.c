/*
 * The guest's memory, as KVM's slots.  What the guest writes there nobody hears of before; but KVM remembers which
 * pages it were, and says so when asked (memory/memory.h: struct memory_writer_ops).
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>

#include "engine/kvm/kvm_int.h"
#include "memory/watch.h"

#define SLOTS 2u
#define PAGES_PER_WORD 64u

/* [*gpa, *gpa + result): low RAM is slot 0, high RAM slot 1. */
static uint64_t slot_extent(const struct kvm_engine *e, unsigned slot, uint64_t *gpa)
{
    const struct memory *m = e->config.memory;
    *gpa = slot ? MEMORY_HOLE_END : 0;
    return slot ? m->high_size : m->low_size;
}

int kvm_set_slots(struct kvm_engine *e, bool logged)
{
    for (unsigned i = 0; i < SLOTS; i++) {
        uint64_t gpa, size = slot_extent(e, i, &gpa);
        struct kvm_userspace_memory_region region = {
            .slot = i,
            .flags = logged ? KVM_MEM_LOG_DIRTY_PAGES : 0,
            .guest_phys_addr = gpa,
            .memory_size = size,
            .userspace_addr = (uintptr_t)e->config.memory->base + gpa,
        };
        if (size && ioctl(e->vm, KVM_SET_USER_MEMORY_REGION, &region))
            return -errno;
    }
    return 0;
}

/* --- what it was ----------------------------------------------------------------------------------- */

static uint64_t words_of(uint64_t size)
{
    return (size / 4096 + PAGES_PER_WORD - 1) / PAGES_PER_WORD;
}

static void log_end(void *opaque)
{
    struct kvm_engine *e = opaque;
    (void)kvm_set_slots(e, false); /* else it is remembered in vain */
    for (unsigned i = 0; i < SLOTS; i++) {
        free(e->dirty[i]);
        e->dirty[i] = NULL;
    }
}

static int log_begin(void *opaque)
{
    struct kvm_engine *e = opaque;
    int err = 0;
    for (unsigned i = 0; i < SLOTS && !err; i++) {
        uint64_t gpa, size = slot_extent(e, i, &gpa);
        free(e->dirty[i]);
        e->dirty[i] = size ? calloc(words_of(size), sizeof(uint64_t)) : NULL;
        err = size && !e->dirty[i] ? -ENOMEM : 0;
    }
    if (!err)
        err = kvm_set_slots(e, true);
    if (err)
        log_end(e);
    return err;
}

/* KVM forgets what it tells.  What it cannot tell may have been anything. */
static void log_collect(void *opaque)
{
    struct kvm_engine *e = opaque;
    for (unsigned i = 0; i < SLOTS; i++) {
        uint64_t gpa, words = words_of(slot_extent(e, i, &gpa));
        struct kvm_dirty_log log = {.slot = i, .dirty_bitmap = e->dirty[i]};
        if (!e->dirty[i])
            continue;
        if (ioctl(e->vm, KVM_GET_DIRTY_LOG, &log))
            memset(e->dirty[i], 0xff, words * sizeof(uint64_t));
        for (uint64_t w = 0; w < words; w++)
            if (e->dirty[i][w])
                memory_log_note(e->config.memory, gpa + w * PAGES_PER_WORD * 4096, e->dirty[i][w]);
    }
}

const struct memory_writer_ops kvm_writer_ops = {log_begin, log_collect, log_end};
