/*
 * Copies of a machine, seen from outside: each has a directory, a name, a uuid and addresses of its own, and a disk of
 * its own over the layers that it has in common with the machine.  Those have a second name, a hard link, in the copy's
 * directory: so whichever of them is removed first, the others keep what they stand on.
 */
#pragma once
#include "vm/snapshot_store.h"

struct copy_words {
    const char *name;                  /* of the copy, NULL for any; or the beginning, when */
    bool numbered;                     /* NAME-1, NAME-2 ...: the first that is free from *number on */
    unsigned number;                   /* the next one to be tried */
    const char *hostname;              /* NULL: its name */
    bool ephemeral;                    /* it goes away when it ends, even if the machine does not */
    const struct option_list *publish; /* what ports of the host lead to it: those of the machine are the machine's */
};

/*
 * Makes the directory of a copy of `parent`, without a disk.  *lock is held; the parent's record, or its texts, must
 * outlive *copy, which lives in them for the most part.  0, or -errno with a sentence, and there is nothing new:
 * -EEXIST.
 */
int copy_begin(const struct registry *r, const struct vm_record *parent, struct copy_words *words,
               struct vm_record *copy, int *lock, char *err, size_t n);
/* Notes among its events that it was made, and of which machine. */
void copy_note(const struct registry *r, const char *name, const char *parent);

/*
 * Makes one of `parent`, whose disk is the layer `layer` (empty: it has none of its own).  *lock is held; the parent's
 * record must outlive *copy, which lives in it for the most part.  0, or -errno with a sentence, and there is nothing
 * new: -EEXIST.
 */
int copy_make(const struct registry *r, const struct vm_record *parent, const char *layer, struct copy_words *words,
              struct vm_record *copy, int *lock, char *err, size_t n);
