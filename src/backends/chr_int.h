/* What a kind of character backend is made of; see the table in chr.c. */
#pragma once
#include "backends/chr.h"
#include "backends/input.h"
#include "backends/output.h"
#include "base/logfile.h"

struct socket_server;
struct terminal;

struct chr {
    struct loop *loop;
    struct output *output; /* NULL: vanishes */
    struct input input;
    struct terminal *terminal;    /* stdio, when stdin is one */
    struct socket_server *server; /* socket */
    int file;                     /* file: its descriptor, else -1 */
    struct logfile log;           /* log */
    bool user_left;
    int space_fd; /* eventfd of output_set_space, else -1 */
    void (*space)(void *opaque);
    void *space_opaque;
    void (*presence)(void *opaque, bool present);
    void *presence_opaque;
};

struct chr_kind {
    const char *name;
    bool has_path; /* NAME:PATH */
    size_t input_bytes;
    int (*open)(struct chr *chr, const char *path, char *err, size_t n);
};
