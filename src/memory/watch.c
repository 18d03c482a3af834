#include "memory/watch.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/simd.h"
#include "memory/faults.h"
#include "memory/template.h"

enum { KEEP = 1, ABSENT = 2 };

struct memory_watch {
    pthread_mutex_t lock; /* guards the contents of chunks that have a bit set, and clearing bits */
    struct memory_keeper keeper;
    struct memory_source source;
    pthread_cond_t brought; /* some chunk that was to come */
    uint64_t n;
    _Atomic bool logging;
    _Atomic uint16_t *noted;     /* by chunk, a bit for each page: written to */
    _Atomic bool busy;           /* some chunk has a bit set, perhaps */
    uint8_t buffer[WATCH_CHUNK]; /* of the holder of the lock */
    _Atomic uint8_t state[];
};

uint64_t memory_chunks(const struct memory *m)
{
    return (m->size + WATCH_CHUNK - 1) >> WATCH_SHIFT;
}

/* The parts of RAM begin and end at multiples of a chunk, but for the last one's end. */
static uint8_t *chunk_at(const struct memory *m, uint64_t chunk)
{
    uint64_t offset = chunk << WATCH_SHIFT;
    return m->base + (offset < m->low_size ? offset : offset - m->low_size + MEMORY_HOLE_END);
}

static uint32_t length_of(const struct memory *m, uint64_t chunk)
{
    uint64_t left = m->size - (chunk << WATCH_SHIFT);
    return left < WATCH_CHUNK ? (uint32_t)left : WATCH_CHUNK;
}

static int begin(struct memory *m)
{
    uint64_t n = memory_chunks(m);

    if (m->watch)
        return 0;
    m->watch = calloc(1, sizeof *m->watch + n);
    if (!m->watch)
        return -ENOMEM;
    m->watch->n = n;
    pthread_mutex_init(&m->watch->lock, NULL);
    pthread_cond_init(&m->watch->brought, NULL);
    return 0;
}

static void set_all(struct memory *m, uint8_t bit)
{
    struct memory_watch *w = m->watch;

    for (uint64_t i = 0; i < w->n; i++)
        atomic_fetch_or_explicit(&w->state[i], bit, memory_order_relaxed);
    atomic_store(&w->busy, true);
    atomic_store(&m->watched, true);
}

static void clear_all(struct memory *m, uint8_t bit)
{
    struct memory_watch *w = m->watch;
    uint8_t left = 0;

    if (!w)
        return;
    pthread_mutex_lock(&w->lock);
    for (uint64_t i = 0; i < w->n; i++)
        left |= atomic_fetch_and(&w->state[i], (uint8_t)~bit) & (uint8_t)~bit;
    atomic_store(&w->busy, left != 0);
    atomic_store(&m->watched, left != 0 || w->logging || (m->templates && memory_is_announced(m)));
    pthread_mutex_unlock(&w->lock);
}

void memory_fill_chunk(struct memory *m, uint64_t chunk, const void *bytes)
{
    memcpy(chunk_at(m, chunk), bytes, length_of(m, chunk));
}

void memory_fill_page(struct memory *m, uint64_t page, const void *bytes)
{
    uint64_t offset = page << LOG_SHIFT;
    uint64_t gpa = offset < m->low_size ? offset : offset - m->low_size + MEMORY_HOLE_END;

    if (bytes)
        memcpy(m->base + gpa, bytes, 1u << LOG_SHIFT);
    else
        (void)memory_discard(m, gpa, 1u << LOG_SHIFT);
}

/* By the files: reading a hole there takes no memory, where reading by the mapping would. */
static void copy(struct memory *m, uint64_t chunk, uint8_t *out, uint32_t length)
{
    if (memory_peek(m, chunk << WATCH_SHIFT, out, length))
        memcpy(out, chunk_at(m, chunk), length);
}

bool memory_read_chunk(struct memory *m, uint64_t chunk, uint8_t *out)
{
    uint32_t length = length_of(m, chunk);

    if (m->watch && memory_lacks_chunk(m, chunk))
        memory_load_chunk(m, chunk, NULL);
    bool there = memory_has_data(m, chunk << WATCH_SHIFT, length);
    memset(out + (there ? length : 0), 0, WATCH_CHUNK - (there ? length : 0));
    if (there)
        copy(m, chunk, out, length);
    return there;
}

void memory_watch_destroy(struct memory *m)
{
    if (!m->watch)
        return;
    free(m->watch->noted);
    pthread_cond_destroy(&m->watch->brought);
    pthread_mutex_destroy(&m->watch->lock);
    free(m->watch);
}

/* --- with the lock held ---------------------------------------------------------------------------------------- */

static bool load(struct memory *m, uint64_t chunk)
{
    struct memory_watch *w = m->watch;

    if (!(atomic_load(&w->state[chunk]) & ABSENT))
        return false;
    if (w->source.ask) {
        w->source.ask(w->source.opaque, chunk);
        while (atomic_load(&w->state[chunk]) & ABSENT)
            pthread_cond_wait(&w->brought, &w->lock);
        return true;
    }
    const bool told = memory_faults_are_told(m);
    w->source.load(w->source.opaque, chunk, told ? w->buffer : chunk_at(m, chunk), length_of(m, chunk));
    int err = told ? memory_faults_put(m, chunk_at(m, chunk), w->buffer, length_of(m, chunk)) : 0;
    if (err)
        w->source.lost(w->source.opaque, err);
    atomic_fetch_and(&w->state[chunk], (uint8_t)~ABSENT);
    return true;
}

static void keep(struct memory *m, uint64_t chunk)
{
    struct memory_watch *w = m->watch;
    uint32_t length = length_of(m, chunk);

    if (!(atomic_load(&w->state[chunk]) & KEEP))
        return;
    copy(m, chunk, w->buffer, length);
    w->keeper.keep(w->keeper.opaque, chunk, w->buffer, length);
    atomic_fetch_and(&w->state[chunk], (uint8_t)~KEEP);
}

/* --- announcements ---------------------------------------------------------------------------------------------- */

/* In ordinary code, which may use SIMD registers. */
static __attribute__((noinline)) void announce(struct memory *m, uint64_t chunk, bool write)
{
    struct memory_watch *w = m->watch;

    if (write && (atomic_load(&w->state[chunk]) & KEEP))
        w->keeper.room(w->keeper.opaque);
    pthread_mutex_lock(&w->lock);
    load(m, chunk);
    if (write)
        keep(m, chunk);
    pthread_mutex_unlock(&w->lock);
}

static __attribute__((noinline)) void announce_all(struct memory *m, uint64_t gpa, uint64_t len, bool write)
{
    const uint8_t matters = write ? KEEP | ABSENT : ABSENT;
    const uint64_t first = memory_offset(m, gpa) >> WATCH_SHIFT, last = memory_offset(m, gpa + len - 1) >> WATCH_SHIFT;

    for (uint64_t i = first; m->watch && i <= last; i++)
        if (atomic_load_explicit(&m->watch->state[i], memory_order_acquire) & matters)
            announce(m, i, write);
    if (write)
        memory_own(m, gpa, len);
}

/* The guest's SIMD state may be live. */
SIMD_GENERAL __attribute__((noinline)) static void announce_quietly(struct memory *m, uint64_t gpa, uint64_t len,
                                                                    bool write)
{
    struct simd_area area;

    simd_put_aside(&area);
    announce_all(m, gpa, len, write);
    simd_take_back(&area);
}

SIMD_GENERAL static bool is_noted(const struct memory_watch *w, uint64_t page)
{
    return atomic_load_explicit(&w->noted[page / LOG_PER_CHUNK], memory_order_relaxed) >> page % LOG_PER_CHUNK & 1;
}

/* Pages that are about to be written to: who reads the log does so when that is done. */
SIMD_GENERAL static void note(const struct memory *m, uint64_t gpa, uint64_t len)
{
    struct memory_watch *w = m->watch;

    if (!w || !w->logging)
        return;
    for (uint64_t i = memory_offset(m, gpa) >> LOG_SHIFT; i <= memory_offset(m, gpa + len - 1) >> LOG_SHIFT; i++)
        if (!is_noted(w, i))
            atomic_fetch_or_explicit(&w->noted[i / LOG_PER_CHUNK], (uint16_t)(1u << i % LOG_PER_CHUNK),
                                     memory_order_relaxed);
}

/* Is there anything to be done first? */
SIMD_GENERAL static bool matters(const struct memory *m, uint64_t gpa, uint64_t len, bool write)
{
    const uint8_t bits = write ? KEEP | ABSENT : ABSENT;
    const uint64_t first = memory_offset(m, gpa) >> WATCH_SHIFT, last = memory_offset(m, gpa + len - 1) >> WATCH_SHIFT;

    for (uint64_t i = first; m->watch && i <= last; i++)
        if (atomic_load_explicit(&m->watch->state[i], memory_order_acquire) & bits)
            return true;
    return write && m->templates && !memory_owns(m, gpa, len);
}

SIMD_GENERAL void memory_announce(const struct memory *memory, uint64_t gpa, uint64_t len, bool write)
{
    struct memory *m = (struct memory *)memory; /* its contents are what they were: only where they are has changed */

    if (!len)
        return;
    if (write)
        note(m, gpa, len);
    if (matters(m, gpa, len, write))
        announce_quietly(m, gpa, len, write);
}

SIMD_GENERAL bool memory_may_write_unseen(const struct memory *m, uint64_t gpa)
{
    const struct memory_watch *w = m->watch;

    if (m->templates && !memory_owns(m, gpa, 1))
        return false;
    return !w || (!(atomic_load_explicit(&w->state[memory_offset(m, gpa) >> WATCH_SHIFT], memory_order_acquire) &
                    (KEEP | ABSENT)) &&
                  (!w->logging || is_noted(w, memory_offset(m, gpa) >> LOG_SHIFT)));
}

bool memory_is_here(const struct memory *m, uint64_t gpa)
{
    return !m->watch || !memory_is_ram(m, gpa, 1) || !memory_lacks_chunk(m, memory_offset(m, gpa) >> WATCH_SHIFT);
}

bool memory_is_settled(const struct memory *m)
{
    const struct memory_watch *w = m->watch;

    return !w || (!atomic_load_explicit(&w->busy, memory_order_relaxed) && !w->logging && !memory_faults_are_told(m));
}

void memory_watch_discard(struct memory *m, uint64_t gpa, uint64_t len)
{
    const uint64_t last = memory_offset(m, gpa + len - 1) >> WATCH_SHIFT;

    if (memory_is_watched(m))
        note(m, gpa, len);
    for (uint64_t i = memory_offset(m, gpa) >> WATCH_SHIFT; memory_is_watched(m) && m->watch && i <= last; i++)
        announce(m, i, true);
    memory_own_zeroes(m, gpa, len);
}

/* --- keeping ------------------------------------------------------------------------------------------------------ */

int memory_keep_begin(struct memory *m, const struct memory_keeper *keeper)
{
    int err = begin(m);

    if (err)
        return err;
    m->watch->keeper = *keeper;
    set_all(m, KEEP);
    return 0;
}

bool memory_keep_take(struct memory *m, uint64_t chunk, void *out, uint32_t *length)
{
    struct memory_watch *w = m->watch;
    bool taken = false;

    pthread_mutex_lock(&w->lock);
    load(m, chunk);
    if (atomic_load(&w->state[chunk]) & KEEP) {
        *length = length_of(m, chunk);
        copy(m, chunk, out, *length);
        atomic_fetch_and(&w->state[chunk], (uint8_t)~KEEP);
        taken = true;
    }
    pthread_mutex_unlock(&w->lock);
    return taken;
}

bool memory_keep_look(struct memory *m, uint64_t chunk, void *out)
{
    struct memory_watch *w = m->watch;

    pthread_mutex_lock(&w->lock);
    bool kept = atomic_load(&w->state[chunk]) & KEEP;
    if (kept)
        copy(m, chunk, out, length_of(m, chunk));
    pthread_mutex_unlock(&w->lock);
    return kept;
}

/* What is a hole in the files was so at the beginning, or it would have been kept before it was written to.  But one
 * that is absent has its contents elsewhere. */
uint64_t memory_keep_skip(struct memory *m, uint64_t chunk)
{
    struct memory_watch *w = m->watch;
    uint64_t data = memory_next_data(m, chunk << WATCH_SHIFT), first = data < m->size ? data >> WATCH_SHIFT : w->n;

    pthread_mutex_lock(&w->lock);
    while (chunk < first && !(atomic_load(&w->state[chunk]) & ABSENT))
        atomic_fetch_and(&w->state[chunk++], (uint8_t)~KEEP);
    pthread_mutex_unlock(&w->lock);
    return chunk;
}

void memory_keep_end(struct memory *m)
{
    clear_all(m, KEEP);
}

/* --- loading ------------------------------------------------------------------------------------------------------ */

int memory_load_begin(struct memory *m, const struct memory_source *source)
{
    int err = begin(m);

    if (err)
        return err;
    m->watch->source = *source;
    set_all(m, ABSENT);
    for (uint64_t i = 0; i < m->watch->n; i++)
        if (!source->has(source->opaque, i))
            atomic_fetch_and_explicit(&m->watch->state[i], (uint8_t)~ABSENT, memory_order_relaxed);
    return 0;
}

bool memory_load_chunk(struct memory *m, uint64_t chunk, bool *asking)
{
    bool unused = false;

    pthread_mutex_lock(&m->watch->lock);
    asking = asking ? asking : &unused;
    *asking = true;
    bool loaded = load(m, chunk);
    *asking = false;
    pthread_mutex_unlock(&m->watch->lock);
    return loaded;
}

bool memory_want_chunk(struct memory *m, uint64_t chunk)
{
    struct memory_watch *w = m->watch;

    pthread_mutex_lock(&w->lock);
    bool absent = memory_lacks_chunk(m, chunk);
    if (absent && w->source.ask)
        w->source.ask(w->source.opaque, chunk);
    else
        load(m, chunk);
    pthread_mutex_unlock(&w->lock);
    return absent;
}

static void put_page(struct memory *m, uint64_t offset, uint8_t *to, const uint8_t *bytes)
{
    const uint32_t page = 1u << LOG_SHIFT;

    /* It must not be looked at by its address, where whoever does waits. */
    if (!memory_faults_are_told(m))
        memcpy(to, bytes, page);
    else if (pwrite(m->fd, bytes, page, (off_t)offset) != (ssize_t)page)
        m->watch->source.lost(m->watch->source.opaque, -ENOMEM);
}

/* Nobody looks at the chunk yet: not to be announced. */
static void put_pages(struct memory *m, uint64_t chunk, uint16_t present, uint16_t zeroes, const uint8_t *bytes)
{
    static const uint8_t nothing[1u << LOG_SHIFT];
    const uint32_t page = 1u << LOG_SHIFT;
    uint64_t offset = chunk << WATCH_SHIFT;

    for (unsigned i = 0; i < LOG_PER_CHUNK; i++, offset += page) {
        if (present >> i & 1) {
            put_page(m, offset, chunk_at(m, chunk) + i * page, bytes);
            bytes += page;
        } else if (zeroes >> i & 1 && memory_next_data(m, offset) < offset + page &&
                   fallocate(m->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)offset, page)) {
            put_page(m, offset, chunk_at(m, chunk) + i * page, nothing);
        }
    }
    if (memory_faults_are_told(m))
        memory_faults_show(m, chunk_at(m, chunk), length_of(m, chunk));
}

bool memory_bring_chunk(struct memory *m, uint64_t chunk, uint16_t present, uint16_t zeroes, const void *bytes)
{
    struct memory_watch *w = m->watch;

    pthread_mutex_lock(&w->lock);
    bool lacked = memory_lacks_chunk(m, chunk);
    if (lacked) {
        put_pages(m, chunk, present, zeroes, bytes);
        atomic_fetch_and(&w->state[chunk], (uint8_t)~ABSENT);
        pthread_cond_broadcast(&w->brought);
    }
    pthread_mutex_unlock(&w->lock);
    return lacked;
}

bool memory_lacks_chunk(const struct memory *m, uint64_t chunk)
{
    return atomic_load(&m->watch->state[chunk]) & ABSENT;
}

void memory_load_end(struct memory *m)
{
    clear_all(m, ABSENT);
}

/* --- which pages are written to ---------------------------------------------------------------------------------- */

int memory_log_begin(struct memory *m)
{
    int err = begin(m);

    if (err)
        return err;
    if (!m->watch->noted)
        m->watch->noted = calloc(m->watch->n, sizeof *m->watch->noted);
    if (!m->watch->noted)
        return -ENOMEM;
    for (uint64_t i = 0; i < m->watch->n; i++)
        m->watch->noted[i] = 0;
    err = m->writer ? m->writer->begin(m->writer_opaque) : 0;
    if (err)
        return err;
    m->watch->logging = true;
    atomic_store(&m->watched, true);
    return 0;
}

/* The parts of RAM begin at multiples of 64 pages, and what is behind the end of one is not there. */
void memory_log_note(struct memory *m, uint64_t gpa, uint64_t pages)
{
    _Static_assert(64 % LOG_PER_CHUNK == 0, "a word is some chunks");
    for (uint64_t chunk = memory_offset(m, gpa) >> WATCH_SHIFT; pages && chunk < m->watch->n; chunk++) {
        uint16_t there = (uint16_t)((1u << length_of(m, chunk) / (1u << LOG_SHIFT)) - 1);
        atomic_fetch_or_explicit(&m->watch->noted[chunk], (uint16_t)pages & there, memory_order_relaxed);
        pages >>= LOG_PER_CHUNK;
    }
}

static void collect(struct memory *m)
{
    if (m->writer && m->watch->logging)
        m->writer->collect(m->writer_opaque);
}

void memory_log_take(struct memory *m, uint16_t *pages)
{
    collect(m);
    for (uint64_t i = 0; i < m->watch->n; i++)
        pages[i] = atomic_exchange_explicit(&m->watch->noted[i], 0, memory_order_relaxed);
}

uint64_t memory_log_count(struct memory *m)
{
    uint64_t count = 0;

    collect(m);
    for (uint64_t i = 0; i < m->watch->n; i++)
        count += (unsigned)__builtin_popcount(atomic_load_explicit(&m->watch->noted[i], memory_order_relaxed));
    return count;
}

uint64_t memory_log_chunks(struct memory *m)
{
    uint64_t count = 0;

    collect(m);
    for (uint64_t i = 0; i < m->watch->n; i++)
        count += atomic_load_explicit(&m->watch->noted[i], memory_order_relaxed) != 0;
    return count;
}

/* Whoever is noting something right now may finish. */
void memory_log_end(struct memory *m)
{
    if (!m->watch || !m->watch->logging)
        return;
    m->watch->logging = false;
    if (m->writer)
        m->writer->end(m->writer_opaque);
    clear_all(m, 0);
}
