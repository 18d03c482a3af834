/*
 * What a VM with a name has beside its machine: a control socket, an event log, a state that others can read.
 * vm.c calls these at the turns of a run; without a name (vm_config.life NULL) they do nothing.  While vCPUs run the
 * bus lock is held.
 */
#pragma once
#include <jansson.h>

#include "vm/control.h"
#include "vm/events.h"
#include "vm/registry.h"
#include "vm/vm_int.h"

/* Somebody waits until the guest has let CPUs go (commands_cpus.c). */
struct cpus_wait {
    bool going_on;
    struct control_ticket ticket;
    struct loop_timer timer; /* now: answer; later: it has taken too long */
    uint64_t until_ns;
    int refused; /* a CPU that the guest keeps; -1: none */
};

struct vm_life {
    const struct vm_record *record;
    struct event_log events;
    struct logfile said; /* guise.log, which is our stderr; its limit is 0: nobody's */
    struct loop_timer trim;
    struct vm_run run;
    int lock;                    /* held */
    int client;                  /* a control connection that exists already, or -1; life_open takes it over */
    bool attached;               /* the run ends when that connection does */
    int statm;                   /* /proc/self/statm, from life_open to life_close */
    char socket[108], door[108]; /* the latter of one that is received (migration.h) */
    struct control *control;     /* NULL until life_open */
    struct link *link;           /* link.h; NULL: no way into the guest */
    uint64_t ready_ns;           /* the agent has said that it is there; 0: not yet */
    struct cpus_wait cpus;
    struct loop_timer grace; /* a stop that the guest ignores becomes a hard one */
};

extern const struct control_command vm_commands[]; /* commands.c; their opaque is the struct vm */

/* Opens the control socket.  0, or -errno with a sentence. */
int life_open(struct vm *vm, char *err, size_t n);
/* The vCPUs are about to run. */
void life_started(struct vm *vm);
/* It waits to be received (migration.h). */
void life_incoming(struct vm *vm);
/* It has been given up to another process, or taken back. */
void life_moved(struct vm *vm, bool moved);
/* Something worth telling: to the log and to who listens; takes `data` (an object or NULL) over. */
void life_event(struct vm *vm, const char *event, json_t *data);
/* The run has ended, or never began: vm->result says how. */
void life_ended(struct vm *vm);
/* It could not even be set up, for this reason; there is no struct vm. */
void life_never_began(struct vm_life *life, const char *reason);
void life_console_output(struct vm *vm, const void *data, size_t len);
void life_console_space(struct vm *vm);
/* The machine was reset: what is inside the guest is gone. */
void life_reset(struct vm *vm);
/* Closes the control socket; before the loop goes. */
void life_close(struct vm *vm);
