#include "cli/tls.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

#include "base/error.h"
#include "base/file.h"
#include "base/openssl_library.h"
#include "base/path.h"

#define HANDSHAKE_S 10
#define YEARS 100L
#define TRUSTED_MOST (1u << 20)
#define PREFIX "sha256:"

struct tls {
    SSL_CTX *context;
    SSL *ssl;
    char stranger[TLS_FINGERPRINT_SIZE]; /* who has shown a certificate that is not trusted; empty: nobody */
};

static int in_directory(const char *file, char path[PATH_MAX], char *err, size_t n)
{
    char data[PATH_MAX], directory[PATH_MAX];
    int failed = path_data(data, sizeof data, err, n);

    if (!failed)
        failed = path_format(directory, sizeof directory, err, n, "%s/migration-key", data);
    if (!failed)
        failed = path_make(directory, 0700, err, n);
    return failed ? failed : path_format(path, PATH_MAX, err, n, "%s/%s", directory, file);
}

/* --- this host's key --------------------------------------------------------------------------------------------- */

static X509 *make_certificate(EVP_PKEY *key)
{
    X509 *x = openssl.X509_new();
    uint64_t serial = 0;

    if (!x || openssl.RAND_bytes((unsigned char *)&serial, sizeof serial) != 1)
        return x;
    X509_NAME *name = openssl.X509_get_subject_name(x);
    openssl.X509_set_version(x, 2);
    openssl.ASN1_INTEGER_set_uint64(openssl.X509_get_serialNumber(x), serial >> 1);
    openssl.X509_gmtime_adj(openssl.X509_getm_notBefore(x), -86400);
    openssl.X509_gmtime_adj(openssl.X509_getm_notAfter(x), YEARS * 365 * 86400);
    openssl.X509_NAME_add_entry_by_txt(name, "CN", MBSTRING_ASC, (const unsigned char *)"guise", -1, -1, 0);
    openssl.X509_set_issuer_name(x, name);
    openssl.X509_set_pubkey(x, key);
    if (!openssl.X509_sign(x, key, NULL)) {
        openssl.X509_free(x);
        return NULL;
    }
    return x;
}

static int save(const char *path, BIO *text, char *err, size_t n)
{
    char *bytes;
    long len = openssl.BIO_ctrl(text, BIO_CTRL_INFO, 0, &bytes);

    return len > 0 ? file_write(path, bytes, (size_t)len, 0600, err, n)
                   : error_set(err, n, -EIO, "cannot make a key for this host");
}

/* The certificate last: it is there when both are. */
static int make_key(const char *key_path, const char *certificate_path, char *err, size_t n)
{
    EVP_PKEY *key = openssl.EVP_PKEY_Q_keygen(NULL, NULL, "ED25519");
    X509 *x = key ? make_certificate(key) : NULL;
    BIO *a = openssl.BIO_new(openssl.BIO_s_mem()), *b = openssl.BIO_new(openssl.BIO_s_mem());
    int failed = x && a && b && openssl.PEM_write_bio_PrivateKey(a, key, NULL, NULL, 0, NULL, NULL) == 1 &&
                         openssl.PEM_write_bio_X509(b, x) == 1
                     ? 0
                     : error_set(err, n, -EIO, "cannot make a key for this host");

    if (!failed)
        failed = save(key_path, a, err, n);
    if (!failed)
        failed = save(certificate_path, b, err, n);
    openssl.BIO_free(a);
    openssl.BIO_free(b);
    openssl.X509_free(x);
    openssl.EVP_PKEY_free(key);
    return failed;
}

static int find_key(char key_path[PATH_MAX], char certificate_path[PATH_MAX], char *err, size_t n)
{
    int failed = openssl_load(err, n);

    if (!failed)
        failed = in_directory("key.pem", key_path, err, n);
    if (!failed)
        failed = in_directory("certificate.pem", certificate_path, err, n);
    if (!failed && access(certificate_path, F_OK))
        failed = make_key(key_path, certificate_path, err, n);
    return failed;
}

static void fingerprint_of(const X509 *x, char out[TLS_FINGERPRINT_SIZE])
{
    unsigned char sum[EVP_MAX_MD_SIZE];
    unsigned len = 0;

    memcpy(out, PREFIX, sizeof PREFIX);
    if (openssl.X509_digest(x, openssl.EVP_sha256(), sum, &len) == 1)
        for (unsigned i = 0; i < len && i < 32; i++)
            snprintf(out + strlen(PREFIX) + 2 * i, 3, "%02x", sum[i]);
}

int tls_fingerprint(char out[TLS_FINGERPRINT_SIZE], char *err, size_t n)
{
    char key[PATH_MAX], certificate[PATH_MAX];
    int failed = find_key(key, certificate, err, n);
    FILE *f = failed ? NULL : fopen(certificate, "re");
    X509 *x = f ? openssl.PEM_read_X509(f, NULL, NULL, NULL) : NULL;

    if (f)
        fclose(f);
    if (!failed && !x)
        failed = error_set(err, n, -EBADMSG, "%s is not a certificate: remove it, and a new one is made", certificate);
    if (x) {
        fingerprint_of(x, out);
        openssl.X509_free(x);
    }
    return failed;
}

/* --- who is trusted ---------------------------------------------------------------------------------------------- */

static bool is_fingerprint(const char *text)
{
    const char *hex = text + strlen(PREFIX);

    return strncmp(text, PREFIX, strlen(PREFIX)) == 0 && strlen(hex) == 64 && strspn(hex, "0123456789abcdef") == 64;
}

/* All of the file, or an empty text; the caller frees it. */
static int read_trusted(char path[PATH_MAX], char **text, char *err, size_t n)
{
    int failed = in_directory("trusted", path, err, n);

    if (!failed)
        failed = file_read(path, TRUSTED_MOST, text, NULL, err, n);
    if (failed != -ENOENT)
        return failed;
    *text = strdup("");
    return *text ? 0 : error_set(err, n, -ENOMEM, "out of memory");
}

static bool has_line(const char *text, const char *line)
{
    const char *at = text ? strstr(text, line) : NULL;

    return at && (at == text || at[-1] == '\n') && (at[strlen(line)] == '\n' || !at[strlen(line)]);
}

static int not_one(const char *fingerprint, char *err, size_t n)
{
    return error_set(err, n, -EINVAL, "'%.80s' is not a fingerprint: `guise receive key` prints a host's", fingerprint);
}

int tls_trust(const char *fingerprint, char *err, size_t n)
{
    char path[PATH_MAX], *text = NULL, *more = NULL;
    int failed = is_fingerprint(fingerprint) ? read_trusted(path, &text, err, n) : not_one(fingerprint, err, n);

    if (failed)
        return failed;
    if (!has_line(text, fingerprint))
        failed = asprintf(&more, "%s%s\n", text, fingerprint) < 0 ? error_set(err, n, -ENOMEM, "out of memory")
                                                                  : file_write(path, more, strlen(more), 0600, err, n);
    free(more);
    free(text);
    return failed;
}

int tls_distrust(const char *fingerprint, char *err, size_t n)
{
    char path[PATH_MAX], *text = NULL;
    int failed = is_fingerprint(fingerprint) ? read_trusted(path, &text, err, n) : not_one(fingerprint, err, n);

    if (failed)
        return failed;
    if (has_line(text, fingerprint)) {
        char *at = strstr(text, fingerprint), *end = at + strlen(fingerprint) + 1;
        memmove(at, end, strlen(end) + 1);
        failed = file_write(path, text, strlen(text), 0600, err, n);
    } else {
        failed = error_set(err, n, -ENOENT, "%s was not trusted", fingerprint);
    }
    free(text);
    return failed;
}

int tls_trusted(void (*each)(void *opaque, const char *fingerprint), void *opaque, char *err, size_t n)
{
    char path[PATH_MAX], *text = NULL, *save_at = NULL;
    int failed = read_trusted(path, &text, err, n);

    if (failed)
        return failed;
    for (char *line = strtok_r(text, "\n", &save_at); line; line = strtok_r(NULL, "\n", &save_at))
        each(opaque, line);
    free(text);
    return 0;
}

/* --- connections ------------------------------------------------------------------------------------------------- */

/* Instead of a chain of signatures: is this certificate one that was named? */
static int verify(X509_STORE_CTX *store, void *opaque)
{
    struct tls *t = opaque;
    X509 *x = openssl.X509_STORE_CTX_get0_cert(store);
    char path[PATH_MAX], none[1], *text = NULL;

    if (!x || read_trusted(path, &text, none, sizeof none))
        return 0;
    fingerprint_of(x, t->stranger);
    if (has_line(text, t->stranger))
        t->stranger[0] = 0;
    else
        openssl.X509_STORE_CTX_set_error(store, X509_V_ERR_CERT_UNTRUSTED);
    free(text);
    return !t->stranger[0];
}

static void limit(int fd, long seconds)
{
    const struct timeval t = {.tv_sec = seconds};

    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &t, sizeof t);
    setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &t, sizeof t);
}

static int set_up(struct tls *t, int fd, bool server, char *err, size_t n)
{
    char key[PATH_MAX], certificate[PATH_MAX];
    int failed = find_key(key, certificate, err, n);

    if (failed)
        return failed;
    t->context = openssl.SSL_CTX_new(server ? openssl.TLS_server_method() : openssl.TLS_client_method());
    if (!t->context || openssl.SSL_CTX_use_certificate_file(t->context, certificate, SSL_FILETYPE_PEM) != 1 ||
        openssl.SSL_CTX_use_PrivateKey_file(t->context, key, SSL_FILETYPE_PEM) != 1)
        return error_set(err, n, -EBADMSG, "%s and %s cannot be used: remove them, and new ones are made", key,
                         certificate);
    openssl.SSL_CTX_ctrl(t->context, SSL_CTRL_SET_MIN_PROTO_VERSION, TLS1_3_VERSION, NULL);
    openssl.SSL_CTX_set_num_tickets(t->context, 0); /* nothing comes that was not sent by us */
    openssl.SSL_CTX_set_verify(t->context, SSL_VERIFY_PEER | SSL_VERIFY_FAIL_IF_NO_PEER_CERT, NULL);
    openssl.SSL_CTX_set_cert_verify_callback(t->context, verify, t);
    t->ssl = openssl.SSL_new(t->context);
    return t->ssl && openssl.SSL_set_fd(t->ssl, fd) == 1 ? 0 : error_set(err, n, -ENOMEM, "out of memory");
}

int tls_open(struct tls **out, int fd, bool server, char *err, size_t n)
{
    int failed = openssl_load(err, n);
    struct tls *t = failed ? NULL : calloc(1, sizeof *t);

    if (!t)
        return failed ? failed : error_set(err, n, -ENOMEM, "out of memory");
    failed = set_up(t, fd, server, err, n);
    if (!failed) {
        limit(fd, HANDSHAKE_S);
        openssl.ERR_clear_error();
        if ((server ? openssl.SSL_accept : openssl.SSL_connect)(t->ssl) != 1)
            failed = t->stranger[0]
                         ? error_set(err, n, -EACCES,
                                     "the other side's certificate, %s, is not one of those trusted here: `guise "
                                     "receive trust` adds it, if it is the other host's (`guise receive key` "
                                     "there)",
                                     t->stranger)
                         : error_set(err, n, -ECONNRESET, "the other side does not answer, or not in TLS 1.3");
        limit(fd, 0);
    }
    if (failed)
        tls_close(t);
    else
        *out = t;
    return failed;
}

void tls_close(struct tls *t)
{
    if (!t)
        return;
    openssl.SSL_free(t->ssl);
    openssl.SSL_CTX_free(t->context);
    free(t);
}

ssize_t tls_read(struct tls *t, void *to, size_t n)
{
    int got = openssl.SSL_read(t->ssl, to, n < INT_MAX ? (int)n : INT_MAX);

    if (got > 0)
        return got;
    if (openssl.SSL_get_error(t->ssl, got) == SSL_ERROR_ZERO_RETURN)
        return 0;
    /* The other side has looked at our certificate only after we have taken the connection for good. */
    errno = ERR_GET_REASON(openssl.ERR_peek_error()) == SSL_R_TLSV1_ALERT_UNKNOWN_CA ||
                    ERR_GET_REASON(openssl.ERR_peek_error()) == SSL_R_SSLV3_ALERT_BAD_CERTIFICATE ||
                    ERR_GET_REASON(openssl.ERR_peek_error()) == SSL_R_SSLV3_ALERT_CERTIFICATE_UNKNOWN
                ? EACCES
                : ECONNRESET;
    return -1;
}

ssize_t tls_write(struct tls *t, const void *from, size_t n)
{
    int done = openssl.SSL_write(t->ssl, from, n < INT_MAX ? (int)n : INT_MAX);

    if (done <= 0)
        errno = EPIPE;
    return done > 0 ? done : -1;
}

bool tls_pending(const struct tls *t)
{
    return openssl.SSL_has_pending(t->ssl) == 1;
}
