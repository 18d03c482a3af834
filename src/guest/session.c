/* One session: the first frame says what it is about. */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "guest/guest.h"

static const struct request {
    enum frame_type type;
    void (*serve)(struct guest *g, struct stream *s, const struct frame *request);
} requests[] = {
    {FRAME_EXEC, exec_serve},         {FRAME_PUT, put_serve},   {FRAME_GET, get_serve},
    {FRAME_TUNNEL, tunnel_serve},     {FRAME_INFO, info_serve}, {FRAME_POWER, power_serve},
    {FRAME_IDENTITY, identity_serve},
};

int session_run(struct guest *g, int fd)
{
    struct stream s;
    struct frame f;

    stream_init(&s, fd);
    s.limit = REQUEST_MAX;
    int r = stream_receive(&s, &f);
    s.limit = FRAME_MAX;
    if (r)
        return 1;
    r = follow_root(g);
    if (r == -EAGAIN)
        stream_put_error(&s, r, "the guest has not mounted its root file system yet");
    else if (r)
        stream_put_error(&s, r, "the guest's root file system cannot be entered: %s", strerror(-r));
    else
        r = 1;
    for (size_t i = 0; r > 0 && i < sizeof(requests) / sizeof(requests[0]); i++)
        if (requests[i].type == f.type) {
            requests[i].serve(g, &s, &f);
            r = 0;
        }
    if (r > 0)
        stream_put_error(&s, -ENOSYS, "the guest's agent is of another version, and does not know this request");
    return stream_send(&s) != 0;
}
