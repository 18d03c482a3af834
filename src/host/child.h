/*
 * Helper processes: what a VM process does not want to have inside itself (a network stack, a file server, foreign
 * disk formats) runs as a child of its own, with its own sandbox.  A helper is another program, or guise itself by a
 * command that `guise help` does not show.
 *
 * A child gets descriptors 3, 4, ... and nothing else that is open, /dev/null as stdin, our stderr as stdout and
 * stderr, an empty signal mask, and dies with the thread that started it.
 */
#pragma once
#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>

struct child {
    pid_t pid; /* 0: none */
    int pidfd; /* readable when the child has ended; -1: none */
};

/* argv[0] NULL stands for the running guise itself.  fds[i] becomes descriptor 3 + i; the caller keeps its own.  0, or
 * -errno with one sentence (the program is missing: -ENOENT). */
int child_start(struct child *c, const char *const argv[], const int *fds, unsigned n_fds, char *err, size_t n);

/* The same for guise itself (argv[0] is NULL) as a helper that may never be wanted: until something has been sent to
 * one of the first `sockets` (1 to 9) of fds, which it then finds there, it is a process that takes hardly any memory
 * (waiting.c).  It ends when nobody can send any more. */
int child_start_late(struct child *c, const char *const argv[], const int *fds, unsigned n_fds, unsigned sockets,
                     char *err, size_t n);

/* Has it ended?  *status is then what waitpid(2) gives. */
bool child_ended(struct child *c, int *status);

/* Asks it to end, insists after grace_ms, and reaps it.  Nothing to do for one that has ended or never began. */
void child_stop(struct child *c, int grace_ms);

/* Starts a process that outlives this one: the same as child_start, but in a session of its own, without a parent that
 * waits for it, and with `log` as stdout and stderr. */
int child_detach(const char *const argv[], const int *fds, unsigned n_fds, int log, char *err, size_t n);
