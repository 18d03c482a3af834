/* Shared folders of a machine that is saved (shares.c): what the file servers know of the guest goes with it. */
#pragma once
#include <stdbool.h>
#include <stddef.h>

struct sections;
struct vm;

/* Why they keep it from being saved: a sentence in why[n]; or NULL. */
const char *shares_refused(const struct vm *vm, char *why, size_t n);
/* With no vCPU running, after machine_save.  0, or -errno with a sentence. */
int shares_save(struct vm *vm, struct sections *out, char *err, size_t n);
/* Before the guest runs.  What is in the sections may be a stranger's.  0, or -errno with a sentence. */
int shares_load(struct vm *vm, const struct sections *in, char *err, size_t n);
