/*
 * A listening Unix socket with one client at a time.  A second one waits until the first has gone (it
 * stays in the listen queue of length 1).
 */
#pragma once
#include <stdbool.h>
#include <stddef.h>

struct input;
struct loop;
struct output;
struct socket_server;

/* Creates the socket file, mode 0600; a stale one, that nobody listens on, is replaced.  `changed` is told when a
 * client has come or gone.  0 or -errno. */
int socket_open(struct socket_server **out, const char *path, struct loop *loop, struct input *in, struct output *o,
                void (*changed)(void *opaque, bool present), void *opaque, char *err, size_t n);
bool socket_has_client(const struct socket_server *s);
void socket_close(struct socket_server *s); /* removes the file; NULL is fine */
