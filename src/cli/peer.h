/*
 * The connections between `guise migrate` and who receives: JSON, one object a line, both ways, and streams that carry
 * what a VM process sends (vm/migration_wire.h).  docs/MIGRATION.md has the messages.
 *
 *      NAME                a machine of this user, on this host
 *      unix:PATH           `guise receive unix:PATH` on this host
 *      tcp://HOST[:PORT]   `guise receive tcp://...` on another: TLS, each side known to the other (cli/tls.h)
 */
#pragma once
#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>

#include "vm/names.h"

#define PEER_PORT "7117"
#define PEER_PATIENCE_MS 20000 /* a live peer answers sooner, but for what says otherwise */

enum peer_kind { PEER_NAME, PEER_UNIX, PEER_TCP };

struct peer_address {
    enum peer_kind kind;
    char text[256];          /* as it is written, a path absolute */
    char path[108];          /* PEER_UNIX */
    char host[128], port[8]; /* PEER_TCP */
};

/* 0, or -EINVAL with a sentence. */
int peer_parse(struct peer_address *a, const char *text, char *err, size_t n);

struct tls;
struct peer {
    int fd;          /* -1: none */
    struct tls *tls; /* NULL: a Unix socket */
};

/* 0, or -errno with a sentence. */
int peer_connect(struct peer *p, const struct peer_address *a, char *err, size_t n);
/* A listening socket; non-blocking. */
int peer_listen(const struct peer_address *a, char *err, size_t n);
/* The next connection, of somebody who may.  -EAGAIN: there is none, or none who may, who was told. */
int peer_accept(struct peer *p, int listening, const struct peer_address *a, char *err, size_t n);
void peer_close(struct peer *p);

/* `message` is taken over.  0 or -errno. */
int peer_send(struct peer *p, json_t *message);
/* The next message, a new reference.  -ETIMEDOUT; -ECONNRESET: the peer has gone; -EBADMSG: it speaks another
 * language; timeout_ms -1: for ever. */
int peer_receive(struct peer *p, int timeout_ms, json_t **message);

/* The connection is a stream from now on: a descriptor for the VM process.  *p is used up.  -errno. */
int peer_stream(struct peer *p, bool sends);
