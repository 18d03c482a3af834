/*
 * The seed of cloud-init's NoCloud datasource: a file system called CIDATA whose files tell an image that has
 * cloud-init what this machine is (docs.cloud-init.io, "NoCloud").  It is attached as a further disk.
 */
#pragma once
#include <stddef.h>

#define SEED_BYTES (1u << 20)      /* of the whole disk */
#define SEED_TEXT_MAX (256u << 10) /* of one file */
#define SEED_KEYS_MAX 32

struct seed {
    const char *instance;       /* cloud-init configures once for each: a VM's UUID */
    const char *hostname;       /* a host's name; NULL: none */
    const char *user_data;      /* the whole of that file, which goes before what guise says; NULL: none */
    const char *meta_data;      /* the whole of that file instead of instance, name and keys; NULL: made here */
    const char *network_config; /* the whole of that file; NULL: none, then cloud-init asks DHCP on the first card */
    const char *const *keys;    /* lines of authorized_keys, for root and the distribution's user */
    unsigned n_keys;
};

/* Writes the disk to `fd`, from its beginning.  0, or -errno with a sentence: -EINVAL a key or name that cannot be,
 * -EFBIG a text too long. */
int seed_write(int fd, const struct seed *s, char *err, size_t n);

/* The text that seed_write makes itself; a new string that the caller frees.  NULL: no memory. */
char *seed_meta_data(const struct seed *s);

/* A FAT12 file system of SEED_BYTES with these files in its root: the general part, for tests.  Names are ASCII, at
 * most 39 characters. */
struct seed_file {
    const char *name, *data;
    size_t len;
};

int fat_write(int fd, const char label[11], const struct seed_file *files, unsigned n_files, char *err, size_t n);
