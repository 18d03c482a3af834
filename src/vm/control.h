/*
 * The control socket of a VM process (docs/CONTROL.md): JSON, one object a line, on a Unix socket of mode 0600.
 *
 *      {"id": 1, "command": "status", "arguments": {}}      ->  {"id": 1, "result": {...}}
 *                                                           or  {"id": 1, "error": {"code": "...", "message": "..."}}
 *
 * This is the server, which knows nothing of machines: what it can do is the table of commands that it is given.  It
 * runs on the event loop of the VM, every function with the loop's lock held, and never waits for a client: what a
 * client sends and what it has not read yet are bounded, whoever exceeds is disconnected, and the idlest makes room for
 * a new one.
 */
#pragma once
#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define CONTROL_CLIENTS_MAX 128u
#define CONTROL_LINE_MAX (64u << 10)
#define CONTROL_QUEUE_MAX (1u << 20) /* bytes that a client has not read yet */
#define CONTROL_CODE_SIZE 32
#define CONTROL_FDS_MAX 12u /* descriptors that a client may send along with a request */

struct control;
struct control_client;
struct loop;

/* One request being answered. */
struct control_call {
    struct control *control;
    struct control_client *client;
    void *opaque;                 /* of control_config */
    const json_t *arguments;      /* an object; never NULL */
    char code[CONTROL_CODE_SIZE]; /* of the error: "bad-request", "not-found", "wrong-state", "unsupported", "failed" */
    char message[512];
    bool later; /* set by a handler that answers by control_reply, before it returns NULL */
};

struct control_command {
    const char *name; /* NULL ends the table */
    /* Returns the result (a new reference), or NULL after control_fail or with `later` set. */
    json_t *(*run)(struct control_call *call);
};

struct control_config {
    const char *path; /* of the socket; NULL: none */
    int client;       /* a connection that exists already, subscribed to events; -1: none.  Closed by the server */
    struct loop *loop;
    const struct control_command *commands;
    void *opaque;
    void (*client_gone)(void *opaque); /* the connection `client` has ended; may be NULL */
};

/* Listens.  0, or -errno with a sentence (and the descriptor `client` is still the caller's). */
int control_create(struct control **out, const struct control_config *config, char *err, size_t n);
/* Sends what is still queued to those who read, for a second at most, and closes everything.  NULL is fine. */
void control_destroy(struct control *control);

/* For `return control_fail(call, "wrong-state", "...")` in a handler. */
json_t *control_fail(struct control_call *call, const char *code, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

/* The descriptors that came along with this request, or before it and for none: *fds of them, the caller's to close.
 * Returns how many. */
unsigned control_take_fds(const struct control_call *call, int fds[CONTROL_FDS_MAX]);

/* --- answers that come later ---------------------------------------------------------------------------- */

/* Names a request whose handler has set `later`: the client may have gone meanwhile, then the answer vanishes. */
struct control_ticket {
    uint64_t client;
    json_t *id; /* owned */
};
struct control_ticket control_ticket(const struct control_call *call);
/* Answers: a result (whose reference is taken over), or NULL and an error.  Ends the ticket. */
void control_reply(struct control *control, struct control_ticket *ticket, json_t *result, const char *code,
                   const char *message);

/* Is that client, of a ticket, still there? */
bool control_has(struct control *control, uint64_t client);

/* A duplicate of the connection's descriptor, for who will let control_take follow; -1 when it has asked for something
 * else, too, that is not answered yet. */
int control_connection(const struct control_call *call);

/* --- connections that become something else ------------------------------------------------------------------ */

/* The client gets `line` of every control_event from now on. */
void control_subscribe(struct control_client *client);
void control_event(struct control *control, const char *line, size_t len); /* with its line feed */

/* After the result of this call the connection is a console: bytes from it go to the console's input, and what
 * control_console_write says goes to it. */
void control_make_console(struct control_call *call);
void control_console_write(struct control *control, const void *data, size_t len);
/* Who gets what is typed: returns how many bytes were taken; the rest is offered again by control_console_resume. */
void control_set_console_input(struct control *control, size_t (*fn)(void *opaque, const void *data, size_t len),
                               void *opaque);
void control_console_resume(struct control *control);

/* Answers the ticket with `result` (taken over) and hands out the connection, non-blocking, with nothing left queued in
 * either direction; the server forgets it.  -1: the client has gone or has sent more already. */
int control_take(struct control *control, struct control_ticket *ticket, json_t *result);
