/*
 * What the network's helper process makes of a message from a VM (its guest's frames, or the bytes of a VM process that
 * has lost its mind), and of libslirp's frames; and the words of networks and published ports, which the control socket
 * takes from strangers.
 */
#include "fixture.h"

#include <fcntl.h>

#include "backends/net/net_int.h"
#include "backends/net/offload.h"
#include "backends/net/slirp_frames.h"
#include "backends/net/worker.h"

#define MESSAGE_MAX 70000u

/* libslirp gets whole packets with whole checksums, no longer than it takes. */
static void feed(void *opaque, const uint8_t *frame, size_t len)
{
    struct offload_frame f;

    assert_true(len >= 14 && len <= NET_FRAME_MAX);
    if (offload_parse(frame, len, &f) && f.payload)
        assert_true(f.payload <= f.end && f.end <= len);
}

static void message(struct wire *w, const uint8_t *data, size_t size)
{
    struct net_header *h;
    uint8_t *frame;
    size_t len;

    w->in_len = size < MESSAGE_MAX ? size : MESSAGE_MAX;
    w->in_at = w->in_next = 0;
    memcpy(w->in, data, w->in_len);
    while (wire_next(w, &h, &frame, &len)) {
        assert_true(frame >= w->in && frame + len <= w->in + w->in_len);
        slirp_frames_in(h, frame, len, feed, NULL);
        wire_done(w);
    }
}

/* One record around the whole input, so that the frame is what is fuzzed. */
static void one_frame(struct wire *w, const uint8_t *data, size_t size)
{
    static uint8_t record[MESSAGE_MAX];
    uint32_t len = size > 12 ? (uint32_t)size - 12 : 0;

    if (size < 12 || size > MESSAGE_MAX - 4)
        return;
    memcpy(record, &len, sizeof len);
    memcpy(record + 4, data, size);
    message(w, record, size + 4);
}

static void words(const uint8_t *data, size_t size)
{
    struct net_publish p;
    char text[200], err[300];

    size = size < sizeof text - 1 ? size : sizeof text - 1;
    memcpy(text, data, size);
    text[size] = 0;
    net_check(text, err, sizeof err);
    if (net_publish_parse(text, &p, err, sizeof err) == 0)
        assert_true(p.guest_port);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static struct wire w = {.fd = -1};
    struct worker_out out;

    if (!size)
        return 0;
    if (w.fd < 0)
        assert_int_equal(wire_init(&w, open("/dev/null", O_WRONLY | O_CLOEXEC)), 0);
    switch (data[0] % 4) {
    case 0:
        message(&w, data + 1, size - 1);
        break;
    case 1:
        one_frame(&w, data + 1, size - 1);
        break;
    case 2:
        worker_out_init(&out, &w, WORKER_TOO_MUCH);
        slirp_frames_out(&out, data + 1, size - 1 < NET_FRAME_MAX ? size - 1 : NET_FRAME_MAX);
        worker_out_flush(&out);
        worker_out_free(&out);
        break;
    case 3:
        words(data + 1, size - 1);
        break;
    }
    return 0;
}
