/*
 * Between a VM and its network helper, beside the frames: requests, answers and news, each one message of a
 * SOCK_SEQPACKET socket.
 *
 * A helper is two processes.  The outer one only starts the inner one, again when it ends, and says so; the inner one
 * handles the frames of a hostile guest.  So a network that died comes back without the VM's own process having to
 * start anything, which its sandbox forbids.
 */
#pragma once
#include "backends/net.h"

enum control_type {
    CONTROL_UP = 1, /* helper: at work */
    CONTROL_DOWN,   /* helper: `text` has happened; status 0: it will be UP again, else a -errno: it will not */
    CONTROL_ADD,    /* VM: publish */
    CONTROL_REMOVE, /* VM: no longer */
    CONTROL_ANSWER, /* helper: to the request `id`: status, text, publish */
};

struct control_message {
    uint32_t type, id;
    int32_t status; /* 0 or -errno */
    struct net_publish publish;
    char text[256];
};

/* The descriptors that a helper finds open. */
enum { HELPER_DATA = 3, HELPER_CONTROL = 4 };

/* 0 or -errno; not blocking. */
int control_send(int fd, const struct control_message *m);
/* 1: *m is one; 0: none now; -errno: the other end is gone. */
int control_receive(int fd, struct control_message *m);
