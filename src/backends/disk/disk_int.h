/* What the files of disk/ share. */
#pragma once
#include "backends/disk.h"

struct disk_format {
    const char *name;
    const char *suffix; /* of file names, or NULL; another format of the same name continues the list */
    const char *magic;  /* how such files begin, or NULL */
    unsigned magic_length;
    int (*open)(struct disk **out, const struct disk_spec *spec, struct loop *loop, char *err, size_t n);
};

/* Ends with a NULL name; the first is raw. */
extern const struct disk_format disk_formats[];

/* Opens spec->path as a file or block device, takes the lock that keeps two writers apart, and returns the descriptor
 * and the size; or -errno with a sentence.  *block: it is a block device. */
int disk_file_open(const struct disk_spec *spec, uint64_t *size, bool *block, char *err, size_t n);

/* As disk_open, of words already taken apart. */
int disk_open_parsed(struct disk **out, const struct disk_spec *spec, struct loop *loop, char *err, size_t n);

/* One read, to its end; the loop does not run. */
int disk_read_now(struct disk *d, uint64_t offset, void *data, uint64_t length);

int disk_overlay_open(struct disk **out, const struct disk_spec *spec, struct loop *loop, char *err, size_t n);
int disk_nbd_open(struct disk **out, const struct disk_spec *spec, struct loop *loop, char *err, size_t n);
int disk_foreign_open(struct disk **out, const struct disk_spec *spec, struct loop *loop, char *err, size_t n);
int disk_raw_open(struct disk **out, const struct disk_spec *spec, struct loop *loop, char *err, size_t n);
