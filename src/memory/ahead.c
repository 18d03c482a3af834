#include "memory/ahead.h"

#include <errno.h>
#include <linux/futex.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/simd.h"

#define CHUNK (1ull << MEMORY_CHUNK_SHIFT)
#define FARTHEST 4u /* chunks from the one in use: the end of a run costs as many for nothing */

/* The last run that somebody follows: others are forgotten, and ask for themselves. */
#define DOWNWARDS 1u
struct memory_ahead {
    _Atomic uint64_t wanted; /* the chunk after which it goes on, + 1, times 2, and DOWNWARDS; 0: nothing */
    _Atomic uint32_t rung;   /* counts; what the thread sleeps on */
    _Atomic bool ended;
};

int memory_ahead_create(struct memory *m)
{
    m->ahead = calloc(1, sizeof *m->ahead);
    return m->ahead ? 0 : -ENOMEM;
}

void memory_ahead_destroy(struct memory *m)
{
    free(m->ahead);
    m->ahead = NULL;
}

SIMD_GENERAL static void ring(struct memory_ahead *a)
{
    atomic_fetch_add(&a->rung, 1);
    syscall(SYS_futex, &a->rung, FUTEX_WAKE_PRIVATE, 1, NULL, NULL, 0);
}

void memory_ahead_end(struct memory *m)
{
    atomic_store(&m->ahead->ended, true);
    ring(m->ahead);
}

/* MEMORY_NEW where there is none. */
SIMD_GENERAL static uint8_t state(const struct memory *m, uint64_t chunk)
{
    return memory_is_ram(m, chunk << MEMORY_CHUNK_SHIFT, CHUNK) ? __atomic_load_n(&m->touched[chunk], __ATOMIC_RELAXED)
                                                                : MEMORY_NEW;
}

/* The chunk that is to be asked for next for a run that has come to `chunk`, or UINT64_MAX. */
SIMD_GENERAL static uint64_t next(const struct memory *m, uint64_t chunk, bool down)
{
    for (unsigned i = 0; i < FARTHEST; i++) {
        chunk = down ? chunk - 1 : chunk + 1;
        if (!memory_is_ram(m, chunk << MEMORY_CHUNK_SHIFT, CHUNK) || state(m, chunk) == MEMORY_USED)
            return UINT64_MAX;
        if (state(m, chunk) == MEMORY_NEW)
            return chunk;
    }
    return UINT64_MAX;
}

SIMD_GENERAL void memory_ahead_follow(struct memory *m, uint64_t chunk)
{
    const bool up = state(m, chunk - 1) == MEMORY_USED, down = !up && state(m, chunk + 1) == MEMORY_USED;

    if ((!up && !down) || next(m, chunk, down) == UINT64_MAX)
        return;
    atomic_store(&m->ahead->wanted, (chunk + 1) << 1 | (down ? DOWNWARDS : 0));
    ring(m->ahead);
}

static bool populate_chunk(struct memory *m, uint64_t chunk)
{
    uint8_t new = MEMORY_NEW;

    if (madvise(m->base + (chunk << MEMORY_CHUNK_SHIFT), CHUNK, MADV_POPULATE_WRITE))
        return false;
    __atomic_compare_exchange_n(&m->touched[chunk], &new, MEMORY_THERE, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED);
    return true;
}

static void populate(struct memory *m, uint64_t wanted)
{
    uint64_t from = (wanted >> 1) - 1, chunk;

    while ((chunk = next(m, from, wanted & DOWNWARDS)) != UINT64_MAX)
        if (!populate_chunk(m, chunk) || atomic_load(&m->ahead->wanted))
            return;
}

void memory_ahead_expect(struct memory *m, uint32_t *chunks, unsigned n)
{
    free(m->expected);
    m->expected = chunks;
    m->n_expected = n;
}

#define LARGE_SHIFT (21 - MEMORY_CHUNK_SHIFT)

/* How many chunks of each 2 MiB are expected; NULL: no memory for that. */
static uint8_t *count_expected(const struct memory *m)
{
    uint8_t *count = calloc((m->end >> 21) + 1, 1);

    for (unsigned i = 0; count && i < m->n_expected; i++)
        if (m->expected[i] < m->end >> MEMORY_CHUNK_SHIFT)
            count[m->expected[i] >> LARGE_SHIFT]++;
    return count;
}

static void populate_expected(struct memory *m)
{
    uint8_t *count = count_expected(m);

    for (unsigned i = 0; i < m->n_expected && !atomic_load(&m->ahead->ended); i++) {
        const uint64_t chunk = m->expected[i];
        if (!memory_is_ram(m, chunk << MEMORY_CHUNK_SHIFT, CHUNK) || state(m, chunk) != MEMORY_NEW)
            continue;
        if (count && count[chunk >> LARGE_SHIFT] >= MEMORY_LARGE_MOST &&
            memory_ask_large(m, chunk << MEMORY_CHUNK_SHIFT))
            continue;
        if (!populate_chunk(m, chunk))
            break;
    }
    free(count);
}

void memory_ahead_serve(struct memory *m)
{
    struct memory_ahead *a = m->ahead;

    populate_expected(m);

    while (!atomic_load(&a->ended)) {
        uint32_t rung = atomic_load(&a->rung);
        uint64_t wanted = atomic_exchange(&a->wanted, 0);
        if (wanted)
            populate(m, wanted);
        else
            syscall(SYS_futex, &a->rung, FUTEX_WAIT_PRIVATE, rung, NULL, NULL, 0);
    }
}
