/*
 * The keys that are for guise when all others are a guest's:
 *
 *      Ctrl-] q        leave              Ctrl-] ?        say this
 *      Ctrl-] Ctrl-]   send one Ctrl-]    Ctrl-] other    send both
 */
#pragma once
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct escape {
    bool begun; /* the last byte was Ctrl-] */
    bool leave; /* has been typed */
};

/* Takes escapes out of what was typed; to[] has room for 2 * len.  Returns how much is for the guest. */
size_t escape_filter(struct escape *e, const uint8_t *from, size_t len, uint8_t *to);
