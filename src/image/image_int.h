/* What the files of this room share: the store's directories and locks, metadata, digests. */
#pragma once
#include <jansson.h>
#include <sys/types.h>

#include "image/image.h"

#define IMAGE_SCHEMA 1
#define FILE_KEY_SIZE 112
#define IMAGE_METADATA_MAX (1u << 20)

/* ---- store.c: DATA/images ---- */

/* "DATA/images" into out[IMAGE_PATH_SIZE]; made with its sub-directories if it is not there. */
int store_path(char *out, char *err, size_t n);

/* The lock that each change of DATA/images takes for its short time; a descriptor to close, or -errno. */
int store_lock(const char *images, char *err, size_t n);

/* The lock of everything long that is to end in the image `name`: waits for another process's.  A descriptor to close,
 * or -errno; *waited tells that there was one, so that what is looked for may be there now. */
int store_lock_name(const char *name, bool *waited, char *err, size_t n);

/* A directory where an image is made.  It goes away with store_discard, or, when its process is gone, with the next
 * store_sweep. */
struct store_draft {
    char path[IMAGE_PATH_SIZE];
    int lock; /* the directory, locked; -1: none */
};

int store_draft(struct store_draft *d, char *err, size_t n);
void store_discard(struct store_draft *d);

/*
 * Makes the draft an image: its files read-only and on disk, the directory under its digest, called `name` if that is
 * not NULL.  metadata.json must be in it.  Fills *out.  The draft is gone in any case.
 */
int store_publish(struct store_draft *d, const char *name, struct image_info *out, char *err, size_t n);

/*
 * A directory for a tool that wants much room for a while, into out[IMAGE_PATH_SIZE]; it goes away with the draft.  Not
 * in the draft when we are not root: the tool may act as one of this user's subordinate ids, to whom the draft is
 * closed.
 */
int store_scratch(const char *draft, char *out, char *err, size_t n);
void store_scratch_remove(const char *draft);

/* Removes the drafts of dead processes. */
void store_sweep(const char *images);

/* Reads the image of that digest; `name` may be NULL.  -EBADMSG when its metadata make no sense. */
int store_load(const char *images, const char *digest, const char *name, struct image_info *out, char *err, size_t n);

/* names/NAME or files/KEY -> digest, as one step. */
int store_link(const char *images, const char *folder, const char *name, const char *digest, char *err, size_t n);
int store_read_link(const char *images, const char *folder, const char *name, char digest[IMAGE_DIGEST_SIZE]);

bool store_is_digest(const char *text); /* "sha256-" and 64 hexadecimal digits, nothing else */

/* ---- file_cache.c: disks named by path ---- */

/* The key of the file as it is now (path, size, time of change) into out[FILE_KEY_SIZE]; -errno as stat(2). */
int file_key(const char *path, char out[FILE_KEY_SIZE], char *err, size_t n);
/* Remembers that the image was made of it, and forgets (removes, unless used or named) what was made of an older state.
 */
void file_remember(const char *images, const char *key, const char *digest);

/* ---- metadata.c ---- */

/* What the JSON document says into *out (paths, digest, used_bytes aside).  Checks every type and length. */
int metadata_parse(const char *text, size_t len, struct image_info *out, char *err, size_t n);
/* The document; `process` (may be NULL) is the OCI part.  A new string, to be freed. */
char *metadata_format(const struct image_info *info, json_t *process);
int metadata_process(const char *text, size_t len, struct image_process *out, char *err, size_t n);

/* ---- digest.c ---- */

/* "sha256-HEX" of the files in the directory. */
int digest_image(const char *directory, char out[IMAGE_DIGEST_SIZE], char *err, size_t n);
/* HEX of a disk's content: independent of how its zeros are stored. */
int digest_disk(int fd, char out[65]);
int digest_file(int fd, char out[65]);

/* ---- files.c ---- */

/* Removes `path` and all below it, following no symbolic link.  0/-errno of the first that did not go. */
int files_remove(const char *path);
/* Bytes that the file takes on the host. */
uint64_t files_allocated(const char *path);
