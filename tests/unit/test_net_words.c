/* The words of networks and of published ports. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "backends/net/net_int.h"

static char err[512];

static void networks(void **state)
{
    static const char *const right[] = {"none",
                                        "user",
                                        "user,mac=52:54:00:12:34:56",
                                        "user,mtu=9000,rate=10M",
                                        "user,reach=none",
                                        "tap:tap0",
                                        "tap:tap0,rate=8K"};
    for (size_t i = 0; i < sizeof right / sizeof *right; i++)
        assert_int_equal(net_check(right[i], err, sizeof err), 0);
    static const char *const wrong[][2] = {
        {"", "must be named"},
        {"bridge", "'bridge' is not one of none, user"},
        {"user:x", "takes nothing behind a colon"},
        {"tap", "needs a name: tap:NAME"},
        {"switch:", "needs a name: switch:PATH"},
        {"tap:", "needs a name: tap:NAME"},
        {"user,speed=1", "'speed=1' is not one of mac="},
        {"user,mac", "'mac' is not one of"},
        {"user,mac=52:54:00:12:34", "is not six bytes"},
        {"user,mac=52:54:00:12:34:5g", "is not six bytes"},
        {"user,mac=52:54:00:12:34:56:78", "is not six bytes"},
        {"user,mac=-1:54:00:12:34:56", "is not six bytes"},
        {"user,mac=53:54:00:12:34:56", "a group's address"},
        {"user,mtu=1200", "is not between 1280 and 65520"},
        {"user,rate=10", "has no unit"},
        {"user,reach=moon", "is not one of all, world, none"},
        {"tap:t,reach=none", "is for the network"},
        {"user,rate=1K", "is not between 8K and"},
        {"none,mac=52:54:00:12:34:56", "'none' is not one of"},
    };
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        assert_true(net_check(wrong[i][0], err, sizeof err) < 0);
        if (!strstr(err, wrong[i][1]))
            fail_msg("%s: \"%s\" does not say \"%s\"", wrong[i][0], err, wrong[i][1]);
    }
    struct net_spec s;
    assert_int_equal(net_parse("tap:t1,mac=02:00:0a:0B:0c:ff,mtu=1400,rate=1M", &s, err, sizeof err), 0);
    assert_memory_equal(s.mac, "\x02\x00\x0a\x0b\x0c\xff", 6);
    assert_string_equal(s.where, "t1");
    assert_int_equal(s.mtu, 1400);
    assert_int_equal(s.rate, 1 << 20);
    assert_true(net_is_none("none"));
    assert_false(net_is_none("user"));
}

static void published_ports(void **state)
{
    struct net_publish p;

    assert_int_equal(net_publish_parse("8080:80", &p, err, sizeof err), 0);
    assert_memory_equal(p.ip, "\x7f\0\0\x01", 4);
    assert_int_equal(p.host_port, 8080);
    assert_int_equal(p.guest_port, 80);
    assert_false(p.udp);
    assert_int_equal(net_publish_parse("0.0.0.0:0:53/udp", &p, err, sizeof err), 0);
    assert_memory_equal(p.ip, "\0\0\0\0", 4);
    assert_int_equal(p.host_port, 0);
    assert_true(p.udp);
    assert_int_equal(net_publish_parse("1:65535/tcp", &p, err, sizeof err), 0);
    static const char *const wrong[] = {"",
                                        "80",
                                        "8080:",
                                        ":80",
                                        "a:80",
                                        "80:0",
                                        "65536:80",
                                        "80:65536",
                                        "80:80/sctp",
                                        "80:80/",
                                        "1.2.3:8:9",
                                        "::1:80:80",
                                        "[::1]:80:80",
                                        "localhost:1:2",
                                        "-1:80",
                                        "1.2.3.4.5.6.7.8.9.10.11.12.13.14.15.16.17.18.19.20.21.22:80:80"};
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        assert_int_equal(net_publish_parse(wrong[i], &p, err, sizeof err), -EINVAL);
        assert_true(strlen(err) > 10);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(networks), cmocka_unit_test(published_ports)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
