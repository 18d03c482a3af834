#include "agent/relay.h"

#include <errno.h>
#include <poll.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

#define PIECE (64u << 10)
/* Pipes and terminals that poll(2) calls writable take this much without blocking. */
#define WRITE_MAX 4096

/* One direction: what has been read and is not yet written. */
struct way {
    int from, to;
    bool ended;
    size_t start, len;
    uint8_t data[PIECE];
};

static bool is_momentary(void)
{
    return errno == EAGAIN || errno == EINTR;
}

/* After poll(2) has said that there is something: a blocking descriptor does not block then. */
static void way_read(struct way *w)
{
    ssize_t n = read(w->from, w->data, PIECE);

    if (n < 0 && is_momentary())
        return;
    if (n <= 0) {
        w->ended = true;
        shutdown(w->to, SHUT_WR); /* no socket: nothing happens */
        return;
    }
    w->start = 0;
    w->len = (size_t)n;
}

/* False: nobody takes it any more. */
static bool way_write(struct way *w)
{
    ssize_t n = send(w->to, w->data + w->start, w->len, MSG_DONTWAIT | MSG_NOSIGNAL);

    if (n < 0 && errno == ENOTSOCK)
        n = write(w->to, w->data + w->start, w->len < WRITE_MAX ? w->len : WRITE_MAX);
    if (n < 0)
        return is_momentary();
    w->start += (size_t)n;
    w->len -= (size_t)n;
    return true;
}

static void run(struct way *there, struct way *back, bool until_peer)
{
    struct way *ways[] = {there, back};

    while (!back->ended || (!until_peer && !there->ended)) {
        struct pollfd p[4];
        for (int i = 0; i < 2; i++) {
            p[2 * i] = (struct pollfd){.fd = ways[i]->ended || ways[i]->len ? -1 : ways[i]->from, .events = POLLIN};
            p[2 * i + 1] = (struct pollfd){.fd = ways[i]->len ? ways[i]->to : -1, .events = POLLOUT};
        }
        if (poll(p, 4, -1) < 0 && errno != EINTR)
            return;
        for (int i = 0; i < 2; i++) {
            if (p[2 * i].revents)
                way_read(ways[i]);
            if (p[2 * i + 1].revents && !way_write(ways[i]))
                return;
        }
    }
}

void relay(int in, int out, int peer, int until_peer)
{
    struct way *ways = calloc(2, sizeof(*ways));

    if (!ways)
        return;
    ways[0].from = in;
    ways[0].to = peer;
    ways[1].from = peer;
    ways[1].to = out;
    run(&ways[0], &ways[1], until_peer);
    free(ways);
}
