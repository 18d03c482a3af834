/* Shared by the control server (control.c: connections and commands) and its client's buffers (control_client.c). */
#pragma once
#include <stdint.h>

#include "host/loop.h"
#include "vm/control.h"

struct control_client {
    struct control *control;
    uint64_t id;
    int fd;            /* -1: dead, to be freed by the reaper */
    uint32_t watching; /* events that the loop knows */
    char *in;          /* what has come and is not a whole line yet, or that the console has not taken */
    size_t in_len, in_room;
    char *out; /* what has not been sent: out[out_start .. out_start + out_len) */
    size_t out_start, out_len, out_room;
    uint64_t active_ns, lost; /* lost: bytes of the console that it was too slow for */
    unsigned pending;         /* tickets */
    bool subscribed, console;
    bool ended;               /* it sends no more */
    int fds[CONTROL_FDS_MAX]; /* that have come and nobody has taken */
    unsigned n_fds;
    bool first; /* the connection that the process was started with */
};

struct control {
    struct control_config config;
    int listener;
    uid_t owner;
    uint64_t next_id;
    struct control_client *clients[CONTROL_CLIENTS_MAX];
    unsigned n_clients;
    struct loop_timer later; /* reaps the dead, goes on with clients that have more lines, listens again */
    size_t (*input)(void *opaque, const void *data, size_t len);
    void *input_opaque;
};

/* Reads what is there, as far as there is room.  1: something came; 0: nothing now; -1: the end, or an error. */
int client_fill(struct control_client *c);
/* Sends what the socket takes. */
void client_flush(struct control_client *c);
/* Queues; a client that has too much queued is dropped, a console loses the piece. */
void client_send(struct control_client *c, const void *data, size_t len);
/* The next whole line (its length, without the line feed), or NULL. */
const char *client_line(const struct control_client *c, size_t *len);
/* Forgets the first len bytes of what has come. */
void client_consume(struct control_client *c, size_t len);
/* Closes at once; the memory goes later, so that callers up the stack may still look at `fd`. */
void client_drop(struct control_client *c);
/* If this was the connection that the process was started with, says that it has ended. */
void client_was_first(struct control_client *c);
/* Tells the loop what to wait for. */
void client_watch(struct control_client *c);
void client_free(struct control_client *c);
void control_on_client(void *client, uint32_t events);
