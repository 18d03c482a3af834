/*
 * What the file server gives up before it reads the first message, in this order:
 *
 *   as root   the host's file systems: a mount of its own of the shared directory, without devices and set-user-id
 *             programs, read-only if the share is, and nothing else but /proc.  Needs CAP_SYS_ADMIN, which root in a
 *             container may not have: then this step is left out.
 *   as root   being root: it becomes the owner of the directory; if that is root, it keeps the right to reach all files
 *             and no other capability.
 *   always    gaining privileges by executing anything (no_new_privs)
 *   always    all files but those below the directory (landlock, where the kernel has it)
 *   always    all system calls but those of a file server (host/sandbox_calls.c)
 */
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <linux/capability.h>
#include <linux/landlock.h>
#include <linux/mount.h>
#include <pwd.h>
#include <sched.h>
#include <signal.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/error.h"
#include "host/sandbox.h"
#include "share/server_int.h"

/* --- mounts -------------------------------------------------------------------------------------------------- */

static int clone_tree(int at, const char *path, unsigned flags)
{
    return sys(syscall(SYS_open_tree, at, path, OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | flags));
}

/* The directory as a mount of its own, which is in no namespace and which what is mounted below has no part in. */
static int clone_directory(int *root_fd, bool read_only, bool cross_mounts)
{
    struct mount_attr attr = {.attr_set = MOUNT_ATTR_NODEV | MOUNT_ATTR_NOSUID | (read_only ? MOUNT_ATTR_RDONLY : 0)};
    unsigned recursive = cross_mounts ? AT_RECURSIVE : 0;
    int tree = clone_tree(*root_fd, "", AT_EMPTY_PATH | recursive);

    if (tree < 0)
        return tree;
    int r = sys(syscall(SYS_mount_setattr, tree, "", AT_EMPTY_PATH | recursive, &attr, sizeof attr));
    if (r) {
        close(tree);
        return r;
    }
    close(*root_fd);
    *root_fd = tree;
    return 0;
}

/* A root directory with nothing in it but /proc. */
static int empty_root(void)
{
    int proc = clone_tree(AT_FDCWD, "/proc", 0);

    if (proc < 0)
        return proc;
    if (unshare(CLONE_NEWNS) || mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) ||
        mount("none", "/proc", "tmpfs", MS_NOSUID | MS_NODEV | MS_NOEXEC, "size=16k,mode=0555") ||
        mkdir("/proc/proc", 0555) ||
        syscall(SYS_move_mount, proc, "", AT_FDCWD, "/proc/proc", MOVE_MOUNT_F_EMPTY_PATH) || chdir("/proc") ||
        syscall(SYS_pivot_root, ".", ".") || umount2(".", MNT_DETACH) || chdir("/"))
        return -errno;
    close(proc);
    return 0;
}

/* --- privileges ---------------------------------------------------------------------------------------------- */

static int keep_capabilities(uint64_t keep)
{
    struct __user_cap_header_struct head = {.version = _LINUX_CAPABILITY_VERSION_3};
    struct __user_cap_data_struct data[2];

    if (syscall(SYS_capget, &head, data))
        return -errno;
    for (unsigned i = 0; i < 2; i++) {
        data[i].permitted &= (uint32_t)(keep >> 32 * i);
        data[i].effective = data[i].permitted;
        data[i].inheritable = 0;
    }
    return sys(syscall(SYS_capset, &head, data));
}

static int become_owner(const struct stat *st, const struct passwd *user)
{
    if (user ? initgroups(user->pw_name, st->st_gid) : setgroups(0, NULL))
        return -errno;
    if (setresgid(st->st_gid, st->st_gid, st->st_gid) || setresuid(st->st_uid, st->st_uid, st->st_uid))
        return -errno;
    return 0;
}

/* --- landlock ------------------------------------------------------------------------------------------------ */

#define READING (LANDLOCK_ACCESS_FS_READ_FILE | LANDLOCK_ACCESS_FS_READ_DIR)
#define EVERYTHING ((LANDLOCK_ACCESS_FS_MAKE_SYM << 1) - 1) /* version 1 */
#define REFER (1ull << 13)                                  /* version 2 */
#define TRUNCATE (1ull << 14)                               /* version 3 */

/* Version 1 of it would forbid renames between directories; a kernel without landlock has nothing to offer. */
static int landlock(int root_fd, bool read_only)
{
    long version = syscall(SYS_landlock_create_ruleset, NULL, 0, LANDLOCK_CREATE_RULESET_VERSION);
    struct landlock_ruleset_attr attr = {.handled_access_fs = EVERYTHING | REFER | (version >= 3 ? TRUNCATE : 0)};
    struct landlock_path_beneath_attr below = {.parent_fd = root_fd,
                                               .allowed_access = read_only ? READING : attr.handled_access_fs};

    if (version < 2)
        return 0;
    below.allowed_access &= ~(uint64_t)(LANDLOCK_ACCESS_FS_EXECUTE | LANDLOCK_ACCESS_FS_MAKE_CHAR |
                                        LANDLOCK_ACCESS_FS_MAKE_BLOCK);
    int rules = sys(syscall(SYS_landlock_create_ruleset, &attr, sizeof attr, 0));
    if (rules < 0)
        return rules;
    int r = sys(syscall(SYS_landlock_add_rule, rules, LANDLOCK_RULE_PATH_BENEATH, &below, 0));
    if (!r)
        r = sys(syscall(SYS_landlock_restrict_self, rules, 0));
    close(rules);
    return r;
}

/* --- all ----------------------------------------------------------------------------------------------------- */

#define REACH (1ull << CAP_DAC_READ_SEARCH)
#define REACH_AND_CHANGE (REACH | 1ull << CAP_DAC_OVERRIDE | 1ull << CAP_FOWNER)

static int drop_root(int *root_fd, bool read_only, bool cross_mounts)
{
    struct stat st;

    if (fstat(*root_fd, &st))
        return -errno;
    const struct passwd *user = st.st_uid ? getpwuid(st.st_uid) : NULL; /* reads /etc */
    if (clone_directory(root_fd, read_only, cross_mounts) == 0) {
        int r = empty_root();
        if (r && r != -EPERM)
            return r;
    }
    return st.st_uid ? become_owner(&st, user) : keep_capabilities(read_only ? REACH : REACH_AND_CHANGE);
}

int confine(int *root_fd, bool read_only, bool cross_mounts, char *err, size_t n)
{
    struct rlimit files;

    umask(0);
    signal(SIGXFSZ, SIG_IGN); /* a limit on file sizes is the guest's EFBIG */
    if (getrlimit(RLIMIT_NOFILE, &files) == 0) {
        files.rlim_cur = files.rlim_max;
        setrlimit(RLIMIT_NOFILE, &files);
    }
    int r = geteuid() == 0 ? drop_root(root_fd, read_only, cross_mounts) : keep_capabilities(0);
    if (r)
        return error_sys(err, n, r, "the file server cannot give up its privileges");
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
        return error_sys(err, n, -errno, "the file server cannot give up gaining privileges");
    r = landlock(*root_fd, read_only);
    if (r)
        return error_sys(err, n, r, "the file server cannot confine itself to the shared directory");
    return sandbox_calls(SANDBOX_SHARE, err, n);
}
