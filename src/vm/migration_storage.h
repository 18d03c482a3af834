/* Disks that stay where they are when a machine moves (migration_storage.c).  All functions: the bus lock held. */
#pragma once
#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "vm/control.h"

struct incoming;
struct moving;
struct vm;

#define STORAGE_DISKS_MAX CONTROL_FDS_MAX /* whose descriptors come along with one request */

/* --- source --- */

/* Why it cannot move for its disks: a sentence, in why[n]; or NULL.  shared: others' files may stay where they are. */
const char *storage_refused(const struct vm *vm, bool shared, char *why, size_t n);
/* What a destination is told of the files that it may see, whose locks have that gap from now on; and no more. */
json_t *storage_show(const struct vm *vm, uint64_t gap);
void storage_hide(const struct vm *vm);
/* Begins to flush what stays; moving_flushed comes when that is done. */
void storage_flush_early(struct moving *m);
/* Flushes it, with no vCPU running.  0/-errno. */
int storage_flush(struct moving *m);
/* It is given up, and (returns 0, or -EBUSY: somebody has a file, and nothing has changed) taken back. */
void storage_leave(struct moving *m);
int storage_return(struct moving *m);
/* Does any disk stay where it is? */
bool storage_is_shared(const struct moving *m);

/* --- destination --- */

/* The paths of the files that it needs before it can run, claimed: those are the descriptors of storage_take, in that
 * order.  0, or -errno with a sentence; the descriptors are taken over. */
json_t *storage_wanted(const struct vm *vm);
int storage_take(const struct vm *vm, const int *fds, unsigned n_fds, char *why, size_t n);
/* All of the rest has come: has any of them been written to since then?  A sentence then, and false. */
void storage_note(struct incoming *in);
bool storage_is_noted(const struct incoming *in, char *why, size_t n);
/* It does not run after all. */
void storage_put_back(const struct vm *vm);
