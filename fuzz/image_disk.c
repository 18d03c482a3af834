/* The beginning of a disk: partition tables, signatures, formats, the header of a kernel, os-release. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
#include <zlib.h>

#include "image/import.h"
#include "image/inspect.h"
#include "image/partition.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void read_table(int fd, uint64_t bytes)
{
    static struct partition p[PARTITIONS_MAX];
    int n = partitions_read(fd, bytes, p);

    for (int i = 0; i < n; i++)
        if (p[i].start >= bytes || p[i].bytes > bytes - p[i].start || p[i].number > PARTITIONS_MAX)
            abort();
}

/* The sums of a GPT made right, so that what they guard is reached. */
static void mend_gpt(int fd)
{
    static unsigned char entries[4096];
    unsigned char header[92];
    uint32_t numbers[2], sum;

    if (pread(fd, header, sizeof header, 512) != sizeof header)
        return;
    memcpy(header, "EFI PART", 8);
    memcpy(header + 12, "\x5c\0\0\0", 4);
    memcpy(header + 72, "\2\0\0\0\0\0\0", 8);
    memcpy(numbers, header + 80, sizeof numbers);
    if ((uint64_t)numbers[0] * numbers[1] <= sizeof entries) {
        size_t bytes = (size_t)numbers[0] * numbers[1];
        if (pread(fd, entries, bytes, 1024) != (ssize_t)bytes)
            return;
        sum = (uint32_t)crc32(0, entries, (uInt)bytes);
        memcpy(header + 88, &sum, 4);
    }
    memset(header + 16, 0, 4);
    sum = (uint32_t)crc32(0, header, sizeof header);
    memcpy(header + 16, &sum, 4);
    if (pwrite(fd, header, sizeof header, 512) != sizeof header)
        abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    char release[128], value[64], path[64], err[512], *text = malloc(size + 1);
    enum source_kind kind;
    const char *format;
    bool long_mode;
    static int fd = -1; /* of a file that is emptied for each input */

    if (fd < 0 && (fd = memfd_create("disk", 0)) < 0)
        abort();
    if (ftruncate(fd, 0) == 0 && pwrite(fd, data, size, 0) == (ssize_t)size && ftruncate(fd, 1 << 20) == 0) {
        read_table(fd, 1 << 20);
        mend_gpt(fd);
        read_table(fd, 1 << 20);
        snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
        detect_source(path, &kind, &format, err, sizeof err);
    }
    if (bzimage_release(data, size, release, &long_mode) == 0 && strchr(release, '/'))
        abort();
    memcpy(text, data, size);
    text[size] = 0;
    os_release_value(text, "ID", value, sizeof value);
    free(text);
    return 0;
}
