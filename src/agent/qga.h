/*
 * QEMU's guest agent, for guests that have it and not ours: JSON lines over a virtio console's port (the guest calls it
 * org.qemu.guest_agent.0; https://www.qemu.org/docs/master/interop/qemu-ga-ref.html).  It can less: output comes
 * when the command has ended and is bounded by the agent, there is no terminal, and files go one by one.
 *
 * What it says is hostile like anything from a guest: a line is bounded, JSON is parsed by jansson, texts are made
 * printable. Functions return 0, or -errno with a sentence: -ETIMEDOUT when it does not answer.
 */
#pragma once
#include <stddef.h>

#include "agent/client.h"

struct qga {
    int fd; /* a stream socket, the caller's */
    char *line;
    size_t len, room; /* bytes that have come and were not taken */
};

/* Says hello, and throws away what an earlier client may have left: -ETIMEDOUT when nothing answers for 5 s. */
int qga_open(struct qga *q, int fd, char *err, size_t n);
void qga_close(struct qga *q); /* fd stays open */

struct qga_exec {
    const char *const *argv;        /* ends with NULL */
    const char *const *environment; /* "K=V", ends with NULL; NULL: the agent's own */
    const char *directory, *user;   /* NULL: the agent's own */
    int in;                         /* read to its end first, at most QGA_INPUT_MAX; -1: an empty file */
    int out, err;                   /* get the output in the end; -1: thrown away */
    /* Called when `wake`, if not -1, is readable; a number > 0 is a signal for the command, < 0 ends all with that. */
    int wake;
    int (*woken)(void *opaque);
    void *opaque;
};
#define QGA_INPUT_MAX (8u << 20)
int qga_exec(struct qga *q, const struct qga_exec *e, struct agent_status *status, char *err, size_t n);

/* One regular file. */
int qga_read_file(struct qga *q, const char *path, int to, char *err, size_t n);
int qga_write_file(struct qga *q, int from, const char *path, char *err, size_t n);

/* POWER_OFF, POWER_REBOOT: returns once the guest has taken it. */
int qga_power(struct qga *q, enum power_action action, char *err, size_t n);
