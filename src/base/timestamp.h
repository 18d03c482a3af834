/* Wall-clock times as people and programs exchange them (RFC 3339, UTC, milliseconds). */
#pragma once
#include <stddef.h>
#include <stdint.h>

#define TIMESTAMP_SIZE 32

uint64_t timestamp_ms(void); /* now, since 1970 */
/* "2026-11-26T21:20:42.123Z" */
void timestamp_format(uint64_t ms, char out[TIMESTAMP_SIZE]);
/* "5s", "12m", "3h05m", "4d02h": how long, for a table. */
void timestamp_duration(uint64_t ms, char out[TIMESTAMP_SIZE]);
