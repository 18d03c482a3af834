/* PUT and GET: agent/tree.h between the stream and this system's files, as the user asked for. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "agent/tree.h"
#include "base/error.h"
#include "guest/guest.h"

struct copy_request {
    char *path, *name, *user;
    uint64_t flags;
};

static void parse(const struct frame *f, struct copy_request *r)
{
    struct fields i;
    struct field field;

    *r = (struct copy_request){.flags = frame_number(f, FIELD_FLAGS, 0)};
    fields_begin(&i, f);
    while (fields_next(&i, &field)) {
        char **to = field.tag == FIELD_PATH   ? &r->path
                    : field.tag == FIELD_NAME ? &r->name
                    : field.tag == FIELD_USER ? &r->user
                                              : NULL;
        if (to && !*to)
            *to = field_text(&field);
    }
}

static void release(struct copy_request *r)
{
    free(r->path);
    free(r->name);
    free(r->user);
}

/* For the rest of this process: files are read and written with that user's rights, relative paths begin at home. */
static int become(const struct guest *g, const char *who, char *err, size_t n)
{
    struct user u;
    int r = user_find(who, &u, err, n);

    if (!r && (g->inside || who)) {
        r = user_become(&u);
        if (r)
            error_sys(err, n, r, "the guest's agent cannot become user %s", u.name);
        else if (chdir(u.home) && chdir("/"))
            r = error_sys(err, n, -errno, "the guest's directory %s cannot be entered", u.home);
    }
    return r;
}

static const struct tree_watch nobody = {0};

/* The sender may be in the middle of it: what is still under way is thrown away, so that the error arrives instead of a
 * broken connection. */
static void refuse(struct stream *s, int code, const char *why)
{
    struct frame f;

    stream_put_error(s, code, "%s", why);
    if (stream_send(s) == 0)
        while (stream_receive(s, &f) == 0 && f.type != FRAME_END)
            ;
}

void put_serve(struct guest *g, struct stream *s, const struct frame *request)
{
    char why[ERROR_SIZE] = "the request is malformed";
    struct tree_target t = {.directory = -1, .stream = -1};
    struct copy_request r;
    int failed = -EINVAL;

    parse(request, &r);
    if (r.path && r.name)
        failed = become(g, r.user, why, sizeof(why));
    if (!failed)
        failed = tree_target_open(r.path, r.name, r.flags & TREE_CONTENTS, &t, why, sizeof(why));
    if (!failed)
        failed = tree_receive(s, &t, r.flags, &nobody, why, sizeof(why));
    tree_target_close(&t);
    release(&r);
    if (failed)
        refuse(s, failed, why);
    else
        stream_put(s, FRAME_OK, NULL, 0);
}

void get_serve(struct guest *g, struct stream *s, const struct frame *request)
{
    char why[ERROR_SIZE] = "the request is malformed";
    struct copy_request r;
    int failed = -EINVAL;

    parse(request, &r);
    if (r.path)
        failed = become(g, r.user, why, sizeof(why));
    if (!failed)
        failed = tree_send(s, r.path, r.flags, &nobody, why, sizeof(why));
    release(&r);
    if (failed)
        stream_put_error(s, failed, "%s", why);
}
