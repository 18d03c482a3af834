/*
 * Guest-physical memory.
 *
 * All RAM is one memfd, mapped so that hva = memory->base + gpa for every gpa that is RAM: one
 * addition translates.  The 32-bit PCI hole is a gap in that mapping, not RAM moved elsewhere:
 *
 *      gpa 0                low_size <= 3 GiB      4 GiB            4 GiB + high_size
 *      |------- RAM --------|...... hole ..........|------- RAM ------|
 *
 * Accesses outside RAM are the bus's business (bus/bus.h).
 */
#pragma once
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define MEMORY_HOLE_START 0xC0000000ull /* first gpa that is never low RAM (3 GiB) */
#define MEMORY_HOLE_END 0x100000000ull  /* where high RAM begins (4 GiB) */
#define MEMORY_SPARE (1u << 20)         /* bytes of the file behind all RAM: not the guest's but its engine's */

/*
 * An engine whose guest writes to memory without announcing it (watch.h), and that knows afterwards where: on KVM. What
 * has to be known before cannot be had with it: while it runs memory is not kept (memory_is_announced), the host's
 * kernel has to say what is to be loaded (faults.h), and copies pages of what is in common with others (template.h).
 */
struct memory_writer_ops {
    int (*begin)(void *opaque);    /* from now on it remembers which pages; 0/-errno */
    void (*collect)(void *opaque); /* memory_log_note for those, which it forgets; at any time, one thread at a time */
    void (*end)(void *opaque);
};

struct memory_ahead;
struct memory_watch;
struct memory_templates;

struct memory {
    uint8_t *base;      /* hva of gpa 0 */
    uint64_t size;      /* bytes of RAM in total */
    uint64_t low_size;  /* bytes below the hole */
    uint64_t high_size; /* bytes from 4 GiB up */
    uint64_t end;       /* one past the last RAM gpa */
    uint8_t *touched;   /* by chunk: MEMORY_USED: its pages are there, as far as nobody has taken them away */
    bool old;           /* a machine has been in it, whose devices may have written where nothing was touched */
    int fd;             /* the memfd; offset in the file = gpa for low RAM, gpa - hole for high RAM */
    /* Accesses are to be announced (watch.h).  Set while nobody accesses memory; cleared at any time. */
    _Atomic bool watched;
    struct memory_watch *watch;         /* NULL: never was */
    struct memory_templates *templates; /* template.h; NULL: none, all of it is its own */
    uint32_t *order;                    /* chunks as they came to be used, up to order_room; or NULL */
    _Atomic uint32_t n_order;
    uint32_t order_room;
    uint32_t *expected; /* chunks that will be used (ahead.h); or NULL */
    unsigned n_expected;
    struct memory_ahead *ahead;             /* ahead.h; NULL: nobody asks for pages before they are used */
    const struct memory_writer_ops *writer; /* NULL: all accesses are announced */
    void *writer_opaque;
    int pagemap; /* with such a writer: /proc/self/pagemap, or -1: it cannot be had */
    int faults;  /* faults.h: a userfaultfd, or -1 */
    bool faults_partly;
    _Atomic bool faults_begun;
    _Atomic bool faults_ended;
};

/* Allocates `size` bytes of zeroed guest RAM (a multiple of 4096, >= 1 MiB).  0 or -errno. */
int memory_create(struct memory **out, uint64_t size);
void memory_destroy(struct memory *m);

/* Or NULL.  Before memory is watched, while there are names. */
void memory_set_writer(struct memory *m, const struct memory_writer_ops *writer, void *opaque);
static inline bool memory_is_announced(const struct memory *m)
{
    return !m->writer;
}

static inline bool memory_is_ram(const struct memory *m, uint64_t gpa, uint64_t len)
{
    return (gpa < m->low_size && len <= m->low_size - gpa) ||
           (gpa >= MEMORY_HOLE_END && gpa < m->end && len <= m->end - gpa);
}

/* Where it is in the file. */
static inline uint64_t memory_offset(const struct memory *m, uint64_t gpa)
{
    return gpa < m->low_size ? gpa : gpa - MEMORY_HOLE_END + m->low_size;
}

/* Somebody is about to read, or write, RAM at [gpa, gpa+len): what memory_hva does while memory is watched (watch.h).
 * Keeps SIMD registers as they are.  memory_may_write_unseen: may a translation be kept by which pages there are
 * written without a further word? */
void memory_announce(const struct memory *m, uint64_t gpa, uint64_t len, bool write);
bool memory_may_write_unseen(const struct memory *m, uint64_t gpa);
static inline bool memory_is_watched(const struct memory *m)
{
    return __builtin_expect(atomic_load_explicit(&m->watched, memory_order_relaxed), 0);
}
static inline bool memory_may_write(const struct memory *m, uint64_t gpa)
{
    return !memory_is_watched(m) || memory_may_write_unseen(m, gpa);
}

/* The hva of [gpa, gpa+len), to be written to now or by what was begun now, or NULL unless all of it is RAM.  An
 * address that is kept for later writes must have been asked for since memory began to be watched. */
static inline void *memory_hva(const struct memory *m, uint64_t gpa, uint64_t len)
{
    if (!memory_is_ram(m, gpa, len))
        return NULL;
    if (memory_is_watched(m))
        memory_announce(m, gpa, len, true);
    return m->base + gpa;
}
/* The same, to be read only. */
static inline const void *memory_hva_read(const struct memory *m, uint64_t gpa, uint64_t len)
{
    if (!memory_is_ram(m, gpa, len))
        return NULL;
    if (memory_is_watched(m))
        memory_announce(m, gpa, len, false);
    return m->base + gpa;
}

/* Whoever is the first to use a page asks for those around it, too: guests use their memory by large pieces, and a page
 * that comes by a fault of the host's costs several times as much. */
#define MEMORY_CHUNK_SHIFT 18
enum { MEMORY_NEW, MEMORY_USED, MEMORY_THERE /* and not used yet */ };
void memory_touch_chunk(struct memory *m, uint64_t gpa);
static inline void memory_touch(struct memory *m, uint64_t gpa)
{
    if (m->touched[gpa >> MEMORY_CHUNK_SHIFT] != MEMORY_USED)
        memory_touch_chunk(m, gpa);
}

/* The 2 MiB around gpa are about to be used, or MEMORY_LARGE_MOST pieces of 1 << MEMORY_CHUNK_SHIFT there: one page of
 * the host's takes a third of the time of 512.  false: there is none (Linux before 6.1, memory is short or in pieces),
 * or some of it has been asked for before. */
#define MEMORY_LARGE_MOST 6u
bool memory_ask_large(struct memory *m, uint64_t gpa);

/* From now on it is noted in which order chunks come to be used, up to so many.  0/-ENOMEM. */
int memory_note_order(struct memory *m, uint32_t room);

/* No machine has had it yet, and nobody has asked for the piece around it, which is all zeroes. */
static inline bool memory_is_new(const struct memory *m, uint64_t gpa)
{
    return !m->old && m->touched[gpa >> MEMORY_CHUNK_SHIFT] == MEMORY_NEW;
}

/* Copies; -EFAULT (and nothing copied) unless all of the range is RAM.  These tell nobody about
 * writes: use dma_write of bus/bus.h where translated code may live in the page. */
int memory_read(const struct memory *m, uint64_t gpa, void *buf, size_t len);
int memory_write(struct memory *m, uint64_t gpa, const void *buf, size_t len);

/* Gives the host back the whole pages in [gpa, gpa+len): the addresses stay mapped and read as zero, nothing that
 * points there dangles.  Tells nobody, as above.  -EFAULT unless all of the range is RAM. */
int memory_discard(struct memory *m, uint64_t gpa, uint64_t len);

/* For template.c: an empty file of memory gets the size for so many bytes of RAM, and keeps it.  0/-errno. */
int memory_prepare_file(int fd, uint64_t size);
