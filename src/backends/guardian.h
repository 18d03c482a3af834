/*
 * A child that puts the terminal back when guise can no longer do so itself.
 *
 * It waits for the other end of a pipe to close, which the kernel does however guise dies (exit, a signal,
 * SIGKILL, a crash), and before guise's parent is told of the death.  If the terminal then still has exactly
 * the settings guise had given it, it gets those from before.  If it has others, somebody (a shell) has
 * taken over already and is left alone.
 */
#pragma once
#include <sys/types.h>
#include <termios.h>

struct guardian {
    pid_t pid;
    int pipe; /* our end; closed by the kernel or by guardian_dismiss */
};

/* 0 or -errno. */
int guardian_start(struct guardian *g, int tty, const struct termios *before, const struct termios *ours);

/* Ends the child; the terminal is the caller's to restore. */
void guardian_dismiss(struct guardian *g);
