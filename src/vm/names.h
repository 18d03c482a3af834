/* Names of virtual machines: [a-z][a-z0-9-]{0,62}, which is also a host name and a file name. */
#pragma once
#include <stddef.h>

#define NAME_SIZE 64 /* with the final NUL */

/* 0, or -EINVAL with one sentence in err[n]. */
int name_check(const char *name, char *err, size_t n);
/* "brave-otter": an adjective and a noun, at random; several hundred thousand when `attempt` (0, 1, ...) is not 0. */
void name_random(unsigned attempt, char out[NAME_SIZE]);
