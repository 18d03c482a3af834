/*
 * What is on a disk, and what it takes to boot it: fills DRAFT/{kernel,modules.cpio,initrd,metadata.json} from
 * DRAFT/disk.raw.
 */
#pragma once
#include "image/job.h"

struct inspect {
    const char *kernel, *initrd; /* files of the host to take instead of what is on the disk; NULL: look there */
    const char *append;          /* added to the kernel's command line; NULL: nothing */
    /* An image whose kernel and modules to take: if asked to, or when there is none on the disk; NULL: no such. */
    const struct image_info *base;
    bool always_base;
    json_t *process; /* of a container's image, or NULL */
    const char *name, *source;
};

/* -ENOPKG: there is no kernel on the disk, and none was given. */
int inspect_disk(struct job *j, const struct inspect *in, char *err, size_t n);

/* os-release(5): the value of `key` into out[size]; empty if it is not there. */
void os_release_value(const char *text, const char *key, char *out, size_t size);

/* The release (as uname -r) of a bzImage whose first bytes are data[0..len) (Documentation/arch/x86/boot.rst: 0x202
 * "HdrS", 0x20e kernel_version, 0x236 xloadflags); *long_mode: it can run in 64 bits.  0, or -EINVAL: it is none. */
int bzimage_release(const unsigned char *data, size_t len, char release[128], bool *long_mode);
