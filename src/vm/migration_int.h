/* Inside a migration: migration.c (what is asked of a source, and when it stands still), migration_send.c (its
 * threads), incoming.c (a destination), incoming_receive.c (its threads). */
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
extern const char *const moving_state_names[];

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
    int notice[2];           /* a byte comes out of [0] when a round has been sent */
    struct loop_timer slice; /* ends the time that vCPUs run at a stretch, when they are to run slower */
    struct sections sections;
    char reason[512]; /* MOVING_ENDED */
    /* How it goes. */
    uint64_t began_ns, round_ns, stopped_ns,
        sent_ns;                              /* when it began, the round, when the guest stood still for good */
    uint64_t round_pages, before_pages, rate; /* of this round, of the one before; pages a second */
    uint64_t rounds, stalls;

    pthread_mutex_t lock; /* guards all below, but for the contents of pages, which are a round's */
    pthread_cond_t wake, sent;
    uint64_t round; /* 0: none yet */
    unsigned at_work;
    _Atomic bool last, stop;
    _Atomic int failed;
    uint16_t *pages, *granules; /* what this round sends, by chunk of memory and of the disk */
    uint64_t n_chunks, n_disk_chunks;
    _Atomic uint64_t sent_pages; /* in this round */
    unsigned n_streams;
    struct moving_stream streams[MIGRATION_STREAMS_MAX];
};

/* Starts the threads, one for each stream.  0/-errno. */
int moving_threads_start(struct moving *m);
/* What stands in pages and granules is to be sent; last: and then the sections and the end. */
void moving_round(struct moving *m, bool last);
/* Waits until that is sent; -ETIMEDOUT after ns, or what has failed. */
int moving_wait(struct moving *m, uint64_t ns);
/* Ends the threads, at once, and closes the streams. */
void moving_threads_stop(struct moving *m);

/* --- destination ------------------------------------------------------------------------------------------------- */

enum incoming_state {
    INCOMING_WAITING, /* for the streams */
    INCOMING_RECEIVING,
    INCOMING_COMPLETE,
    INCOMING_DUE,  /* to run */
    INCOMING_GONE, /* it runs, or has failed */
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
    uint64_t n_chunks;
    unsigned n_streams;
    struct incoming_stream streams[MIGRATION_STREAMS_MAX];

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
void incoming_threads_stop(struct incoming *in);
