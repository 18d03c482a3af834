/* The environment that a command in a guest gets from here. */
#pragma once
#include <stdbool.h>

#include "base/options.h"

/* "NAME=VALUE" as given; NAME alone: what it is here, if it is; `term`: what this terminal is.  Ends with NULL; NULL
 * without memory. */
char **environment_make(const struct option_list *given, bool term);
void environment_free(char **environment);
