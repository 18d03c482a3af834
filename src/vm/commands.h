/* Commands of the control socket that have a file of their own; commands.c has the table. */
#pragma once
#include "vm/control.h"

struct vm;

json_t *command_stats(struct control_call *call);   /* commands_stats.c: what the process and its devices have used */
json_t *command_publish(struct control_call *call); /* commands_devices.c: ports of the host */
json_t *command_cpus(struct control_call *call);    /* commands_cpus.c: CPUs that come and go */
json_t *command_balloon(struct control_call *call); /* the guest's memory */
json_t *balloon_describe(const struct vm *vm);      /* what that answers; the next answer has newer numbers */
