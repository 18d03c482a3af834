/* The guest's kernel as a file server sees it: FUSE messages by hand, on a directory of our own. */
#pragma once
#include <errno.h>
#include <fcntl.h>
#include <linux/fuse.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/error.h"
#include "share/server.h"
#include "share/wire.h"

#define REPLIES 16u

struct reply {
    bool here;
    struct fuse_out_header header;
    size_t length; /* of the body */
    uint8_t body[SHARE_DATA_MAX];
};

struct client {
    struct server *server;
    char root[64]; /* the shared directory's path */
    int fd;        /* and it, for *at functions */
    uint64_t unique;
    uint32_t uid, gid;
    pthread_mutex_t lock;
    pthread_cond_t arrived;
    struct reply *replies; /* by index: unique % REPLIES */
    uint8_t *slot;
    uint8_t message[SHARE_SLOT_SIZE];
};

static inline void client_on_reply(void *opaque, uint32_t index, const void *head, size_t head_length,
                                   size_t rest_length)
{
    struct client *c = opaque;
    struct reply *r = &c->replies[index];

    pthread_mutex_lock(&c->lock);
    assert_false(r->here); /* answered once */
    assert_true(head_length >= sizeof r->header && head_length <= SHARE_INLINE && rest_length <= SHARE_DATA_MAX);
    memcpy(&r->header, head, sizeof r->header);
    r->length = head_length - sizeof r->header + rest_length;
    assert_int_equal(r->header.len, sizeof r->header + r->length);
    assert_true(r->header.error <= 0 && (r->header.error == 0 || r->length == 0));
    memcpy(r->body, (const uint8_t *)head + sizeof r->header, head_length - sizeof r->header);
    if (rest_length) {
        assert_int_equal(head_length, sizeof r->header);
        memcpy(r->body, c->slot, rest_length);
    }
    r->here = true;
    pthread_cond_broadcast(&c->arrived);
    pthread_mutex_unlock(&c->lock);
}

static inline void client_serve(struct client *c, struct server_config config)
{
    char err[ERROR_SIZE];

    config.root_fd = open(c->root, O_PATH | O_DIRECTORY | O_CLOEXEC);
    config.reply = client_on_reply;
    config.opaque = c;
    assert_int_equal(server_create(&c->server, &config, err, sizeof err), 0);
}

/* Sends a message whose body is `length` bytes at c->message + 40; the reply comes under the index returned. */
static inline uint32_t client_send_raw(struct client *c, uint32_t opcode, uint64_t nodeid, size_t length,
                                       uint32_t claimed)
{
    struct fuse_in_header in = {.len = claimed,
                                .opcode = opcode,
                                .unique = ++c->unique,
                                .nodeid = nodeid,
                                .uid = c->uid,
                                .gid = c->gid,
                                .pid = 77};
    size_t total = sizeof in + length, head = total <= SHARE_INLINE || opcode != FUSE_WRITE ? total : SHARE_HEAD;
    uint8_t *copy = malloc(total); /* so that a sanitizer sees what reads beyond the end */

    memcpy(copy, &in, sizeof in);
    if (length)
        memcpy(copy + sizeof in, c->message + sizeof in, length);
    if (head < total)
        memcpy(c->slot, copy + head, total - head);
    uint8_t *exact = malloc(head);
    memcpy(exact, copy, head);
    free(copy);
    struct server_message m = {.index = (uint32_t)(c->unique % REPLIES),
                               .head = exact,
                               .head_length = head,
                               .rest = c->slot,
                               .rest_length = total - head,
                               .slot = c->slot,
                               .reply_max = SHARE_REPLY_HEAD + SHARE_DATA_MAX};
    c->replies[m.index].here = false;
    server_call(c->server, &m);
    free(exact);
    return m.index;
}

static inline bool client_has_reply(struct client *c, uint32_t index)
{
    pthread_mutex_lock(&c->lock);
    bool here = c->replies[index].here;
    pthread_mutex_unlock(&c->lock);
    return here;
}

static inline struct reply *client_wait(struct client *c, uint32_t index)
{
    struct timespec until;

    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_sec += 30;
    pthread_mutex_lock(&c->lock);
    while (!c->replies[index].here)
        assert_int_equal(pthread_cond_timedwait(&c->arrived, &c->lock, &until), 0);
    pthread_mutex_unlock(&c->lock);
    return &c->replies[index];
}

static inline size_t client_put(struct client *c, size_t at, const void *bytes, size_t length)
{
    if (length)
        memcpy(c->message + sizeof(struct fuse_in_header) + at, bytes, length);
    return at + length;
}

/* A request of one struct and up to two names.  Returns the reply. */
static inline struct reply *client_ask(struct client *c, uint32_t opcode, uint64_t nodeid, const void *arg,
                                       size_t length, const char *name, const char *second)
{
    size_t n = client_put(c, 0, arg, length);

    if (name)
        n = client_put(c, n, name, strlen(name) + 1);
    if (second)
        n = client_put(c, n, second, strlen(second) + 1);
    return client_wait(c, client_send_raw(c, opcode, nodeid, n, (uint32_t)(sizeof(struct fuse_in_header) + n)));
}

/* Just the error. */
static inline int client_do(struct client *c, uint32_t opcode, uint64_t nodeid, const void *arg, size_t length,
                            const char *name, const char *second)
{
    return client_ask(c, opcode, nodeid, arg, length, name, second)->header.error;
}

static inline int client_init_version(struct client *c, uint32_t major, uint32_t minor, uint32_t flags)
{
    const struct fuse_init_in in = {.major = major, .minor = minor, .max_readahead = 131072, .flags = flags};

    return client_do(c, FUSE_INIT, 0, &in, sizeof in, NULL, NULL);
}

static inline void client_open(struct client *c, struct server_config config)
{
    memset(c, 0, sizeof *c);
    strcpy(c->root, "/var/tmp/guise-share-XXXXXX");
    if (!mkdtemp(c->root)) {
        strcpy(c->root, "/tmp/guise-share-XXXXXX");
        assert_non_null(mkdtemp(c->root));
    }
    c->fd = open(c->root, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    pthread_mutex_init(&c->lock, NULL);
    pthread_cond_init(&c->arrived, NULL);
    c->replies = calloc(REPLIES, sizeof *c->replies);
    c->slot = malloc(SHARE_SLOT_SIZE);
    umask(0);
    client_serve(c, config);
    assert_int_equal(client_init_version(c, 7, 38, ~0u >> 1), 0);
}

static inline void client_close(struct client *c)
{
    char command[192];

    server_destroy(c->server);
    close(c->fd);
    snprintf(command, sizeof command, "chmod -R u+rwx %s; rm -rf %s", c->root, c->root);
    assert_int_equal(system(command), 0);
    free(c->replies);
    free(c->slot);
}

/* --- operations in short ------------------------------------------------------------------------------------- */

static inline int client_lookup(struct client *c, uint64_t directory, const char *name, struct fuse_entry_out *out)
{
    struct reply *r = client_ask(c, FUSE_LOOKUP, directory, NULL, 0, name, NULL);

    if (!r->header.error) {
        assert_int_equal(r->length, sizeof *out);
        memcpy(out, r->body, sizeof *out);
    }
    return r->header.error;
}

static inline uint64_t client_node(struct client *c, uint64_t directory, const char *name)
{
    struct fuse_entry_out out;

    assert_int_equal(client_lookup(c, directory, name, &out), 0);
    return out.nodeid;
}

static inline int client_getattr(struct client *c, uint64_t node, struct fuse_attr *out)
{
    const struct fuse_getattr_in in = {0};
    struct reply *r = client_ask(c, FUSE_GETATTR, node, &in, sizeof in, NULL, NULL);

    if (!r->header.error)
        *out = ((struct fuse_attr_out *)r->body)->attr;
    return r->header.error;
}

static inline int client_setattr(struct client *c, uint64_t node, const struct fuse_setattr_in *in,
                                 struct fuse_attr *out)
{
    struct reply *r = client_ask(c, FUSE_SETATTR, node, in, sizeof *in, NULL, NULL);

    if (!r->header.error && out)
        *out = ((struct fuse_attr_out *)r->body)->attr;
    return r->header.error;
}

static inline int client_create(struct client *c, uint64_t directory, const char *name, uint32_t flags, uint32_t mode,
                                struct fuse_entry_out *entry, uint64_t *fh)
{
    const struct fuse_create_in in = {.flags = flags | O_CREAT, .mode = S_IFREG | mode};
    struct reply *r = client_ask(c, FUSE_CREATE, directory, &in, sizeof in, name, NULL);

    if (!r->header.error) {
        assert_int_equal(r->length, sizeof *entry + sizeof(struct fuse_open_out));
        memcpy(entry, r->body, sizeof *entry);
        *fh = ((struct fuse_open_out *)(r->body + sizeof *entry))->fh;
    }
    return r->header.error;
}

static inline int client_open_file(struct client *c, uint64_t node, uint32_t flags, uint64_t *fh, uint32_t *open_flags)
{
    const struct fuse_open_in in = {.flags = flags};
    struct reply *r = client_ask(c, FUSE_OPEN, node, &in, sizeof in, NULL, NULL);

    if (!r->header.error) {
        *fh = ((struct fuse_open_out *)r->body)->fh;
        if (open_flags)
            *open_flags = ((struct fuse_open_out *)r->body)->open_flags;
    }
    return r->header.error;
}

static inline int client_release(struct client *c, uint64_t node, uint64_t fh)
{
    const struct fuse_release_in in = {.fh = fh};

    return client_do(c, FUSE_RELEASE, node, &in, sizeof in, NULL, NULL);
}

/* Bytes written, or the error. */
static inline int client_write(struct client *c, uint64_t node, uint64_t fh, uint64_t offset, const void *data,
                               size_t n, uint32_t flags, uint32_t write_flags)
{
    const struct fuse_write_in in = {
        .fh = fh, .offset = offset, .size = (uint32_t)n, .flags = flags, .write_flags = write_flags};
    size_t length = client_put(c, client_put(c, 0, &in, sizeof in), data, n);
    struct reply *r = client_wait(
        c, client_send_raw(c, FUSE_WRITE, node, length, (uint32_t)(sizeof(struct fuse_in_header) + length)));

    return r->header.error ? r->header.error : (int)((struct fuse_write_out *)r->body)->size;
}

/* The reply's body is the data. */
static inline struct reply *client_read(struct client *c, uint64_t node, uint64_t fh, uint64_t offset, uint32_t size)
{
    const struct fuse_read_in in = {.fh = fh, .offset = offset, .size = size};

    return client_ask(c, FUSE_READ, node, &in, sizeof in, NULL, NULL);
}

/* --- the host's side ----------------------------------------------------------------------------------------- */

static inline void host_write(struct client *c, const char *name, const char *text)
{
    int fd = openat(c->fd, name, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);

    assert_true(fd >= 0);
    assert_int_equal(write(fd, text, strlen(text)), (ssize_t)strlen(text));
    close(fd);
}

static inline void host_read(struct client *c, const char *name, char *text, size_t size)
{
    int fd = openat(c->fd, name, O_RDONLY | O_NOFOLLOW | O_CLOEXEC);

    assert_true(fd >= 0);
    ssize_t n = read(fd, text, size - 1);
    assert_true(n >= 0);
    text[n] = 0;
    close(fd);
}
