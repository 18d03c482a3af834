/*
 * `guise run --detach IMAGE -- COMMAND`: a process of guise's own in the background (`guise attend NAME`) takes the
 * place of the terminal.  It runs the command by the agent, its output goes to DATA/vms/NAME/output.log, and when it
 * has ended the virtual machine is shut down.
 */
#pragma once
#include "cli/bring.h"

/* Starts it for a VM whose agent is there.  0, or -errno with a sentence. */
int attend_start(const struct bring *b, const struct run_arguments *a, char **command, char *err, size_t n);
