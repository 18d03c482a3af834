/*
 * From a configuration's words to devices.  Each attach_* function reads its part of vm->config, opens the backends
 * and adds the devices (machine_add), which own them from then on: a device's destroy closes its backend.  When
 * machine_add fails the backend is still the caller's.  Runs before any vCPU; 0, or -errno with a sentence.
 */
#pragma once
#include "vm/vm_int.h"

int vm_attach_devices(struct vm *vm, char *error, size_t n);

int vsock_attach(struct vm *vm, char *error, size_t n); /* sets vm->vsock */

int share_attach(struct vm *vm, char *error, size_t n); /* attach_share.c */
int ports_attach(struct vm *vm, char *error, size_t n); /* sets vm->terminal when a port is the terminal */
int ports_check(const char *spec, char *err, size_t n);

int disk_attach(struct vm *vm, char *error, size_t n);
int balloon_attach(struct vm *vm, char *error, size_t n);   /* sets vm->balloon */
int net_attach_cards(struct vm *vm, char *error, size_t n); /* attach_net.c: nets, publish */
int net_cards_ready(struct vm *vm, char *error, size_t n);  /* before anything else is done with them */
