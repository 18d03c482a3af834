/*
 * Contents that come later (watch.h) to who accesses memory without a word, such as a guest on KVM: the host's kernel
 * says that somebody waits for a page that is not there, and lets him wait (userfaultfd).  Where that is not to be had,
 * all contents have to be in place before the guest runs.
 *
 *      open     while the process has rights: the kernel gives this to few, since who has it can hold up system calls.
 *               `partly`: pages of what is absent may be there, and are not to be seen (Linux 5.14 and later)
 *      begin    contents are absent, nobody accesses memory; from now on nobody does who has not been announced but by
 *               the leave of `serve`
 *      serve    a thread of the caller's: answers until the end
 *      end      all is in place, or nobody cares
 */
#pragma once
#include <stdint.h>

#include "memory/memory.h"

/* Could this process open one? */
bool memory_faults_are_possible(bool partly);
/* 0, or -errno: there is no such thing for this process. */
int memory_faults_open(struct memory *m, bool partly);
void memory_faults_close(struct memory *m); /* before it begins */
/* After memory_load_begin.  What is in the way is loaded, but with `partly`.  0, or -errno: as before, and not open any
 * more. */
int memory_faults_begin(struct memory *m);
void memory_faults_serve(struct memory *m); /* returns after memory_faults_end, and it is not open any more */
void memory_faults_end(struct memory *m);   /* any thread */

/* --- for memory.c and watch.c --- */

static inline bool memory_faults_are_told(const struct memory *m)
{
    return atomic_load_explicit(&m->faults_begun, memory_order_relaxed);
}
/* Contents for RAM at `to` that is not there; who waits for it goes on.  0/-errno. */
int memory_faults_put(struct memory *m, void *to, const void *bytes, uint64_t length);
/* All of what is there at [from, from+length) is seen from now on, and what is not is zeroes; who waits for it goes on.
 */
void memory_faults_show(struct memory *m, const void *from, uint64_t length);
