/* Inside receiving: receive_one.c (a machine comes), receive_map.c (paths that are others here), receive_disks.c (disks
 * that stay where they are), receive_arrive.c (post-copy: it runs, its memory follows), receive_past.c (what becomes of
 * one that came before). */
#pragma once
#include "cli/life.h"
#include "cli/receive.h"
#include "vm/migration.h"
#include "vm/migration_record.h"

/* One that is being received. */
struct receiving {
    struct receiver *r;
    struct peer *peer;
    json_t *hello;
    struct vm_record record;
    char id[MIGRATION_ID_SIZE];
    unsigned n_streams, n_extra;
    int streams[MIGRATION_ALL_MAX];
    bool own_stays;       /* its own disk is the source's file, which has a name here, too */
    bool lacking;         /* some of its memory is left at the source */
    int lock, file;       /* the machine's, until its process has it; of the record */
    struct client client; /* its process; fd -1: none yet */
    bool made;            /* there is something to be removed */
};

/* Of a message of a stranger's: empty, or 0, when there is no such. */
static inline const char *text_of(const json_t *message, const char *key)
{
    const char *text = json_string_value(json_object_get(message, key));

    return text ? text : "";
}

static inline uint64_t number_of(const json_t *message, const char *key)
{
    json_int_t n = json_integer_value(json_object_get(message, key));

    return n > 0 ? (uint64_t)n : 0;
}

/* Its process is there, and runs it, or is about to. */
static inline bool receive_lives(const struct vm_run *run)
{
    return run->held && (run->state == VM_RUNNING || run->state == VM_INCOMING);
}

/* Its paths become those of this host. */
void receive_map(const struct option_list *maps, json_t *hello);
/* Are the disks that are written to, and not its own, the files here that they are at the source?  0, or -errno with a
 * sentence. */
int receive_see_disks(struct receiving *v, char *err, size_t n);
/* Its own disk becomes the source's file, if that can be (v->own_stays).  0, also when it has to be copied; -ESTALE
 * with a sentence: the source does not want that. */
int receive_own_disk(struct receiving *v, char *err, size_t n);

/* The connections of the streams, which are made now.  0, or -errno with a sentence. */
int receive_streams(struct receiving *v, char *err, size_t n);
void receive_close_streams(struct receiving *v);
/* Lets go of what it has; remove: and of the machine. */
void receive_clean_up(struct receiving *v, bool remove);
/* It is complete, and waits: what now?  0: it runs; -EAGAIN: nobody has said; or -errno with a sentence. */
int receive_wait_for_word(struct receiving *v, char *err, size_t n);

/* It runs without all of its memory: until that is there, too.  0; -EAGAIN: the source was cut off; or -errno with a
 * sentence. */
int receive_arrive(struct receiving *v, char *err, size_t n);
/* It waits for memory, and runs already or not: hears from the source what now.  The same. */
int receive_again(struct receiving *v, bool runs, char *err, size_t n);
/* The source has died: it ends, what is left of it is here if it has run, else nothing is.  -EIO, with a sentence. */
int receive_lost(struct receiving *v, bool runs, char *err, size_t n);

/* Ends the process of a machine that is not to run here, and removes what there is: the machine first, in one step with
 * the record that it may not be started.  -ENOENT: there is none, or it runs by now; -EBUSY: it does not end. */
int receive_remove(const struct registry *r, const char *name, const char *id);
/* Somebody asks what has become of one; as receive_one. */
int receive_resolve(struct receiver *r, struct peer *p, const json_t *question, char name[NAME_SIZE], char *err,
                    size_t n);
