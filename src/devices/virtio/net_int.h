/* Inside virtio-net: net.c (the device, reception), net_transmit.c, net_control.c (the control queue), net_filter.c
 * (which frames the guest wants). */
#pragma once
#include "devices/virtio/net.h"
#include "devices/virtio/virtio.h"

enum { NET_RX, NET_TX, NET_CONTROL };

/* Feature bits (5.1.3). */
enum {
    NET_F_CSUM = 0,
    NET_F_GUEST_CSUM = 1,
    NET_F_CTRL_GUEST_OFFLOADS = 2,
    NET_F_MTU = 3,
    NET_F_MAC = 5,
    NET_F_GUEST_TSO4 = 7,
    NET_F_GUEST_TSO6 = 8,
    NET_F_GUEST_ECN = 9,
    NET_F_HOST_TSO4 = 11,
    NET_F_HOST_TSO6 = 12,
    NET_F_HOST_ECN = 13,
    NET_F_MRG_RXBUF = 15,
    NET_F_STATUS = 16,
    NET_F_CTRL_VQ = 17,
    NET_F_CTRL_RX = 18,
    NET_F_CTRL_VLAN = 19,
    NET_F_CTRL_RX_EXTRA = 20,
    NET_F_GUEST_ANNOUNCE = 21,
    NET_F_CTRL_MAC_ADDR = 23,
    NET_F_SPEED_DUPLEX = 63,
};
#define NET_FEATURE(name) (1ull << NET_F_##name)

/* Commands CTRL_RX, each a switch (5.1.6.5.1). */
enum net_mode { MODE_PROMISC, MODE_ALLMULTI, MODE_ALLUNI, MODE_NOMULTI, MODE_NOUNI, MODE_NOBCAST, MODES };

#define NET_TABLE_MAX 64u /* addresses of one table; more: all of that kind are wanted */

struct net_table {
    uint32_t n; /* <= NET_TABLE_MAX */
    uint8_t mac[NET_TABLE_MAX][6];
};

struct net_card_state {
    struct virtio_state virtio;
    uint8_t mac[6];
    uint8_t announce;
    uint8_t mode[MODES];                  /* on or off */
    uint8_t unicast_full, multicast_full; /* a table did not hold all */
    struct net_table unicast, multicast;
    uint64_t vlans[4096 / 64];
    uint64_t offloads; /* features GUEST_... that are switched on, of those agreed on */
};

struct net_card {
    struct net_card_state saved;
    struct virtio_device virtio;
    struct net *net;
    struct loop *loop;
    uint8_t mac[6]; /* at power-on */
    /* net_transmit.c */
    struct loop_timer again; /* the next pass over the queue: a pass had no end, or the queue is looked at */
    bool blocked;            /* the backend has no room for a frame of the guest's */
    bool looking;            /* at the queue, from time to time, instead of being notified */
    unsigned kicks;          /* notifications in a row, with little time between them and nothing received */
    uint64_t kick_ns;
    /* net.c */
    bool starved;  /* the guest has no buffer for a frame of the backend's */
    bool received; /* frames that no interrupt has told of */
    struct virtio_chain chain, first;
};

static inline struct net_card *net_card_of(struct virtio_device *v)
{
    return (struct net_card *)((char *)v - offsetof(struct net_card, virtio));
}

void net_transmit_init(struct net_card *c);
void net_transmit_forget(struct net_card *c); /* a reset: what was begun is not gone on with */
void net_transmit(struct net_card *c);        /* what is in the queue */
void net_transmit_notified(struct net_card *c);
void net_transmit_unblocked(struct net_card *c);

/* Answers what is in the control queue (5.1.6.5). */
void net_control_run(struct net_card *c);
/* What features GUEST_... mean to the backend. */
unsigned net_control_offloads(uint64_t features);

void net_filter_reset(struct net_card_state *s);
void net_filter_restored(struct net_card_state *s); /* of a stranger's making */
bool net_filter_wants(const struct net_card_state *s, const uint8_t *frame, size_t len);
