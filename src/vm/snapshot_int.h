/* Inside the saving of a VM: snapshot.c (what is asked and answered, the moment itself), snapshot_memory.c (the
 * thread), snapshot_rounds.c (memory whose changes are not announced). */
#pragma once
#include <pthread.h>

#include "backends/disk.h"
#include "memory/watch.h"
#include "vm/names.h"
#include "vm/snapshot.h"

/* A chunk that the guest was about to change. */
struct kept_chunk {
    struct kept_chunk *next;
    uint64_t chunk;
    uint32_t length;
    uint8_t bytes[];
};

enum saving_state {
    SAVING_FLUSHING, /* the disk; the guest runs */
    SAVING_DUE,      /* the guest is to stand still */
    SAVING_COPYING,  /* by rounds: it runs, the thread writes memory that may change behind it */
    SAVING_WRITING,  /* it runs again, the thread writes what there was at the moment */
    SAVING_COMPLETE,
    SAVING_FAILED,
};

struct saving {
    struct vm *vm;
    enum saving_state state; /* guarded by the bus lock, as all above `lock` */
    struct control_ticket ticket;
    uint64_t client; /* that has begun it */
    int file, layer; /* descriptors; -1: none, or it is somebody else's by now */
    bool park;       /* and it is not to run on afterwards */
    int fork;        /* a socket for what copies are made of (fork.h); -1: it is a snapshot */
    char layer_name[64], tag[NAME_SIZE];
    struct disk_request flush;
    uint64_t pause_ns; /* the longest */
    bool stood;        /* it has been stopped for this, and how long is not known yet */
    bool by_rounds; /* changes of memory are told afterwards: it is written while the guest runs, again and again what
                       has changed, and the moment comes in the end */
    bool last;      /* the next time that it stands still is that */
    uint16_t *changed; /* by chunk: what a round writes; or NULL */
    uint64_t n_changed, stalls;
    struct sections sections;
    struct loop_timer look; /* after the thread */
    pthread_t thread;
    bool has_thread;
    char error[512]; /* SAVING_FAILED */

    /* The thread's, and of who keeps chunks for it. */
    pthread_mutex_t lock; /* guards all below; taken with the lock of the watch held, never the other way round */
    pthread_cond_t room;
    struct kept_chunk *kept, **kept_end;
    uint64_t kept_bytes;
    pthread_cond_t go_on;      /* by rounds: round, last_begun, all_kept have changed */
    uint64_t round;            /* that is to be written */
    bool last_begun, all_kept; /* what is left comes as kept chunks; that was all */
    _Atomic uint64_t written;  /* round that is */
    _Atomic bool give_up;
    _Atomic int result; /* 1: at work; 0 or -errno: it has ended */
    _Atomic uint64_t done_bytes, written_bytes;
};

/* Begins to keep memory and starts the thread.  No vCPU runs.  0/-errno. */
int saving_memory_begin(struct saving *s);
/* Starts it, in the sandbox of a worker. */
int saving_thread_start(struct saving *s);
/* For the thread: writes the chunks that are kept.  0/-errno. */
struct snapshot_writer;
int saving_write_kept(struct saving *s, struct snapshot_writer *w);
/* What comes of the guest's: waits for room; a chunk of then. */
void saving_wait_for_room(void *saving);
void saving_keep(void *saving, uint64_t chunk, const void *bytes, uint32_t length);
/* Waits for the thread and lets go of memory. */
void saving_memory_end(struct saving *s);

/* --- by rounds (snapshot_rounds.c); no vCPU runs, and disks are at rest, but for is_done and is_last ---------------
 */
/* A round begins, the first or another.  0/-errno. */
int saving_round_begin(struct saving *s);
/* The moment: what has changed since the last round is kept.  0/-errno. */
int saving_round_last(struct saving *s);
bool saving_round_is_done(const struct saving *s);
/* Is it time for the moment, or would another round leave less? */
bool saving_round_is_last(struct saving *s);
/* The thread's part.  0/-errno. */
int saving_write_rounds(struct saving *s, struct snapshot_writer *w);
