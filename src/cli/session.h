/*
 * A command in a guest, as if it ran here: this process's stdin, stdout and stderr are the command's, signals go to it,
 * and so does the terminal's size.
 */
#pragma once
#include <stdbool.h>

struct session_options {
    const char *const *argv;        /* ends with NULL */
    const char *const *environment; /* "K=V", ends with NULL; or NULL */
    const char *directory, *user;   /* NULL: the user's home, root */
    bool interactive;               /* our stdin is the command's; else it reads an empty file */
    bool tty;                       /* on a terminal of the guest; ours, if stdin is one, becomes raw */
    bool login;                     /* the user's own shell, with argv as arguments */
};

/*
 * Runs it by the agent that `fd` is connected to, and returns the exit status of the guise command: the command's own,
 * 128 + N, 126, 127, or 125 when guise failed.  What had to be said has been said.
 *
 * SIGINT, SIGTERM, SIGHUP, SIGQUIT, SIGUSR1 and SIGUSR2 go to the command; three of the same within a second are meant
 * for guise and end it.
 */
int session_run(int fd, const struct session_options *o);

/* The same by QEMU's guest agent, which `fd` is connected to: without a terminal, and with all output in the end. */
int session_run_qga(int fd, const struct session_options *o);
