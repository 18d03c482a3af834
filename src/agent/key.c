#include "agent/key.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <unistd.h>

#include "base/error.h"
#include "base/file.h"
#include "base/openssl_library.h"
#include "base/path.h"

#define HALF 32 /* bytes of an Ed25519 private key, and of a public one (RFC 8032) */
#define KIND "ssh-ed25519"
#define COMMENT "guise"

/* What ssh calls a string: four bytes of length, big-endian, and the bytes (RFC 4251 section 5). */
struct blob {
    uint8_t data[512];
    size_t len;
};

static void put_bytes(struct blob *b, const void *data, size_t len)
{
    memcpy(b->data + b->len, data, len);
    b->len += len;
}

static void put_number(struct blob *b, uint32_t number)
{
    const uint8_t bytes[] = {(uint8_t)(number >> 24), (uint8_t)(number >> 16), (uint8_t)(number >> 8), (uint8_t)number};

    put_bytes(b, bytes, sizeof(bytes));
}

static void put_string(struct blob *b, const void *data, size_t len)
{
    put_number(b, (uint32_t)len);
    put_bytes(b, data, len);
}

static void put_text(struct blob *b, const char *text)
{
    put_string(b, text, strlen(text));
}

static int make_pair(uint8_t private[HALF], uint8_t public[HALF])
{
    EVP_PKEY *key = openssl.EVP_PKEY_Q_keygen(NULL, NULL, "ED25519");
    size_t len = HALF, public_len = HALF;
    int ok = key && openssl.EVP_PKEY_get_raw_private_key(key, private, &len) == 1 &&
             openssl.EVP_PKEY_get_raw_public_key(key, public, &public_len) == 1;

    openssl.EVP_PKEY_free(key);
    return ok ? 0 : -EIO;
}

/* A public key as it is in authorized_keys, decoded (RFC 8709 section 4). */
static void make_public(struct blob *b, const uint8_t public[HALF])
{
    put_text(b, KIND);
    put_string(b, public, HALF);
}

/* OpenSSH's PROTOCOL.key: magic, cipher, kdf, its options, number of keys, public key, private section. */
static int make_private(struct blob *b, const uint8_t private[HALF], const uint8_t public[HALF])
{
    struct blob public_blob = {0}, section = {0};
    uint8_t pair[2 * HALF];
    uint32_t check;

    if (openssl.RAND_bytes((unsigned char *)&check, sizeof(check)) != 1)
        return -EIO;
    make_public(&public_blob, public);
    memcpy(pair, private, HALF);
    memcpy(pair + HALF, public, HALF);
    put_number(&section, check);
    put_number(&section, check);
    put_text(&section, KIND);
    put_string(&section, public, HALF);
    put_string(&section, pair, sizeof(pair));
    put_text(&section, COMMENT);
    for (uint8_t pad = 1; section.len % 8; pad++)
        put_bytes(&section, &pad, 1);

    put_bytes(b, "openssh-key-v1", 15); /* with its zero byte */
    put_text(b, "none");
    put_text(b, "none");
    put_text(b, "");
    put_number(b, 1);
    put_string(b, public_blob.data, public_blob.len);
    put_string(b, section.data, section.len);
    explicit_bzero(pair, sizeof(pair));
    explicit_bzero(&section, sizeof(section));
    return 0;
}

/* Lines of 70 characters, as OpenSSH writes and wants them. */
static size_t format_private(const struct blob *b, char *out, size_t size)
{
    uint8_t encoded[sizeof(b->data) * 4 / 3 + 8];
    int len = openssl.EVP_EncodeBlock(encoded, b->data, (int)b->len);
    size_t used = (size_t)snprintf(out, size, "-----BEGIN OPENSSH PRIVATE KEY-----\n");

    for (int at = 0; at < len; at += 70)
        used += (size_t)snprintf(out + used, size - used, "%.70s\n", (const char *)encoded + at);
    used += (size_t)snprintf(out + used, size - used, "-----END OPENSSH PRIVATE KEY-----\n");
    explicit_bzero(encoded, sizeof(encoded));
    return used;
}

/* The public half is written first: where the private one is, both are. */
static int create(const char *path, const char *public_path, char *err, size_t n)
{
    uint8_t private[HALF], public[HALF], encoded[128];
    struct blob blob = {0}, public_blob = {0};
    char text[2048];
    int r = openssl_load(err, n);

    if (r)
        return r;
    r = make_pair(private, public);
    if (!r)
        r = make_private(&blob, private, public);
    explicit_bzero(private, sizeof(private));
    if (r)
        return error_set(err, n, r, "a key for ssh cannot be made: the cryptographic library refuses");
    make_public(&public_blob, public);
    openssl.EVP_EncodeBlock(encoded, public_blob.data, (int)public_blob.len);
    int len = snprintf(text, sizeof(text), "%s %s %s\n", KIND, (const char *)encoded, COMMENT);
    r = file_write(public_path, text, (size_t)len, 0644, err, n);
    if (!r)
        r = file_write(path, text, format_private(&blob, text, sizeof(text)), 0600, err, n);
    explicit_bzero(text, sizeof(text));
    explicit_bzero(&blob, sizeof(blob));
    return r;
}

/* Of two commands that need it first at the same time one makes it. */
static int create_once(const char *directory, const char *path, const char *public_path, char *err, size_t n)
{
    int r, lock = open(directory, O_RDONLY | O_DIRECTORY | O_CLOEXEC);

    if (lock < 0 || flock(lock, LOCK_EX))
        r = error_sys(err, n, -errno, "cannot lock %s", directory);
    else
        r = access(path, F_OK) == 0 ? 0 : create(path, public_path, err, n);
    if (lock >= 0)
        close(lock);
    return r;
}

int agent_key(const char *data, char *path, size_t size, char *line, size_t line_size, char *err, size_t n)
{
    char directory[PATH_MAX], private_path[PATH_MAX], public_path[PATH_MAX], *text;
    int r = path_format(directory, sizeof(directory), err, n, "%s/ssh", data);

    if (!r)
        r = path_format(private_path, sizeof(private_path), err, n, "%s/id_ed25519", directory);
    if (!r)
        r = path_format(public_path, sizeof(public_path), err, n, "%s.pub", private_path);
    if (!r)
        r = path_make(directory, 0700, err, n);
    if (!r)
        r = create_once(directory, private_path, public_path, err, n);
    if (!r && path)
        r = path_format(path, size, err, n, "%s", private_path);
    if (r || !line)
        return r;
    r = file_read(public_path, 4096, &text, NULL, err, n);
    if (r)
        return r;
    text[strcspn(text, "\n")] = 0;
    snprintf(line, line_size, "%s", text);
    free(text);
    return 0;
}
