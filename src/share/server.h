/*
 * The file server: answers FUSE messages (protocol 7.31 and later, linux/fuse.h) about one directory.
 *
 * struct server has the files that the guest knows and those that it has open; server_call answers one message;
 * server_run does so for a socket, with a few threads, until the other end closes it.
 */
#pragma once
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

struct server;

struct server_config {
    int root_fd; /* the shared directory, O_PATH will do; the server's own from server_create on */
    bool read_only;
    bool locks;           /* the guest's locks are the host's; else its kernel keeps them to itself */
    bool cross_mounts;    /* show what is mounted below the directory, instead of an empty directory */
    unsigned descriptors; /* how many may be open for the guest, 0: as many as RLIMIT_NOFILE allows */
    /* Sends a reply: `head_length` bytes, then `rest_length` bytes which are at the start of the request's slot. */
    void (*reply)(void *opaque, uint32_t index, const void *head, size_t head_length, size_t rest_length);
    void (*slow)(void *caller); /* server_call will take long: somebody else should look for messages; may be NULL */
    void *opaque;
};

/* 0, or -errno with one sentence.  Needs /proc. */
int server_create(struct server **out, const struct server_config *config, char *err, size_t n);
void server_destroy(struct server *s);

/* One message, as it comes out of a packet. */
struct server_message {
    uint32_t index;
    void *caller;     /* for config.slow */
    const void *head; /* private to the caller: nobody changes it during the call */
    size_t head_length;
    const void *rest; /* may be changed by others at any time */
    size_t rest_length;
    void *slot; /* where the rest of a reply may go, SHARE_SLOT_SIZE bytes, or NULL */
    size_t reply_max;
};

/* Answers it by config.reply, now or (a lock that somebody else has) later.  Any thread. */
void server_call(struct server *s, const struct server_message *m);

/* Forgets all files and locks, and answers what waits.  Any thread. */
void server_reset(struct server *s);

/* What the guest knows, and has open, as bytes in memory of the caller's: for a machine that is saved.  0; -E2BIG: more
 * than `most`; -ENOTSUP: its locks are the host's; -ENOMEM. */
int server_save(struct server *s, size_t most, uint8_t **bytes, size_t *size);
/* And back, into a server that may be another process's, perhaps of a directory in which much has changed: what is not
 * the same file any more is ESTALE to the guest.  The bytes may be a stranger's.  0; -EBADMSG: they make no sense, and
 * nothing is known; -ENOTSUP: another version's; -ENOMEM, -EMFILE. */
int server_load(struct server *s, const uint8_t *bytes, size_t size);

/* Serves the mailbox of `arena` (SHARE_ARENA_SIZE bytes, share/wire.h) with `threads` threads until `fd` is closed.
 * Creates its server from config, whose reply and opaque it sets.  0, or -errno with one sentence. */
int server_run(int fd, void *arena, const struct server_config *config, unsigned threads, char *err, size_t n);

/* guise helper-share [--read-only] [--cross-mounts] [--locks]: descriptors 3 the socket, 4 the arena, 5 the directory.
 * Gives up what power it has, serves, and returns the exit status. */
int share_helper_main(int argc, char **argv);
