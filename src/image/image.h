/*
 * Machine images: found, listed, named, removed.  How they are made is in make.h.
 *
 * An image is a directory, named by the digest of what is in it, and never changes:
 *
 *      DATA/images/sha256-HEX/disk.raw        the whole disk, sparse; a VM writes to an overlay over it
 *                             kernel          a bzImage
 *                             modules.cpio    /guise/modules and their order, for what reaching the root takes
 *                             initrd          the image's own, only if its root is reached by nothing else
 *                             metadata.json   docs/IMAGES.md
 *      DATA/images/names/NAME                 a symbolic link to the directory
 *      DATA/images/files/...                  disks that were named by their path: links to what was made of them
 *      DATA/images/tmp-...                    half-made ones; each belongs to a process that holds a lock on it
 *
 * Every function that fails leaves one sentence in err[n] and returns -errno: -ENOENT there is no such image, -EBUSY it
 * is in use, -EINVAL the word cannot be a name, -ENOTUNIQ a digest was cut too short, -EBADMSG it is damaged.
 */
#pragma once
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define IMAGE_DIGEST_SIZE 72 /* "sha256-", 64 hexadecimal digits */
#define IMAGE_NAME_SIZE 64
#define IMAGE_PATH_SIZE 1024

struct image_info {
    char digest[IMAGE_DIGEST_SIZE]; /* also the directory's name; what a VM's vm.json keeps */
    char name[IMAGE_NAME_SIZE];     /* the name it was found by, else the one it was made under; may be empty */
    char directory[IMAGE_PATH_SIZE];
    char disk[IMAGE_PATH_SIZE], kernel[IMAGE_PATH_SIZE], modules[IMAGE_PATH_SIZE];
    char initrd[IMAGE_PATH_SIZE]; /* empty: none */
    bool needs_initrd;            /* the root can be mounted by the image's own initrd only */

    char command_line[2048]; /* for the disk as the first NVMe: "console=ttyS0 root=/dev/nvme0n1 ..." */
    unsigned root_partition; /* of the disk, from 1; 0: the disk itself is the file system */
    char root_type[16];      /* "ext4", "xfs", ...; empty: not known */
    char init[256];          /* the distribution's init, as a path inside */

    char architecture[16];                        /* "amd64" */
    char os_id[64], os_version[64], os_name[128]; /* os-release: ID, VERSION_ID, PRETTY_NAME */
    char kernel_version[128];                     /* as uname -r */
    bool has_cloud_init, has_sshd, has_qemu_guest_agent;

    char created[32];    /* RFC 3339, UTC */
    char source[512];    /* what it was made of, for people */
    uint64_t disk_bytes; /* the disk's size as a guest sees it */
    uint64_t used_bytes; /* what all of it takes on the host */
};

/*
 * Finds an image by name, by its digest or a beginning of it (6 digits or more), or, if `word` has a slash, by the path
 * of a disk that image_ensure made one of before (and that has not changed since).
 */
int image_find(const char *word, struct image_info *out, char *err, size_t n);

/*
 * What a container's image says about the process to start (OCI image specification, config): for images that were
 * imported from one; all empty for others.  The caller frees with image_process_free.
 */
struct image_process {
    char **argv; /* entrypoint and command; NULL: none */
    char **env;  /* "NAME=value"; NULL: none */
    char *directory, *user;
};

int image_process(const struct image_info *info, struct image_process *out, char *err, size_t n);
void image_process_free(struct image_process *p);

/*
 * Keeps the image from being removed while the returned descriptor (close-on-exec) is open, in any process that has
 * it: for what has no vm.json yet, or never.  Returns the descriptor, or -errno.
 */
int image_hold(const struct image_info *info, char *err, size_t n);

/* All images with all their names; an image without one is there once, with an empty name.  Sorted by name.  What
 * cannot be read is left out.  The caller frees *list. */
int image_list(struct image_info **list, size_t *count, char *err, size_t n);

/* Gives the image `word` the further name `name`, which is taken from the image that has it. */
int image_tag(const char *word, const char *name, char *err, size_t n);

/*
 * Takes the name away and, if it was the last or `word` is a digest, the image with all of its names.  -EBUSY when a VM
 * in DATA/vms has it, or it is held.  *deleted tells whether the image itself is gone.
 */
int image_remove(const char *word, bool *deleted, char *err, size_t n);

/* Is everything in it as it was when it was made?  Reads all of it.  -EBADMSG if not. */
int image_verify(const struct image_info *info, char *err, size_t n);

/* May an image be called that?  1 to 63 of a-z 0-9 . _ : and -, first a letter or digit; 0 or -EINVAL. */
int image_name_check(const char *name, char *err, size_t n);
