/*
 * The key by which `guise ssh` logs in: one pair for all VMs of a user, made when it is first needed, in
 * DATA/ssh/id_ed25519 (as ssh-keygen would write it, without a passphrase) and id_ed25519.pub.  The public half goes
 * into VMs by their configuration (agent/config.h: keys).
 */
#pragma once
#include <stddef.h>

/* `data`: the directory of path_data.  The private key's path into path[size], the public key's line, without its line
 * feed, into line[line_size] (256 are enough); either may be NULL.  0, or -errno with a sentence. */
int agent_key(const char *data, char *path, size_t size, char *line, size_t line_size, char *err, size_t n);
