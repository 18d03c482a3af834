/*
 * Landlock: which names a process may still use.  Every right that this kernel's landlock knows is taken away, and
 * given back for the paths of the spec; nothing listens, connects or signals outside.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/landlock.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "host/sandbox_int.h"

/* As in linux/landlock.h of kernels younger than the headers. */
#define FS_TRUNCATE (1ull << 14) /* version 3 */
#define FS_IOCTL_DEV (1ull << 15)
#define NET_TCP 3ull /* bind and connect */
#define SCOPES 3ull  /* abstract Unix sockets, signals */

struct ruleset {
    uint64_t fs, net, scoped;
};

/* Rights of files by the version that brought them; the size of struct ruleset grew with 4 and with 6. */
static const struct {
    int version;
    uint64_t fs;
    size_t size;
} versions[] = {
    {6, (1ull << 16) - 1, 24}, {5, (1ull << 16) - 1, 16}, {4, (1ull << 15) - 1, 16},
    {3, (1ull << 15) - 1, 8},  {2, (1ull << 14) - 1, 8},  {1, (1ull << 13) - 1, 8},
};

#define FILE_RIGHTS                                                                                                    \
    (LANDLOCK_ACCESS_FS_EXECUTE | LANDLOCK_ACCESS_FS_WRITE_FILE | LANDLOCK_ACCESS_FS_READ_FILE | FS_TRUNCATE |         \
     FS_IOCTL_DEV)

static const struct {
    unsigned access;
    uint64_t rights;
} rights_of[] = {
    {SANDBOX_READ, LANDLOCK_ACCESS_FS_READ_FILE | LANDLOCK_ACCESS_FS_READ_DIR},
    {SANDBOX_WRITE, LANDLOCK_ACCESS_FS_WRITE_FILE | FS_TRUNCATE},
    {SANDBOX_CHANGE, LANDLOCK_ACCESS_FS_REMOVE_DIR | LANDLOCK_ACCESS_FS_REMOVE_FILE | LANDLOCK_ACCESS_FS_MAKE_DIR |
                         LANDLOCK_ACCESS_FS_MAKE_REG | LANDLOCK_ACCESS_FS_MAKE_SOCK | LANDLOCK_ACCESS_FS_MAKE_FIFO |
                         LANDLOCK_ACCESS_FS_MAKE_SYM | LANDLOCK_ACCESS_FS_REFER},
    {SANDBOX_REMOVE, LANDLOCK_ACCESS_FS_REMOVE_FILE},
    {SANDBOX_EXECUTE, LANDLOCK_ACCESS_FS_EXECUTE},
    {SANDBOX_DEVICE, FS_IOCTL_DEV},
};

static int allow(int ruleset, const struct sandbox_path *p, uint64_t handled)
{
    struct landlock_path_beneath_attr rule = {.parent_fd = open(p->path, O_PATH | O_CLOEXEC)};
    struct stat st;
    int err = 0;

    if (rule.parent_fd < 0)
        return errno == ENOENT || errno == ENOTDIR ? 0 : -errno;
    for (size_t i = 0; i < sizeof rights_of / sizeof *rights_of; i++)
        if (p->access & rights_of[i].access)
            rule.allowed_access |= rights_of[i].rights;
    rule.allowed_access &= handled;
    if (fstat(rule.parent_fd, &st) == 0 && !S_ISDIR(st.st_mode))
        rule.allowed_access &= FILE_RIGHTS;
    if (rule.allowed_access && syscall(SYS_landlock_add_rule, ruleset, LANDLOCK_RULE_PATH_BENEATH, &rule, 0))
        err = -errno;
    close(rule.parent_fd);
    return err;
}

int sandbox_landlock(const struct sandbox_path *paths, unsigned n, bool network)
{
    long version = syscall(SYS_landlock_create_ruleset, NULL, 0, LANDLOCK_CREATE_RULESET_VERSION);
    size_t v = 0;
    int err = 0;

    if (version < 1)
        return -ENOSYS; /* not in this kernel, or not allowed by a container's own filter */
    while (versions[v].version > version)
        v++;
    const struct ruleset attr = {.fs = versions[v].fs, .net = network ? 0 : NET_TCP, .scoped = SCOPES};
    int ruleset = (int)syscall(SYS_landlock_create_ruleset, &attr, versions[v].size, 0);
    if (ruleset < 0)
        return -errno;
    for (unsigned i = 0; i < n && !err; i++)
        err = allow(ruleset, &paths[i], attr.fs);
    if (!err && syscall(SYS_landlock_restrict_self, ruleset, 0))
        err = -errno;
    close(ruleset);
    return err;
}
