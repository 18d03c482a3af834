/*
 * The other end of a control socket (docs/CONTROL.md): asks a VM process, and waits for the answer.
 * One connection asks one thing at a time; events that come in between are kept.
 */
#pragma once
#include <jansson.h>
#include <stdbool.h>

#include "vm/registry.h"

#define CLIENT_ANSWER_MS 30000 /* a process that says nothing for so long is taken to hang */

struct client {
    int fd;
    json_int_t next_id;
    int patience_ms; /* how long an answer is waited for; CLIENT_ANSWER_MS unless set */
    json_t *events;  /* an array of those that came while an answer was awaited */
};

/* Connects to the VM `name`.  -ECONNREFUSED: it does not run.  -ENOENT: there is no such VM. */
int client_open(struct client *c, const struct registry *r, const char *name, char *err, size_t n);
/* Uses a connection that exists, and takes it over. */
void client_adopt(struct client *c, int fd);
void client_close(struct client *c);

/* Asks; `arguments` (an object or NULL) is taken over.  0 and *result (a new reference; may be NULL if nobody wants
 * it), or -errno with the sentence that came back: -ENOENT not-found, -EBUSY wrong-state, -ENOTSUP unsupported, -EINVAL
 * bad-request, -ECONNRESET: the process ended, -ETIMEDOUT, -EIO anything else. */
int client_call(struct client *c, const char *command, json_t *arguments, json_t **result, char *err, size_t n);

/* The same, and sends descriptors along, which stay the caller's: CONTROL_FDS_MAX of control.h at most. */
int client_call_fds(struct client *c, const char *command, json_t *arguments, const int *fds, unsigned n_fds,
                    json_t **result, char *err, size_t n);

/* The next event (a new reference), after a call of "events".  -ETIMEDOUT, or -ECONNRESET when there will be no more.
 * timeout_ms -1: for ever. */
int client_event(struct client *c, int timeout_ms, json_t **event);

/* Asks for a stream ("connect", "console").  The connection's descriptor then carries nothing else: it is handed out,
 * the caller's to close, and `c` is closed.  Returns it, or -errno as client_call. */
int client_stream(struct client *c, const char *command, json_t *arguments, char *err, size_t n);
