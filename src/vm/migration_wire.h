/*
 * What a migration sends: a stream of frames, of which there may be several at a time.  Numbers are little-endian.
 *
 *      frame       0 type (1)   1 flags (1)   2 present (2)   4 zeroes (2)   6 zero (2)
 *                  8 length of the payload (4)   12 crc32c of this header, the field zero, and of the payload (4)
 *                  16 number (8)   24 payload
 *
 *      memory, disk    number: of a chunk of 64 KiB.  Bits of `present`: those of its 16 pages whose contents are in
 *                      the payload, one behind the other; of `zeroes`: those that are nothing but zeroes.  The rest is
 *                      as it was.  Flag 1: the payload is one frame of zstd.
 *      section         payload: kind (16)  name (40)  version (4)  bytes: base/sections.h
 *      end             number: how many frames came before it on this stream.  Nothing follows, but for post-copy.
 *
 * Post-copy, where the destination asks, on a stream of its own in the other direction:
 *
 *      lacks           payload: a bit for each chunk of memory, lowest first, that it lacks
 *      ask             number: of a chunk that somebody waits for
 *
 * A chunk's frames all go by the same stream until an end, so that they arrive in their order.  What is read is a
 * stranger's: a frame is checked as a whole before any of it is used.
 */
#pragma once
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/sections.h"

#define WIRE_CHUNK (64u << 10)
#define WIRE_PAGE 4096u
#define WIRE_PAGES (WIRE_CHUNK / WIRE_PAGE)

enum wire_type { WIRE_MEMORY = 1, WIRE_DISK, WIRE_SECTION, WIRE_END, WIRE_LACKS, WIRE_ASK };

#define WIRE_BITS_MAX SECTION_BYTES_MAX /* bytes of `lacks` */

/* One end of a stream: `fd` is the caller's, and blocks.  shutdown(2) of it ends a wait at either end. */
struct wire {
    int fd;
    bool compress;
    uint64_t pace;                  /* what is put, bytes a second at most; 0: as fast as it goes */
    uint64_t paced, paced_since_ns; /* so many since then */
    uint64_t frames;                /* put, or got */
    _Atomic uint64_t bytes;         /* the same, of the stream */
    uint8_t *packed, *pages;
    size_t packed_room;
    void *zstd_out, *zstd_in;
};

/* 0/-errno; to be closed in any case. */
int wire_open(struct wire *w, int fd, bool compress);
void wire_close(struct wire *w);

/* --- sending: 0 or -errno, -EPIPE: nobody reads any more --- */

/* The pages of bytes[WIRE_CHUNK] whose bits are set in `pages`; which are zeroes is seen here.  fresh: what is not said
 * there is zeroes already.  Nothing is sent when there is nothing to say; wire_answer_chunk always says something. */
int wire_put_chunk(struct wire *w, enum wire_type type, uint64_t number, const uint8_t *bytes, uint16_t pages,
                   bool fresh);
int wire_answer_chunk(struct wire *w, uint64_t number, const uint8_t *bytes, uint16_t pages);
int wire_put_section(struct wire *w, const struct section *s);
int wire_put_end(struct wire *w);
int wire_put_lacks(struct wire *w, const uint8_t *bits, uint32_t length); /* WIRE_BITS_MAX at most */
int wire_put_ask(struct wire *w, uint64_t chunk);

/* --- receiving --- */

struct wire_frame {
    enum wire_type type;
    uint64_t number;
    uint16_t present, zeroes;      /* a chunk's */
    const uint8_t *bytes;          /* a chunk's present pages, one behind the other, or bits; until the next frame */
    uint32_t length;               /* of bits */
    const struct section *section; /* until the next frame */
    struct section own;
};

/* Reads one frame.  0; -EBADMSG with what is wrong in *why: it is damaged, or not a frame of this version;
 * -ECONNRESET: the stream has ended in the middle; another -errno. */
int wire_get(struct wire *w, struct wire_frame *f, const char **why);
