/* How the process of a VM gives its power away (host/sandbox.h). */
#pragma once
#include "host/sandbox.h"
#include "vm/vm_int.h"

bool vm_is_kvm(const struct vm *vm);
enum sandbox_role vm_vcpu_role(const struct vm *vm);

/* First of all, while there is one thread and no guest's memory: forks what will do the rest (host/keeper.h), and notes
 * which descriptors are the caller's. */
int vm_confine_prepare(struct vm *vm, char *error, size_t n);

/* Last of all, when everything that has a name is open. */
int vm_confine(struct vm *vm, char *error, size_t n);
