/*
 * Where guise keeps things (XDG Base Directory Specification):
 *
 *   data      $GUISE_DATA, else $XDG_DATA_HOME/guise, else ~/.local/share/guise; survives a reboot
 *                 images/   vms/NAME/
 *   runtime   $GUISE_RUNTIME, else $XDG_RUNTIME_DIR/guise, else /run/guise for root, else /tmp/guise-UID; sockets of
 *             what runs now
 *   cache     $XDG_CACHE_HOME/guise, else ~/.cache/guise; nobody misses what is removed there
 *                 courses/
 *   config    $XDG_CONFIG_HOME/guise, else ~/.config/guise
 *
 * Each function makes the directory, with mode 0700, if it is not there, and refuses one that belongs to somebody
 * else.  0, or -errno with one sentence in err[n].
 */
#pragma once
#include <stddef.h>

/* A Unix socket's path has 108 bytes (unix(7)); the runtime directory leaves room for a VM's name in them. */
#define PATH_RUNTIME_MAX 40

int path_data(char *out, size_t size, char *err, size_t n);
int path_runtime(char *out, size_t size, char *err, size_t n);
int path_cache(char *out, size_t size, char *err, size_t n);
int path_config(char *out, size_t size, char *err, size_t n);

/* "DIR/NAME" by format into out[size]; -ENAMETOOLONG with a sentence when it does not fit. */
int path_format(char *out, size_t size, char *err, size_t n, const char *format, ...)
    __attribute__((format(printf, 5, 6)));

/* mkdir -p: makes `path` and what is missing above it, with `mode`. */
int path_make(const char *path, unsigned mode, char *err, size_t n);
