/*
 * Forking a VM that runs: its memory becomes a template (memory/template.h), of which it and every copy have what they
 * have not written to themselves; its state goes, like a snapshot's, into a file in memory; its disk becomes a layer.
 * The command that asks (cli/fork.c) gets the descriptors of all that, by a socket that it hands us, and makes copies
 * of it: processes that begin with that state.
 *
 * A machine that is asked to is parked at that moment: it does not run again, its process keeps what copies are made
 * of, and as many as anybody likes are made of it without a word to its guest (cli/warm.c).
 *
 *      the socket, SOCK_SEQPACKET:  ->  FORK_MESSAGE, with three empty files of memory: the machine itself can make
 * none
 *                                   <-  FORK_MESSAGE, with the state's file, which is one of them, the templates', and,
 *                                       if the state says so, one of what the engine has made of the guest's code
 */
#pragma once
#include <jansson.h>

#include "memory/template.h"
#include "vm/control.h"

#define FORK_MESSAGE "fork"
#define FORK_FDS_MAX (2u + MEMORY_TEMPLATES_MAX)

/* The control socket's "fork" (docs/CONTROL.md). */
json_t *command_fork(struct control_call *call);

/* Why there can be no copy of this machine beside it, as an error of the call; false: there can. */
bool fork_refused(struct control_call *call);

/* Of one that is parked, by the same request with the socket alone: sends all once more.  false: an error of the call.
 */
bool fork_again(struct control_call *call);

struct saving;
/* At the moment, with no vCPU running: freezes memory, and sends all by s->fork.  0, or -errno and s->error. */
int fork_hand_over(struct saving *s);

/* The other end: sends the files, before the machine is asked.  0, or -errno with a sentence. */
int fork_offer(int socket, char *err, size_t n);
/* And afterwards: up to FORK_FDS_MAX descriptors, the caller's.  How many, or -errno with a sentence. */
int fork_receive(int socket, int fds[FORK_FDS_MAX], char *err, size_t n);

/* In a copy: memory is that of the templates.  0, or -errno with a sentence. */
struct vm;
struct restore;
int fork_adopt(struct vm *vm, struct restore *r, char *err, size_t n);
/* And what that machine's engine had made of the guest's code is its own's.  The same. */
bool fork_has_code(const struct restore *r); /* there is a descriptor for it */
int fork_take_code(struct vm *vm, const struct restore *r, char *err, size_t n);
