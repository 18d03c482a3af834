/*
 * The way to the agent inside the guest, through the vsock device: it says that it is there, clients of the control
 * socket are connected to ports of the guest, and it is asked to shut the guest down.  Bus lock held.
 */
#pragma once
#include "vm/control.h"
#include "vm/vm_int.h"

struct link;

/* Listens for the agent; nothing to do without a vsock device or a life.  0, or -errno with a sentence. */
int link_open(struct vm *vm, char *err, size_t n);
/* The machine was reset, or goes: there is no agent any more. */
void link_reset(struct vm *vm);
/* The machine goes on from a snapshot in which the agent was there: it is told what time it is, and gets new
 * randomness; and when it is a copy of another one, a name and addresses of its own. */
void link_restored(struct vm *vm, bool copied);
/* After the control socket, before the machine.  What is still being connected ends by itself with the device. */
void link_close(struct vm *vm);

/* The control socket's "connect": after the answer the connection belongs to the guest's port. */
json_t *link_connect(struct control_call *call);
/* Asks the agent to power the guest off; when it turns out not to be there, presses the power button.  0/-errno. */
int link_power_off(struct vm *vm);
/* Was the agent of this boot asked before?  It may hang. */
bool link_power_was_asked(struct vm *vm);
