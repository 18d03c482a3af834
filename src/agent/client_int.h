/* What the files of the host's client share. */
#pragma once
#include "agent/client.h"
#include "agent/frame.h"

/* The sentence for a session that failed with `code`: a lost connection, a broken protocol, or errno's text.  Returns
 * `code`. */
int client_failed(int code, const char *doing, char *err, size_t n);

/* The sentence for an ERROR frame of the guest.  Returns its code as -errno. */
int client_refused(const struct frame *f, char *err, size_t n);
