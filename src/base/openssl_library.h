/*
 * OpenSSL, loaded when something is first encrypted, signed or digested: moving a machine, bringing an image in, making
 * a key.  Linked, it would be loaded by each process of guise, of which a running machine has several that never use
 * it, and each would have 0.4 MiB of addresses in it that are its own.
 */
#pragma once
#include <openssl/err.h>
#include <openssl/evp.h>
#include <openssl/pem.h>
#include <openssl/rand.h>
#include <openssl/ssl.h>
#include <openssl/x509v3.h>
#include <stddef.h>

#define OPENSSL_FUNCTIONS(F)                                                                                           \
    F(ASN1_INTEGER_set_uint64)                                                                                         \
    F(BIO_ctrl)                                                                                                        \
    F(BIO_free)                                                                                                        \
    F(BIO_new)                                                                                                         \
    F(BIO_s_mem)                                                                                                       \
    F(ERR_clear_error)                                                                                                 \
    F(ERR_peek_error)                                                                                                  \
    F(EVP_DecodeBlock)                                                                                                 \
    F(EVP_Digest)                                                                                                      \
    F(EVP_DigestFinal_ex)                                                                                              \
    F(EVP_DigestInit_ex)                                                                                               \
    F(EVP_DigestUpdate)                                                                                                \
    F(EVP_EncodeBlock)                                                                                                 \
    F(EVP_MD_CTX_free)                                                                                                 \
    F(EVP_MD_CTX_new)                                                                                                  \
    F(EVP_PKEY_Q_keygen)                                                                                               \
    F(EVP_PKEY_free)                                                                                                   \
    F(EVP_PKEY_get_raw_private_key)                                                                                    \
    F(EVP_PKEY_get_raw_public_key)                                                                                     \
    F(EVP_sha256)                                                                                                      \
    F(PEM_read_X509)                                                                                                   \
    F(PEM_write_bio_PrivateKey)                                                                                        \
    F(PEM_write_bio_X509)                                                                                              \
    F(RAND_bytes)                                                                                                      \
    F(SSL_CTX_ctrl)                                                                                                    \
    F(SSL_CTX_free)                                                                                                    \
    F(SSL_CTX_new)                                                                                                     \
    F(SSL_CTX_set_cert_verify_callback)                                                                                \
    F(SSL_CTX_set_num_tickets)                                                                                         \
    F(SSL_CTX_set_verify)                                                                                              \
    F(SSL_CTX_use_PrivateKey_file)                                                                                     \
    F(SSL_CTX_use_certificate_file)                                                                                    \
    F(SSL_accept)                                                                                                      \
    F(SSL_connect)                                                                                                     \
    F(SSL_free)                                                                                                        \
    F(SSL_get_error)                                                                                                   \
    F(SSL_has_pending)                                                                                                 \
    F(SSL_new)                                                                                                         \
    F(SSL_read)                                                                                                        \
    F(SSL_set_fd)                                                                                                      \
    F(SSL_write)                                                                                                       \
    F(TLS_client_method)                                                                                               \
    F(TLS_server_method)                                                                                               \
    F(X509_NAME_add_entry_by_txt)                                                                                      \
    F(X509_STORE_CTX_get0_cert)                                                                                        \
    F(X509_STORE_CTX_set_error)                                                                                        \
    F(X509_digest)                                                                                                     \
    F(X509_free)                                                                                                       \
    F(X509_get_serialNumber)                                                                                           \
    F(X509_get_subject_name)                                                                                           \
    F(X509_getm_notAfter)                                                                                              \
    F(X509_getm_notBefore)                                                                                             \
    F(X509_gmtime_adj)                                                                                                 \
    F(X509_new)                                                                                                        \
    F(X509_set_issuer_name)                                                                                            \
    F(X509_set_pubkey)                                                                                                 \
    F(X509_set_version)                                                                                                \
    F(X509_sign)

struct openssl_library {
#define MEMBER(name) __typeof__(name) *name;
    OPENSSL_FUNCTIONS(MEMBER)
#undef MEMBER
};

extern struct openssl_library openssl; /* its functions, after this has returned 0; else -errno and a sentence */
int openssl_load(char *err, size_t n);
