#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

#include "guest/guest.h"

struct mount_row {
    const char *type, *path;
    mode_t mode; /* of the directory, if it has to be made */
    unsigned long flags;
    const char *options;
};

#define SAFE (MS_NOSUID | MS_NODEV | MS_NOEXEC)

static const struct mount_row early[] = {
    {"devtmpfs", "/dev", 0755, MS_NOSUID, "mode=0755"},
    {"proc", "/proc", 0555, SAFE, NULL},
    {"sysfs", "/sys", 0555, SAFE, NULL},
};

static const struct mount_row usual[] = {
    {"devpts", "/dev/pts", 0755, MS_NOSUID | MS_NOEXEC, "gid=5,mode=620,ptmxmode=666"},
    {"tmpfs", "/dev/shm", 01777, MS_NOSUID | MS_NODEV, "mode=1777"},
    {"tmpfs", "/run", 0755, MS_NOSUID | MS_NODEV, "mode=0755"},
    {"cgroup2", "/sys/fs/cgroup", 0555, SAFE, "nsdelegate"},
};

/* Where the root is in memory, or somebody else's files, temporary ones have their own place. */
static const struct mount_row temporary = {"tmpfs", "/tmp", 01777, MS_NOSUID | MS_NODEV, "mode=1777"};

/* What cannot be mounted (a kernel without it) is a lack of that and no more. */
static void mount_rows(const struct mount_row *rows, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        mkdir(rows[i].path, rows[i].mode);
        if (mount(rows[i].type, rows[i].path, rows[i].type, rows[i].flags, rows[i].options) && errno != EBUSY &&
            errno != ENODEV)
            say("cannot mount %s on %s: %s", rows[i].type, rows[i].path, strerror(errno));
    }
}

void mount_early(void)
{
    mount_rows(early, sizeof(early) / sizeof(early[0]));
}

static const struct {
    const char *target, *path;
} links[] = {
    {"/proc/self/fd", "/dev/fd"},       {"/proc/self/fd/0", "/dev/stdin"}, {"/proc/self/fd/1", "/dev/stdout"},
    {"/proc/self/fd/2", "/dev/stderr"}, {"pts/ptmx", "/dev/ptmx"},
};

void mount_usual(bool memory_root)
{
    mount_rows(usual, sizeof(usual) / sizeof(usual[0]));
    if (memory_root)
        mount_rows(&temporary, 1);
    for (size_t i = 0; i < sizeof(links) / sizeof(links[0]); i++)
        if (symlink(links[i].target, links[i].path) && errno != EEXIST)
            say("cannot make %s: %s", links[i].path, strerror(errno));
    mkdir("/run/lock", 01777);
    chmod("/run/lock", 01777);
}

int make_path(const char *path, mode_t mode)
{
    char part[4096];

    if (snprintf(part, sizeof(part), "%s", path) >= (int)sizeof(part))
        return -ENAMETOOLONG;
    for (char *slash = strchr(part + 1, '/');; slash = strchr(slash + 1, '/')) {
        if (slash)
            *slash = 0;
        if (mkdir(part, mode) && errno != EEXIST)
            return -errno;
        if (!slash)
            return 0;
        *slash = '/';
    }
}

/* "ro|rw TAG PATH" */
static void mount_share(const char *share)
{
    char mode[8], tag[64];
    int at = 0;

    if (sscanf(share, "%7s %63s %n", mode, tag, &at) != 2 || !share[at] || share[at] != '/') {
        say("the share '%s' is malformed", share);
        return;
    }
    const char *path = share + at;
    int r = make_path(path, 0755);
    if (r)
        say("the mount point %s cannot be made: %s", path, strerror(-r));
    else if (mount(tag, path, "virtiofs", MS_NOSUID | MS_NODEV | (strcmp(mode, "ro") == 0 ? MS_RDONLY : 0), NULL))
        say("the share %s cannot be mounted on %s: %s%s", tag, path, strerror(errno),
            errno == ENODEV ? " (this kernel has no virtiofs)" : "");
}

void mount_shares(const struct option_list *shares)
{
    for (unsigned i = 0; i < shares->n; i++)
        mount_share(shares->value[i]);
}
