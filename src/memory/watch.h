/*
 * Watching memory: who wants its contents as they are at one moment is asked before a piece of them changes, and who
 * has contents that are not in place yet is asked for a piece before it is first used.  Snapshots are written by the
 * one while the guest runs on, and restored by the other.  And who sends memory elsewhere learns which pages have
 * changed since.
 *
 * Pieces are chunks of 64 KiB of the memory's file (memory.h: `fd`), numbered from its beginning.  The announcements
 * come from memory_hva and its kind, which everybody calls who accesses memory: page walks, devices, and the software
 * engine before it puts a page into a TLB.  An engine that does not announce (memory.h: struct memory_writer_ops) can
 * only be logged, and loaded for as faults.h says.
 *
 * Locking: `begin` functions while nobody accesses memory; the others at any time, on any thread.
 */
#pragma once
#include <stdbool.h>
#include <stdint.h>

#include "memory/memory.h"

#define WATCH_SHIFT 16
#define WATCH_CHUNK (1u << WATCH_SHIFT)

/* --- its contents as they are now ---------------------------------------------------------------------------- */

struct memory_keeper {
    /* Waits for room for one chunk more; no lock is held. */
    void (*room)(void *opaque);
    /* The chunk, whose contents of the beginning are these, is about to change; called once for each. */
    void (*keep)(void *opaque, uint64_t chunk, const void *bytes, uint32_t length);
    void *opaque;
};

/* From now on each chunk is kept before it changes.  0/-errno. */
int memory_keep_begin(struct memory *m, const struct memory_keeper *keeper);
/* The contents of the beginning: copies the chunk to out[WATCH_CHUNK] and lets go of it; true.  false: it was kept
 * before, or it is nothing but zeroes that take no room. */
bool memory_keep_take(struct memory *m, uint64_t chunk, void *out, uint32_t *length);
/* The same without letting go of it, so that it can be asked for again. */
bool memory_keep_look(struct memory *m, uint64_t chunk, void *out);
/* Lets go of chunks that have no contents yet, from `chunk` on; returns the first that may have some. */
uint64_t memory_keep_skip(struct memory *m, uint64_t chunk);
/* Lets go of all. */
void memory_keep_end(struct memory *m);

/* --- contents that come later --------------------------------------------------------------------------------- */

/* Either somebody has them, and `load` fetches a chunk's while who needs it waits; or they come by themselves, by
 * memory_bring_chunk, and `ask` says that somebody waits for one. */
struct memory_source {
    /* Puts the chunk's contents to bytes[length], which are zeroes. */
    void (*load)(void *opaque, uint64_t chunk, void *bytes, uint32_t length);
    /* There is no memory to put what was loaded to (faults.h). */
    void (*lost)(void *opaque, int err);
    /* NULL, or called before each wait; not to wait itself. */
    void (*ask)(void *opaque, uint64_t chunk);
    bool (*has)(void *opaque, uint64_t chunk); /* false: it stays zeroes */
    void *opaque;
};

/* All contents are still to come.  0/-errno. */
int memory_load_begin(struct memory *m, const struct memory_source *source);
/* Brings a chunk's if they are not in place; true when they were not.  *asking (or NULL) is true meanwhile: `load` may
 * look at it. */
bool memory_load_chunk(struct memory *m, uint64_t chunk, bool *asking);
/* Brings it, or says that it is waited for, without waiting.  false: it is in place. */
bool memory_want_chunk(struct memory *m, uint64_t chunk);
/* What was to come is here: of a chunk's pages of 4096 bytes those in `present`, one behind the other in bytes; those
 * in `zeroes` are nothing else; the others stay as they are.  Whoever waits for it goes on.  false: it was in place. */
bool memory_bring_chunk(struct memory *m, uint64_t chunk, uint16_t present, uint16_t zeroes, const void *bytes);
/* Is it still to come? */
bool memory_lacks_chunk(const struct memory *m, uint64_t chunk);
/* All are in place. */
void memory_load_end(struct memory *m);

/* --- which pages are written to ---------------------------------------------------------------------------------- */

#define LOG_SHIFT 12
#define LOG_PER_CHUNK (1u << (WATCH_SHIFT - LOG_SHIFT)) /* pages: a chunk's are 16 bits of the log */

/* From now on each page is noted before it is written to.  0/-errno. */
int memory_log_begin(struct memory *m);
/* A round ends: pages[i] has the bits of chunk i, lowest first, that were noted since the one before, and they are
 * forgotten.  Nobody accesses memory, nor has asked for an address to write to later; what an engine keeps because of
 * memory_may_write it gives up before it goes on. */
void memory_log_take(struct memory *m, uint16_t *pages);
/* How many are noted now; on the thread that takes rounds. */
uint64_t memory_log_count(struct memory *m);
/* The same in chunks of which some page is. */
uint64_t memory_log_chunks(struct memory *m);
/* For a memory_writer_ops: of the 64 pages from gpa on, which is RAM, those whose bits are set were written to. */
void memory_log_note(struct memory *m, uint64_t gpa, uint64_t pages);
void memory_log_end(struct memory *m);

/* Copies a chunk's contents to out[WATCH_CHUNK], which somebody may be writing to, zeroes behind its end, without
 * taking memory for what is not there.  false: nothing of it is there, and out is zeroes. */
bool memory_read_chunk(struct memory *m, uint64_t chunk, uint8_t *out);
/* Puts contents into a chunk that are all of it, WATCH_CHUNK bytes of which the last chunk may have less. */
void memory_fill_chunk(struct memory *m, uint64_t chunk, const void *bytes);
/* The same of page `page` of the file, of 4096 bytes; NULL: zeroes, which take no room. */
void memory_fill_page(struct memory *m, uint64_t page, const void *bytes);
uint64_t memory_chunks(const struct memory *m);
/* Are the contents of the chunk that gpa is in in place? */
bool memory_is_here(const struct memory *m, uint64_t gpa);
/* No chunk is to be kept or to come: whoever has asked where a page of its own is may map it elsewhere. */
bool memory_is_settled(const struct memory *m);
/* For memory.c. */
void memory_watch_destroy(struct memory *m);
/* The contents of [gpa, gpa+len) are about to be given up. */
void memory_watch_discard(struct memory *m, uint64_t gpa, uint64_t len);
