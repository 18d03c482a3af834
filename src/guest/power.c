/* The end of a system whose first process is ours; and how to ask whoever it is. */
#include <errno.h>
#include <mntent.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "guest/guest.h"

/* Processes have this long between being asked and being killed. */
#define GRACE_MS 3000
/* An init that is about to begin would not hear us. */
#define INIT_MS 30000

/* Reaps until there is no child left (as the first process: no process but the kernel's), or time is up.  SIGCHLD is
 * blocked: serve.c. */
static void wait_for_all(int ms)
{
    struct timespec now, left;
    sigset_t children;
    pid_t r;

    sigemptyset(&children);
    sigaddset(&children, SIGCHLD);
    clock_gettime(CLOCK_MONOTONIC, &now);
    for (int64_t end = now.tv_sec * 1000ll + now.tv_nsec / 1000000 + ms, rest = ms; rest > 0;
         clock_gettime(CLOCK_MONOTONIC, &now), rest = end - now.tv_sec * 1000ll - now.tv_nsec / 1000000) {
        while ((r = waitpid(-1, NULL, WNOHANG)) > 0)
            ;
        if (r < 0)
            return;
        left = (struct timespec){.tv_sec = rest / 1000, .tv_nsec = rest % 1000 * 1000000};
        sigtimedwait(&children, NULL, &left);
    }
}

static void end_processes(void)
{
    kill(-1, SIGTERM);
    kill(-1, SIGHUP); /* interactive shells ignore SIGTERM */
    kill(-1, SIGCONT);
    wait_for_all(GRACE_MS);
    kill(-1, SIGKILL);
    wait_for_all(GRACE_MS);
}

/* Everything that is on a disk or another's: the later mounted first. */
static void unmount_all(void)
{
    char *paths[64];
    size_t n = 0;
    FILE *f = setmntent("/proc/self/mounts", "re");
    struct mntent *m;

    while (f && n < sizeof(paths) / sizeof(paths[0]) && (m = getmntent(f)) != NULL)
        if (strcmp(m->mnt_dir, "/") != 0 && (m->mnt_fsname[0] == '/' || strcmp(m->mnt_type, "virtiofs") == 0))
            paths[n++] = strdup(m->mnt_dir);
    if (f)
        endmntent(f);
    while (n > 0)
        if (paths[--n])
            umount2(paths[n], 0);
    mount(NULL, "/", NULL, MS_REMOUNT | MS_RDONLY, NULL);
}

void power_down(int how)
{
    end_processes();
    sync();
    unmount_all();
    sync();
    reboot(how);
    for (;;) /* the first process must not end */
        pause();
}

/* Does systemd run here?  As sd_booted(3) finds out. */
static bool has_systemd(void)
{
    return access("/run/systemd/system", F_OK) == 0;
}

static int run_command(const char *const argv[])
{
    int status = 0;
    pid_t pid = fork();

    if (pid == 0) {
        execv(argv[0], (char *const *)argv);
        _exit(127);
    }
    if (pid < 0 || waitpid(pid, &status, 0) != pid)
        return -EAGAIN;
    return WIFEXITED(status) && WEXITSTATUS(status) == 0 ? 0 : -ENOENT;
}

/* systemd(1) and ours take these signals; other inits have commands. */
static int ask_init(const struct guest *g, uint64_t action)
{
    static const char *const poweroff[] = {"/sbin/poweroff", NULL}, *const restart[] = {"/sbin/reboot", NULL};

    if (g->config.mode == GUEST_COMMAND || has_systemd())
        return kill(1, SIGRTMIN + (action == POWER_OFF ? 4 : 5)) ? -errno : 0;
    return run_command(action == POWER_OFF ? poweroff : restart);
}

void power_serve(struct guest *g, struct stream *s, const struct frame *request)
{
    uint64_t action = frame_number(request, FIELD_ACTION, 0);
    int r = 0;

    if (action < POWER_OFF || action > POWER_SYNC) {
        stream_put_error(s, -EINVAL, "the guest's agent does not know this action");
        return;
    }
    /* We are to outlive the request long enough to answer it. */
    sigset_t kept;
    sigemptyset(&kept);
    sigaddset(&kept, SIGTERM);
    sigaddset(&kept, SIGHUP);
    sigprocmask(SIG_BLOCK, &kept, NULL);
    sync();
    if (action != POWER_SYNC && !g->inside) {
        r = -EPERM;
    } else if (action != POWER_SYNC) {
        wait_for_init(g, INIT_MS);
        r = ask_init(g, action);
    }
    if (r)
        stream_put_error(s, r, "the guest's init cannot be asked to end: %s", strerror(-r));
    else
        stream_put(s, FRAME_OK, NULL, 0);
}
