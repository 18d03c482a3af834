/*
 * Parsers for what a person types.  All take the whole string: trailing characters, a sign, an
 * overflow or an empty string are errors (-EINVAL or -ERANGE), with a sentence in err[n].
 */
#pragma once
#include <stddef.h>
#include <stdint.h>

/* A size in bytes with a unit that must be there: "512M", "2G", "64MiB" (K, M, G, T; powers of 1024;
 * either case).  "512" and "512MB" are refused: programs disagree on what they mean. */
int parse_size(const char *text, uint64_t *bytes, char *err, size_t n);

/* A decimal number in [min, max]. */
int parse_number(const char *text, uint64_t min, uint64_t max, uint64_t *value, char *err, size_t n);

/* Seconds, with up to three decimals: "10", "0.25".  Result in milliseconds, at least 1. */
int parse_seconds(const char *text, uint64_t *ms, char *err, size_t n);
