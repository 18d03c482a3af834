/*
 * Without landlock: a root directory in which nothing is but the paths of a list, each where it was.  It takes the
 * right to mount, which root may have, and others may have in a user namespace of their own.
 */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/mount.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/file.h"
#include "base/path.h"
#include "host/sandbox_int.h"

#define PATHS_MAX 64u

static int write_map(const char *path, const char *text)
{
    int fd = open(path, O_WRONLY | O_CLOEXEC), err = fd < 0 ? -errno : fd_write_all(fd, text, strlen(text));

    if (fd >= 0)
        close(fd);
    return err;
}

/* Everybody stays who he is. */
static int own_namespaces(void)
{
    char user[64], group[64];
    uid_t uid = geteuid();
    gid_t gid = getegid();

    if (unshare(uid == 0 ? CLONE_NEWNS : CLONE_NEWNS | CLONE_NEWUSER))
        return -errno;
    if (uid == 0)
        return 0;
    snprintf(user, sizeof user, "%u %u 1", uid, uid);
    snprintf(group, sizeof group, "%u %u 1", gid, gid);
    int err = write_map("/proc/self/setgroups", "deny");
    if (!err)
        err = write_map("/proc/self/uid_map", user);
    return err ? err : write_map("/proc/self/gid_map", group);
}

/* A mount of this path, in no namespace; a negative errno. */
static int take(const struct sandbox_path *p)
{
    struct mount_attr attr = {.attr_set = MOUNT_ATTR_NOSUID};
    int tree = (int)syscall(SYS_open_tree, AT_FDCWD, p->path, OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | AT_RECURSIVE);

    if (tree < 0)
        return -errno;
    if (!(p->access & (SANDBOX_WRITE | SANDBOX_CHANGE | SANDBOX_REMOVE)))
        attr.attr_set |= MOUNT_ATTR_RDONLY;
    if (!(p->access & SANDBOX_EXECUTE))
        attr.attr_set |= MOUNT_ATTR_NOEXEC;
    if (syscall(SYS_mount_setattr, tree, "", AT_EMPTY_PATH | AT_RECURSIVE, &attr, sizeof attr)) {
        int err = -errno;
        close(tree);
        return err;
    }
    return tree;
}

/* Its name below the new root, which is the working directory, with all directories above it. */
static int make_target(const char *path, char target[PATH_MAX])
{
    if (snprintf(target, PATH_MAX, ".%s", path) >= PATH_MAX)
        return -ENAMETOOLONG;
    for (char *slash = target + 2; (slash = strchr(slash, '/')); *slash++ = '/') {
        *slash = 0;
        mkdir(target, 0755);
    }
    return 0;
}

static int put(int tree, const char *path)
{
    char target[PATH_MAX];
    struct stat st;
    int err = fstat(tree, &st) ? -errno : make_target(path, target);

    if (err)
        return err;
    if ((S_ISDIR(st.st_mode) ? mkdir(target, 0755) : mknod(target, S_IFREG | 0600, 0)) && errno != EEXIST)
        return -errno;
    return syscall(SYS_move_mount, tree, "", AT_FDCWD, target, MOVE_MOUNT_F_EMPTY_PATH) ? -errno : 0;
}

/* /lib leads to /usr/lib. */
static int put_link(const char *path)
{
    char target[PATH_MAX], to[PATH_MAX];
    ssize_t len = readlink(path, to, sizeof to - 1);
    int err = len < 0 ? -errno : make_target(path, target);

    if (err)
        return err;
    to[len] = 0;
    return symlink(to, target) ? -errno : 0;
}

static int fill(const struct sandbox_path *paths, const int *trees, unsigned n)
{
    int err = 0;

    for (unsigned i = 0; i < n && !err; i++)
        if (trees[i] >= 0)
            err = put(trees[i], paths[i].path);
    return err;
}

static bool is_link(const char *path)
{
    struct stat st;

    return lstat(path, &st) == 0 && S_ISLNK(st.st_mode);
}

/* Links come first: the old root, which is known by /, is still there. */
static int new_root(const struct sandbox_path *paths, const int *trees, unsigned n)
{
    int err = 0;

    if (mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) ||
        mount("none", "/proc", "tmpfs", MS_NOSUID | MS_NODEV, "size=256k,mode=0755") || chdir("/proc"))
        return -errno;
    for (unsigned i = 0; i < n && !err; i++)
        if (is_link(paths[i].path))
            err = put_link(paths[i].path);
    if (!err)
        err = fill(paths, trees, n);
    if (!err && (syscall(SYS_pivot_root, ".", ".") || umount2(".", MNT_DETACH) || chdir("/") ||
                 mount(NULL, "/", NULL, MS_REMOUNT | MS_BIND | MS_RDONLY | MS_NOSUID | MS_NODEV, NULL)))
        err = -errno;
    return err;
}

int sandbox_mounts(const struct sandbox_path *paths, unsigned n)
{
    int trees[PATHS_MAX], err = n > PATHS_MAX ? -E2BIG : own_namespaces();

    if (err)
        return err == -E2BIG ? err : -ENOSYS;
    for (unsigned i = 0; i < n; i++) {
        trees[i] = is_link(paths[i].path) ? -ENOENT : take(&paths[i]);
        if (trees[i] < 0 && trees[i] != -ENOENT && trees[i] != -ENOTDIR && !err)
            err = trees[i];
    }
    if (!err)
        err = new_root(paths, trees, n);
    for (unsigned i = 0; i < n; i++)
        if (trees[i] >= 0)
            close(trees[i]);
    return err;
}
