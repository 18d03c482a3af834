/* CPUs that come and go while the machine runs: what of it outlasts a command (commands_cpus.c).  For VMs with a name.
 */
#pragma once

struct vm;

/* Once the machine exists; before a vCPU runs. */
void cpus_open(struct vm *vm);
/* Before the control socket goes. */
void cpus_close(struct vm *vm);
