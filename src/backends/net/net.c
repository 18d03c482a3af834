#include "backends/net.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "backends/net/net_int.h"
#include "backends/net/offload.h"
#include "base/error.h"

/* --- limits ------------------------------------------------------------------------------------------------------- */

/* A tenth of a second's worth, and no less than two long frames: below that a TCP connection stutters. */
static int64_t burst(const struct net *net)
{
    uint64_t tenth = net->spec.rate / 10;
    return (int64_t)(tenth > 2 * NET_FRAME_MAX ? tenth : 2 * NET_FRAME_MAX);
}

static void refill(const struct net *net, struct net_bucket *b)
{
    uint64_t now = clock_ns(), passed = now - b->filled_ns;

    if (passed > 1000000000)
        passed = 1000000000;
    int64_t more = (int64_t)((double)passed * 1e-9 * (double)net->spec.rate);
    if (!more)
        return; /* the time is kept until it is worth a byte */
    b->filled_ns = now;
    b->tokens = b->tokens + more < burst(net) ? b->tokens + more : burst(net);
}

/* May a frame pass?  If not, the bucket's timer will tell when. */
static bool bucket_open(struct net *net, struct net_bucket *b)
{
    if (!net->spec.rate)
        return true;
    refill(net, b);
    if (b->tokens > 0)
        return true;
    if (b->timer.heap_index < 0) {
        double wait = (double)(1 - b->tokens) / (double)net->spec.rate;
        loop_timer_set(net->loop, &b->timer, clock_ns() + (uint64_t)(wait * 1e9) + 1);
    }
    return false;
}

static void bucket_take(struct net *net, struct net_bucket *b, size_t len)
{
    if (net->spec.rate)
        b->tokens -= (int64_t)len;
}

static void out_again(void *opaque)
{
    net_writable(opaque);
}

static void in_again(void *opaque)
{
    struct net *net = opaque;
    net->spec.kind->resume(net);
}

static void buckets_init(struct net *net)
{
    loop_timer_init(&net->out.timer, out_again, net);
    loop_timer_init(&net->in.timer, in_again, net);
    net->out.tokens = net->in.tokens = burst(net);
    net->out.filled_ns = net->in.filled_ns = clock_ns();
}

/* --- life --------------------------------------------------------------------------------------------------------- */

int net_begin(struct net **out, const char *spec, struct loop *loop, bool late, char *err, size_t n)
{
    struct net *net = calloc(1, sizeof *net);
    int r;

    if (!net)
        return error_sys(err, n, -ENOMEM, "the network %s cannot be opened", spec);
    net->loop = loop;
    net->late = late;
    net->up = true;
    r = net_parse(spec, &net->spec, err, n);
    if (!r && !net->spec.kind)
        r = error_set(err, n, -EINVAL, "%s is not a network that can be opened", spec);
    buckets_init(net);
    if (!r)
        r = net->spec.kind->open(net, err, n);
    if (r) {
        free(net);
        return r;
    }
    *out = net;
    return 0;
}

int net_ready(struct net *net, char *err, size_t n)
{
    return net->spec.kind->ready ? net->spec.kind->ready(net, err, n) : 0;
}

int net_open(struct net **out, const char *spec, struct loop *loop, char *err, size_t n)
{
    struct net *net;
    int r = net_begin(&net, spec, loop, false, err, n);

    if (!r && (r = net_ready(net, err, n)))
        net_close(net);
    if (!r)
        *out = net;
    return r;
}

void net_close(struct net *net)
{
    if (!net)
        return;
    loop_timer_cancel(net->loop, &net->out.timer);
    loop_timer_cancel(net->loop, &net->in.timer);
    net->client = NULL;
    net->spec.kind->close(net);
    free(net);
}

bool net_mac(const struct net *net, uint8_t mac[6])
{
    if (net->spec.has_mac)
        memcpy(mac, net->spec.mac, 6);
    return net->spec.has_mac;
}

unsigned net_mtu(const struct net *net)
{
    return net->spec.mtu;
}

uint64_t net_rate(const struct net *net)
{
    return net->spec.rate;
}

void net_attach(struct net *net, const struct net_client *client, void *opaque)
{
    net->client = client;
    net->opaque = opaque;
    if (client)
        net_resume(net);
}

void net_set_offloads(struct net *net, unsigned offloads)
{
    net->offloads = offloads;
    if (net->spec.kind->offloads)
        net->spec.kind->offloads(net, offloads);
}

bool net_link(const struct net *net)
{
    return net->up;
}

void net_set_link(struct net *net, bool up)
{
    if (net->up == up)
        return;
    net->up = up;
    net->segments_done = 0;
    if (!net->client)
        return;
    net->client->link(net->opaque, up);
    net->client->writable(net->opaque); /* frames that waited for the old one go nowhere, or to the new one */
}

/* --- frames of the guest ------------------------------------------------------------------------------------------ */

bool net_send(struct net *net, const struct iovec *iov, unsigned n)
{
    size_t len = 0;

    for (unsigned i = 1; i < n; i++)
        len += iov[i].iov_len;
    if (!net->up || n < 2 || n > NET_IOV_MAX || len > NET_FRAME_MAX)
        return true;
    if (!bucket_open(net, &net->out))
        return false;
    if (!net->spec.kind->send(net, iov, n))
        return false;
    bucket_take(net, &net->out, len);
    net->counters.sent_frames++;
    net->counters.sent_bytes += len;
    return true;
}

const struct net_counters *net_counters(const struct net *net)
{
    return &net->counters;
}

void net_flush(struct net *net)
{
    if (net->spec.kind->flush)
        net->spec.kind->flush(net);
}

void net_writable(struct net *net)
{
    if (net->client)
        net->client->writable(net->opaque);
}

/* --- frames for the guest ----------------------------------------------------------------------------------------- */

static bool emit(void *opaque, const uint8_t *frame, size_t len)
{
    static const struct net_header plain = {.flags = NET_DATA_VALID, .num_buffers = 1};
    static const struct net_header bare = {.num_buffers = 1};
    struct net *net = opaque;
    return net->client->receive(net->opaque, net->offloads & NET_CSUM ? &plain : &bare, frame, len);
}

static bool client_takes(const struct net *net, const struct net_header *h)
{
    unsigned type = h->gso_type & ~NET_SEGMENT_ECN;

    if ((h->gso_type & NET_SEGMENT_ECN) && !(net->offloads & NET_ECN))
        return false;
    return net->offloads & (type == NET_SEGMENT_TCP4 ? NET_TSO4 : NET_TSO6);
}

static bool deliver_in_parts(struct net *net, const struct net_header *h, const uint8_t *frame, size_t len)
{
    unsigned total, done = offload_segment(h, frame, len, net->segments_done, emit, net, &total);

    net->segments_done = done < total ? done : 0;
    return done >= total;
}

bool net_deliver(struct net *net, struct net_header *h, uint8_t *frame, size_t len)
{
    if (!net->client || !bucket_open(net, &net->in))
        return false;
    if (!offload_check(h, frame, len))
        return true;
    bool taken;
    if (offload_is_long(h) && !client_takes(net, h)) {
        taken = deliver_in_parts(net, h, frame, len);
    } else {
        if (!(net->offloads & NET_CSUM)) {
            offload_checksum(h, frame, len);
            h->flags = 0;
        }
        h->num_buffers = 1;
        taken = net->client->receive(net->opaque, h, frame, len);
    }
    if (taken) {
        bucket_take(net, &net->in, len);
        net->counters.received_frames++;
        net->counters.received_bytes += len;
    }
    return taken;
}

void net_delivered(struct net *net)
{
    if (net->client)
        net->client->received(net->opaque);
}

void net_resume(struct net *net)
{
    if (net->in.timer.heap_index < 0) /* else its turn comes with the timer */
        net->spec.kind->resume(net);
}

/* --- published ports ---------------------------------------------------------------------------------------------- */

bool net_can_publish(const struct net *net)
{
    return net->spec.kind->publish;
}

static struct net_publish *find_published(struct net *net, const struct net_publish *p)
{
    for (unsigned i = 0; i < net->n_published; i++) {
        struct net_publish *q = &net->published[i];
        if (q->host_port == p->host_port && q->udp == p->udp && memcmp(q->ip, p->ip, sizeof q->ip) == 0)
            return q;
    }
    return NULL;
}

static int check_addition(struct net *net, const struct net_publish *p, char *err, size_t n)
{
    if (!net_can_publish(net))
        return error_set(err, n, -ENOTSUP, "ports can be published on a network of the kind \"user\" only");
    if (net->n_published == NET_PUBLISH_MAX)
        return error_set(err, n, -E2BIG, "more than %u ports cannot be published", NET_PUBLISH_MAX);
    if (p->host_port && find_published(net, p))
        return error_set(err, n, -EEXIST, "the port %u.%u.%u.%u:%u is published already", p->ip[0], p->ip[1], p->ip[2],
                         p->ip[3], p->host_port);
    return 0;
}

static int unknown_port(const struct net_publish *p, char *err, size_t n)
{
    return error_set(err, n, -ENOENT, "the port %u.%u.%u.%u:%u is not published", p->ip[0], p->ip[1], p->ip[2],
                     p->ip[3], p->host_port);
}

void net_publish_settled(struct net *net, const struct net_publish *p, bool add)
{
    struct net_publish *known = find_published(net, p);

    if (add && net->n_published < NET_PUBLISH_MAX)
        net->published[net->n_published++] = *p;
    else if (!add && known)
        memmove(known, known + 1, (size_t)(net->published + --net->n_published - known) * sizeof *known);
}

int net_publish_add(struct net *net, struct net_publish *p, char *err, size_t n)
{
    int r = check_addition(net, p, err, n);

    if (!r)
        r = net->spec.kind->publish(net, p, true, err, n);
    if (!r)
        net_publish_settled(net, p, true);
    return r;
}

int net_publish_remove(struct net *net, const struct net_publish *p, char *err, size_t n)
{
    struct net_publish *known = find_published(net, p);

    if (!known)
        return unknown_port(p, err, n);
    int r = net->spec.kind->publish(net, known, false, err, n);
    if (!r)
        net_publish_settled(net, p, false);
    return r;
}

int net_publish_ask(struct net *net, const struct net_publish *p, bool add, net_publish_done *done, void *opaque,
                    char *err, size_t n)
{
    const struct net_publish *what = add ? p : find_published(net, p);
    int r = add ? check_addition(net, p, err, n) : what ? 0 : unknown_port(p, err, n);

    return r ? r : net->spec.kind->ask(net, what, add, done, opaque, err, n);
}

const struct net_publish *net_published(const struct net *net, unsigned i)
{
    return i < net->n_published ? &net->published[i] : NULL;
}
