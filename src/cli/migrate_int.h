/* Inside `guise migrate`: migrate.c (up to where it is complete at the destination, and the command), migrate_end.c
 * (giving it up, and what comes of it). */
#pragma once
#include <sys/types.h>

#include "cli/life.h"
#include "cli/receive.h"
#include "vm/migration_record.h"

#define MIGRATE_VERSION 1
#define MIGRATE_END_MS 20000 /* a process that is to end does in that time */

struct migrate_arguments {
    bool json, quiet, verbose, resume, here, no_throttle;
    uint64_t downtime_ms, bandwidth, streams;
};

struct migrate {
    const struct migrate_arguments *a;
    struct registry registry;
    struct vm_record record;
    struct peer_address to;
    char id[MIGRATION_ID_SIZE];
    struct client source; /* fd -1: its process has gone */
    int lock;             /* then we have this; else -1 */
    struct peer peer;
    pid_t receiver; /* of our own, for a machine that stays on this host */
    struct progress progress;
    json_t *status; /* the last that the source has said */
};

/* An answer, of which `key` is expected.  0, or -errno with a sentence; so do all of these. */
int migrate_expect(struct migrate *m, int timeout_ms, const char *key, char *err, size_t n);
/* Asks the source's process. */
int migrate_ask(struct migrate *m, const char *action, json_t **result, char *err, size_t n);
/* Takes its status, into m->status. */
int migrate_look(struct migrate *m, char *err, size_t n);

/* The destination has everything: the source gives it up. */
int migrate_give_up(struct migrate *m, char *err, size_t n);
/* And the destination is told.  0: it runs there; else the sentence says where it stands. */
int migrate_tell(struct migrate *m, char *err, size_t n);
/* It is given up: asks the destination what has become of it, for so long, and goes by the answer.  The same. */
int migrate_resolve(struct migrate *m, int for_ms, char *err, size_t n);
/* It never will run there: -EIO, with a sentence that says how it goes on here; or another -errno. */
int migrate_take_back(struct migrate *m, char *err, size_t n);
