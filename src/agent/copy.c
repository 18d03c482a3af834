/* PUT and GET: the host's end. */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "agent/client_int.h"
#include "agent/tree.h"
#include "base/error.h"

static const struct tree_watch nobody = {0};

static uint64_t copy_flags(const struct agent_copy *c, const char *source_name)
{
    return (c->owners ? TREE_OWNERS : 0) | (source_name[0] ? 0 : TREE_CONTENTS) | (c->stream < 0 ? 0 : TREE_FOLLOW);
}

/* The guest says when it has everything. */
static int wait_for_ok(struct stream *s, char *err, size_t n)
{
    struct frame f;
    int r = stream_receive(s, &f);

    if (!r && f.type == FRAME_ERROR)
        return client_refused(&f, err, n);
    if (!r && f.type != FRAME_OK)
        r = -EPROTO;
    return r ? client_failed(r, "copying to the guest", err, n) : 0;
}

int agent_put(int fd, const char *local, const char *remote, const struct agent_copy *c, char *err, size_t n)
{
    const struct tree_watch *w = c->watch ? c->watch : &nobody;
    char name[256] = "stdin";
    struct stream s;

    if (c->stream < 0)
        tree_source_name(local, name, sizeof(name));
    stream_init(&s, fd);
    stream_begin(&s, FRAME_PUT);
    stream_text(&s, FIELD_PATH, remote);
    stream_text(&s, FIELD_NAME, name);
    stream_text(&s, FIELD_USER, c->user);
    stream_number(&s, FIELD_FLAGS, copy_flags(c, name));
    stream_end(&s);
    int r = c->stream < 0 ? tree_send(&s, local, c->owners ? TREE_OWNERS : 0, w, err, n)
                          : tree_send_bytes(&s, c->stream, w, err, n);
    if (!r)
        r = wait_for_ok(&s, err, n);
    stream_release(&s);
    return r;
}

int agent_get(int fd, const char *remote, const char *local, const struct agent_copy *c, char *err, size_t n)
{
    const struct tree_watch *w = c->watch ? c->watch : &nobody;
    struct tree_target t = {.directory = -1, .stream = c->stream};
    char name[256];
    struct stream s;
    int r = 0;

    tree_source_name(remote, name, sizeof(name));
    if (c->stream < 0)
        r = tree_target_open(local, name, !name[0], &t, err, n);
    if (r)
        return r;
    stream_init(&s, fd);
    stream_begin(&s, FRAME_GET);
    stream_text(&s, FIELD_PATH, remote);
    stream_text(&s, FIELD_USER, c->user);
    stream_number(&s, FIELD_FLAGS, copy_flags(c, name));
    stream_end(&s);
    r = stream_send(&s);
    if (r)
        r = client_failed(r, "copying from the guest", err, n);
    else
        r = tree_receive(&s, &t, c->owners ? TREE_OWNERS : 0, w, err, n);
    stream_release(&s);
    tree_target_close(&t);
    return r;
}
