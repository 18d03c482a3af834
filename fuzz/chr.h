/*
 * The host's end of a byte stream, in place of backends/chr.c: a reader that has as much room as the input gives it, is
 * there or not, and a writer whose bytes the input brings.
 */
#pragma once
#include "fixture.h"

#include "backends/chr.h"

struct chr {
    bool open, present;
    size_t room; /* what the reader takes before it is full */
    bool full, resume;
    void (*space)(void *opaque);
    void *space_opaque;
    void (*presence)(void *opaque, bool present);
    void *presence_opaque;
    size_t (*sink)(void *opaque, const void *data, size_t len);
    void *sink_opaque;
};

void chr_write(struct chr *chr, const void *data, size_t len)
{
    assert_true(chr->open);
}

size_t chr_try_write(struct chr *chr, const void *data, size_t len)
{
    size_t n = len < chr->room ? len : chr->room;

    assert_true(chr->open && len);
    chr->room -= n;
    chr->full |= n < len;
    return n;
}

int chr_set_space(struct chr *chr, void (*fn)(void *opaque), void *opaque)
{
    chr->space = fn;
    chr->space_opaque = opaque;
    return 0;
}

bool chr_is_present(const struct chr *chr)
{
    return chr->present;
}

void chr_set_presence(struct chr *chr, void (*fn)(void *opaque, bool present), void *opaque)
{
    chr->presence = fn;
    chr->presence_opaque = opaque;
}

void chr_set_input(struct chr *chr, size_t (*fn)(void *opaque, const void *data, size_t len), void *opaque)
{
    chr->sink = fn;
    chr->sink_opaque = opaque;
}

void chr_resume_input(struct chr *chr)
{
    assert_true(chr->open);
    chr->resume = true;
}

void chr_close(struct chr *chr)
{
    if (chr)
        chr->open = false;
}

/* --- what a target does with it ---------------------------------------------------------------------------------- */

/* The reader has taken n bytes of what waits. */
static inline void fuzz_chr_room(struct chr *chr, size_t n)
{
    bool full = chr->full;

    chr->room = n;
    chr->full = full && !n;
    if (full && n && chr->space)
        chr->space(chr->space_opaque);
}

static inline void fuzz_chr_present(struct chr *chr, bool present)
{
    chr->present = present;
    if (chr->presence)
        chr->presence(chr->presence_opaque, present);
}

/* Bytes for the guest; those that it does not take are lost. */
static inline void fuzz_chr_input(struct chr *chr, struct fuzz_input *in)
{
    uint8_t bytes[512];
    size_t len = fuzz_u16(in) % (sizeof bytes + 1);

    memset(bytes, 'i', sizeof bytes);
    chr->resume = false;
    assert_true(chr->sink(chr->sink_opaque, bytes, len) <= len);
}
