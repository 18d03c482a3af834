/*
 * `guise run IMAGE --warm`: a copy of a machine that was booted before and stands by (vm/fork.h), instead of a boot.
 *
 * Such a machine is called warm-KEY, where KEY is made of all that matters for what a boot leads to: the image's
 * digest, the options, this guise.  It is made on the first use, parked as soon as its agent is there, and does nothing
 * from then on but keep its memory.  It is a throw-away machine like any other: what ends its process, or `guise rm
 * --force`, ends it, and nothing is left.  There are WARM_MOST at most; the one that was not used for longest makes
 * room.
 */
#pragma once
#include "cli/bring.h"

#define WARM_MOST 4u

/* As bring_create, bring_start and bring_wait_agent do one after another. */
int warm_start(const struct command *self, struct bring *b, const struct run_arguments *a);
