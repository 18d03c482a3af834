/* JSON over sockets and in logs: one object a line. */
#pragma once
#include <jansson.h>
#include <stdlib.h>
#include <string.h>

/* The text of `message`, which is taken over, with its line feed: *len bytes, and a NUL behind them.  The caller frees
 * it; NULL: there is no memory, or no message. */
static inline char *json_line(json_t *message, size_t *len)
{
    char *text = message ? json_dumps(message, JSON_COMPACT) : NULL, *longer = NULL;

    json_decref(message);
    if (text) {
        *len = strlen(text) + 1;
        longer = realloc(text, *len + 1);
    }
    if (!longer) {
        free(text);
        return NULL;
    }
    memcpy(longer + *len - 1, "\n", 2);
    return longer;
}
