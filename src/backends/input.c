#include "backends/input.h"

#include <errno.h>
#include <sys/epoll.h>
#include <unistd.h>

static void on_ready(void *opaque, uint32_t events);

static void unwatch(struct input *in)
{
    if (in->watched)
        loop_fd_del(in->loop, in->fd);
    in->watched = false;
}

/* Brings the loop's view in line with what is wanted.  A descriptor that is not wanted is taken out of the
 * loop altogether: epoll reports a hang-up even to those who asked for no event. */
static void update(struct input *in)
{
    bool room = in->hungry || in->ring.size - in->ring.len >= INPUT_CHUNK;
    bool want = in->fd >= 0 && in->sink && !in->paused && room;

    if (!want) {
        unwatch(in);
        return;
    }
    if (in->pollable && !in->watched) {
        int r = loop_fd_add(in->loop, in->fd, EPOLLIN, on_ready, in);
        in->watched = r == 0;
        in->pollable = r != -EPERM; /* epoll's word for regular files and /dev/null */
    }
    if (!in->pollable && in->ring.len == 0)
        loop_timer_set(in->loop, &in->pump, clock_ns());
}

static void end(struct input *in)
{
    int fd = in->fd;

    unwatch(in);
    in->fd = -1;
    if (in->ended)
        in->ended(in->opaque, fd);
}

static void fill(struct input *in)
{
    uint8_t raw[INPUT_CHUNK], edited[2 * INPUT_CHUNK];
    ssize_t n = read(in->fd, raw, sizeof(raw));

    if (n < 0 && (errno == EINTR || errno == EAGAIN))
        return;
    if (n <= 0) {
        end(in);
        return;
    }
    size_t len = (size_t)n;
    const uint8_t *data = raw;
    if (in->filter) {
        len = in->filter(in->opaque, raw, len, edited);
        data = edited;
    }
    if (ring_put(&in->ring, data, len) < len && write(in->fd, "\a", 1) < 0)
        end(in); /* only a hungry terminal comes here: what does not fit is lost, so ring its bell */
}

static void deliver(struct input *in)
{
    const uint8_t *data;
    size_t len, taken;

    while (in->sink && (len = ring_front(&in->ring, &data)) > 0) {
        taken = in->sink(in->sink_opaque, data, len);
        ring_drop(&in->ring, taken);
        if (taken < len)
            break;
    }
}

static void on_ready(void *opaque, uint32_t events)
{
    struct input *in = opaque;

    if (in->fd >= 0)
        fill(in);
    deliver(in);
    update(in);
}

static void on_pump(void *opaque)
{
    struct input *in = opaque;

    deliver(in);
    if (!in->pollable && in->fd >= 0 && !in->paused && in->ring.len == 0) {
        fill(in);
        deliver(in);
    }
    update(in);
}

int input_init(struct input *in, struct loop *loop, size_t capacity)
{
    *in = (struct input){.loop = loop, .fd = -1};
    loop_timer_init(&in->pump, on_pump, in);
    return ring_create(&in->ring, capacity);
}

void input_attach(struct input *in, int fd)
{
    in->fd = fd;
    in->pollable = true;
    update(in);
}

void input_detach(struct input *in)
{
    unwatch(in);
    in->fd = -1;
    ring_drop(&in->ring, in->ring.len);
}

void input_pause(struct input *in, bool paused)
{
    in->paused = paused;
    update(in);
}

void input_set_sink(struct input *in, size_t (*sink)(void *opaque, const void *data, size_t len), void *opaque)
{
    in->sink = sink;
    in->sink_opaque = opaque;
    update(in);
}

void input_resume(struct input *in)
{
    loop_timer_set(in->loop, &in->pump, clock_ns());
}

void input_free(struct input *in)
{
    unwatch(in);
    if (in->loop)
        loop_timer_cancel(in->loop, &in->pump);
    ring_destroy(&in->ring);
}
