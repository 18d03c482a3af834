/*
 * A kernel's course: the blocks of code that it ran on its way up, in the order in which they were translated, with the
 * bytes that they were made of.  A VM that boots leaves it behind, and the next one of the same kernel has these blocks
 * translated by another thread before it comes to them (course_ahead.c).
 *
 * All of this is advice.  What a course says is translated, not run; and no block is run before the guest's own bytes
 * at that place have been found to be those that it was made of.  So a course may be anybody's, of another kernel, or
 * nonsense: then time is lost.
 *
 *     file     magic, 16 bytes   u32 blocks   u32 bytes behind this head   u32 CRC-32C of all else   u32 pieces of
 *              memory
 *              the pieces, u32 each: which of those of MEMORY_CHUNK_SHIFT the guest used, in that order; the blocks
 *     block    u32 place in the kernel's image   u32 how (COURSE_*)   u16 length   u8 ranges peeked at   u8 fixes
 *              ranges: u16 offset in the page, u16 length each
 *              fixes: u16 each, where in the bytes there is a number of 32 bits that the image's place is to be added
 *                     to, or with COURSE_MINUS subtracted from (the kernel is at another address each time)
 *              bytes: the block's, then those of the ranges; zeroes up to a multiple of 4
 *
 * Little endian.  A block and what was peeked at for it is inside one page.
 */
#pragma once
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "engine/soft/block.h"

#define COURSE_MAGIC "guise course 01\n"
#define COURSE_HEAD 32u
#define COURSE_BYTES_MAX (12u << 20) /* of a file */
#define COURSE_BLOCKS_MAX 131072u
#define COURSE_LASTS_NS 2000000000ull /* a boot: what comes later is the guest's programs */
#define COURSE_PIECES_MAX 1024u
#define COURSE_LENGTH_MAX 720u
#define COURSE_FIXES_MAX 63u
#define COURSE_MINUS 0x8000u

/* How: the low 17 bits are the block's mode. */
#define COURSE_MODE 0x1ffffu
enum {
    COURSE_COMPUTED = 1 << 17, /* computed branches come to it */
    COURSE_HOT = 1 << 18,      /* it ran often */
    COURSE_NO_WINDOWS = 1 << 19,
    COURSE_FLAT = 1 << 20, /* its virtual address is the physical one; else that of the kernel's image */
};

/* 64-bit code whose blocks are chained, of the kernel or not: the rest is rare, and looks at segments. */
#define COURSE_MODES                                                                                                   \
    (MODE_MMU | MODE_CPL0 | MODE_64 | MODE_FPU_TRAP | MODE_UNGROUPED | MODE_FIXED_PC | MODE_SMAP | MODE_FSGSBASE |     \
     MODE_TSD)

struct course_block {
    uint32_t place, how;
    uint16_t length;
    uint8_t n_peeked, n_fixes;
    struct peeked peeked[BLOCK_PEEKS];
    const uint8_t *fixes;
    uint32_t bytes, n_bytes; /* where they are in the file; all of them, those of the ranges too */
};

/* Does a file of that size begin so?  n_pieces: of memory, whose list comes next. */
bool course_begins(const uint8_t head[COURSE_HEAD], size_t size, uint32_t *n_pieces);
/* Is it whole, as somebody has written it?  Its blocks are looked at one by one.  *at: where they begin. */
bool course_is_whole(const uint8_t *file, size_t size, size_t *at);
/* The block at *at; false: it is none, or the last one was before. */
bool course_next(const uint8_t *file, size_t size, size_t *at, struct course_block *out);
/* The numbers in its bytes as they are in a kernel whose image is at that virtual address; back with -address. */
void course_fix(uint8_t *file, const struct course_block *b, uint64_t address);

/* --- writing: in one piece, for few know how large it will be -------------------------------------------------- */

#define COURSE_BLOCK_MAX (12u + 4 * BLOCK_PEEKS + 2 * COURSE_FIXES_MAX + COURSE_LENGTH_MAX + 4096u * BLOCK_PEEKS + 4)
/* Writes a block, with its bytes from bytes[], in at most COURSE_BLOCK_MAX; returns how many. */
size_t course_put(uint8_t *to, const struct course_block *b, const uint16_t *fixes, const uint8_t *bytes);
/* The head of a file whose rest is there. */
void course_head(uint8_t head[COURSE_HEAD], uint32_t n_blocks, uint32_t n_pieces, const uint8_t *rest, size_t n);
