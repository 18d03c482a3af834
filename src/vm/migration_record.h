/*
 * Where a migration stands, in a file that outlives whoever dies: what decides, on either side, whether the machine
 * may run there.
 *
 *      byte 0      'w' undecided, 'd' decided, 'p' decided, but part of the memory is still at the source (post-copy)
 *      then        JSON, one line:  {"id": "...", "role": "source"|"destination", "name": "...", "peer": "..."}
 *
 * The text is on stable storage before anything happens; to decide is to change one byte, which no crash leaves half
 * done.  At the source decided means: it has given the machine up, and must not run it.  At the destination: it has
 * the machine, and may.  When its process dies while that is in part, memory is lost that only both sides together had:
 * somebody has to say which of them is to go on with what it has.
 *
 *      DATA/vms/NAME/migration     of a machine that is being sent, or received
 *      DATA/migrations/ID          the same file, of one that was received: stays, so that whoever asks again, even
 *                                  much later, hears that it has run here
 */
#pragma once
#include <limits.h>
#include <stdbool.h>
#include <stddef.h>

#include "vm/registry.h"

#define MIGRATION_ID_SIZE 40
#define MIGRATION_PEER_SIZE 256

struct migration_record {
    char id[MIGRATION_ID_SIZE]; /* 32 hexadecimal digits */
    bool destination, decided;
    bool partly; /* of a destination that has decided */
    char name[NAME_SIZE];
    char peer[MIGRATION_PEER_SIZE]; /* of a source: where it goes, as the command line said it; else empty */
};

bool migration_is_id(const char *text);
/* Makes the file and opens it for migration_decide: the descriptor, or -errno with a sentence. */
int migration_record_make(const struct registry *r, const struct migration_record *m, char *err, size_t n);
/* On stable storage when it returns.  0/-errno. */
int migration_decide(int fd, bool decided);
/* The same for a destination that runs before all of its memory is there; migration_decide then says that it is. */
int migration_decide_partly(int fd);
/* Of the machine `name`.  0, -ENOENT: it is not on its way, or another -errno with a sentence. */
int migration_record_read(const struct registry *r, const char *name, struct migration_record *m, char *err, size_t n);
/* The same of one that was received, by its number. */
int migration_record_find(const struct registry *r, const char *id, struct migration_record *m, char *err, size_t n);
/* The same to change it: the descriptor, or -errno. */
int migration_record_open(const struct registry *r, const char *name, char *err, size_t n);
/* It is over for the machine `name`.  0, or -errno with a sentence. */
int migration_record_remove(const struct registry *r, const char *name, char *err, size_t n);
/* As if that had never been received: it never will run here.  Its machine is removed before, so that nobody decides
 * any more; what has been decided stays. */
void migration_record_forget(const struct registry *r, const char *id);

/* May a process for the machine `name`, whose lock is held, be started?  0, or -EBUSY with a sentence: it has been
 * given up, or was never received as a whole.  What is left of a migration that came to nothing is removed. */
int migration_may_start(const struct registry *r, const char *name, char *err, size_t n);
