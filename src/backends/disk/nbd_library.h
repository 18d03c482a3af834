/*
 * libnbd, loaded when a disk first needs it.  It brings a dozen libraries along (TLS, XML, Unicode), which take half of
 * the time in which a process of guise starts; a machine has several, and hardly any has such a disk.
 */
#pragma once
#include <libnbd.h>
#include <stddef.h>

#define NBD_FUNCTIONS(F)                                                                                               \
    F(aio_connect_socket)                                                                                              \
    F(aio_connect_unix)                                                                                                \
    F(aio_connect_uri)                                                                                                 \
    F(aio_disconnect)                                                                                                  \
    F(aio_flush)                                                                                                       \
    F(aio_get_direction)                                                                                               \
    F(aio_get_fd)                                                                                                      \
    F(aio_is_closed)                                                                                                   \
    F(aio_is_dead)                                                                                                     \
    F(aio_is_ready)                                                                                                    \
    F(aio_notify_read)                                                                                                 \
    F(aio_notify_write)                                                                                                \
    F(aio_pread)                                                                                                       \
    F(aio_pwrite)                                                                                                      \
    F(aio_trim)                                                                                                        \
    F(aio_zero)                                                                                                        \
    F(can_flush)                                                                                                       \
    F(can_fua)                                                                                                         \
    F(can_trim)                                                                                                        \
    F(can_zero)                                                                                                        \
    F(close)                                                                                                           \
    F(create)                                                                                                          \
    F(get_block_size)                                                                                                  \
    F(get_error)                                                                                                       \
    F(get_size)                                                                                                        \
    F(is_read_only)                                                                                                    \
    F(poll)                                                                                                            \
    F(set_pread_initialize)

struct nbd_library {
#define MEMBER(name) __typeof__(nbd_##name) *name;
    NBD_FUNCTIONS(MEMBER)
#undef MEMBER
};

extern struct nbd_library nbd; /* its functions, after this has returned 0; else -errno and a sentence */
int nbd_library_load(char *err, size_t n);
