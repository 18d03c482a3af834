#include "host/patience.h"

#include <sched.h>

#include "host/loop.h"

#define LOOKS_PER_YIELD 32u

bool patience_look(const struct patience *p, uint64_t since_ns, bool (*there)(void *opaque), void *opaque)
{
    if (!p->ns)
        return false;
    do {
        for (unsigned i = 0; i < LOOKS_PER_YIELD; i++) {
            if (there(opaque))
                return true;
            __builtin_ia32_pause();
        }
        sched_yield();
    } while (clock_ns() < since_ns + p->ns);
    return false;
}

void patience_waited(struct patience *p, uint64_t ns)
{
    if (ns > PATIENCE_MOST_NS)
        p->ns = 0;
    else if (ns > p->ns)
        p->ns = p->ns < PATIENCE_LEAST_NS ? PATIENCE_LEAST_NS : 2 * p->ns;
    if (p->ns > PATIENCE_MOST_NS)
        p->ns = PATIENCE_MOST_NS;
}
