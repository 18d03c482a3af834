/* Making copies of a virtual machine that runs or stands by (vm/fork.h): what `fork` and `run --warm` do alike. */
#pragma once
#include "cli/life.h"
#include "vm/copy.h"
#include "vm/fork.h"

struct forking {
    const struct registry *registry;
    struct vm_record parent; /* loaded; the caller's to free */
    bool park;               /* it is not to run on */
    struct client client;    /* of the parent */
    struct snapshot_making layer;
    int fds[FORK_FDS_MAX];
    int n_fds;
    bool agent;        /* there is one inside */
    uint64_t pause_us; /* how long it stood still */
};

struct forked {
    struct vm_record record; /* lives in the parent's for the most part */
    struct client client;    /* events come on it */
    int lock;
    bool made, runs;
};

/* Takes it apart while it runs on: its disk's layer, its memory, its state.  0, or -errno with a sentence; forking_end
 * in any case. */
int forking_begin(struct forking *f, char *err, size_t n);
/* Makes a copy and starts its process, on which `attached` makes its run depend. */
int forking_copy(struct forking *f, struct forked *c, struct copy_words *words, bool attached, char *err, size_t n);
/* Its CPUs run; and its agent, if it has one, has told it who it is. */
int forking_wait(const struct forking *f, struct forked *c, char *err, size_t n);
/* One that has not come up is not there. */
void forking_take_away(const struct forking *f, struct forked *c);
void forking_end(struct forking *f);
