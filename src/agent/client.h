/*
 * The host's end of the protocol: what can be asked of the agent in a guest.
 *
 * Each function takes a stream that is connected to the guest's AGENT_PORT (through a VM's control socket, say), sends
 * one request, waits for its end, and leaves closing to the caller.  What comes from the guest is hostile: sizes are
 * bounded, and messages of the guest are made printable before they reach err[n].
 *
 * They return 0, or -errno with a sentence: -ECONNRESET when the stream ended too early (the VM has ended, or its agent
 * is not there), -EPROTO when the guest breaks the protocol, else what the guest's agent gave as the reason.
 */
#pragma once
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "agent/protocol.h"

struct agent_session;

struct agent_exec {
    const char *const *argv;        /* ends with NULL; may be empty if login */
    const char *const *environment; /* "K=V", ends with NULL; NULL: only what the agent sets (PATH, HOME, ...) */
    const char *directory;          /* NULL: the user's home */
    const char *user;               /* "NAME", "UID", either with ":GROUP"; NULL: root */
    bool tty;                       /* on a pseudo-terminal of the guest, with this size */
    bool login;                     /* the user's own shell, argv are its arguments */
    unsigned rows, columns;

    int in;  /* what becomes the command's stdin; -1: an empty file.  None of the three is made non-blocking, */
    int out; /* since they may be shared with other processes; -1: thrown away */
    int err;

    /* If not NULL, what is read from `in` goes through this on its way: to[] has room for 2 * len bytes.  Returns how
     * many are to be sent; -ECANCELED ends agent_exec. */
    ssize_t (*typed)(void *opaque, const uint8_t *from, size_t len, uint8_t *to);

    /* Called when `wake`, if not -1, is readable: a signalfd, say.  It may use agent_session_signal and _resize.  A
     * negative return value ends agent_exec with that. */
    int wake;
    int (*woken)(void *opaque, struct agent_session *session);
    void *opaque; /* of both */
};

struct agent_status {
    enum exit_kind kind;
    int code;          /* exit status, signal's number, or 125..127 */
    char message[512]; /* EXIT_FAILED: why */
};

/*
 * Runs a command and pumps its input and output until it ends.  When the reader of `out` or `err` is gone the command's
 * end of it is closed too.  Signals of this process are the caller's to handle, SIGPIPE ignored among them.
 */
int agent_exec(int fd, const struct agent_exec *e, struct agent_status *status, char *err, size_t n);

/* To the command's process group. */
void agent_session_signal(struct agent_session *s, int number);
void agent_session_resize(struct agent_session *s, unsigned rows, unsigned columns);

/* As a shell would tell it: the status, 128 + signal, or 125..127. */
int agent_exit_code(const struct agent_status *status);

/* Asks for POWER_OFF or POWER_REBOOT, and returns when the guest's init has been told; for POWER_SYNC when all is on
 * the disks. */
int agent_power(int fd, enum power_action action, char *err, size_t n);

/* What a fork or a restored snapshot needs: another name, other randomness, the right time. */
struct agent_identity {
    const char *hostname; /* NULL: as it is */
    const uint8_t *seed;  /* for the kernel's random numbers, at most 512 bytes; or NULL */
    size_t seed_len;
    uint64_t time_ns; /* since 1970; 0: leave the clock */
};
int agent_identify(int fd, const struct agent_identity *identity, char *err, size_t n);

/* Copies files and directories (agent/tree.h), as cp(1) understands source and destination. */
struct tree_watch;
struct agent_copy {
    const char *user;               /* with whose rights in the guest, and where relative paths begin; NULL: root */
    bool owners;                    /* keep numeric owners */
    int stream;                     /* not -1: one file's bytes come from, or go to, this descriptor, not `local` */
    const struct tree_watch *watch; /* or NULL */
};
int agent_put(int fd, const char *local, const char *remote, const struct agent_copy *c, char *err, size_t n);
int agent_get(int fd, const char *remote, const char *local, const struct agent_copy *c, char *err, size_t n);

/* Connects to a TCP port (path NULL) or a Unix socket in the guest: then `fd` carries its bytes, both ways.  Where
 * nobody listens yet the guest tries again for patience_ms. */
int agent_tunnel(int fd, unsigned port, const char *path, unsigned patience_ms, char *err, size_t n);

/* Facts about the running guest: calls `fact` for each, key and value printable. */
int agent_info(int fd, void (*fact)(void *opaque, const char *key, const char *value), void *opaque, char *err,
               size_t n);

/* The frame by which a guest announces itself on the host's AGENT_PORT. */
struct agent_hello {
    unsigned version;
    bool boot_mode;
    uint64_t uptime_ms; /* the guest's kernel, when the agent was ready */
    char failure[512];  /* not empty: the guest cannot start, and why */
};
#define AGENT_HELLO_MAX 2048
/* Parses what a guest has sent so far: how many bytes the frame had, 0 when more must come, -EPROTO. */
int agent_hello_parse(const void *data, size_t len, struct agent_hello *hello);
