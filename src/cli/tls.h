/*
 * TLS between hosts that know each other: each has a key and a certificate of its own, made when they are first needed,
 * and a list of the others' fingerprints.  No authority vouches for anybody.
 *
 *      DATA/migration-key/     key.pem  certificate.pem    this host's, mode 0600
 *                              trusted                     "sha256:64 hexadecimal digits", one a line
 */
#pragma once
#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>

#define TLS_FINGERPRINT_SIZE 72 /* "sha256:..." */

struct tls;

/* Of this host's certificate, which is made if there is none.  0, or -errno with a sentence; so do all of these. */
int tls_fingerprint(char out[TLS_FINGERPRINT_SIZE], char *err, size_t n);
int tls_trust(const char *fingerprint, char *err, size_t n);
/* -ENOENT: it was not. */
int tls_distrust(const char *fingerprint, char *err, size_t n);
/* Calls `each` for those that are trusted. */
int tls_trusted(void (*each)(void *opaque, const char *fingerprint), void *opaque, char *err, size_t n);

/* The connection `fd`, which blocks and stays the caller's, is secured: each side has shown a certificate that the
 * other trusts.  -EACCES: not so. */
int tls_open(struct tls **out, int fd, bool server, char *err, size_t n);
void tls_close(struct tls *t); /* NULL is allowed */
/* As read(2) and write(2), by one thread at a time. */
ssize_t tls_read(struct tls *t, void *to, size_t n);
ssize_t tls_write(struct tls *t, const void *from, size_t n);
/* Something has come already that tls_read gives at once. */
bool tls_pending(const struct tls *t);
