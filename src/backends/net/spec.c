/* The words of a network and of a published port. */
#include <arpa/inet.h>
#include <ctype.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "backends/net/net_int.h"
#include "base/error.h"
#include "base/parse.h"

#define MTU_MIN 1280u /* of IPv6 */
#define MTU_MAX 65520u
#define RATE_MIN (8u << 10)

static const struct net_kind *const kinds[] = {&net_kind_user, &net_kind_tap, &net_kind_switch, &net_kind_vde};

int net_mac_parse(const char *text, uint8_t mac[6], char *err, size_t n)
{
    bool right = strlen(text) == 17;

    for (unsigned i = 0; i < 17 && right; i++)
        right = i % 3 == 2 ? text[i] == ':' : isxdigit((unsigned char)text[i]);
    if (!right)
        return error_set(err, n, -EINVAL, "mac=%s is not six bytes such as 52:54:00:12:34:56", text);
    for (unsigned i = 0; i < 6; i++)
        mac[i] = (uint8_t)strtoul(text + (size_t)3 * i, NULL, 16);
    if (mac[0] & 1)
        return error_set(err, n, -EINVAL, "mac=%s is a group's address: the first byte of a card's is even", text);
    return 0;
}

static int parse_mac(const char *text, struct net_spec *s, char *err, size_t n)
{
    s->has_mac = true;
    return net_mac_parse(text, s->mac, err, n);
}

static int parse_mtu(const char *text, struct net_spec *s, char *err, size_t n)
{
    uint64_t value;
    char why[ERROR_SIZE];

    if (parse_number(text, MTU_MIN, MTU_MAX, &value, why, sizeof why))
        return error_set(err, n, -EINVAL, "mtu=: %s", why);
    s->mtu = (unsigned)value;
    return 0;
}

static int parse_rate(const char *text, struct net_spec *s, char *err, size_t n)
{
    char why[ERROR_SIZE];

    if (parse_size(text, &s->rate, why, sizeof why))
        return error_set(err, n, -EINVAL, "rate= (bytes a second): %s", why);
    if (s->rate < RATE_MIN || s->rate > 1ull << 40)
        return error_set(err, n, -EINVAL, "rate=%s is not between %uK and 1T bytes a second", text, RATE_MIN >> 10);
    return 0;
}

static int parse_reach(const char *text, struct net_spec *s, char *err, size_t n)
{
    static const char *const words[] = {"all", "world", "none"};

    if (s->kind != &net_kind_user)
        return error_set(err, n, -EINVAL, "reach= is for the network \"user\" only");
    for (size_t i = 0; i < sizeof words / sizeof *words; i++)
        if (strcmp(text, words[i]) == 0) {
            s->reach = words[i];
            return 0;
        }
    return error_set(err, n, -EINVAL, "reach=%s is not one of all, world, none", text);
}

static const struct {
    const char *key;
    int (*parse)(const char *text, struct net_spec *s, char *err, size_t n);
} keys[] = {
    {"mac", parse_mac},
    {"mtu", parse_mtu},
    {"rate", parse_rate},
    {"reach", parse_reach},
};

static int parse_key(char *word, struct net_spec *s, char *err, size_t n)
{
    char *value = strchr(word, '=');

    for (size_t i = 0; value && i < sizeof keys / sizeof *keys; i++)
        if (strlen(keys[i].key) == (size_t)(value - word) && memcmp(word, keys[i].key, (size_t)(value - word)) == 0)
            return keys[i].parse(value + 1, s, err, n);
    return error_set(err, n, -EINVAL, "'%s' is not one of mac=ADDRESS, mtu=BYTES, rate=SIZE, reach=WORD", word);
}

static int parse_kind(const char *word, struct net_spec *s, char *err, size_t n)
{
    size_t len = strcspn(word, ":");

    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++) {
        const struct net_kind *k = kinds[i];
        if (strlen(k->word) != len || memcmp(word, k->word, len) != 0)
            continue;
        if (!k->where && word[len])
            return error_set(err, n, -EINVAL, "the network \"%s\" takes nothing behind a colon", k->word);
        if (k->where && (!word[len] || !word[len + 1]))
            return error_set(err, n, -EINVAL, "the network \"%s\" needs a name: %s:%s", k->word, k->word, k->where);
        if (k->where && strlen(word + len + 1) >= sizeof s->where)
            return error_set(err, n, -EINVAL, "the name in %s is too long", word);
        if (k->where)
            memcpy(s->where, word + len + 1, strlen(word + len + 1) + 1);
        s->kind = k;
        return 0;
    }
    return error_set(err, n, -EINVAL, "the network '%s' is not one of none, user, tap:NAME, switch:PATH, vde:PATH",
                     word);
}

int net_parse(const char *spec, struct net_spec *out, char *err, size_t n)
{
    char *save = NULL, *copy = strdup(spec);
    int r = 0;

    *out = (struct net_spec){.reach = "all"};
    if (!copy)
        return error_sys(err, n, -ENOMEM, "the network %s cannot be read", spec);
    char *word = strtok_r(copy, ",", &save);
    if (!word)
        r = error_set(err, n, -EINVAL, "a network must be named: none, user, tap:NAME, switch:PATH or vde:PATH");
    else if (!net_is_none(spec))
        r = parse_kind(word, out, err, n);
    while (!r && (word = strtok_r(NULL, ",", &save)))
        r = parse_key(word, out, err, n);
    free(copy);
    return r;
}

int net_check(const char *spec, char *err, size_t n)
{
    struct net_spec s;
    return net_parse(spec, &s, err, n);
}

bool net_is_none(const char *spec)
{
    return strcmp(spec, "none") == 0;
}

/* --- [IP:]HOST:GUEST[/udp] ---------------------------------------------------------------------------------------- */

static int parse_port(const char *text, uint16_t least, uint16_t *port, const char *word, char *err, size_t n)
{
    uint64_t value;
    char why[ERROR_SIZE];

    if (parse_number(text, least, 65535, &value, why, sizeof why))
        return error_set(err, n, -EINVAL, "%s: %s; a published port is [IP:]HOST:GUEST[/udp]", word, why);
    *port = (uint16_t)value;
    return 0;
}

static int parse_protocol(char *copy, struct net_publish *p, const char *word, char *err, size_t n)
{
    char *slash = strchr(copy, '/');

    if (!slash)
        return 0;
    *slash = 0;
    p->udp = strcmp(slash + 1, "udp") == 0;
    if (p->udp || strcmp(slash + 1, "tcp") == 0)
        return 0;
    return error_set(err, n, -EINVAL, "%s: '%s' is neither tcp nor udp", word, slash + 1);
}

int net_publish_parse(const char *word, struct net_publish *p, char *err, size_t n)
{
    char copy[64];

    *p = (struct net_publish){.ip = {127, 0, 0, 1}};
    if (strlen(word) >= sizeof copy)
        return error_set(err, n, -EINVAL, "%.64s... is too long for [IP:]HOST:GUEST[/udp]", word);
    memcpy(copy, word, strlen(word) + 1);
    int r = parse_protocol(copy, p, word, err, n);
    if (r)
        return r;
    char *guest = strrchr(copy, ':');
    if (!guest)
        return error_set(err, n, -EINVAL, "%s: a published port is [IP:]HOST:GUEST[/udp]", word);
    *guest++ = 0;
    char *host = strrchr(copy, ':');
    if (host) {
        *host++ = 0;
        if (inet_pton(AF_INET, copy, p->ip) != 1)
            return error_set(err, n, -EINVAL, "%s: '%s' is not an IPv4 address", word, copy);
    } else {
        host = copy;
    }
    r = parse_port(host, 0, &p->host_port, word, err, n);
    return r ? r : parse_port(guest, 1, &p->guest_port, word, err, n);
}

int net_publish_check(const char *word, char *err, size_t n)
{
    struct net_publish p;
    return net_publish_parse(word, &p, err, n);
}
