/*
 * Beside an init that is not ours.  All that is known of it is in /proc/1, of which we have held the directory since
 * the beginning: whatever is mounted over what meanwhile, that leads on.
 */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "guest/guest.h"

#define LOOK_AGAIN_MS 20

/* Its root, or -EAGAIN while that is the initramfs, or -errno. */
static int open_root(const struct guest *g)
{
    struct stat st;
    int root = openat(g->proc, "1/root", O_PATH | O_CLOEXEC);

    if (root < 0)
        return -errno;
    int r = fstat(root, &st) ? -errno : st.st_dev == g->first_dev && st.st_ino == g->first_ino ? -EAGAIN : 0;
    if (!r)
        return root;
    close(root);
    return r;
}

/* Anew for each session: an initrd's init changes its root during the boot, and others do at the end. */
int follow_root(const struct guest *g)
{
    if (g->proc < 0)
        return 0;
    int root = open_root(g), r = 0;
    if (root < 0)
        return root;
    if (fchdir(root) || chroot("."))
        r = -errno;
    close(root);
    return r;
}

static bool ends_with(const char *text, const char *end)
{
    size_t len = strlen(text), end_len = strlen(end);

    return len >= end_len && strcmp(text + len - end_len, end) == 0;
}

/* It is the program that it will be, in its root; systemd has, once it listens to signals and requests, a socket. */
bool init_is_up(const struct guest *g)
{
    char exe[PATH_MAX];
    int root = g->proc < 0 ? -1 : open_root(g);
    ssize_t len = root < 0 ? -1 : readlinkat(g->proc, "1/exe", exe, sizeof(exe) - 1);
    bool up = g->proc < 0;

    if (len > 0) {
        exe[len] = 0;
        up = !strstr(exe, GUEST_INIT_PATH) &&
             (!ends_with(exe, "/systemd") || faccessat(root, "run/systemd/private", F_OK, 0) == 0);
    }
    if (root >= 0)
        close(root);
    return up;
}

void wait_for_init(const struct guest *g, int ms)
{
    static const struct timespec moment = {.tv_nsec = LOOK_AGAIN_MS * 1000000};

    for (; ms > 0 && !init_is_up(g); ms -= LOOK_AGAIN_MS)
        nanosleep(&moment, NULL);
}
