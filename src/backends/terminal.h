/*
 * The terminal as a serial console: raw, so that every key reaches the guest, but for escapes (escape.h).
 *
 * Who restores the settings:
 *      terminal_close          the normal way out
 *      SIGTSTP, in the loop    before stopping; raw again when continued in the foreground
 *      the guardian            every death: exit, SIGTERM, SIGSEGV, SIGKILL
 */
#pragma once
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct terminal;
struct loop;

struct terminal_events {
    void (*leave)(void *opaque);                    /* Ctrl-] q */
    void (*foreground)(void *opaque, bool present); /* may it be read from? */
    void *opaque;
};

/* Makes fd raw if guise is in the foreground of it, else as soon as it is.  0 or -errno. */
int terminal_open(struct terminal **out, int fd, struct loop *loop, const struct terminal_events *events, char *err,
                  size_t n);
bool terminal_in_foreground(const struct terminal *t);

/* Takes escapes out of what was typed; to[] has room for 2 * len. */
size_t terminal_filter(void *terminal, const uint8_t *from, size_t len, uint8_t *to);

void terminal_close(struct terminal *t);
