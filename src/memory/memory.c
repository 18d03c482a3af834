#include "memory/memory.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/large_page.h"
#include "memory/ahead.h"
#include "memory/pagemap.h"
#include "memory/template.h"
#include "memory/watch.h"

enum { PAGE = 4096 };
#define MIB (1ull << 20)
#define LARGE_CHUNKS (LARGE_PAGE >> MEMORY_CHUNK_SHIFT)

static uint64_t min_u64(uint64_t a, uint64_t b)
{
    return a < b ? a : b;
}

/* Reserves [0, end) and a guard page behind it, aligned so that the kernel can back it by huge
 * pages (file offset and address must agree modulo 2 MiB; both start at a multiple). */
static int reserve(struct memory *m)
{
    m->base = large_page_map(m->end + PAGE, PROT_NONE);
    return m->base ? 0 : -errno;
}

static int map_piece(const struct memory *m, uint64_t gpa, uint64_t size, uint64_t file_offset)
{
    if (!size)
        return 0;
    void *p = mmap(m->base + gpa, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE | MAP_FIXED, m->fd,
                   (off_t)file_offset);
    if (p == MAP_FAILED)
        return -errno;
    /* A wish: kernels without huge pages for shared memory say no, and nothing is lost. */
    (void)madvise(p, size, MADV_HUGEPAGE);
    return 0;
}

/* Whoever is handed the file (a migration, a helper process) cannot take pages from under us. */
int memory_prepare_file(int fd, uint64_t size)
{
    if (ftruncate(fd, (off_t)(size + MEMORY_SPARE)) < 0 || fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW) < 0)
        return -errno;
    return 0;
}

int memory_create(struct memory **out, uint64_t size)
{
    if (size < MIB || size % PAGE || size > (1ull << 46))
        return -EINVAL;
    struct memory *m = calloc(1, sizeof(*m));
    if (!m)
        return -ENOMEM;
    m->fd = m->pagemap = m->faults = -1;
    m->size = size;
    m->low_size = min_u64(size, MEMORY_HOLE_START);
    m->high_size = size - m->low_size;
    m->end = m->high_size ? MEMORY_HOLE_END + m->high_size : m->low_size;

    m->touched = calloc((m->end >> MEMORY_CHUNK_SHIFT) + 1, 1);
    int err = m->touched ? 0 : -ENOMEM;
    if (!err && (m->fd = memfd_create("guise-ram", MFD_CLOEXEC | MFD_ALLOW_SEALING)) < 0)
        err = -errno;
    if (!err)
        err = memory_prepare_file(m->fd, size);
    if (!err)
        err = reserve(m);
    if (!err)
        err = map_piece(m, 0, m->low_size, 0);
    if (!err)
        err = map_piece(m, MEMORY_HOLE_END, m->high_size, m->low_size);
    if (err) {
        memory_destroy(m);
        return err;
    }
    *out = m;
    return 0;
}

void memory_destroy(struct memory *m)
{
    if (!m)
        return;
    if (m->base)
        munmap(m->base, m->end + PAGE);
    if (m->fd >= 0)
        close(m->fd);
    if (m->pagemap >= 0)
        close(m->pagemap);
    if (m->faults >= 0)
        close(m->faults);
    memory_watch_destroy(m);
    memory_ahead_destroy(m);
    memory_templates_destroy(m);
    free(m->expected);
    free(m->order);
    free(m->touched);
    free(m);
}

void memory_set_writer(struct memory *m, const struct memory_writer_ops *writer, void *opaque)
{
    m->writer = writer;
    m->writer_opaque = opaque;
    if (writer && m->pagemap < 0)
        m->pagemap = pagemap_open();
}

int memory_note_order(struct memory *m, uint32_t room)
{
    m->order = calloc(room, sizeof *m->order);
    m->order_room = room;
    return m->order ? 0 : -ENOMEM;
}

static void note_order(struct memory *m, uint64_t chunk)
{
    const uint32_t n = atomic_fetch_add(&m->n_order, 1);

    if (n < m->order_room)
        m->order[n] = (uint32_t)chunk;
}

void memory_touch_chunk(struct memory *m, uint64_t gpa)
{
    const uint64_t size = 1ull << MEMORY_CHUNK_SHIFT, chunk = gpa >> MEMORY_CHUNK_SHIFT, first = gpa & -size;
    const bool there = __atomic_exchange_n(&m->touched[chunk], MEMORY_USED, __ATOMIC_RELAXED) == MEMORY_THERE;

    if (m->order)
        note_order(m, chunk);
    if (m->ahead)
        memory_ahead_follow(m, chunk);
    /* Linux 5.14 and later; where that is not to be had, or memory is short, faults do the same or say so. */
    if (!there && memory_is_ram(m, first, size))
        (void)madvise(m->base + first, size, MADV_POPULATE_WRITE);
}

bool memory_ask_large(struct memory *m, uint64_t gpa)
{
    const uint64_t first = gpa & -LARGE_PAGE, chunk = first >> MEMORY_CHUNK_SHIFT;

    if (m->templates || !memory_is_ram(m, first, LARGE_PAGE))
        return false;
    for (unsigned i = 0; i < LARGE_CHUNKS; i++)
        if (__atomic_load_n(&m->touched[chunk + i], __ATOMIC_RELAXED) != MEMORY_NEW)
            return false;
    if (!large_page_ask(m->base + first))
        return false;
    for (unsigned i = 0; i < LARGE_CHUNKS; i++) {
        uint8_t new = MEMORY_NEW;
        __atomic_compare_exchange_n(&m->touched[chunk + i], &new, MEMORY_THERE, false, __ATOMIC_RELAXED,
                                    __ATOMIC_RELAXED);
    }
    return true;
}

int memory_read(const struct memory *m, uint64_t gpa, void *buf, size_t len)
{
    const void *p = memory_hva_read(m, gpa, len);
    if (!p)
        return -EFAULT;
    memcpy(buf, p, len);
    return 0;
}

int memory_write(struct memory *m, uint64_t gpa, const void *buf, size_t len)
{
    void *p = memory_hva(m, gpa, len);
    if (!p)
        return -EFAULT;
    memcpy(p, buf, len);
    return 0;
}

int memory_discard(struct memory *m, uint64_t gpa, uint64_t len)
{
    if (!memory_is_ram(m, gpa, len))
        return -EFAULT;
    uint64_t first = (gpa + PAGE - 1) & -(uint64_t)PAGE, end = (gpa + len) & -(uint64_t)PAGE;
    if (first >= end)
        return 0;
    memory_watch_discard(m, first, end - first);
    int err = fallocate(m->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)memory_offset(m, first),
                        (off_t)(end - first));
    return err ? -errno : 0;
}
