/*
 * The snapshots of a virtual machine, in its directory (registry.h):
 *
 *      snapshots/TAG/state         the file of one (snapshot_file.h); its part "about" says which layer its disk is
 *                .new-TAG/         being made; becomes TAG in one step
 *                lock              held (flock) by the command that makes or removes some
 *      layers/ID.overlay           what the machine's disk was up to a snapshot: nobody writes to it any more
 *      disk.overlay                the machine's disk from then on, on the newest layer or on the one it went back to
 *
 * A layer lives as long as a snapshot or the disk stands on it (layers.h).
 */
#pragma once
#include <jansson.h>

#include "vm/layers.h"
#include "vm/snapshot_file.h"

struct snapshot_info {
    char tag[NAME_SIZE], created[TIMESTAMP_SIZE], engine[16], layer[64]; /* layer: a file's name, or empty */
    uint64_t memory_bytes, cpus;
    uint64_t file_bytes; /* that the state takes on the host's disk */
    uint64_t disk_bytes; /* the same of its layer */
    char damage[128];    /* it cannot be used, for this reason; then only the tag is known */
};

/* Those that there are, oldest first; free(*list).  Returns how many, or -errno with a sentence. */
int snapshot_list(const struct registry *r, const char *name, struct snapshot_info **list, char *err, size_t n);

/* The file of one; tag NULL: of the newest, whose tag is put to out_tag.  0, or -errno with a sentence: -ENOENT. */
int snapshot_find(const struct registry *r, const char *name, const char *tag, char out_tag[NAME_SIZE],
                  char path[PATH_MAX], char *err, size_t n);

/* Reads what a snapshot says about itself.  A new reference, or NULL with a sentence. */
json_t *snapshot_about(const struct snapshot_file *f, const char *name, char *err, size_t n);

/* --- making one ------------------------------------------------------------------------------------------- */

struct snapshot_making {
    char tag[NAME_SIZE], layer[LAYER_NAME_SIZE];
    char directory[PATH_MAX], final[PATH_MAX]; /* .new-TAG, TAG */
    char layer_path[PATH_MAX], disk[PATH_MAX];
    int lock, state, top; /* descriptors: state is the file to be written, top the new disk.overlay or -1 */
};

struct client;

/* tag "": the next free one of snap-1, snap-2, ...  client is a connection to the machine, which runs; or NULL.  The
 * new disk.overlay is in place afterwards, which changes nothing for a machine that has the one before open; and its
 * layers have become fewer if they were many.  0, or -errno with a sentence: -EEXIST, -EBUSY. */
int snapshot_make(const struct registry *r, const struct vm_record *record, struct client *client, const char *tag,
                  struct snapshot_making *m, char *err, size_t n);
/* The file is complete and on stable storage. */
int snapshot_make_commit(struct snapshot_making *m, char *err, size_t n);
/* Does the machine write to the new disk.overlay?  When it cannot be asked it may. */
bool snapshot_is_layered(const struct snapshot_making *m, struct client *client);
/* It was not made.  layered: the machine writes to the new disk.overlay already. */
void snapshot_make_abort(struct snapshot_making *m, bool layered);

/* The same for copies of a machine (vm/copy.h), which want its disk as a layer and no snapshot: m->layer, and m->top
 * for the machine if it runs.  m->layer is empty when it has no disk of its own. */
int snapshot_make_layer(const struct registry *r, const struct vm_record *record, struct client *client,
                        struct snapshot_making *m, char *err, size_t n);
/* layered: as above; a machine that does not run is. */
void snapshot_make_layer_end(struct snapshot_making *m, bool layered);

/* --- going back, removing ------------------------------------------------------------------------------------ */

/* The disk of a machine that does not run, whose lock is held, becomes what it was at a snapshot with that layer: what
 * was written since is gone.  0, or -errno with a sentence, and nothing has changed. */
int snapshot_disk_back(const struct registry *r, const char *name, const char *layer, char *err, size_t n);
/* 0, or -errno with a sentence: -ENOENT. */
int snapshot_remove(const struct registry *r, const char *name, const char *tag, char *err, size_t n);
/* The layers of a disk that has more than `few` become fewer (layers.h).  stopped: the caller holds the machine's lock;
 * else it may run.  0, or -errno with a sentence: they are what they were. */
int snapshot_merge_layers(const struct registry *r, const char *name, bool stopped, unsigned few, char *err, size_t n);

/* --- other hosts (snapshot_export.c) -------------------------------------------------------------------------- */

/* Writes one into the file `path`, with what its disk has beyond its image.  0, or -errno with a sentence. */
int snapshot_export(const struct registry *r, const char *name, const char *tag, const char *path, char *err, size_t n);
struct copy_words;
/* Makes the machine that such a file is of, called `name` (NULL: as it says), with the snapshot `tag` and the disk of
 * then; or, with `copy` (copy.h; a name of NULL: what it says, numbered), another one that is a copy of it.  *lock is
 * held, *record is the caller's to free.  0, or -errno with a sentence, and there is nothing new. */
int snapshot_import(const struct registry *r, const char *file, const char *name, struct copy_words *copy,
                    struct vm_record *record, char tag[NAME_SIZE], int *lock, char *err, size_t n);
