/*
 * Receiving machines: what `guise receive` does for others, and `guise migrate NAME NEW-NAME` for itself.
 *
 * One migration at a time: whoever comes meanwhile waits.  A machine that has been received as a whole waits in its own
 * process until it is told to run; that needs nobody of us.
 */
#pragma once
#include "cli/peer.h"
#include "vm/registry.h"

struct receiver {
    struct registry registry;
    struct peer_address address;
    int listening;
    const char *name; /* what is received is called so; NULL: as it is called where it comes from */
    bool quiet;
    struct option_list maps; /* "FROM=TO": paths of others' that are others here */
};

/* Is that one of those?  0, or -EINVAL with a sentence. */
int receive_map_check(const char *map, char *err, size_t n);

/* Serves one connection.  0: a machine runs here now, whose name is put to `name`; -EAGAIN: something else came of it;
 * or -errno with a sentence. */
int receive_one(struct receiver *r, struct peer *p, char name[NAME_SIZE], char *err, size_t n);
/* Serves whoever comes, until something is received (once), or a signal comes. */
int receive_all(struct receiver *r, bool once);

/* The process that has received a machine is told to run it, and gets the files that its source has left; vouched: by
 * a user, not by its source.  0, or -errno with a sentence. */
struct client;
int receive_go(struct client *c, bool vouched, char *err, size_t n);

/* A place where tests stop this process, and do something to another: GUISE_STOP_AT names it. */
void receive_stop_at(const char *place);
