/* System calls on files of the share: what they have in common. */
#include <errno.h>
#include <stdio.h>
#include <sys/stat.h>

#include "share/server_int.h"

void proc_path(char *path, int fd)
{
    snprintf(path, PROC_PATH_SIZE, "/proc/self/fd/%d", fd);
}

int sys(long result)
{
    return result < 0 ? -errno : (int)result;
}

uint32_t now_s(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC_COARSE, &now);
    return (uint32_t)now.tv_sec;
}

static int set_mode(int fd, mode_t mode)
{
    char path[PROC_PATH_SIZE];

    proc_path(path, fd);
    return sys(chmod(path, mode));
}

/* The kernel of the guest has decided by then that its user may do this (default_permissions).  Only the owner's bits
 * are added, and the owner is the user whose process this is: nobody else gains anything. */
bool grant_again(struct server *s, struct grant *g, int fd, mode_t need, int result)
{
    struct stat st;

    if (g->active) {
        set_mode(g->fd, g->mode);
        g->active = false;
        return false;
    }
    if (result != -EACCES || s->all_powerful || s->config.read_only)
        return false;
    if (fstat(fd, &st) || st.st_uid != s->uid || S_ISLNK(st.st_mode) || (st.st_mode & need) == need)
        return false;
    *g = (struct grant){.mode = st.st_mode & 07777, .fd = fd};
    g->active = set_mode(fd, g->mode | need) == 0;
    return g->active;
}
