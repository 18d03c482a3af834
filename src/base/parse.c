#include "base/parse.h"

#include <ctype.h>
#include <errno.h>
#include <inttypes.h>
#include <string.h>
#include <strings.h>

#include "base/error.h"

/* Reads decimal digits at *p.  0, -EINVAL if there is none, -ERANGE if they do not fit. */
static int digits(const char **p, uint64_t *value)
{
    uint64_t v = 0;

    if (!isdigit((unsigned char)**p))
        return -EINVAL;
    for (; isdigit((unsigned char)**p); (*p)++) {
        unsigned d = (unsigned)(**p - '0');
        if (v > (UINT64_MAX - d) / 10)
            return -ERANGE;
        v = v * 10 + d;
    }
    *value = v;
    return 0;
}

int parse_size(const char *text, uint64_t *bytes, char *err, size_t n)
{
    static const char units[] = "KMGT";
    const char *p = text;
    uint64_t v;
    int r = digits(&p, &v);

    if (r == -ERANGE)
        return error_set(err, n, r, "the size %s is too large", text);
    if (r)
        return error_set(err, n, r, "'%s' is not a size: write a whole number and a unit, as in 512M or 2G", text);
    if (!*p)
        return error_set(err, n, -EINVAL, "the size %s has no unit: write %sM or %sG", text, text, text);

    const char *unit = strchr(units, toupper((unsigned char)*p));
    if (!unit || (p[1] && strcasecmp(p + 1, "iB") != 0))
        return error_set(err, n, -EINVAL, "'%s' is not a unit of size: use K, M, G or T (or KiB, MiB, GiB, TiB)", p);

    unsigned shift = 10 * (unsigned)(unit - units + 1);
    if (v > UINT64_MAX >> shift)
        return error_set(err, n, -ERANGE, "the size %s is too large", text);
    *bytes = v << shift;
    return 0;
}

int parse_number(const char *text, uint64_t min, uint64_t max, uint64_t *value, char *err, size_t n)
{
    const char *p = text;
    uint64_t v = 0;
    int r = digits(&p, &v);

    if (r == -EINVAL || *p)
        return error_set(err, n, -EINVAL, "'%s' is not a whole number", text);
    if (r || v < min || v > max)
        return error_set(err, n, -ERANGE, "%s is not between %" PRIu64 " and %" PRIu64, text, min, max);
    *value = v;
    return 0;
}

int parse_seconds(const char *text, uint64_t *ms, char *err, size_t n)
{
    const char *p = text;
    uint64_t whole;
    unsigned thousandths = 0;
    int r = digits(&p, &whole);

    if (r == 0 && *p == '.') {
        unsigned weight = 100;
        for (p++; isdigit((unsigned char)*p) && weight; p++, weight /= 10)
            thousandths += weight * (unsigned)(*p - '0');
    }
    if (r == -EINVAL || *p)
        return error_set(err, n, -EINVAL, "'%s' is not a number of seconds, as in 10 or 0.5", text);
    if (r || whole > UINT32_MAX)
        return error_set(err, n, -ERANGE, "%s seconds is too long", text);
    if (!whole && !thousandths)
        return error_set(err, n, -ERANGE, "a time of %s seconds is over before it starts", text);
    *ms = whole * 1000 + thousandths;
    return 0;
}
