#include "backends/escape.h"

#include "base/log.h"

#define ESCAPE 0x1d /* Ctrl-] */

static void help(void)
{
    log_say("Ctrl-] q leaves, Ctrl-] Ctrl-] sends Ctrl-], Ctrl-] ? says this");
}

size_t escape_filter(struct escape *e, const uint8_t *from, size_t len, uint8_t *to)
{
    size_t n = 0;

    for (size_t i = 0; i < len; i++) {
        uint8_t c = from[i];
        if (!e->begun && c == ESCAPE) {
            e->begun = true;
            continue;
        }
        if (e->begun) {
            e->begun = false;
            if (c == 'q' || c == 'Q')
                e->leave = true;
            if (c == '?')
                help();
            if (c == 'q' || c == 'Q' || c == '?')
                continue;
            if (c != ESCAPE)
                to[n++] = ESCAPE;
        }
        to[n++] = c;
    }
    return n;
}
