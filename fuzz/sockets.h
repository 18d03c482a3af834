/*
 * Sockets in memory: Unix sockets without the kernel, for targets whose row says so.  The linker leads the calls of the
 * code under test and of the target (socketpair, connect, send, recv, poll, close...) to sockets.c, which passes on
 * what is no socket of its own.  Nothing blocks: a wait without end for what cannot come is a finding.
 */
#pragma once
#include <stdint.h>

uint32_t sockets_events(int fd); /* as poll's; 0 for descriptors that are none of these */
unsigned sockets_open(void);     /* how many descriptors there are: zero after an input, or it has leaked one */
