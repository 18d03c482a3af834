#include "base/utf8.h"

#include <string.h>

unsigned utf8_length(const unsigned char *s, size_t left)
{
    static const struct {
        unsigned char first, last, low, high;
        unsigned length;
    } forms[] = {
        {0xc2, 0xdf, 0x80, 0xbf, 2}, {0xe0, 0xe0, 0xa0, 0xbf, 3}, {0xe1, 0xec, 0x80, 0xbf, 3},
        {0xed, 0xed, 0x80, 0x9f, 3}, {0xee, 0xef, 0x80, 0xbf, 3}, {0xf0, 0xf0, 0x90, 0xbf, 4},
        {0xf1, 0xf3, 0x80, 0xbf, 4}, {0xf4, 0xf4, 0x80, 0x8f, 4},
    };

    if (s[0] < 0x80)
        return 1;
    for (size_t i = 0; i < sizeof forms / sizeof *forms; i++) {
        if (s[0] < forms[i].first || s[0] > forms[i].last)
            continue;
        if (left < forms[i].length || s[1] < forms[i].low || s[1] > forms[i].high)
            return 0;
        for (unsigned k = 2; k < forms[i].length; k++)
            if ((s[k] & 0xc0) != 0x80)
                return 0;
        return forms[i].length;
    }
    return 0;
}

void utf8_repair(char *text)
{
    unsigned char *p = (unsigned char *)text, *end = p + strlen(text);

    while (p < end) {
        unsigned len = utf8_length(p, (size_t)(end - p));
        if (!len)
            *p = '?';
        p += len ? len : 1;
    }
}
