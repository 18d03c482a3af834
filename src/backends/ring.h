/*
 * A byte queue of fixed capacity.
 *
 *      data  |....|=========|......|        head: first queued byte, len: how many, wrapping at size
 *                 ^head     ^head+len
 */
#pragma once
#include <stddef.h>
#include <stdint.h>

struct ring {
    uint8_t *data;
    size_t size, head, len;
};

int ring_create(struct ring *r, size_t size); /* 0 or -ENOMEM */
void ring_destroy(struct ring *r);
size_t ring_put(struct ring *r, const void *data, size_t len); /* how many fitted */
/* The longest piece that is contiguous from the front; 0 when empty. */
size_t ring_front(const struct ring *r, const uint8_t **data);
void ring_drop(struct ring *r, size_t len); /* len <= r->len */
