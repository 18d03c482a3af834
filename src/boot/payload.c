/*
 * What a bzImage carries, unpacked: the kernel proper as an ELF file, its relocations behind it (boot.rst,
 * "payload_offset"; scripts/Makefile.lib for the formats).  The last four bytes say how large it is.
 *
 * The libraries see what a stranger has made: this runs in the process of the virtual machine, when that is confined.
 */
#include <errno.h>
#include <lz4.h>
#include <lzma.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <zlib.h>
#include <zstd.h>

#include "base/bytes.h"
#include "base/large_page.h"
#include "boot/boot_int.h"
#include "boot/payload.h"
#include "host/thread.h"

#define PACKED_MAX (256u << 20)
#define XZ_MEMORY_MAX (256ull << 20) /* of the decoder: the dictionary */

/* lz4's old format: a magic, then blocks of so much each, unpacked, with their packed size before them. */
#define LZ4_BLOCK (8u << 20)
#define LZ4_BLOCKS_MAX (PAYLOAD_MAX / LZ4_BLOCK)
#define THREADS_MAX 4u

enum format { FORMAT_GZIP, FORMAT_XZ, FORMAT_ZSTD, FORMAT_LZ4, FORMAT_OTHER };

static enum format format_of(const uint8_t magic[4])
{
    static const struct {
        uint8_t bytes[4], n;
    } known[] = {[FORMAT_GZIP] = {{0x1f, 0x8b, 8}, 3},
                 [FORMAT_XZ] = {{0xfd, '7', 'z', 'X'}, 4},
                 [FORMAT_ZSTD] = {{0x28, 0xb5, 0x2f, 0xfd}, 4},
                 [FORMAT_LZ4] = {{0x02, 0x21, 0x4c, 0x18}, 4}};

    for (unsigned i = 0; i < FORMAT_OTHER; i++)
        if (!memcmp(magic, known[i].bytes, known[i].n))
            return i;
    return FORMAT_OTHER;
}

/* Pages by large pieces (memory.h). */
static uint8_t *touched(struct memory *m, uint64_t gpa, size_t size)
{
    for (uint64_t at = gpa; at < gpa + size; at += 1u << MEMORY_CHUNK_SHIFT)
        memory_touch(m, at);
    return memory_hva(m, gpa, size);
}

int64_t payload_size(const struct payload *p)
{
    uint8_t magic[4], size[4];

    if (p->length < 12 || p->length > PACKED_MAX || boot_pread(p->fd, magic, sizeof magic, p->offset) ||
        boot_pread(p->fd, size, sizeof size, p->offset + p->length - sizeof size))
        return -ENOEXEC;
    if (format_of(magic) == FORMAT_OTHER)
        return -ENOTSUP;
    return le32_at(size) <= PAYLOAD_MAX ? (int64_t)le32_at(size) : -EFBIG;
}

/* Of 2 MiB: a page of that size is worth it. */
static bool is_mostly_used(const uint8_t *bytes)
{
    const size_t piece = 1ul << MEMORY_CHUNK_SHIFT;
    unsigned zero = 0;

    for (size_t at = 0; at < LARGE_PAGE && zero <= LARGE_PAGE / piece - MEMORY_LARGE_MOST; at += piece)
        zero += bytes_all_zero(bytes + at, piece);
    return zero <= LARGE_PAGE / piece - MEMORY_LARGE_MOST;
}

/* What is nothing but zeroes takes no memory where there was nothing before: half of a kernel is. */
static int put(struct memory *m, uint64_t gpa, const uint8_t *bytes, size_t n)
{
    const uint64_t chunk = 1ull << MEMORY_CHUNK_SHIFT;
    uint8_t *to = memory_hva(m, gpa, n);

    if (!to)
        return -EFAULT;
    for (uint64_t at = -gpa % LARGE_PAGE; at + LARGE_PAGE <= n; at += LARGE_PAGE)
        if (is_mostly_used(bytes + at))
            (void)memory_ask_large(m, gpa + at);
    for (size_t piece; n; bytes += piece, to += piece, gpa += piece, n -= piece) {
        piece = chunk - gpa % chunk < n ? chunk - gpa % chunk : n;
        if (memory_is_new(m, gpa) && bytes_all_zero(bytes, piece))
            continue;
        memory_touch(m, gpa);
        memcpy(to, bytes, piece);
    }
    return 0;
}

/* --- formats that are one stream ------------------------------------------------------------------------------- */

static bool gunzip(const uint8_t *in, size_t n, uint8_t *to, size_t size)
{
    z_stream z = {.next_in = (uint8_t *)in, .avail_in = (uInt)n, .next_out = to, .avail_out = (uInt)size};

    if (inflateInit2(&z, 16 + MAX_WBITS) != Z_OK)
        return false;
    int end = inflate(&z, Z_FINISH);
    bool whole = end == Z_STREAM_END && !z.avail_out;
    inflateEnd(&z);
    return whole;
}

static bool unxz(const uint8_t *in, size_t n, uint8_t *to, size_t size)
{
    uint64_t memory = XZ_MEMORY_MAX;
    size_t from = 0, done = 0;

    return lzma_stream_buffer_decode(&memory, 0, NULL, in, &from, n, to, &done, size) == LZMA_OK && done == size;
}

static int unpack_stream(const struct payload *p, enum format format, struct memory *m, uint64_t gpa, size_t size)
{
    size_t n = p->length - (format == FORMAT_GZIP ? 0 : 4); /* gzip's own trailer has the size */
    uint8_t *in = malloc(n), *to = touched(m, gpa, size);
    bool good = false;

    if (in && to && !boot_pread(p->fd, in, n, p->offset))
        good = format == FORMAT_GZIP ? gunzip(in, n, to, size)
               : format == FORMAT_XZ ? unxz(in, n, to, size)
                                     : ZSTD_decompress(to, size, in, n) == size;
    free(in);
    return good ? 0 : -EBADMSG;
}

/* --- lz4: its blocks know nothing of one another, so several threads unpack them --------------------------------- */

struct lz4_work {
    int fd;
    struct memory *memory;
    uint64_t gpa;
    size_t size;
    unsigned n;
    struct {
        uint64_t offset;
        uint32_t length;
    } blocks[LZ4_BLOCKS_MAX];
    _Atomic unsigned next, failed;
};

static bool lz4_list(struct lz4_work *w, const struct payload *p)
{
    uint64_t at = p->offset + 4, end = p->offset + p->length - 4;
    uint8_t length[4];

    while (w->n * (uint64_t)LZ4_BLOCK < w->size) {
        if (end - at < sizeof length || boot_pread(w->fd, length, sizeof length, at))
            return false;
        at += sizeof length;
        w->blocks[w->n].offset = at;
        w->blocks[w->n].length = le32_at(length);
        if (!w->blocks[w->n].length || w->blocks[w->n].length > end - at ||
            w->blocks[w->n].length > LZ4_COMPRESSBOUND(LZ4_BLOCK))
            return false;
        at += w->blocks[w->n++].length;
    }
    return true;
}

static bool lz4_block(const struct lz4_work *w, unsigned i, char *packed, char *plain)
{
    const size_t begin = (size_t)i * LZ4_BLOCK, size = w->size - begin < LZ4_BLOCK ? w->size - begin : LZ4_BLOCK;

    return !boot_pread(w->fd, packed, w->blocks[i].length, w->blocks[i].offset) &&
           LZ4_decompress_safe(packed, plain, (int)w->blocks[i].length, (int)size) == (int)size &&
           !put(w->memory, w->gpa + begin, (uint8_t *)plain, size);
}

static void *lz4_main(void *opaque)
{
    struct lz4_work *w = opaque;
    char *packed = malloc(LZ4_COMPRESSBOUND(LZ4_BLOCK)), *plain = aligned_alloc(LARGE_PAGE, LZ4_BLOCK);

    if (plain)
        (void)madvise(plain, LZ4_BLOCK, MADV_HUGEPAGE);
    for (unsigned i; (i = w->next++) < w->n;)
        if (!packed || !plain || !lz4_block(w, i, packed, plain))
            w->failed = 1;
    free(packed);
    free(plain);
    return NULL;
}

static int unpack_lz4(const struct payload *p, struct memory *m, uint64_t gpa, size_t size)
{
    struct lz4_work w = {.fd = p->fd, .memory = m, .gpa = gpa, .size = size};
    pthread_t others[THREADS_MAX];
    unsigned n = 1;
    cpu_set_t cpus;

    if (!lz4_list(&w, p))
        return -EBADMSG;
    unsigned want = sched_getaffinity(0, sizeof cpus, &cpus) ? 1 : (unsigned)CPU_COUNT(&cpus);
    while (n < want && n < THREADS_MAX && n < w.n && !thread_start(&others[n], NULL, lz4_main, &w))
        n++;
    lz4_main(&w);
    while (n-- > 1)
        pthread_join(others[n], NULL);
    return w.failed ? -EBADMSG : 0;
}

int payload_unpack(const struct payload *p, struct memory *m, uint64_t gpa, size_t size)
{
    uint8_t magic[4];

    if (boot_pread(p->fd, magic, sizeof magic, p->offset))
        return -EIO;
    enum format format = format_of(magic);
    return format == FORMAT_LZ4 ? unpack_lz4(p, m, gpa, size) : unpack_stream(p, format, m, gpa, size);
}
