/* Inside `guise migrate`: migrate.c (up to where it is complete at the destination, and the command), migrate_end.c
 * (giving it up, and what comes of it), migrate_arrive.c (post-copy: until all of its memory is there),
 * migrate_storage.c (disks that stay where they are), migrate_show.c. */
#pragma once
#include <sys/stat.h>
#include <sys/types.h>

#include "cli/life.h"
#include "cli/receive.h"
#include "vm/migration_record.h"

#define MIGRATE_VERSION 1
#define MIGRATE_POSTCOPY_VERSION 2 /* what a destination must speak for post-copy, */
#define MIGRATE_STORAGE_VERSION 3  /* and for disks that stay where they are, and folders */
#define MIGRATE_LOOK_MS 100
#define MIGRATE_NEVER UINT64_MAX
#define MIGRATE_END_MS 20000 /* a process that is to end does in that time */

struct migrate_arguments {
    bool json, quiet, verbose, resume, here, no_throttle, postcopy, folders;
    const char *storage;                                        /* a word of migrate_storage_words */
    uint64_t downtime_ms, bandwidth, streams, postcopy_after_s; /* MIGRATE_NEVER: when it does not converge */
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
    pid_t receiver;     /* of our own, for a machine that stays on this host */
    bool lacking;       /* the destination runs, or will, without all of its memory */
    bool vouched;       /* by the user: it does not run there, and never will */
    bool shares;        /* disks may stay where they are; */
    bool needs_storage; /* some have to, or there are folders; */
    bool own_stays;     /* its own one does */
    bool others_stay;   /* others do */
    bool has_own;
    struct stat own_file; /* what its own was when the destination was asked */
    char own_path[PATH_MAX];
    uint64_t downtime_us;
    uint64_t shown_ns, shown_round; /* the last line of JSON */
    const char *shown_state;
    struct progress progress;
    json_t *status; /* the last that the source has said, */
    json_t *answer; /* and the destination */
};

/* For a machine that gets another name on this host: m->to becomes the socket of a process that receives it there; and
 * the end of that. */
int migrate_receive_here(struct migrate *m, char *err, size_t n);
void migrate_receive_end(struct migrate *m);

/* An answer, of which `key` is expected.  0, or -errno with a sentence; so do all of these. */
int migrate_expect(struct migrate *m, int timeout_ms, const char *key, char *err, size_t n);
/* Asks the source's process. */
int migrate_ask(struct migrate *m, const char *action, json_t **result, char *err, size_t n);
/* Takes its status, into m->status; what it says of `key`. */
int migrate_look(struct migrate *m, char *err, size_t n);
uint64_t migrate_said(const struct migrate *m, const char *key);
/* Is that its state? */
bool migrate_is(const struct migrate *m, const char *state);
/* Shows how far it is: on the terminal, or a line of JSON; and what came of it. */
void migrate_show(struct migrate *m);
void migrate_report(const struct migrate *m);
/* The connections of the streams, descriptors that are the caller's: those that the machine goes by, and of post-copy
 * the extra ones. */
int migrate_open_streams(struct migrate *m, bool extra, int streams[], char *err, size_t n);

/* The destination has everything: the source gives it up. */
int migrate_give_up(struct migrate *m, char *err, size_t n);
/* It runs there: nothing of it is needed here any more. */
int migrate_finish(struct migrate *m, char *err, size_t n);
/* And the destination is told.  0: it runs there; else the sentence says where it stands. */
int migrate_tell(struct migrate *m, char *err, size_t n);
/* It is given up: asks the destination what has become of it, for so long, and goes by the answer.  The same. */
int migrate_resolve(struct migrate *m, int for_ms, char *err, size_t n);
/* It never will run there: -EIO, with a sentence that says how it goes on here; or another -errno. */
int migrate_take_back(struct migrate *m, char *err, size_t n);

/* --- storage ------------------------------------------------------------------------------------------------------ */

extern const struct option_word migrate_storage_words[];
/* What a destination is told, of the disks as well.  *about is the caller's. */
int migrate_storage_describe(struct migrate *m, json_t **about, char *err, size_t n);
/* It moves now: is its own disk still the file that the destination has looked at?  -EBUSY. */
int migrate_storage_same(const struct migrate *m, char *err, size_t n);
/* "shared", "copied", or "none": it has no disk that is written to. */
const char *migrate_storage_how(const struct migrate *m);

/* --- post-copy ---------------------------------------------------------------------------------------------------- */

/* It runs there: until all of its memory is there, too, and then it is finished here.  -EAGAIN: it was cut off. */
int migrate_arrive(struct migrate *m, char *err, size_t n);
/* It is there, without all of its memory, and the streams were cut: others are made, and it is told to run when it does
 * not yet.  The same. */
int migrate_reconnect(struct migrate *m, bool runs, char *err, size_t n);
/* The source's process has died, and what memory it had is lost: the destination is told.  -EIO, with a sentence that
 * says what there still is. */
int migrate_lost(struct migrate *m, bool runs, char *err, size_t n);
