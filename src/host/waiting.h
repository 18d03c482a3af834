/* Between child_start_late and the program that waits (waiting.c). */
#pragma once
#include <stddef.h>
#include <stdint.h>

#define WAITING_PROGRAM 62 /* the descriptor of what it becomes */

extern const char waiting_program[];
extern const uint64_t waiting_program_size;
