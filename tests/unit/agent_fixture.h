/* The guest's agent as an ordinary process, at the other end of a socket pair. */
#pragma once
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

#include "agent/client.h"
#include "agent/frame.h"
#include "base/error.h"

/* build/tests/unit/test_X -> build/src/guest/guise-init */
static inline void agent_path(char *path, size_t size)
{
    char self[PATH_MAX - 32];
    ssize_t len = readlink("/proc/self/exe", self, sizeof(self) - 1);

    assert_true(len > 0);
    self[len] = 0;
    for (int i = 0; i < 3; i++)
        *strrchr(self, '/') = 0;
    snprintf(path, size, "%s/src/guest/guise-init", self);
}

/* Returns our end; *pid may be NULL. */
static inline int agent_start(pid_t *pid)
{
    char path[PATH_MAX], number[16];
    int ends[2];

    agent_path(path, sizeof(path));
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends), 0);
    pid_t child = fork();
    if (child == 0) {
        snprintf(number, sizeof(number), "%d", fcntl(ends[1], F_DUPFD, 3));
        execl(path, path, "--agent-fd", number, NULL);
        _exit(127);
    }
    close(ends[1]);
    if (pid)
        *pid = child;
    return ends[0];
}

/* All that can be read from fd, in a string of the caller's. */
static inline size_t drain(int fd, char *to, size_t size)
{
    size_t len = 0;
    ssize_t now;

    while (len < size - 1 && (now = read(fd, to + len, size - 1 - len)) > 0)
        len += (size_t)now;
    to[len] = 0;
    return len;
}

static inline double seconds(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

/* A peer that is written by hand: `serve` plays the guest in a child process and returns. */
static inline int fake_guest(void (*serve)(int fd, const void *data), const void *data)
{
    int ends[2];

    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends), 0);
    if (fork() == 0) {
        close(ends[0]);
        serve(ends[1], data);
        _exit(0);
    }
    close(ends[1]);
    return ends[0];
}
