/* A copy's side of templates: it takes them over, and what is as it was again it shares with the others again. */
#include "memory/template_int.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

/* As large as ours, and nobody can take pages from under us or change them. */
static bool usable(const struct memory *m, int fd)
{
    const int needed = F_SEAL_SHRINK | F_SEAL_FUTURE_WRITE;
    struct stat st;

    return fstat(fd, &st) == 0 && (uint64_t)st.st_size == m->size + MEMORY_SPARE &&
           (fcntl(fd, F_GET_SEALS) & needed) == needed;
}

bool templates_map(const struct memory *m, int fd, uint64_t first, uint64_t end)
{
    const bool announced = memory_is_announced(m);

    return first == end ||
           mmap(at(m, first), (end - first) << PAGE_SHIFT, announced ? PROT_READ : PROT_READ | PROT_WRITE,
                MAP_FIXED | MAP_NORESERVE | (announced ? MAP_SHARED : MAP_PRIVATE), fd,
                (off_t)(first << PAGE_SHIFT)) != MAP_FAILED;
}

static int adopt_run(struct memory *m, const int *fds, uint64_t first, const struct memory_run *r)
{
    uint64_t end = first + r->pages, low = m->low_size >> PAGE_SHIFT, split = first < low && end > low ? low : first;

    for (uint64_t page = first; r->from && page < end; page++) /* it is zero: not written to, no memory */
        atomic_store(&m->templates->from[page], (uint8_t)r->from);
    return templates_map(m, fds[r->from], first, split) && templates_map(m, fds[r->from], split, end) ? 0 : -errno;
}

int memory_adopt(struct memory *m, const int *fds, unsigned n, const struct memory_run *runs, uint32_t n_runs)
{
    uint64_t pages = 0, page = 0;
    int err = 0;

    if (!memory_can_be_common(m))
        return -ENOTSUP;
    if (!n || n > MEMORY_TEMPLATES_MAX || m->templates)
        return -EINVAL;
    for (unsigned i = 0; i < n; i++)
        if (!usable(m, fds[i]))
            return -EINVAL;
    for (uint32_t i = 0; i < n_runs; pages += runs[i++].pages)
        if (runs[i].from >= n || runs[i].pages > (m->size >> PAGE_SHIFT) - pages)
            return -EINVAL;
    if (pages != m->size >> PAGE_SHIFT)
        return -EINVAL;
    m->templates = templates_create(m, 0);
    if (!m->templates)
        return -ENOMEM;
    for (uint32_t i = 0; i < n_runs && !err; page += runs[i++].pages)
        err = adopt_run(m, fds, page, &runs[i]);
    if (err)
        return err;
    memcpy(m->templates->fd, fds, n * sizeof *fds);
    m->templates->n = n;
    templates_begin(m);
    return 0;
}

/* --- as they were again ------------------------------------------------------------------------------------------ */

static bool is_same(const struct memory *m, uint64_t page, unsigned number)
{
    struct memory_templates *t = m->templates;

    return pread(t->fd[number], t->buffer, PAGE, (off_t)(page << PAGE_SHIFT)) == PAGE &&
           memcmp(t->buffer, at(m, page), PAGE) == 0;
}

/* The youngest that has it so; t->n: none. */
static unsigned same_in(const struct memory *m, uint64_t page)
{
    const struct memory_templates *t = m->templates;

    for (unsigned i = t->n; i-- > 0;)
        if (is_same(m, page, i))
            return i;
    return t->n;
}

static void share_run(struct memory *m, uint64_t first, uint64_t end, unsigned number)
{
    struct memory_templates *t = m->templates;

    if (!templates_map(m, t->fd[number], first, end))
        return;
    for (uint64_t page = first; page < end; page++)
        atomic_store(&t->from[page], (uint8_t)number);
    (void)fallocate(m->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)(first << PAGE_SHIFT),
                    (off_t)((end - first) << PAGE_SHIFT));
    t->pieces -= t->pieces > 0;
}

#define LOOKED_AT_MOST 4096u /* pages: more take longer than a device may have to wait */

void memory_share_again(struct memory *m)
{
    struct memory_templates *t = m->templates;
    const uint64_t low = m->low_size >> PAGE_SHIFT;
    uint64_t looked_at = 0;

    if (!t || m->watch || !memory_is_announced(m))
        return;
    pthread_mutex_lock(&t->lock);
    for (uint64_t page = 0, end; looked_at < LOOKED_AT_MOST; page = end) {
        page = templates_next_data(m->fd, page << PAGE_SHIFT, m->size) >> PAGE_SHIFT;
        if (page >= t->n_pages)
            break;
        const unsigned number = from(t, page) == MEMORY_OWN ? same_in(m, page) : t->n;
        for (end = page + 1; number != t->n && end < t->n_pages && end != low && end - page < LOOKED_AT_MOST; end++)
            if (from(t, end) != MEMORY_OWN || !is_same(m, end, number))
                break;
        if (number != t->n)
            share_run(m, page, end, number);
        looked_at += end - page;
    }
    pthread_mutex_unlock(&t->lock);
}
