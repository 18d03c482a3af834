/*
 * Files, directories, links and their attributes as frames: what PUT and GET carry, from either side to the other.
 *
 *      ENTRY d            a directory
 *        ENTRY f          in it a file: its bytes follow
 *        DATA 0 ...
 *        DATA 1048576 ... behind a hole
 *        ENTRY l          in the same directory a link
 *      LEAVE              the directory is complete
 *      END                the tree is
 *
 * An entry's name is one component: never empty, ".", "..", nor with a slash in it.  Where the tree begins and what its
 * first entry is called is the receiver's decision alone.  So a hostile sender can put nothing outside: every name is
 * looked up relative to the directory that the receiver has made or opened itself, without following links.
 *
 * Modes and times are kept, holes too.  Owners, the set-user-id and set-group-id bits, extended attributes (user.*,
 * ACLs, capabilities) and hard links within the tree only with TREE_OWNERS; and only then those of a directory that was
 * there before.  Devices and sockets are left out, with a note.
 */
#pragma once
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "agent/frame.h"

#define TREE_DEPTH_MAX 128 /* directories in one another; one descriptor each */

struct tree_watch {
    void (*note)(void *opaque, const char *text);   /* something was left out; printable.  May be NULL */
    void (*progress)(void *opaque, uint64_t bytes); /* so many more.  May be NULL */
    void *opaque;
};

/* Attributes that are kept: each with a name, and of an entry together, at most so long. */
#define TREE_XATTRS_MAX (48u << 10)
bool tree_keeps_xattr(const char *name);

/* Where a tree goes. */
struct tree_target {
    int directory;  /* an open directory; tree_close closes it */
    char name[256]; /* of the first entry in it; empty: the directory itself takes what the first entry has in it */
    bool must_be_directory;
    int stream; /* not -1: the first entry is a file whose bytes go here, in order */
};

/* The source's own name, as the last component of its path; empty for "/", ".", "..", "x/.", which mean the contents.
 */
void tree_source_name(const char *path, char *name, size_t size);

/*
 * As cp(1) understands a destination: into an existing directory under the source's name, else as that path itself.
 * `contents`: what is in the source goes into the directory.  0, or -errno with a sentence.
 */
int tree_target_open(const char *path, const char *source_name, bool contents, struct tree_target *t, char *err,
                     size_t n);
void tree_target_close(struct tree_target *t);

/* Sends `path` and what is below it, up to END, and waits until all is under way.  0, or -errno with a sentence; what
 * could not be read below it is only noted to the receiver. */
int tree_send(struct stream *s, const char *path, uint64_t flags, const struct tree_watch *w, char *err, size_t n);
/* A file of mode 0644 with what can be read from fd. */
int tree_send_bytes(struct stream *s, int fd, const struct tree_watch *w, char *err, size_t n);

/* Receives up to END.  flags: TREE_OWNERS.  0, or -errno with a sentence; what was received so far stays. */
int tree_receive(struct stream *s, const struct tree_target *t, uint64_t flags, const struct tree_watch *w, char *err,
                 size_t n);
