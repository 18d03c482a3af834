/* The kernel proper, out of a bzImage (vmlinux.c). */
#pragma once
#include <stdbool.h>

#include "boot/boot.h"
#include "boot/payload.h"

struct vmlinux {
    struct payload payload;
    uint64_t preferred;  /* physical address that it is linked for (pref_address) */
    uint64_t align;      /* of any other: a power of 2 */
    uint64_t span;       /* bytes that it needs there (init_size) */
    bool relocatable;    /* it may be at another one */
    bool random;         /* it wants to be */
    bool random_address; /* physically, too */
};

/* Unpacks it into RAM between `preferred` and `limit`, and relocates it.  entry: the physical address where a processor
 * in long mode begins.  randomized: by KASLR, which the kernel wants to know.  0; or -errno, and the kernel is to
 * unpack itself: there is anything in that RAM then. */
int vmlinux_load(struct memory *m, const struct vmlinux *v, uint64_t limit, uint64_t *entry, bool *randomized,
                 struct boot_image *image);
