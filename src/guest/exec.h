/* From an EXEC request to a running process: start.c, used by exec.c. */
#pragma once
#include <stdint.h>

#include "guest/guest.h"

struct exec_request {
    char **argv, **environment; /* end with NULL */
    unsigned n_argv, n_environment;
    char *directory, *user; /* NULL: not given */
    uint64_t flags;
    unsigned rows, columns;
};

/* 0, or -errno with a sentence.  Whatever it returns, exec_release frees. */
int exec_parse(const struct frame *f, struct exec_request *r, char *err, size_t n);
void exec_release(struct exec_request *r);

struct exec_child {
    pid_t pid;  /* leader of a session and process group of its own */
    int in;     /* -1: it reads an empty file */
    int out;    /* non-blocking, as all three */
    int err;    /* -1 with a terminal */
    int master; /* with a terminal: what in and out are, else -1 */
};

/* 0, or 125..127 with a sentence. */
int exec_start(const struct exec_request *r, struct exec_child *child, char *err, size_t n);
