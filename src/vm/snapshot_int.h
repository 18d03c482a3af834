/* Inside the saving of a VM: snapshot.c (what is asked and answered, the moment itself), snapshot_memory.c (the
 * thread). */
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
    SAVING_WRITING,  /* it runs again, the thread writes */
    SAVING_COMPLETE,
    SAVING_FAILED,
};
extern const char *const saving_state_names[];

struct saving {
    struct vm *vm;
    enum saving_state state; /* guarded by the bus lock, as all above `lock` */
    struct control_ticket ticket;
    int file, layer; /* descriptors; -1: none, or it is somebody else's by now */
    bool park;       /* and it is not to run on afterwards */
    int fork;        /* a socket for what copies are made of (fork.h); -1: it is a snapshot */
    char layer_name[64], tag[NAME_SIZE];
    struct disk_request flush;
    uint64_t pause_ns;
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
    _Atomic bool give_up;
    _Atomic int result; /* 1: at work; 0 or -errno: it has ended */
    _Atomic uint64_t done_bytes, written_bytes;
};

/* Begins to keep memory and starts the thread.  No vCPU runs.  0/-errno. */
int saving_memory_begin(struct saving *s);
/* Waits for the thread and lets go of memory. */
void saving_memory_end(struct saving *s);
