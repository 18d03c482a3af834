/* Inside the network's helper process. */
#pragma once
#include "backends/net/control.h"
#include "backends/net/wire.h"

/* Exit statuses of the inner process. */
enum { WORKER_DONE = 0, WORKER_HOPELESS = 3, WORKER_STUCK = 4 };

struct worker_kind {
    const char *word;
    /* Handles frames until the VM is gone (WORKER_DONE).  Tells of its start by worker_up, of a failure that will come
     * again by worker_hopeless. */
    int (*main)(const char *how); /* a switch's path; a user network's reach */
};
extern const struct worker_kind worker_slirp, worker_switch;

/* Ends the process when `turns` has not changed for `seconds`: a guest that has found a way to make it loop harms
 * itself only, and shortly.  Before the sandbox.  *w is kept by reference; whoever waits longer than WORKER_TURN_MS
 * must not. */
struct worker_watchdog {
    volatile unsigned turns;
    unsigned seen;
};
#define WORKER_TURN_MS 2000
#define WORKER_WATCH_S 10
int worker_watch(struct worker_watchdog *w, unsigned seconds); /* 0 or -errno */

void worker_up(void);
__attribute__((format(printf, 2, 3))) int worker_hopeless(int status, const char *format, ...);

/* Frames for the VM.  What the socket has no room for waits in a list, in order. */
struct worker_out {
    struct wire *wire;
    struct worker_frame *first, **last;
    size_t waiting; /* bytes */
    size_t limit;   /* more than this waiting: dropped */
};
/* More than this waiting: the source should be left alone for now. */
#define WORKER_ENOUGH (256u << 10)
/* The usual limit: a source that cannot wait, or a guest that does not read, fills it. */
#define WORKER_TOO_MUCH (4u << 20)

void worker_out_init(struct worker_out *o, struct wire *wire, size_t limit);
void worker_out_free(struct worker_out *o);
void worker_out_put(struct worker_out *o, const struct iovec *iov, unsigned n);
/* Sends what can be sent.  true: nothing waits, poll for POLLOUT is not needed. */
bool worker_out_flush(struct worker_out *o);
