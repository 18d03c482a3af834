/*
 * The way in: reads a descriptor when the loop says so, keeps what the guest has not taken yet, and
 * stops reading when too much of that waits (back-pressure: the pipe's writer then waits, too).
 */
#pragma once
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "backends/ring.h"
#include "host/loop.h"

#define INPUT_CHUNK 4096

struct input {
    struct loop *loop;
    int fd;        /* -1: nothing to read from */
    bool pollable; /* false: a regular file or the like, read by the pump timer */
    bool watched;  /* fd is in the loop */
    bool paused;   /* a terminal that is in the background */
    bool hungry;   /* read on although the ring is full: a terminal, where an escape must be seen */
    struct ring ring;
    struct loop_timer pump; /* delivers on the loop's thread, never inside a device's register access */

    /* Edits what was read: returns the bytes in to[], which has room for 2 * len.  May be NULL. */
    size_t (*filter)(void *opaque, const uint8_t *from, size_t len, uint8_t *to);
    /* The stream has ended (or failed); fd has been set to -1 but not closed.  May be NULL. */
    void (*ended)(void *opaque, int fd);
    void *opaque;

    size_t (*sink)(void *opaque, const void *data, size_t len);
    void *sink_opaque;
};

int input_init(struct input *in, struct loop *loop, size_t capacity); /* 0 or -ENOMEM */
void input_attach(struct input *in, int fd);
void input_detach(struct input *in); /* forgets fd and what was read from it */
void input_pause(struct input *in, bool paused);
void input_set_sink(struct input *in, size_t (*sink)(void *opaque, const void *data, size_t len), void *opaque);
void input_resume(struct input *in);
void input_free(struct input *in);
