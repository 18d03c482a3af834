/* Inside a migration: migration.c (a source, and when it stands still), migration_asked.c (what is asked of it),
 * migration_send.c (its threads), migration_serve.c (post-copy: what it does when the machine runs elsewhere),
 * incoming.c (a destination), incoming_receive.c (its threads), incoming_arrive.c (post-copy: what it still waits for
 * when it runs); migration_storage.c (the disks that stay where they are). */
#pragma once
#include <pthread.h>

#include "backends/disk.h"
#include "backends/net.h"
#include "base/sections.h"
#include "memory/watch.h"
#include "vm/migration.h"
#include "vm/migration_record.h"
#include "vm/migration_wire.h"

enum moving_state {
    MOVING_DUE,      /* the guest is to stand still, for a moment or for good */
    MOVING_SENDING,  /* it runs, a round is being sent */
    MOVING_LAST,     /* it stands still, what is left is being sent */
    MOVING_SENT,     /* all is sent */
    MOVING_GIVEN_UP, /* and it is the destination's */
    MOVING_ENDED,    /* it came to nothing: the guest runs on */
};

struct moving_stream {
    struct moving *moving;
    unsigned index;
    struct wire wire;
    pthread_t thread;
    bool has_thread;
    uint64_t round; /* that it has sent last */
};

struct moving {
    struct vm *vm;
    enum moving_state state; /* guarded by the bus lock, as all above `lock` */
    char id[MIGRATION_ID_SIZE];
    int record, lease; /* the file of migration_record.h; a socket that ends with the command */
    uint64_t downtime_ns;
    bool throttles, begun;
    bool own_stays;  /* its own disk is the destination's as it is, and not sent */
    bool round_over; /* and only a flush is waited for */
    bool compresses;
    uint64_t bandwidth;
    bool postcopy;           /* it may go on there before all of memory is there */
    struct loop_timer after; /* when it surely is to */
    struct serving *serving; /* migration_serve.c; NULL: it is here, or there with all of its memory */
    int notice[2];           /* a byte comes out of [0] when a round has been sent */
    struct loop_timer slice; /* ends the time that vCPUs run at a stretch, when they are to run slower */
    struct sections sections;
    char reason[512]; /* MOVING_ENDED */
    /* How it goes. */
    uint64_t began_ns, round_ns, stopped_ns,
        sent_ns;                        /* when it began, the round, when the guest stood still for good */
    uint64_t round_pages, before_pages; /* of this round, of the one before */
    uint64_t rate, dirtied;             /* pages a second that were sent, and written to, in the one before */
    uint64_t rounds, stalls;
    uint64_t sent_before; /* bytes, by streams that are no more */

    pthread_mutex_t lock; /* guards all below, but for the contents of pages, which are a round's */
    pthread_cond_t wake, sent;
    unsigned flushing; /* disks; guarded by the bus lock */
    uint64_t round;    /* 0: none yet */
    unsigned at_work;
    _Atomic bool last, stop;
    _Atomic bool disk_only; /* memory is not sent any more: it is to be served */
    _Atomic int failed;
    uint16_t *pages, *granules; /* what is to be sent, by chunk of memory and of the disk */
    uint16_t *logged;           /* what a round adds to the former */
    uint8_t *begun_chunks;      /* of the chunk something has been sent */
    uint64_t n_chunks, n_disk_chunks;
    _Atomic uint64_t sent_pages;    /* in this round */
    _Atomic uint64_t carried_pages; /* of these, which had contents */
    unsigned n_streams, n_extra;
    struct moving_stream streams[MIGRATION_ALL_MAX];
};

/* Its own disk; NULL: it has none. */
struct disk *moving_own_disk(const struct vm *vm);
/* The same, if it is sent. */
struct disk *moving_disk(const struct vm *vm);
/* What was to be flushed early is. */
void moving_flushed(struct moving *m);
/* Once: timers; and when the descriptors are there: what is listened to.  0/-errno. */
void moving_prepare(struct moving *m);
int moving_listen(struct moving *m);
/* It came to nothing: the guest runs on.  Not after it was given up. */
void moving_end(struct moving *m, const char *reason);
/* Pages that have changed since the round began, and have to be sent before it goes on there. */
uint64_t moving_left(const struct moving *m);
uint64_t moving_count(const uint16_t *bits, uint64_t n);

/* What the streams that carry the machine are to send a second at most, together; 0: as fast as it goes. */
void moving_set_pace(struct moving *m, uint64_t bytes);
/* Starts the threads, one for each stream.  0/-errno. */
int moving_threads_start(struct moving *m);
/* What stands in pages and granules is to be sent; last: and then the sections and the end. */
void moving_round(struct moving *m, bool last);
/* Waits until that is sent; -ETIMEDOUT after ns, or what has failed. */
int moving_wait(struct moving *m, uint64_t ns);
/* Ends the threads, which have sent what they were to. */
void moving_threads_join(struct moving *m);
/* Ends the threads, at once, and closes the streams. */
void moving_threads_stop(struct moving *m);

/* --- a source whose machine runs elsewhere while it still has memory of it ---------------------------------------- */

/* What is left in m->pages is to be served as it is now, whatever devices do to it yet; the section that says which
 * chunks are absent is added.  No vCPU runs, nor does a thread of ours.  0/-errno. */
int serving_begin(struct moving *m);
/* Serves by the streams that there are.  0/-errno. */
int serving_start(struct moving *m);
/* Ends that; the streams stay. */
void serving_stop(struct moving *m);
/* Lets go of all. */
void serving_end(struct moving *m);
/* Bytes at most that have not been sent. */
uint64_t serving_left(const struct moving *m);
/* The same, sent in a second, of those that are lacked. */
uint64_t serving_rate(const struct moving *m);
/* A stream has ended, or never was one. */
bool serving_is_cut(const struct moving *m);

/* --- destination ------------------------------------------------------------------------------------------------- */

enum incoming_state {
    INCOMING_WAITING, /* for the streams */
    INCOMING_RECEIVING,
    INCOMING_COMPLETE,
    INCOMING_DUE,      /* to run */
    INCOMING_ARRIVING, /* it runs, and not all of its memory is there */
    INCOMING_GONE,     /* it runs, or has failed */
};
extern const char *const incoming_state_names[];

struct incoming_stream {
    struct incoming *incoming;
    struct wire wire;
    pthread_t thread;
    bool has_thread;
};

struct incoming {
    struct vm *vm;
    enum incoming_state state; /* guarded by the bus lock, as all above `lock` */
    int record;
    int notice[2];
    struct control_ticket wait, go;
    struct timespec written[VM_BACKENDS_MAX]; /* to its disks that are away, when all the rest was here */
    uint64_t n_chunks;
    unsigned n_streams, n_extra;
    struct incoming_stream streams[MIGRATION_ALL_MAX]; /* when it arrives those of arriving.lock */
    struct arriving *arriving;                         /* incoming_arrive.c; NULL: all of its memory is there */
    int door;                                          /* a listening socket (incoming_arrive.c); -1: none */
    uid_t owner;                                       /* who may come there, beside root */
    struct loop_timer again;                           /* it could not be written down that all has arrived */

    pthread_mutex_t lock; /* guards all below */
    struct sections sections;
    unsigned ended;
    int failed;
    char reason[256];
};

/* It is to run. */
void incoming_step(struct vm *vm);
void incoming_close(struct vm *vm);
/* The ports that lead to it, as words; and back, when it runs (incoming_ports.c). */
json_t *moving_ports(const struct vm *vm);
void incoming_ports_begin(struct vm *vm, const json_t *words);
int incoming_threads_start(struct incoming *in);
void incoming_threads_join(struct incoming *in); /* they have ended, or are about to */
void incoming_threads_stop(struct incoming *in);
/* What is wrong with a frame of memory; NULL: nothing. */
const char *incoming_check_memory(const struct incoming *in, const struct wire_frame *f);

/* Some memory was left at the source, as the sections say: it is waited for from now on.  No thread of ours runs.  0,
 * or -errno with a sentence. */
int arriving_begin(struct incoming *in, char *why, size_t n);
/* The machine is to run: it comes.  Not before, while the guest stands still until it does.  0/-errno. */
int arriving_start(struct incoming *in);
/* All of it is there, or the machine ends. */
void arriving_end(struct incoming *in);
/* Bytes at most that are still to come; 0: none. */
uint64_t arriving_left(const struct incoming *in);
uint64_t arriving_received(struct incoming *in);
