/*
 * The keeper: what a VM process in its sandbox cannot do itself any more, and somebody has to.
 *
 *      - When the VM process ends, however it ends, the files of its Unix sockets are removed.
 *      - While it runs, it gets connections to the sockets PREFIX_NUMBER, which is how a guest's vsock connections
 * reach programs of the host.
 *
 * It is a child of the VM process, forked before there is a guest, with a sandbox of its own: it can connect to Unix
 * sockets and remove files in the directories of those it was told of.  A process that has lost its mind can make it
 * connect to PREFIX_NUMBER, which a guest can ask for anyway.
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

/* Lets it do its last work and waits for that.  NULL is fine. */
void keeper_stop(struct keeper *k);
