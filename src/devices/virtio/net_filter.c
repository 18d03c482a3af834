/* Which frames the guest wants (5.1.6.5.1 to 5.1.6.5.3). */
#include <string.h>

#include "devices/virtio/net_int.h"

#define ETHERNET 14u
#define VLAN_TAG 4u

static const uint8_t broadcast[6] = {0xff, 0xff, 0xff, 0xff, 0xff, 0xff};

/* All of them, until the driver says otherwise. */
void net_filter_reset(struct net_card_state *s)
{
    memset(s->mode, 0, sizeof s->mode);
    s->mode[MODE_PROMISC] = 1;
    s->unicast_full = s->multicast_full = 0;
    s->unicast.n = s->multicast.n = 0;
    memset(s->vlans, 0, sizeof s->vlans);
}

void net_filter_restored(struct net_card_state *s)
{
    struct net_table *tables[] = {&s->unicast, &s->multicast};

    for (unsigned i = 0; i < 2; i++)
        if (tables[i]->n > NET_TABLE_MAX)
            tables[i]->n = NET_TABLE_MAX;
}

static bool in_table(const struct net_table *t, const uint8_t *mac)
{
    for (uint32_t i = 0; i < t->n; i++)
        if (memcmp(t->mac[i], mac, 6) == 0)
            return true;
    return false;
}

static bool wants_vlan(const struct net_card_state *s, const uint8_t *frame, size_t len)
{
    if (!(s->virtio.driver_features >> NET_F_CTRL_VLAN & 1) || len < ETHERNET + VLAN_TAG || frame[12] != 0x81 ||
        frame[13] != 0)
        return true;
    unsigned id = ((unsigned)frame[14] << 8 | frame[15]) & 0xfff;
    return s->vlans[id / 64] >> id % 64 & 1;
}

static bool wants_address(const struct net_card_state *s, const uint8_t *to)
{
    if (memcmp(to, broadcast, sizeof broadcast) == 0)
        return !s->mode[MODE_NOBCAST];
    if (to[0] & 1)
        return !s->mode[MODE_NOMULTI] && (s->mode[MODE_ALLMULTI] || s->multicast_full || in_table(&s->multicast, to));
    return !s->mode[MODE_NOUNI] && (s->mode[MODE_ALLUNI] || s->unicast_full || memcmp(to, s->mac, sizeof s->mac) == 0 ||
                                    in_table(&s->unicast, to));
}

bool net_filter_wants(const struct net_card_state *s, const uint8_t *frame, size_t len)
{
    if (len < ETHERNET)
        return false;
    if (s->mode[MODE_PROMISC])
        return true;
    return wants_vlan(s, frame, len) && wants_address(s, frame);
}
