#include "backends/ring.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

static size_t smaller(size_t a, size_t b)
{
    return a < b ? a : b;
}

int ring_create(struct ring *r, size_t size)
{
    *r = (struct ring){.data = malloc(size), .size = size};
    return r->data ? 0 : -ENOMEM;
}

void ring_destroy(struct ring *r)
{
    free(r->data);
    *r = (struct ring){0};
}

size_t ring_put(struct ring *r, const void *data, size_t len)
{
    const uint8_t *from = data;
    size_t total = smaller(len, r->size - r->len);
    size_t at = (r->head + r->len) % r->size;
    size_t first = smaller(total, r->size - at);

    memcpy(r->data + at, from, first);
    memcpy(r->data, from + first, total - first);
    r->len += total;
    return total;
}

size_t ring_front(const struct ring *r, const uint8_t **data)
{
    *data = r->data + r->head;
    return smaller(r->len, r->size - r->head);
}

void ring_drop(struct ring *r, size_t len)
{
    r->head = (r->head + len) % r->size;
    r->len -= len;
}
