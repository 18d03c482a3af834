/*
 * Character backends: the host's end of a serial line.
 *
 *      stdio        the terminal (raw; Ctrl-] then q leaves) or whatever stdin and stdout are
 *      null         output vanishes, nothing is ever typed
 *      file:PATH    output is appended to a file, which is created if need be; no input
 *      log:PATH     output is appended to PATH, which becomes PATH.1 when it has grown to 1 MiB; no input
 *      socket:PATH  a listening Unix socket, one client at a time; without one, output vanishes
 *
 * Every function but chr_open and chr_close is called with the loop's lock held; the input function
 * is called on the loop's thread, lock held.  Output is never dropped while there is somebody to take
 * it: when the reader is slow and the buffer is full, chr_try_write takes less, and the guest has to wait.
 */
#pragma once
#include <stdbool.h>
#include <stddef.h>

struct chr;
struct loop;

/* Is `spec` one of these?  0, or -EINVAL with one sentence in err[n]. */
int chr_check(const char *spec, char *err, size_t n);

/* The path of a socket that `spec` will make, or NULL. */
const char *chr_socket(const char *spec);

/*
 * Opens `spec`.  0 or -errno with one sentence in err[n].  A terminal becomes raw here.  Call it before any
 * thread is started: it blocks SIGTSTP and SIGCONT in the calling thread, for the new threads to
 * inherit, and handles them in the loop.
 */
int chr_open(struct chr **out, const char *spec, struct loop *loop, char *err, size_t n);

/* Bytes to write; waits while the buffer is full, so it is not for who serves a guest. */
void chr_write(struct chr *chr, const void *data, size_t len);

/* The same without waiting: returns how many bytes were taken.  When that is not all, the function of chr_set_space is
 * called, once, when there is room. */
size_t chr_try_write(struct chr *chr, const void *data, size_t len);
int chr_set_space(struct chr *chr, void (*fn)(void *opaque), void *opaque); /* 0 or -errno */

/* Is there somebody at the other end?  Without chr_set_presence nobody is told of a change.  Always so but for a
 * socket. */
bool chr_is_present(const struct chr *chr);
void chr_set_presence(struct chr *chr, void (*fn)(void *opaque, bool present), void *opaque);

/* Who gets what is typed.  fn returns how many bytes it took; if not all, the rest is kept and fn is
 * called again with it after chr_resume_input. */
void chr_set_input(struct chr *chr, size_t (*fn)(void *opaque, const void *data, size_t len), void *opaque);
void chr_resume_input(struct chr *chr);

/* Ctrl-] q was typed (the loop has then been stopped with loop_stop). */
bool chr_user_left(const struct chr *chr);

/* Ctrl-] reaches the guise process: this chr is a terminal. */
bool chr_is_terminal(const struct chr *chr);

/* The end of what a log: has (chr_open), at most n bytes into buf.  Returns how many; 0 for other kinds. */
size_t chr_tail(const struct chr *chr, char *buf, size_t n);

/* Waits until what is buffered is written; no longer than chr_close does. */
void chr_drain(struct chr *chr);

/* Writes out what is buffered, restores the terminal, frees.  chr may be NULL.  A reader that takes
 * nothing for ten seconds is given up, with a message. */
void chr_close(struct chr *chr);
