/* Disks of other formats (qcow2, vmdk, ...): by qemu-nbd, as a child of ours that serves this one disk to us alone. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "backends/disk/disk_int.h"
#include "backends/disk/nbd_int.h"
#include "base/error.h"
#include "base/path.h"

/* Is the program on PATH?  Asked beforehand, for a better sentence than a child's end could give. */
static bool is_installed(const char *program)
{
    const char *path = getenv("PATH");
    char *all = strdup(path ? path : "/usr/local/bin:/usr/bin:/bin"), *rest = all, *directory, file[PATH_MAX];
    bool found = false;

    while (all && !found && (directory = strsep(&rest, ":")))
        found = snprintf(file, sizeof file, "%s/%s", *directory ? directory : ".", program) < (int)sizeof file &&
                access(file, X_OK) == 0;
    free(all);
    return found;
}

/* A listening socket and a connection to it.  Its name is gone again on return: nobody else can come. */
static int make_sockets(int *listening, int *connected, char *err, size_t n)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    char directory[PATH_RUNTIME_MAX + 1], private[PATH_RUNTIME_MAX + 16];
    int failed = path_runtime(directory, sizeof directory, err, n);

    if (failed)
        return failed;
    snprintf(private, sizeof private, "%s/disk-XXXXXX", directory);
    if (!mkdtemp(private))
        return error_sys(err, n, -errno, "cannot make a directory in %s", directory);
    snprintf(address.sun_path, sizeof address.sun_path, "%s/nbd", private);
    *listening = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    *connected = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (*listening < 0 || *connected < 0 || bind(*listening, (struct sockaddr *)&address, sizeof address) ||
        listen(*listening, 1) || connect(*connected, (struct sockaddr *)&address, sizeof address))
        failed = error_sys(err, n, -errno, "cannot make a socket in %s", directory);
    unlink(address.sun_path);
    rmdir(private);
    return failed;
}

int disk_foreign_open(struct disk **out, const struct disk_spec *spec, struct loop *loop, char *err, size_t n)
{
    const char *format = disk_formats[spec->format].name;
    const char *const argv[] = {NULL, "helper-disk", format, spec->path, spec->read_only ? "ro" : NULL, NULL};
    struct child child = {.pidfd = -1};
    int listening = -1, connected = -1;

    if (access(spec->path, spec->read_only ? R_OK : R_OK | W_OK))
        return error_sys(err, n, -errno, "cannot open disk %s", spec->path);
    if (!is_installed("qemu-nbd"))
        return error_set(err, n, -ENOENT, "disk %s: %s needs qemu-nbd, which is not installed (the package qemu-utils)",
                         spec->path, format);
    int failed = make_sockets(&listening, &connected, err, n);
    if (!failed)
        failed = child_start(&child, argv, &listening, 1, err, n);
    if (listening >= 0)
        close(listening); /* if the child ends, the connection ends */
    if (failed) {
        if (connected >= 0)
            close(connected);
        return failed;
    }
    return nbd_disk_open(out, spec, loop, connected, child, err, n);
}
