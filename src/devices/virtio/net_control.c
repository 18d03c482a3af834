/* The control queue (5.1.6.5): a class, a command, its data, and one byte for the answer. */
#include <string.h>

#include "devices/virtio/net_int.h"

/* Commands answered for one notification. */
#define COMMANDS_PER_PASS 256u
enum { CLASS_RX, CLASS_MAC, CLASS_VLAN, CLASS_ANNOUNCE, CLASS_GUEST_OFFLOADS = 5 };
enum { MAC_TABLE_SET, MAC_ADDR_SET };
enum { VLAN_ADD, VLAN_DEL };
enum { ANNOUNCE_ACK };
enum { GUEST_OFFLOADS_SET };
enum { ACK_OK, ACK_ERROR };
#define HEAD 2u /* class and command */

struct command_data {
    struct net_card *card;
    const struct virtio_chain *chain;
    uint8_t command;
    uint32_t len; /* of the data */
};

/* [at, at+len) of the data. */
static bool data_read(const struct command_data *d, size_t at, void *to, size_t len)
{
    return virtio_chain_read(&d->card->virtio, d->chain, HEAD + at, to, len) == len;
}

static bool set_mode(const struct command_data *d)
{
    uint8_t on;

    if (!data_read(d, 0, &on, 1) || on > 1)
        return false;
    d->card->saved.mode[d->command] = on;
    return true;
}

/* One table of the command's two; *at moves behind it.  A long one is not kept, but must be there. */
static bool read_table(const struct command_data *d, size_t *at, struct net_table *t, uint8_t *full)
{
    uint32_t n;

    if (!data_read(d, *at, &n, sizeof n) || n > (d->len - *at - sizeof n) / 6)
        return false;
    *full = n > NET_TABLE_MAX;
    t->n = *full ? 0 : n;
    if (!data_read(d, *at + sizeof n, t->mac, (size_t)t->n * 6))
        return false;
    *at += sizeof n + (size_t)n * 6;
    return true;
}

static bool set_tables(const struct command_data *d)
{
    struct net_card_state *s = &d->card->saved;
    struct net_table unicast, multicast;
    uint8_t unicast_full, multicast_full;
    size_t at = 0;

    if (!read_table(d, &at, &unicast, &unicast_full) || !read_table(d, &at, &multicast, &multicast_full) ||
        at != d->len)
        return false;
    s->unicast = unicast;
    s->multicast = multicast;
    s->unicast_full = unicast_full;
    s->multicast_full = multicast_full;
    return true;
}

static bool set_address(const struct command_data *d)
{
    return data_read(d, 0, d->card->saved.mac, 6);
}

static bool set_vlan(const struct command_data *d)
{
    uint64_t *vlans = d->card->saved.vlans;
    uint16_t id;

    if (!data_read(d, 0, &id, sizeof id) || id >= 4096)
        return false;
    if (d->command == VLAN_ADD)
        vlans[id / 64] |= 1ull << id % 64;
    else
        vlans[id / 64] &= ~(1ull << id % 64);
    return true;
}

static bool announced(const struct command_data *d)
{
    d->card->saved.announce = false;
    return true;
}

#define GUEST_OFFLOADS                                                                                                 \
    (NET_FEATURE(GUEST_CSUM) | NET_FEATURE(GUEST_TSO4) | NET_FEATURE(GUEST_TSO6) | NET_FEATURE(GUEST_ECN))

unsigned net_control_offloads(uint64_t features)
{
    static const struct {
        unsigned feature, offload;
    } pairs[] = {{NET_F_GUEST_CSUM, NET_CSUM},
                 {NET_F_GUEST_TSO4, NET_TSO4},
                 {NET_F_GUEST_TSO6, NET_TSO6},
                 {NET_F_GUEST_ECN, NET_ECN}};
    unsigned offloads = 0;

    for (size_t i = 0; i < sizeof pairs / sizeof *pairs; i++)
        if (features >> pairs[i].feature & 1)
            offloads |= pairs[i].offload;
    return offloads & NET_CSUM ? offloads : 0; /* long segments have open checksums (5.1.3.1) */
}

static bool set_offloads(const struct command_data *d)
{
    struct net_card *c = d->card;
    uint64_t wanted;

    if (!data_read(d, 0, &wanted, sizeof wanted) || (wanted & ~(c->saved.virtio.driver_features & GUEST_OFFLOADS)))
        return false;
    c->saved.offloads = wanted;
    net_set_offloads(c->net, net_control_offloads(wanted));
    return true;
}

#define ANY_LENGTH ~0u

static const struct {
    uint8_t class, command;
    uint8_t feature; /* that must have been agreed on */
    uint32_t len;    /* of its data */
    bool (*run)(const struct command_data *d);
} commands[] = {
    {CLASS_RX, MODE_PROMISC, NET_F_CTRL_RX, 1, set_mode},
    {CLASS_RX, MODE_ALLMULTI, NET_F_CTRL_RX, 1, set_mode},
    {CLASS_RX, MODE_ALLUNI, NET_F_CTRL_RX_EXTRA, 1, set_mode},
    {CLASS_RX, MODE_NOMULTI, NET_F_CTRL_RX_EXTRA, 1, set_mode},
    {CLASS_RX, MODE_NOUNI, NET_F_CTRL_RX_EXTRA, 1, set_mode},
    {CLASS_RX, MODE_NOBCAST, NET_F_CTRL_RX_EXTRA, 1, set_mode},
    {CLASS_MAC, MAC_TABLE_SET, NET_F_CTRL_RX, ANY_LENGTH, set_tables},
    {CLASS_MAC, MAC_ADDR_SET, NET_F_CTRL_MAC_ADDR, 6, set_address},
    {CLASS_VLAN, VLAN_ADD, NET_F_CTRL_VLAN, 2, set_vlan},
    {CLASS_VLAN, VLAN_DEL, NET_F_CTRL_VLAN, 2, set_vlan},
    {CLASS_ANNOUNCE, ANNOUNCE_ACK, NET_F_GUEST_ANNOUNCE, 0, announced},
    {CLASS_GUEST_OFFLOADS, GUEST_OFFLOADS_SET, NET_F_CTRL_GUEST_OFFLOADS, 8, set_offloads},
};

static uint8_t run(struct net_card *c, const struct virtio_chain *chain)
{
    uint8_t head[HEAD];

    if (virtio_chain_read(&c->virtio, chain, 0, head, HEAD) != HEAD)
        return ACK_ERROR;
    const struct command_data d = {c, chain, head[1], chain->out_bytes - HEAD};
    for (size_t i = 0; i < sizeof commands / sizeof *commands; i++)
        if (commands[i].class == head[0] && commands[i].command == head[1] &&
            virtio_has(&c->virtio, commands[i].feature) && (commands[i].len == ANY_LENGTH || commands[i].len == d.len))
            return commands[i].run(&d) ? ACK_OK : ACK_ERROR;
    return ACK_ERROR;
}

void net_control_run(struct net_card *c)
{
    struct virtio_device *v = &c->virtio;
    unsigned budget = COMMANDS_PER_PASS;

    do {
        while (budget && virtio_pop(v, NET_CONTROL, &c->chain) > 0) {
            uint8_t ack = run(c, &c->chain);
            virtio_push(v, &c->chain, (uint32_t)virtio_chain_write(v, &c->chain, 0, &ack, sizeof ack));
            budget--;
        }
    } while (budget && virtio_rearm(v, NET_CONTROL));
    virtio_signal(v, NET_CONTROL);
}
