/*
 * The file of a snapshot, as a stranger may have made it: header, table and trailer with right check sums around what
 * the input says, or all of it the input's; then everything that is in it is read.
 */
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/crc32c.h"
#include "fixture.h"
#include "vm/snapshot_file.h"

#define ENTRY 96u
#define ENTRIES_MAX 6u
#define FILE_MAX 8192u

static void put(uint8_t *p, uint64_t v, unsigned size)
{
    memcpy(p, &v, size);
}

/* Sums and places that lead somewhere, for most entries. */
static void make_entry(struct fuzz_input *in, uint8_t *entry, const uint8_t *file)
{
    static const char kinds[4][16] = {"chunks", "cpu", "about", "device"}, names[3][40] = {"memory", "disk", "0"};
    uint8_t how = fuzz_u8(in);
    uint32_t offset = 64 + fuzz_u16(in) % 512, length = fuzz_u8(in) * (how & 1 ? 16u : 1u);

    fuzz_bytes(in, entry, how & 2 ? ENTRY : 0);
    if (!(how & 4))
        memcpy(entry, kinds[fuzz_u8(in) % 4], 16);
    if (!(how & 8))
        memcpy(entry + 16, names[fuzz_u8(in) % 3], 40);
    if (how & 16)
        return;
    put(entry + 56, 1, 4);
    put(entry + 60, crc32c(0, file + offset, length), 4);
    put(entry + 64, offset, 8);
    put(entry + 72, length, 8);
    put(entry + 80, (uint64_t)(length / 16) << SNAPSHOT_CHUNK_SHIFT, 8);
}

static size_t make_file(struct fuzz_input *in, uint8_t file[FILE_MAX])
{
    size_t body = 64 + 1024;
    unsigned n = 1 + fuzz_u8(in) % ENTRIES_MAX;
    uint8_t *table = file + body, *trailer = table + n * ENTRY;

    memcpy(file, "GUISESNP\1\0\0\0", 12);
    put(file + 12, crc32c(crc32c(0, file, 12), file + 16, 48), 4);
    fuzz_bytes(in, file + 64, 700);
    for (unsigned i = 0; i < n; i++)
        make_entry(in, table + i * ENTRY, file);
    memcpy(trailer, "GUISEEND", 8);
    put(trailer + 12, n, 4);
    put(trailer + 16, body, 8);
    put(trailer + 24, crc32c(0, table, n * ENTRY), 4);
    put(trailer + 32, (uint64_t)(trailer + 64 - file), 8);
    put(trailer + 8, crc32c(0, trailer + 12, 52), 4);
    return (size_t)(trailer + 64 - file);
}

static void read_all(const struct snapshot_file *f)
{
    static uint8_t bytes[SNAPSHOT_CHUNK];

    for (unsigned e = 0; e < SNAPSHOT_EXTENTS; e++)
        for (uint64_t i = 0; i < f->extent[e].n && i < 64; i++)
            snapshot_read_chunk(f, e, i, bytes);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct fuzz_input in = {data, size};
    struct snapshot_file f;
    uint8_t file[FILE_MAX] = {0};
    char err[512];
    int fd = memfd_create("snapshot", MFD_CLOEXEC);

    if (fd < 0)
        return 0;
    size_t length = size;
    if (fuzz_u8(&in) & 1)
        length = make_file(&in, file);
    else
        memcpy(file, data, length = size < FILE_MAX ? size : FILE_MAX);
    if (write(fd, file, length) == (ssize_t)length && snapshot_open(&f, fd, "it", err, sizeof err) == 0)
        read_all(&f);
    snapshot_close(&f);
    close(fd);
    return 0;
}
