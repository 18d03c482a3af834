/* CRC-32C (Castagnoli), the check sum of guise's own file formats. */
#pragma once
#include <stddef.h>
#include <stdint.h>

/* Continues `crc` (0 at first) over data: crc32c(crc32c(0, a), b) is that of a and b in one piece. */
uint32_t crc32c(uint32_t crc, const void *data, size_t len);
