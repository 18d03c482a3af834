#include "memory/template_int.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define AHEAD 64u          /* pages that a writer who goes through memory gets at a time, at most */
#define ZEROES_MOST 14000u /* mappings; more are not made for pages that are given back */

/* A process may have 65530 mappings: the more there are, the larger the pieces that become a machine's own. */
static const struct {
    unsigned pieces;
    unsigned pages;
} grains[] = {{8192, 1}, {14000, 16}, {20000, 512}, {UINT32_MAX, 4096}};

struct memory_templates *templates_create(const struct memory *m, uint8_t where)
{
    uint64_t n = m->size >> PAGE_SHIFT;
    struct memory_templates *t = calloc(1, sizeof *t + n);

    if (!t)
        return NULL;
    t->n_pages = n;
    for (uint64_t i = 0; where && i < n; i++)
        atomic_init(&t->from[i], where);
    pthread_mutex_init(&t->lock, NULL);
    return t;
}

static void close_all(struct memory_templates *t)
{
    while (t->n)
        close(t->fd[--t->n]);
}

void memory_templates_destroy(struct memory *m)
{
    struct memory_templates *t = m->templates;

    if (!t)
        return;
    close_all(t);
    pthread_mutex_destroy(&t->lock);
    free(t->runs);
    free(t);
    m->templates = NULL;
}

/* --- pages of one's own; the lock is held ------------------------------------------------------------------------- */

/* Pages that have no memory: whoever writes to them now does that nowhere, and the machine ends. */
static void exhausted(struct memory *m, uint64_t first, uint64_t end)
{
    struct memory_templates *t = m->templates;

    if (mmap(at(m, first), (end - first) << PAGE_SHIFT, PROT_READ | PROT_WRITE,
             MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE, -1, 0) == MAP_FAILED)
        abort();
    if (t->exhausted)
        t->exhausted(t->opaque);
    t->exhausted = NULL;
}

static int copy(struct memory *m, uint64_t first, uint64_t end)
{
    struct memory_templates *t = m->templates;

    for (uint64_t page = first, n; page < end; page += n) {
        uint8_t where = from(t, page);
        for (n = 1; n < BATCH && page + n < end && from(t, page + n) == where; n++)
            ;
        size_t size = n << PAGE_SHIFT;
        off_t offset = (off_t)(page << PAGE_SHIFT);
        const uint8_t *bytes = memory_is_announced(m) ? t->buffer : at(m, page);
        if (where != MEMORY_OWN &&
            ((bytes == t->buffer && pread(t->fd[where], t->buffer, size, offset) != (ssize_t)size) ||
             pwrite(m->fd, bytes, size, offset) != (ssize_t)size))
            return -ENOMEM;
    }
    return 0;
}

static bool map(struct memory *m, uint64_t first, uint64_t end, int more)
{
    return mmap(at(m, first), (end - first) << PAGE_SHIFT, PROT_READ | PROT_WRITE,
                MAP_SHARED | MAP_FIXED | MAP_NORESERVE | more, m->fd, (off_t)(first << PAGE_SHIFT)) != MAP_FAILED;
}

static void note_own(struct memory_templates *t, uint64_t first, uint64_t end)
{
    for (uint64_t page = first; page < end; page++)
        atomic_store_explicit(&t->from[page], MEMORY_OWN, memory_order_release);
    t->pieces++;
}

static void give_back(struct memory *m, uint64_t first, uint64_t end)
{
    for (uint64_t page = first; page < end; page++)
        if (from(m->templates, page) != MEMORY_OWN)
            (void)fallocate(m->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)(page << PAGE_SHIFT), PAGE);
}

/* While the mapping is changed, whoever accesses it waits inside the host's kernel. */
int templates_own(struct memory *m, uint64_t first, uint64_t end, bool contents)
{
    if ((contents && copy(m, first, end)) ||
        !map(m, first, end, contents && memory_is_announced(m) ? MAP_POPULATE : 0)) {
        give_back(m, first, end);
        return -ENOMEM;
    }
    note_own(m->templates, first, end);
    return 0;
}

static void own(struct memory *m, uint64_t first, uint64_t end, bool contents)
{
    if (!templates_own(m, first, end, contents))
        return;
    exhausted(m, first, end);
    note_own(m->templates, first, end);
}

static unsigned grain(const struct memory_templates *t)
{
    unsigned i = 0;

    while (t->pieces >= grains[i].pieces)
        i++;
    return grains[i].pages;
}

/* With some behind it for who seems to go on there, and as many around it as there have to be. */
static void own_page(struct memory *m, uint64_t page)
{
    struct memory_templates *t = m->templates;
    uint64_t size = grain(t), first = page & -size, end = first + size;
    bool goes_on = page == t->next && t->length;

    for (uint64_t n = 1; goes_on && n < 2 * t->length && n < AHEAD && end < t->n_pages && from(t, end) != MEMORY_OWN;
         n++)
        end++;
    end = end < t->n_pages ? end : t->n_pages;
    if (first < m->low_size >> PAGE_SHIFT && end > m->low_size >> PAGE_SHIFT)
        end = m->low_size >> PAGE_SHIFT;
    own(m, first, end, true);
    t->next = end;
    t->length = end - page;
}

static void own_range(struct memory *m, uint64_t first, uint64_t end)
{
    for (uint64_t page = first; page < end; page++)
        if (from(m->templates, page) != MEMORY_OWN)
            own_page(m, page);
}

/* Who gives back pages here and there must not make more mappings than there can be. */
static void own_zeroes(struct memory *m, uint64_t first, uint64_t end)
{
    if (m->templates->pieces < ZEROES_MOST)
        own(m, first, end, false);
    else if (memory_is_announced(m))
        own_range(m, first, end);
    else
        memset(at(m, first), 0, (end - first) << PAGE_SHIFT);
}

/* --- pages of one's own ------------------------------------------------------------------------------------------ */

SIMD_GENERAL bool memory_owns(const struct memory *m, uint64_t gpa, uint64_t len)
{
    if (!memory_is_announced(m)) /* they are when they are written to */
        return true;
    for (uint64_t page = page_of(m, gpa), last = page_of(m, gpa + len - 1); page <= last; page++)
        if (from(m->templates, page) != MEMORY_OWN)
            return false;
    return true;
}

void memory_own(struct memory *m, uint64_t gpa, uint64_t len)
{
    struct memory_templates *t = m->templates;

    if (!t || !len || memory_owns(m, gpa, len))
        return;
    pthread_mutex_lock(&t->lock);
    own_range(m, page_of(m, gpa), page_of(m, gpa + len - 1) + 1);
    pthread_mutex_unlock(&t->lock);
}

void memory_own_zeroes(struct memory *m, uint64_t gpa, uint64_t len)
{
    struct memory_templates *t = m->templates;

    if (!t || !len)
        return;
    uint64_t page = page_of(m, gpa), end = page_of(m, gpa + len - 1) + 1;
    pthread_mutex_lock(&t->lock);
    while (page < end) {
        uint64_t first = page;
        while (page < end && from(t, page) != MEMORY_OWN)
            page++;
        if (page > first)
            own_zeroes(m, first, page);
        page += page == first;
    }
    pthread_mutex_unlock(&t->lock);
}

void memory_set_exhausted(struct memory *m, void (*fn)(void *opaque), void *opaque)
{
    m->templates->exhausted = fn;
    m->templates->opaque = opaque;
}

/* --- contents ---------------------------------------------------------------------------------------------------- */

int memory_peek(const struct memory *m, uint64_t offset, void *out, uint64_t len)
{
    const struct memory_templates *t = m->templates;

    for (uint64_t done = 0; done < len;) {
        uint64_t where = offset + done, left = PAGE - (where & (PAGE - 1));
        uint8_t number = t ? from(t, where >> PAGE_SHIFT) : MEMORY_OWN;
        size_t size = !t || left > len - done ? len - done : left;
        ssize_t got = (ssize_t)size;
        if (number != MEMORY_OWN && !memory_is_announced(m))
            memcpy((uint8_t *)out + done, at(m, where >> PAGE_SHIFT) + (where & (PAGE - 1)), size);
        else
            got = pread(number == MEMORY_OWN ? m->fd : t->fd[number], (uint8_t *)out + done, size, (off_t)where);
        if (got <= 0)
            return got < 0 ? -errno : -EIO;
        done += (uint64_t)got;
    }
    return 0;
}

uint64_t templates_next_data(int fd, uint64_t offset, uint64_t none)
{
    off_t data = lseek(fd, (off_t)offset, SEEK_DATA);

    return data >= 0 ? (uint64_t)data : errno == ENXIO ? none : offset;
}

uint64_t memory_next_data(const struct memory *m, uint64_t offset)
{
    uint64_t least = templates_next_data(m->fd, offset, m->size);

    for (unsigned i = 0; m->templates && i < m->templates->n; i++) {
        uint64_t data = templates_next_data(m->templates->fd[i], offset, m->size);
        least = data < least ? data : least;
    }
    return least < m->size ? least : m->size;
}

static uint64_t allocated(int fd)
{
    struct stat st;

    return fstat(fd, &st) ? 0 : (uint64_t)st.st_blocks * 512;
}

void memory_usage(const struct memory *m, uint64_t *owned, uint64_t *shared)
{
    const struct memory_templates *t = m->templates;
    uint64_t written = t && !memory_is_announced(m) ? private_pages(m) : 0, pages = 0, there = 0;

    *owned = allocated(m->fd) + (written << PAGE_SHIFT);
    for (unsigned i = 0; t && i < t->n; i++)
        there += allocated(t->fd[i]);
    for (uint64_t i = 0; t && i < t->n_pages; i++)
        pages += from(t, i) != MEMORY_OWN;
    pages -= written < pages ? written : pages;
    *shared = pages << PAGE_SHIFT < there ? pages << PAGE_SHIFT : there;
}

/* --- becoming a template ----------------------------------------------------------------------------------------- */

static uint64_t own_runs(const struct memory_templates *t)
{
    uint64_t n = 0;

    for (uint64_t page = 0; page < t->n_pages; page++)
        n += from(t, page) == MEMORY_OWN && (!page || from(t, page - 1) != MEMORY_OWN);
    return n;
}

/* Every piece will be a mapping of its own in each copy: small gaps between them are filled. */
static void join_runs(struct memory *m)
{
    struct memory_templates *t = m->templates;

    for (uint64_t gap = 4; own_runs(t) > RUNS_MOST; gap *= 4)
        for (uint64_t page = 1, first = 0; page < t->n_pages; page++) {
            bool is = from(t, page) == MEMORY_OWN, was = from(t, page - 1) == MEMORY_OWN;
            if (was && !is)
                first = page;
            if (is && !was && first && page - first <= gap)
                own(m, first, page, true);
        }
}

/* All that the templates hold becomes its own, and nothing was written to them privately: there is a new first one
 * then. */
static int flatten(struct memory *m)
{
    struct memory_templates *t = m->templates;

    for (uint64_t page = 0; (page = memory_next_data(m, page << PAGE_SHIFT) >> PAGE_SHIFT) < t->n_pages; page += BATCH)
        if (copy(m, page, page + BATCH < t->n_pages ? page + BATCH : t->n_pages))
            return -ENOMEM;
    uint64_t low = m->low_size >> PAGE_SHIFT;
    if (!map(m, 0, low, 0) || (low < t->n_pages && !map(m, low, t->n_pages, 0)))
        return -ENOMEM;
    for (uint64_t page = 0; page < t->n_pages; page++)
        atomic_store(&t->from[page], MEMORY_OWN);
    close_all(t);
    return 0;
}

/* Its own pages, by runs inside one of the parts of RAM. */
static bool map_own(struct memory *m, bool (*how)(struct memory *m, uint64_t first, uint64_t end))
{
    const struct memory_templates *t = m->templates;
    const uint64_t low = m->low_size >> PAGE_SHIFT;
    bool all = true;

    for (uint64_t page = 0, end; page < t->n_pages; page = end) {
        for (end = page + 1; end < t->n_pages && end != low && from(t, end) == from(t, page); end++)
            ;
        if (from(t, page) == MEMORY_OWN)
            all = how(m, page, end) && all;
    }
    return all;
}

static bool writable(struct memory *m, uint64_t first, uint64_t end)
{
    return map(m, first, end, 0);
}

static bool not_written_to(struct memory *m, uint64_t first, uint64_t end)
{
    return memory_is_announced(m) ? mprotect(at(m, first), (end - first) << PAGE_SHIFT, PROT_READ) == 0
                                  : templates_map(m, m->fd, first, end);
}

/* Its file becomes a template: what is its own is mapped as that. */
static int seal(struct memory *m)
{
    int err = 0;

    if (!map_own(m, not_written_to) || fcntl(m->fd, F_ADD_SEALS, F_SEAL_FUTURE_WRITE | F_SEAL_SEAL))
        err = -errno;
    if (err)
        (void)map_own(m, writable);
    return err;
}

void templates_begin(struct memory *m)
{
    memset(m->touched, MEMORY_USED, (m->end >> MEMORY_CHUNK_SHIFT) + 1);
    if (memory_is_announced(m))
        atomic_store(&m->watched, true);
}

static bool is_empty(int fd)
{
    struct stat st;

    return fstat(fd, &st) == 0 && st.st_size == 0;
}

/* For copies, whatever is written afterwards. */
static int note_runs(struct memory_templates *t)
{
    uint32_t n = 1;

    for (uint64_t page = 1; page < t->n_pages; page++)
        n += from(t, page) != from(t, page - 1);
    struct memory_run *runs = calloc(n, sizeof *runs);
    if (!runs)
        return -ENOMEM;
    for (uint64_t page = 0, i = 0; page < t->n_pages; page++) {
        i += page && from(t, page) != from(t, page - 1);
        uint8_t where = from(t, page);
        runs[i].from = where == MEMORY_OWN ? t->n : where;
        runs[i].pages++;
    }
    free(t->runs);
    t->runs = runs;
    t->n_runs = n;
    return 0;
}

int memory_freeze(struct memory *m, int fd)
{
    int err = !memory_can_be_common(m) ? -ENOTSUP : is_empty(fd) ? memory_prepare_file(fd, m->size) : -EINVAL;

    if (!err && !m->templates && !(m->templates = templates_create(m, MEMORY_OWN)))
        err = -ENOMEM;
    struct memory_templates *t = m->templates;
    if (!err && t->n && !memory_is_announced(m))
        err = private_gather(m);
    if (!err && t->n == MEMORY_TEMPLATES_MAX)
        err = flatten(m);
    if (!err && t->n)
        join_runs(m);
    if (!err)
        err = note_runs(t);
    if (!err)
        err = seal(m);
    if (err)
        return err;
    for (uint64_t page = 0; page < t->n_pages; page++)
        if (from(t, page) == MEMORY_OWN)
            atomic_store(&t->from[page], (uint8_t)t->n);
    t->fd[t->n++] = m->fd;
    m->fd = fd;
    t->pieces = 0;
    t->length = 0;
    templates_begin(m);
    return 0;
}

int memory_templates(const struct memory *m, int fds[MEMORY_TEMPLATES_MAX], struct memory_run **runs, uint32_t *n_runs)
{
    const struct memory_templates *t = m->templates;

    *n_runs = t->n_runs;
    *runs = malloc(t->n_runs * sizeof **runs);
    if (!*runs)
        return -ENOMEM;
    memcpy(*runs, t->runs, t->n_runs * sizeof **runs);
    memcpy(fds, t->fd, sizeof *fds * t->n);
    return (int)t->n;
}
