/*
 * The layers of a machine's disk (snapshot_store.h), which become more with each snapshot and each copy, and fewer when
 * nobody needs them for themselves any more: then those that lie on one another are merged.
 *
 * A layer is needed for itself by a snapshot that is of it, by more than one overlay that lies on it, and by another
 * machine that has the file, too (copy.h: it has more than one link).  What needs no copy of what others have is done
 * whenever layers are merged.  If a disk is deep all the same, its machine gets a file of its own of what is in the
 * layers that are small.
 */
#pragma once
#include <stdbool.h>

#include "vm/registry.h"

#define LAYER_NAME_SIZE 64u
#define LAYERS_FEW 8u   /* overlays of a disk that are left alone, unless told */
#define LAYERS_DEEP 16u /* with more, others' layers are copied */

struct client;

/* Is that the name of a layer's file?  Nothing else is looked for among them. */
bool layer_is_name(const char *file);
/* The directory that they are in, which is made where there is none; the path of one; and a name that none has, in that
 * directory.  0, or -errno with a sentence. */
int layers_directory(const struct registry *r, const char *name, char out[PATH_MAX], char *err, size_t n);
int layer_new(const struct registry *r, const char *name, char layer[LAYER_NAME_SIZE], char out[PATH_MAX], char *err,
              size_t n);
int layer_path(const struct registry *r, const char *name, const char *layer, char out[PATH_MAX], char *err, size_t n);
/* The layer that the overlay `path` lies on, by its header; false: none of ours. */
bool layer_below(const char *path, char layer[LAYER_NAME_SIZE]);
/* How many overlays of ours the disk is made of. */
unsigned layers_count(const struct registry *r, const char *name);
/* Those that nothing stands on any more go. */
void layers_sweep(const struct registry *r, const char *name);

/* So that nobody changes layers that are being read: a descriptor, or -errno with a sentence. */
int layers_hold(const struct registry *r, const char *name, char *err, size_t n);

/* A command that died may have put a new overlay on the disk of a machine that runs, and never told it: that goes on
 * writing to what is called a layer now, which gets its name back here; nobody has written to what is above it.  The
 * caller holds the lock of its snapshots; client as below.  0, or -errno with a sentence. */
int layers_settle(const struct registry *r, const char *name, struct client *client, char *err, size_t n);

/* Merges what can be merged, of a disk of more than `few` overlays.  The caller holds the lock of its snapshots; client
 * is a connection to the machine, or NULL for one that does not run, whose lock is held, too.  0, or -errno with a
 * sentence: what has not been merged is what it was. */
int layers_merge(const struct registry *r, const char *name, unsigned few, struct client *client, char *err, size_t n);
