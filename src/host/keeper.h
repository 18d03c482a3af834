/*
 * The keeper: what a VM process in its sandbox cannot do itself any more, and somebody has to.
 *
 *      - When the VM process ends, however it ends, the files of its Unix sockets are removed.
 *      - While it runs, it gets connections to the sockets PREFIX_NUMBER, which is how a guest's vsock connections
 * reach programs of the host.
 *
 * It is a child of the VM process, forked before there is a guest: a program of a few instructions that removes the
 * files it was told of (remover.c), and, once there is somebody to connect to, another one with a sandbox of its own,
 * which can connect to Unix sockets.  A process that has lost its mind can make it connect to PREFIX_NUMBER, which a
 * guest can ask for anyway.
 */
#pragma once
#include <stddef.h>
#include <stdint.h>

#define KEEPER_SOCKETS_MAX 40u

struct keeper;

struct keeper_config {
    const char *sockets[KEEPER_SOCKETS_MAX]; /* files to remove at the end; relative to the working directory of now */
    unsigned n_sockets;
    const char *prefix; /* of sockets to connect to; NULL: none */
};

/* Forks it; the process has one thread yet and no guest's memory.  0, or -errno with one sentence. */
int keeper_start(struct keeper **out, const struct keeper_config *config, char *err, size_t n);

/* The sockets exist now: from here on it knows which files they are, and touches no others of the same name.  0/-errno.
 */
int keeper_seal(struct keeper *k);

/* A non-blocking connection to PREFIX_number, or -errno. */
int keeper_dial(struct keeper *k, uint32_t number);

/* `guise helper-dial PREFIX`: the half of it that connects (remover.c).  Its exit status. */
int keeper_dial_main(int argc, char **argv);

/* Lets it do its last work and waits for that.  NULL is fine. */
void keeper_stop(struct keeper *k);
