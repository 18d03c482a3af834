/* Inside the network backends: what each kind gives to net.c. */
#pragma once
#include "backends/net.h"
#include "host/loop.h"

struct net_spec {
    const struct net_kind *kind;
    char where[256]; /* NAME or PATH */
    bool has_mac;
    uint8_t mac[6];
    unsigned mtu;
    uint64_t rate;
    const char *reach; /* of a user network: "all", "world" or "none" */
};

/* A kind; functions as in net.h.  NULL is allowed for those from offloads on. */
struct net_kind {
    const char *word;
    const char *where; /* what follows the colon, for messages; NULL: nothing does */
    int (*open)(struct net *net, char *err, size_t n);
    int (*ready)(struct net *net, char *err, size_t n); /* what `open` has begun; NULL: nothing */
    void (*close)(struct net *net);
    /* Takes the frame with whatever its header says. */
    bool (*send)(struct net *net, const struct iovec *iov, unsigned n);
    void (*flush)(struct net *net);
    /* The frame that net_deliver refused, and those behind it, may be offered. */
    void (*resume)(struct net *net);
    void (*offloads)(struct net *net, unsigned offloads);
    int (*publish)(struct net *net, struct net_publish *p, bool add, char *err, size_t n);
    /* As net_publish_ask; before `done` it calls net_publish_settled. */
    int (*ask)(struct net *net, const struct net_publish *p, bool add, net_publish_done *done, void *opaque, char *err,
               size_t n);
};

/* One direction's share of a limited cable: a token bucket that may go into debt by one frame. */
struct net_bucket {
    int64_t tokens; /* bytes; at most `burst` */
    uint64_t filled_ns;
    struct loop_timer timer; /* while somebody waits */
};

#define NET_PUBLISH_MAX 64u

struct net {
    struct net_spec spec;
    struct loop *loop;
    void *backend; /* the kind's own */
    const struct net_client *client;
    void *opaque;
    unsigned offloads; /* what the client takes */
    bool up;
    bool late; /* as net_begin */
    struct net_bucket out, in;
    struct net_counters counters;
    unsigned segments_done; /* of the long frame that the client took a part of */
    struct net_publish published[NET_PUBLISH_MAX];
    unsigned n_published;
};

int net_parse(const char *spec, struct net_spec *out, char *err, size_t n);

/* A frame for the client: header and frame are in the backend's memory and are changed here.  false: no room, offer the
 * same bytes again after `resume`. */
bool net_deliver(struct net *net, struct net_header *h, uint8_t *frame, size_t len);
void net_delivered(struct net *net); /* the end of a batch */
void net_writable(struct net *net);
void net_set_link(struct net *net, bool up);
/* A port has become, or ceased to be, one that is published. */
void net_publish_settled(struct net *net, const struct net_publish *p, bool add);

extern const struct net_kind net_kind_user, net_kind_tap, net_kind_switch, net_kind_vde;
