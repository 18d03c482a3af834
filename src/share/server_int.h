/*
 * Shared inside share/.
 *
 * One lock, server.lock, guards all tables and is held while an operation runs, except where an operation on an open
 * file may take long (read, write, sync, copy): that holds a reference to the handle instead.  A descriptor got from
 * node_open is good until the lock is released.
 */
#pragma once
#include <errno.h>
#include <linux/fuse.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <time.h>

#include "share/server.h"

/* How long the guest may go without asking again.  A second hides all the repeated questions of a program that
 * starts or a tree that is unpacked, and is what a person does not notice when the host changes a file. */
#define VALID_S 1u
#define SHARE_NAME_MAX 255u
#define SHARE_PATH_MAX 4095u /* of a symbolic link's target */

struct handle;
struct lock_owner;

/* What a file is to the guest beyond what the host says of it (owner.c). */
struct owner {
    uint32_t uid, gid;
    uint32_t bits; /* S_ISUID, S_ISGID */
};

struct attributes {
    struct statx st;
    struct owner owner;
};

/*
 * A file that the guest has a number for.  It is known by (device, inode, time of birth) and found again by its
 * directory and name, so that it need not be held open; `fd` is a cache.
 */
struct node {
    uint64_t id;
    uint64_t dev, ino;
    struct statx_timestamp born;
    mode_t type;      /* S_IFMT */
    uint64_t lookups; /* how often the guest was told, less what it forgot */
    uint32_t holds;   /* children that name it as their parent, and operations that use it */
    uint32_t name_length;
    struct node *parent; /* NULL for the root, and when nobody knows where it is now */
    char *name;
    struct node *same_hash;
    struct node *down;          /* node_open's way back */
    int fd;                     /* O_PATH, or -1 */
    uint32_t used_at;           /* seconds, when fd was last needed */
    struct node *newer, *older; /* in order of used_at, while fd >= 0 */
    struct handle *handles;
    struct lock_owner *lock_owners;
    bool covered; /* another file system is mounted on it: shown empty */
    /* As of its last opening; a guest's cached pages are good as long as it is so (file.c). */
    struct version {
        int64_t modified_ns, changed_ns;
        uint64_t size;
    } version;
    /* What its attribute said, or that it has none (owner.c). */
    struct known_owner {
        bool known, stored;
        uint32_t at; /* now_s() */
        struct owner owner;
    } owner;
};

/* A file or directory that the guest has open. */
struct handle {
    uint64_t id;
    struct node *node;
    int fd; /* -1: a covered directory, or lost */
    bool directory, writable;
    bool lost;      /* it was open when the machine was saved, and is not there any more: ESTALE (state.c) */
    uint32_t flags; /* that a file was opened with, as far as they last */
    uint32_t uses;  /* calls that run without the lock, and 1 until it is released */
    struct handle *next_of_node;
    struct entries *entries; /* of a directory: read, not given to the guest yet (directory.c) */
};

/* Numbers that the guest hands back: index + 1 in the low half, which use of that index in the high half. */
struct id_table {
    struct id_slot {
        void *object; /* NULL: free */
        uint64_t id;  /* of the object, or of the next one */
        uint32_t next_free;
    } * slots;
    uint32_t n, allocated, first_free;
};

struct lock_wait {
    struct lock_wait *next;
    uint32_t index;
    uint64_t unique, nodeid;
    struct handle *handle; /* held */
    struct fuse_lk_in lk;
};

struct server {
    struct server_config config;
    pthread_mutex_t lock;
    uid_t uid; /* whose files appear as the guest root's */
    gid_t gid;
    bool all_powerful; /* root: no permission is ever denied */
    uint32_t minor;    /* of the guest's protocol; 0 before INIT */
    uint64_t features; /* those agreed on */
    uint64_t root_mount;
    struct node *root, **buckets;
    uint32_t n_buckets;
    struct id_table nodes, handles;
    uint32_t handles_max, cached, cached_max;
    uint32_t n_open; /* descriptors in use for handles and lock owners */
    struct node *newest, *oldest;
    struct lock_wait *waits;
    uint32_t n_waits;
    pthread_cond_t wake; /* of the housekeeper */
    pthread_t housekeeper;
    bool ending, has_housekeeper;
};

/* --- a call (dispatch.c) ------------------------------------------------------------------------------------- */

#define REPLY_ROOM 4080u /* SHARE_INLINE less the header */

struct call {
    struct server *s;
    uint32_t index;
    void *caller;
    struct fuse_in_header in;
    struct node *node; /* in.nodeid; NULL where the operation's row does not ask for one */
    const void *arg;   /* at least as long as the operation's row says; private */
    size_t arg_length;
    const char *name[2]; /* checked; by the row */
    const void *extra;   /* what follows arg and names */
    size_t extra_length;
    const void *data; /* of a write: more bytes behind `extra`; others may change them */
    size_t data_length;
    uint8_t *out; /* REPLY_ROOM bytes for the reply's body */
    uint8_t *slot;
    size_t room; /* how long the body may be */
    bool in_slot, unlocked;
};

#define CALL_LATER (-100000) /* will be answered by somebody else */
#define CALL_SILENT (-100001)

/* Where to put `want` bytes of body, *got of which there is room for. */
void *call_room(struct call *c, size_t want, size_t *got);
/* Answers with a body of one struct. */
int call_body(struct call *c, const void *body, size_t length);
/* Around what may take long on an open file: releases the lock, takes it again.  The
 * descriptors of nodes are not the call's in between, handles got by handle_hold are. */
void call_unlock(struct call *c);
void call_lock(struct call *c);
/* The reply of a call that returned CALL_LATER. */
void reply_error(struct server *s, uint32_t index, uint64_t unique, int error);

/* --- numbers (table.c) --------------------------------------------------------------------------------------- */
int id_add(struct id_table *t, void *object, uint32_t max, uint64_t *id); /* -ENFILE, -ENOMEM */
void *id_find(const struct id_table *t, uint64_t id);
void id_remove(struct id_table *t, uint64_t id);
void id_free(struct id_table *t);
/* All numbers are free but those of the first n indices, which are in use: also those that were used before. */
void id_cut(struct id_table *t, uint32_t n);
/* Gives an object the number that it had; id_settle follows, before any other call.  -EEXIST, -EINVAL, -ENOMEM. */
int id_put(struct id_table *t, uint64_t id, void *object, uint32_t max);
/* The numbers that are free have been used so often at most. */
void id_settle(struct id_table *t, uint32_t uses);
uint32_t id_uses(const struct id_table *t);

/* --- nodes (node.c) ------------------------------------------------------------------------------------------ */
int nodes_create(struct server *s);
void nodes_clear(struct server *s); /* all but the root */
void nodes_destroy(struct server *s);
struct node *node_find(struct server *s, uint64_t id);
/* The node's O_PATH descriptor, opened again if need be; st, if not NULL, gets its state of now.  -ESTALE when it is
 * not where it was. */
int node_open(struct server *s, struct node *node, struct statx *st);
/* The same for a directory in which something is to be made or changed. */
int node_open_to_change(struct server *s, struct node *node);
/* Both at once: the way to the second may be so long that the first falls out of the cache.  0 or -errno. */
int node_open_both(struct server *s, struct node *a, struct node *b, int *a_fd, int *b_fd);
/* What `name` in the directory is.  The node counts one more lookup when `told`, else it is held (node_drop). */
int node_lookup(struct server *s, struct node *directory, const char *name, bool told, struct node **out,
                struct attributes *a);
/* The same for a file that has been made just now and is open; fd stays the caller's. */
int node_of_new_file(struct server *s, struct node *directory, const char *name, int fd, struct node **out,
                     struct attributes *a);
void node_hold(struct node *node);
void node_drop(struct server *s, struct node *node);
void node_forget(struct server *s, struct node *node, uint64_t lookups);
/* The file called `name` in `directory` is this node now. */
void node_moved(struct server *s, struct node *node, struct node *directory, const char *name);
/* --- their descriptors (node_cache.c) -------------------------------------------------------------------------------
 */
void node_cache(struct server *s, struct node *node, int fd); /* fd becomes the node's */
void node_used(struct server *s, struct node *node);          /* its descriptor has been needed */
void node_uncache(struct server *s, struct node *node);
/* Closes descriptors that have not been used for `seconds`; returns how many are left. */
uint32_t nodes_trim(struct server *s, uint32_t seconds);
/* Makes room for one more descriptor by closing a cached one; false: there is none. */
bool nodes_evict(struct server *s);

/* What the guest knew when it was saved.  name is copied; NULL: nobody knows where it is.  -EEXIST, -EINVAL, -ENOMEM.
 */
struct node_was {
    uint64_t id, dev, ino, lookups;
    struct statx_timestamp born;
    mode_t type;
    bool covered;
};
int node_put(struct server *s, const struct node_was *was, const char *name);
/* When all are there: it is in that directory.  -EINVAL: it cannot be. */
int node_join(struct node *node, struct node *parent);
/* All are where they are.  -EINVAL: some of them in themselves, and now none is anywhere. */
int nodes_joined(struct server *s);
/* Those that nobody needs go. */
void nodes_settle(struct server *s);
uint64_t node_root_device(const struct server *s);

/* --- open files (handle.c) ----------------------------------------------------------------------------------- */
/* fd becomes the handle's, also when this fails. */
int handle_add(struct server *s, struct node *node, int fd, bool directory, bool writable, struct handle **out);
struct handle *handle_find(struct server *s, uint64_t id, const struct node *node, bool directory); /* or NULL */
/* Why nothing can be done with it, NULL as well: -EBADF, -ESTALE; 0: it can. */
static inline int handle_check(const struct handle *h)
{
    return !h ? -EBADF : h->lost ? -ESTALE : 0;
}
/* The same by the number that it had, with fd -1: lost.  0, -EEXIST, -EMFILE, -ENOMEM, and fd is closed. */
int handle_put(struct server *s, uint64_t id, struct node *node, int fd, bool directory, uint32_t flags);
void handle_hold(struct handle *h);
void handle_drop(struct server *s, struct handle *h);
void handle_release(struct server *s, struct handle *h);
void handles_clear(struct server *s);

/* A regular file, and a directory, as they are opened for the guest: a descriptor, or -errno. */
int file_open(struct server *s, struct node *node, uint32_t flags, struct statx *st);
int directory_open(struct server *s, struct node *node);
struct entries *entries_new(void);
/* Of the guest's flags those that last as long as the file is open. */
#define OPEN_LASTING (O_ACCMODE | O_SYNC | O_DSYNC)

/* --- system calls with the rights of the owner (access.c) ---------------------------------------------------- */
#define PROC_PATH_SIZE 32
void proc_path(char *path, int fd); /* of the file that fd, which may be O_PATH, refers to */
int sys(long result);               /* the result, or -errno */
uint32_t now_s(void);               /* seconds of a clock that only goes forward */

/* A system call's permission for a file or directory of our own whose mode refuses it to us although the guest's root
 * may: the mode is widened for a moment.  Use:
 *     struct grant g = {0};
 *     do
 *         r = sys(openat(...));
 *     while (grant_again(s, &g, fd, S_IRUSR, r)); */
struct grant {
    bool active;
    mode_t mode;
    int fd;
};
bool grant_again(struct server *s, struct grant *g, int fd, mode_t need, int result);

/* --- owners and attributes (owner.c, attr.c) ----------------------------------------------------------------- */
/* fd may be -1 when owner_is_at_hand. */
void owner_load(struct server *s, struct node *node, int fd, const struct statx *st, struct owner *owner);
int owner_store(struct server *s, struct node *node, int fd, const struct statx *st, const struct owner *owner);
/* The owner of what the caller makes in a directory (S_ISGID is inherited); *mode gets the bits for the host. */
int owner_of_new(struct call *c, struct node *directory, mode_t *mode, struct owner *owner);
/* Drops set-uid and set-gid bits, as a write to the file does. */
void owner_kill_bits(struct server *s, struct node *node, int fd);
/* Need the file be looked at to know its owner?  node may be NULL. */
bool owner_is_at_hand(struct server *s, const struct node *node, const struct statx *st);
/* Looks, by the file's name in an open directory.  -EACCES: it has to be opened for that. */
int owner_look(struct server *s, struct node *node, int directory, const char *name);
void owner_is_default(struct node *node); /* it has been made just now */
#define OWNER_XATTR_PREFIX "user.guise."

int node_attributes(struct server *s, struct node *node, struct attributes *a);
void attr_fill(struct server *s, const struct node *node, const struct attributes *a, struct fuse_attr *out);
uint64_t attr_ino(struct server *s, uint64_t dev, uint64_t ino);
void entry_fill(struct server *s, const struct node *node, const struct attributes *a, struct fuse_entry_out *out);

/* --- operations ---------------------------------------------------------------------------------------------- */
extern const uint64_t session_features, session_lock_features; /* that we can agree on (session.c) */
void session_forget(struct server *s);                         /* all files and locks */
int op_init(struct call *c);
int op_destroy(struct call *c);
int op_statfs(struct call *c);
int op_syncfs(struct call *c);
int op_lookup(struct call *c);
int op_forget(struct call *c);
int op_batch_forget(struct call *c);
int op_getattr(struct call *c);
int op_setattr(struct call *c);
int op_access(struct call *c);
int op_readlink(struct call *c);
int op_symlink(struct call *c);
int op_mknod(struct call *c);
int op_mkdir(struct call *c);
int op_unlink(struct call *c);
int op_rmdir(struct call *c);
int op_rename(struct call *c);
int op_rename2(struct call *c);
int op_link(struct call *c);
int op_open(struct call *c);
int op_create(struct call *c);
int op_read(struct call *c);
int op_write(struct call *c);
int op_release(struct call *c);
int op_flush(struct call *c);
int op_fsync(struct call *c);
int op_fallocate(struct call *c);
int op_lseek(struct call *c);
int op_copy_file_range(struct call *c);
int op_opendir(struct call *c);
int op_readdir(struct call *c);
int op_readdirplus(struct call *c);
int op_releasedir(struct call *c);
int op_fsyncdir(struct call *c);
int op_setxattr(struct call *c);
int op_getxattr(struct call *c);
int op_listxattr(struct call *c);
int op_removexattr(struct call *c);
int op_getlk(struct call *c);
int op_setlk(struct call *c);
int op_setlkw(struct call *c);
int op_interrupt(struct call *c);

/* --- locks (lock.c) ------------------------------------------------------------------------------------------ */
void locks_drop_owner(struct server *s, struct node *node, uint64_t owner);
void locks_drop_node(struct server *s, struct node *node);
void locks_unflock(struct server *s, struct handle *h);
void locks_retry(struct server *s);                                     /* what waits, again */
void locks_cancel(struct server *s, const struct handle *h, int error); /* those of h, or all */

int housekeeper_start(struct server *s);
void housekeeper_stop(struct server *s);

/* --- the process (confine.c) --------------------------------------------------------------------------------- */
/* Gives up everything but the directory *root_fd, which may be replaced; says what it could not do without.  0/-errno.
 */
int confine(int *root_fd, bool read_only, bool cross_mounts, char *err, size_t n);
