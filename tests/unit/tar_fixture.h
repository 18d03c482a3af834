/* Tar archives by hand, hostile ones too: each entry is a header and its data, whatever they say. */
#pragma once
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#define TAR_FILE '0'
#define TAR_HARDLINK '1'
#define TAR_SYMLINK '2'
#define TAR_CHAR '3'
#define TAR_DIRECTORY '5'
#define TAR_PAX 'x'

struct tar_entry {
    char type;
    const char *path, *link, *data;
    unsigned mode, uid, gid, major, minor;
    uint64_t size; /* what the header says, if it is not the data's */
};

static inline void tar_number(char *to, unsigned width, uint64_t value)
{
    for (to[--width] = 0; width-- > 0; value >>= 3)
        to[width] = (char)('0' + (value & 7));
}

static inline void tar_put(FILE *out, struct tar_entry e)
{
    char h[512] = {0};
    size_t len = e.data ? strlen(e.data) : 0;
    unsigned sum = 0;

    snprintf(h, 100, "%s", e.path);
    tar_number(h + 100, 8, e.mode ? e.mode : e.type == TAR_DIRECTORY ? 0755 : 0644);
    tar_number(h + 108, 8, e.uid);
    tar_number(h + 116, 8, e.gid);
    tar_number(h + 124, 12, e.size ? e.size : len);
    tar_number(h + 136, 12, 1700000000);
    memset(h + 148, ' ', 8);
    h[156] = e.type;
    snprintf(h + 157, 100, "%s", e.link ? e.link : "");
    memcpy(h + 257, "ustar\00000", 8);
    tar_number(h + 329, 8, e.major);
    tar_number(h + 337, 8, e.minor);
    for (unsigned i = 0; i < sizeof h; i++)
        sum += (unsigned char)h[i];
    tar_number(h + 148, 7, sum);
    fwrite(h, sizeof h, 1, out);
    if (len)
        fwrite(e.data, len, 1, out);
    for (; len % 512; len++)
        fputc(0, out);
}

static inline void tar_finish(FILE *out)
{
    static const char zeros[1024];
    fwrite(zeros, sizeof zeros, 1, out);
    fflush(out);
}

#define TAR(out, ...) tar_put(out, (struct tar_entry){__VA_ARGS__})
