/* One session: the first frame says what it is about. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
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

/* Followed anew for each session, since the first process changes its root during the boot of an image with an initrd
 * of its own, and perhaps at its end. */
int session_enter_root(const struct guest *g)
{
    struct stat st;

    if (g->proc < 0)
        return 0;
    int root = openat(g->proc, "1/root", O_PATH | O_CLOEXEC);
    if (root < 0)
        return -errno;
    int r = fstat(root, &st) ? -errno : 0;
    if (!r && st.st_dev == g->first_dev && st.st_ino == g->first_ino)
        r = -EAGAIN;
    if (!r && (fchdir(root) || chroot(".")))
        r = -errno;
    close(root);
    return r;
}

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
    r = session_enter_root(g);
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
