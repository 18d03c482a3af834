/*
 * The saved state of something, in memory: pieces of bytes with a kind, a name and a version, in the order in which
 * they were added.  What a snapshot's file holds beside the contents of memory and disks (vm/snapshot_file.h).
 */
#pragma once
#include <stddef.h>
#include <stdint.h>

#define SECTION_KIND_SIZE 16
#define SECTION_NAME_SIZE 40
#define SECTION_BYTES_MAX (16u << 20)
#define SECTIONS_MAX 1024u

struct section {
    char kind[SECTION_KIND_SIZE], name[SECTION_NAME_SIZE]; /* printable, NUL-terminated */
    uint32_t version;
    uint32_t size;
    uint8_t *bytes;
};

struct sections {
    struct section *all;
    unsigned n, room;
    int failed; /* the first error of sections_add: whoever adds many looks once, at the end */
};

/* Copies.  0 or -errno (no memory, a name that is too long, too many). */
int sections_add(struct sections *s, const char *kind, const char *name, uint32_t version, const void *bytes,
                 size_t size);
/* NULL: there is none. */
const struct section *sections_find(const struct sections *s, const char *kind, const char *name);
void sections_free(struct sections *s);
