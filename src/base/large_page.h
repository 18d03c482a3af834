/*
 * Pages of 2 MiB of the host's, for memory that is going to be used from end to end: they come in a third of the time
 * that 512 small ones take, and cost the TLB one entry.
 */
#pragma once
#include <stdbool.h>
#include <stdint.h>

#define LARGE_PAGE (2ull << 20)
#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25
#endif

/* Maps `size` bytes, anonymous and with that protection, at a multiple of LARGE_PAGE, so that there can be some; NULL:
 * no address space is left.  The caller's, to map over and unmap. */
void *large_page_map(uint64_t size, int protection);

/* Makes one of the LARGE_PAGE bytes at `at`, which are aligned to as many and mapped to be written, of a file in memory
 * at the same alignment or anonymous; what is there stays.  false: there is none, which is so before Linux 6.1.  Where
 * one was refused, or the host had to look for long, no others are asked for by this process.  Any thread; keeps SIMD
 * registers. */
bool large_page_ask(void *at);
