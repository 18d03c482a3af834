/*
 * How long to look for something before sleeping until it comes.
 *
 * Waking a thread on an idle CPU takes as long as many devices do.  So who is woken within PATIENCE_MOST_NS again and
 * again looks a little while before he sleeps: twice as long as last time while that would have helped, not at all once
 * he has slept longer.  He yields to whoever wants the CPU.
 */
#pragma once
#include <stdbool.h>
#include <stdint.h>

#define PATIENCE_LEAST_NS 10000u
#define PATIENCE_MOST_NS 160000u

struct patience {
    uint32_t ns; /* how long to look next time; 0: not at all, as at the beginning */
};

/* Looks for it until `since_ns` is as long ago as there is patience.  true: it is there. */
bool patience_look(const struct patience *p, uint64_t since_ns, bool (*there)(void *opaque), void *opaque);
/* It came after so long, looked for or slept for. */
void patience_waited(struct patience *p, uint64_t ns);
