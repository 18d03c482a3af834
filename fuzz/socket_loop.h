/*
 * The event loop that goes with sockets.h, in place of host/loop.c: loop_run does what is due, until nothing is, and
 * comes back; the clock stands still until somebody waits.
 */
#pragma once
#include "host/loop.h"

void clock_advance(uint64_t ns);
