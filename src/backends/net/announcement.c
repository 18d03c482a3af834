#include "backends/net/announcement.h"

#include <stdint.h>
#include <string.h>

#define LOOKED_AT 128u /* bytes of a frame */

enum { ARP = 0x0806, RARP = 0x8035, IPV4 = 0x0800, IPV6 = 0x86dd }; /* EtherType, at 12 */
enum { IGMP = 2, HOP_BY_HOP = 0, ICMPV6 = 58 };                     /* what is behind a header */
enum { MLD_REPORT = 131, MLD_DONE = 132, NEIGHBOR_ADVERTISEMENT = 136, MLD2_REPORT = 143 };
#define PAYLOAD 14u

static size_t copy_head(const struct iovec *iov, unsigned n, uint8_t head[LOOKED_AT])
{
    size_t len = 0;

    for (unsigned i = 1; i < n && len < LOOKED_AT; i++) {
        size_t part = iov[i].iov_len < LOOKED_AT - len ? iov[i].iov_len : LOOKED_AT - len;
        memcpy(head + len, iov[i].iov_base, part);
        len += part;
    }
    return len;
}

/* RFC 826, and 5227: one that asks for its own address; or an answer that was not asked for. */
static bool is_gratuitous(const uint8_t *arp, size_t len)
{
    return len >= 28 && memcmp(arp + 14, arp + 24, 4) == 0;
}

/* RFC 4861 (4.4), 2710, 3810 (5.2), whose messages have a hop-by-hop header in front of them. */
static bool is_report(const uint8_t *ip, size_t len)
{
    size_t at = 40;
    uint8_t next = len > at + 8 ? ip[6] : ICMPV6 + 1;

    if (next == HOP_BY_HOP) {
        next = ip[at];
        at += 8 + 8u * ip[at + 1];
    }
    if (next != ICMPV6 || at >= len)
        return false;
    return ip[at] == NEIGHBOR_ADVERTISEMENT || ip[at] == MLD_REPORT || ip[at] == MLD_DONE || ip[at] == MLD2_REPORT;
}

bool net_is_announcement(const struct iovec *iov, unsigned n)
{
    uint8_t head[LOOKED_AT] = {0};
    size_t len = copy_head(iov, n, head);
    bool to_many = head[0] & 1;

    if (len < PAYLOAD || !to_many)
        return false;
    switch (head[12] << 8 | head[13]) {
    case ARP:
        return is_gratuitous(head + PAYLOAD, len - PAYLOAD);
    case RARP: /* what a machine that has been moved says for its guest */
        return true;
    case IPV4:
        return len >= PAYLOAD + 20 && head[PAYLOAD + 9] == IGMP;
    case IPV6:
        return is_report(head + PAYLOAD, len - PAYLOAD);
    default:
        return false;
    }
}
