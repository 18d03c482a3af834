/* A program that does nothing, in the many ways in which it can be started and waited for. */
#pragma once
#include "system.h"
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

/* Whether the child of pid has ended well. */
static inline long failed(pid_t pid)
{
    int status;
    return pid < 0 || waitpid(pid, &status, 0) != pid || status;
}

static inline int spawn_main(const char *name, long (*spawn)(long n, void *self), int argc, char **argv)
{
    if (argc == 2 && !strcmp(argv[1], "exit"))
        return 0;
    return measure(name, spawn, argv[0]);
}
