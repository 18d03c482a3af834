/*
 * Errors are a number for the program and one sentence for the person.
 *
 * A function that can fail for a reason worth explaining takes (char *err, size_t n) last, returns
 * 0 or -errno, and leaves in err[] one sentence without a final full stop or newline: the cause,
 * then what to do about it.  The caller decides who is told.
 */
#pragma once
#include <stddef.h>

/* The size that holds any of guise's sentences; longer ones are cut. */
#define ERROR_SIZE 512

/* Formats the sentence into err[n] (err may be NULL when n is 0) and returns `code` unchanged, so that
 * `return error_set(err, n, -EINVAL, "...")` is the whole failure path. */
int error_set(char *err, size_t n, int code, const char *format, ...) __attribute__((format(printf, 4, 5)));

/* The same for a failed system call: appends ": " and the text of -code.  code is a negative errno. */
int error_sys(char *err, size_t n, int code, const char *format, ...) __attribute__((format(printf, 4, 5)));
