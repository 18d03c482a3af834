/*
 * Between guise and qemu-nbd: the same process, after it has given away what serving a disk does not need.
 *
 * qemu-nbd reads what a stranger has made (an image's header) and what a guest asks for, and it is not ours.  It keeps
 * the files of this disk; which those are is found out here, so that a header cannot lead it elsewhere.
 */
#include "backends/disk/foreign.h"

#include <errno.h>
#include <fcntl.h>
#include <glob.h>
#include <limits.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/error.h"
#include "base/log.h"
#include "host/sandbox.h"

enum { STATUS_CANNOT = 126, STATUS_MISSING = 127 };

#define FILES_MAX 24u
#define BACKING_MAX 1023u /* the format's own limit */

/* The files of one disk. */
struct files {
    struct sandbox_path paths[FILES_MAX];
    char names[FILES_MAX][PATH_MAX];
    unsigned n;
};

/* Files that are not there are none. */
static bool add(struct files *f, const char *path, unsigned access)
{
    if (f->n == FILES_MAX || !realpath(path, f->names[f->n]))
        return false;
    f->paths[f->n] = (struct sandbox_path){f->names[f->n], access | SANDBOX_DEVICE};
    f->n++;
    return true;
}

static uint64_t big_endian(const unsigned char *p, unsigned bytes)
{
    uint64_t v = 0;

    for (unsigned i = 0; i < bytes; i++)
        v = v << 8 | p[i];
    return v;
}

/* The name of the file below a qcow2 file (docs/interop/qcow2.txt of QEMU: its place and length are in bytes 8 to 19).
 */
static bool read_backing(const char *path, char name[BACKING_MAX + 1])
{
    unsigned char head[20];
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    bool found = fd >= 0 && pread(fd, head, sizeof head, 0) == sizeof head && memcmp(head, "QFI\xfb", 4) == 0;
    uint64_t at = found ? big_endian(head + 8, 8) : 0, len = found ? big_endian(head + 16, 4) : 0;

    found = at && at < INT64_MAX && len && len <= BACKING_MAX && pread(fd, name, len, (off_t)at) == (ssize_t)len;
    if (fd >= 0)
        close(fd);
    name[found ? len : 0] = 0;
    return found && strlen(name) == len;
}

static const char *base_name(const char *path)
{
    const char *slash = strrchr(path, '/');

    return slash ? slash + 1 : path;
}

/*
 * What lies below it, to be read, as long as it is in the same directory: whoever has made the image may have written
 * any name into it, and the guest would read that file.
 */
static void add_backing(struct files *f, const char *path)
{
    char name[BACKING_MAX + 1], below[PATH_MAX], resolved[PATH_MAX], above[PATH_MAX];

    while (realpath(path, above) && read_backing(above, name) && f->n < FILES_MAX) {
        const char *word = strncmp(name, "file:", 5) == 0 ? name + 5 : name;
        size_t directory = (size_t)(base_name(above) - above);
        int len = word[0] == '/' ? snprintf(below, sizeof below, "%s", word)
                                 : snprintf(below, sizeof below, "%.*s%s", (int)directory, above, word);
        if (len >= (int)sizeof below || !realpath(below, resolved))
            return; /* qemu-nbd has the sentence */
        if (strncmp(resolved, above, directory) != 0 || strchr(resolved + directory, '/')) {
            log_say("disk %s lies over %s, which is in another directory: only files beside a disk can be a part of it",
                    path, resolved);
            return;
        }
        if (!add(f, resolved, SANDBOX_READ))
            return;
        path = f->names[f->n - 1];
    }
}

/* A vmdk may consist of a description and extents, NAME-s001.vmdk or NAME-flat.vmdk, beside it. */
static void add_extents(struct files *f, const char *path, unsigned access)
{
    const char *base = base_name(path), *dot = strrchr(base, '.');
    char pattern[PATH_MAX];
    glob_t found;

    if (!dot || strpbrk(path, "*?[\\") ||
        snprintf(pattern, sizeof pattern, "%.*s-*.vmdk", (int)(dot - path), path) >= (int)sizeof pattern)
        return;
    if (glob(pattern, GLOB_NOSORT, NULL, &found) == 0) {
        for (size_t i = 0; i < found.gl_pathc; i++)
            add(f, found.gl_pathv[i], access);
        globfree(&found);
    }
}

static int confine(const char *format, const char *path, bool read_only, char *err, size_t n)
{
    unsigned access = SANDBOX_READ | (read_only ? 0 : SANDBOX_WRITE);
    struct files *f = calloc(1, sizeof *f);
    bool names;

    if (!f)
        return error_sys(err, n, -ENOMEM, "qemu-nbd cannot be confined");
    add(f, path, access);
    if (strcmp(format, "qcow2") == 0)
        add_backing(f, path);
    if (strcmp(format, "vmdk") == 0)
        add_extents(f, path, access);
    int failed = sandbox_program(SANDBOX_DISK_SERVER, f->paths, f->n, &names, err, n);
    if (!failed && !names)
        log_say("this host has neither landlock nor user namespaces: qemu-nbd keeps its user's rights to files");
    free(f);
    return failed;
}

int disk_helper_main(int argc, char **argv)
{
    char pid[24], path[PATH_MAX], file[PATH_MAX + 8], err[ERROR_SIZE];

    if (argc < 3 || argc > 4) {
        log_say("helper-disk is for guise itself");
        return STATUS_CANNOT;
    }
    bool read_only = argc == 4;
    if (!realpath(argv[2], path)) {
        log_say("cannot open disk %s: %s", argv[2], strerror(errno));
        return STATUS_CANNOT;
    }
    /* "file:" keeps a name with a colon from being taken for a protocol. */
    snprintf(file, sizeof file, "file:%s", path);
    snprintf(pid, sizeof pid, "%d", (int)getpid());
    /* How systemd hands over a listening socket (sd_listen_fds(3)). */
    setenv("LISTEN_PID", pid, 1);
    setenv("LISTEN_FDS", "1", 1);
    unsetenv("LISTEN_FDNAMES");
    const char *const words[] = {
        "qemu-nbd", "--format", argv[1], "--discard", "unmap", file, read_only ? "--read-only" : NULL, NULL};
    if (confine(argv[1], path, read_only, err, sizeof err)) {
        log_say("%s", err);
        return STATUS_CANNOT;
    }
    execvp(words[0], (char *const *)(uintptr_t)words);
    log_say("cannot start qemu-nbd: %s", strerror(errno));
    return errno == ENOENT ? STATUS_MISSING : STATUS_CANNOT;
}
