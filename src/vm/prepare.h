/*
 * From what is known about a VM to what vm_run takes: a VM of an image gets its overlay as the first disk, the image's
 * kernel and modules, an initramfs with the program for the inside of the guest and what that is to do, a network,
 * vsock and balloon, unless the options say otherwise.  One without an image is what its options say.
 */
#pragma once
#include "agent/config.h"
#include "image/image.h"
#include "vm/registry.h"

#define PREPARED_TEXTS_MAX 64

struct prepared {
    struct vm_config config;
    struct image_info image;
    char *texts[PREPARED_TEXTS_MAX]; /* what config points into, beside the record */
    unsigned n_texts;
    bool runs;
    struct guest_config guest; /* what the guest's program is to do */
    int initrd;                /* the file of its initramfs, if that is written late; -1 */
};

/* The record must outlive *p; prepare_free in any case.  runs: it is a copy of one that runs, which may never boot: the
 * guest's initramfs is written when it does, into a file in memory.  0, or -errno with a sentence. */
int prepare(const struct registry *r, const struct vm_record *record, bool runs, struct prepared *p, char *err,
            size_t n);
void prepare_free(struct prepared *p);

/* Has it a disk of its own over an image's? */
bool record_has_disk(const struct vm_record *record);
