/* Text in UTF-8, as TOML and JSON want it. */
#pragma once
#include <stddef.h>

/* The length of the sequence that begins `s` (RFC 3629), of which there are `left` bytes, at least one; 0: it is none.
 */
unsigned utf8_length(const unsigned char *s, size_t left);

/* What is not UTF-8 (a sequence that was cut, a name in another encoding) becomes '?', byte by byte. */
void utf8_repair(char *text);
