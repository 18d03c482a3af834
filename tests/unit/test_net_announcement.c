/* Which frames want no answer: those do not begin a copy's network helper. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "backends/net/announcement.h"

#define ALL 0xff, 0xff, 0xff, 0xff, 0xff, 0xff
#define US 0x52, 0x54, 0, 1, 2, 3
#define ARP_HEAD 0x08, 0x06, 0, 1, 8, 0, 6, 4

/* In two pieces behind a header, as a guest may have it. */
static bool announces(const uint8_t *frame, size_t len)
{
    uint8_t header[12] = {0};
    const size_t first = len < 20 ? len : 20;
    const struct iovec iov[] = {
        {header, sizeof header}, {(void *)(uintptr_t)frame, first}, {(void *)(uintptr_t)(frame + first), len - first}};

    return net_is_announcement(iov, 3);
}

static void arp(void **state)
{
    const uint8_t gratuitous[] = {ALL, US, ARP_HEAD, 0, 1, US, 10, 0, 2, 15, 0, 0, 0, 0, 0, 0, 10, 0, 2, 15},
                  asks[] = {ALL, US, ARP_HEAD, 0, 1, US, 10, 0, 2, 15, 0, 0, 0, 0, 0, 0, 10, 0, 2, 2},
                  rarp[60] = {ALL, US, 0x80, 0x35};

    assert_true(announces(gratuitous, sizeof gratuitous));
    assert_false(announces(asks, sizeof asks));
    assert_true(announces(rarp, sizeof rarp));
    for (size_t len = 0; len < sizeof gratuitous; len++) /* cut off: whoever gets it may judge */
        assert_false(announces(gratuitous, len));
}

/* An ICMPv6 message of this type, behind a hop-by-hop header or not. */
static bool icmp6(uint8_t type, bool hop_by_hop, bool to_many)
{
    uint8_t frame[14 + 40 + 8 + 24] = {0x33, 0x33, 0, 0, 0, 1, US, 0x86, 0xdd, 0x60};
    uint8_t *payload = frame + 14 + 40;

    frame[0] = to_many ? 0x33 : 0x52;
    frame[14 + 6] = hop_by_hop ? 0 : 58;
    payload[0] = hop_by_hop ? 58 : type;
    payload[8] = type;
    return announces(frame, sizeof frame);
}

static void ipv6(void **state)
{
    assert_true(icmp6(136, false, true));   /* an advertisement that nobody has asked for */
    assert_false(icmp6(136, false, false)); /* one that somebody has */
    assert_true(icmp6(143, true, true));    /* MLD */
    assert_false(icmp6(133, false, true));  /* is there a router? */
    assert_false(icmp6(135, false, true));  /* who has this address? */
}

static void others(void **state)
{
    const uint8_t igmp[14 + 24] = {0x01, 0, 0x5e, 0, 0, 22, US, 8, 0, 0x46, [14 + 9] = 2},
                            dhcp[14 + 28] = {ALL, US, 8, 0, 0x45, [14 + 9] = 17},
                            tcp[14 + 40] = {US, US, 8, 0, 0x45, [14 + 9] = 6};

    assert_true(announces(igmp, sizeof igmp));
    assert_false(announces(dhcp, sizeof dhcp));
    assert_false(announces(tcp, sizeof tcp));
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(arp), cmocka_unit_test(ipv6), cmocka_unit_test(others)};

    return cmocka_run_group_tests(tests, NULL, NULL);
}
