/*
 * What the keeper (keeper.h) is, for each machine has one and hardly any guest connects to programs of the host: a
 * program of its own, without a C library, that is three pages of memory instead of a hundred.
 *
 *      guise-keeper PREFIX FILE...     with its socket as descriptor 0, and guise as descriptor 1
 *
 * It reads no more than the keeper's messages, notes which files it is to remove, and removes them when the VM's
 * process has ended.  When there is somebody to connect to it starts the other half, `guise helper-dial PREFIX`, and
 * leaves the socket to that.
 */
#include "host/keeper_int.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdbool.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>

#include "host/bare.h"

struct file {
    dev_t device;
    ino_t inode; /* 0: it was not there */
};

static struct file look(const char *path)
{
    struct stat st;

    /* NOLINTNEXTLINE(clang-analyzer-core.UndefinedBinaryOperatorResult): the kernel has written to it */
    if (bare_call(SYS_newfstatat, AT_FDCWD, (long)path, (long)&st, AT_SYMLINK_NOFOLLOW, 0) || !S_ISSOCK(st.st_mode))
        return (struct file){0};
    return (struct file){st.st_dev, st.st_ino};
}

static void look_at_all(char **paths, struct file *files)
{
    for (unsigned i = 0; i < KEEPER_SOCKETS_MAX && paths[i]; i++)
        files[i] = look(paths[i]);
}

static void remove_all(char **paths, const struct file *files)
{
    for (unsigned i = 0; i < KEEPER_SOCKETS_MAX && paths[i]; i++) {
        const struct file now = look(paths[i]);
        if (files[i].inode && now.inode == files[i].inode && now.device == files[i].device)
            bare_call(SYS_unlink, (long)paths[i], 0, 0, 0, 0);
    }
}

static bool receive(struct keeper_request *r, int flags)
{
    return bare_call(SYS_recvfrom, 0, (long)r, sizeof *r, flags, 0) == sizeof *r;
}

static void answer(const struct keeper_request *r, int err)
{
    const struct keeper_answer a = {r->id, err};

    bare_call(SYS_sendto, 0, (long)&a, sizeof a, MSG_NOSIGNAL, 0);
}

static bool start_dialer(char *prefix, char **environment)
{
    const long pid = bare_call(SYS_fork, 0, 0, 0, 0, 0);

    if (pid == 0) {
        char *argv[] = {"guise", "helper-dial", prefix, NULL};
        bare_call(SYS_fcntl, 1, F_SETFD, FD_CLOEXEC, 0, 0);
        bare_call(SYS_execveat, 1, (long)"", (long)argv, (long)environment, AT_EMPTY_PATH);
        bare_call(SYS_exit_group, 126, 0, 0, 0, 0);
    }
    return pid > 0;
}

static void await_end(void)
{
    struct pollfd p = {.fd = 0};

    while (!(p.revents & POLLHUP))
        bare_call(SYS_poll, (long)&p, 1, -1, 0, 0);
}

void bare_main(int argc, char **argv, char **environment)
{
    char **paths = argv + 2;
    struct file files[KEEPER_SOCKETS_MAX];
    struct keeper_request r;
    bool sealed = false, dials = false;

    bare_call(SYS_prctl, PR_SET_NAME, (long)"guise-keeper", 0, 0, 0);
    while (argc > 1 && !dials && receive(&r, MSG_PEEK)) {
        /* NOLINTNEXTLINE(clang-analyzer-core.UndefinedBinaryOperatorResult): as above */
        dials = r.what != KEEPER_SEAL && argv[1][0] && start_dialer(argv[1], environment);
        if (dials || !receive(&r, 0))
            continue;
        if (r.what == KEEPER_SEAL && !sealed)
            look_at_all(paths, files);
        answer(&r, r.what == KEEPER_SEAL && !sealed ? 0 : -EINVAL);
        sealed |= r.what == KEEPER_SEAL;
    }
    if (dials)
        await_end();
    if (sealed)
        remove_all(paths, files);
}
