#include "backends/guardian.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

/* Field by field: the structure has padding and fields that the kernel does not keep. */
static int same_settings(const struct termios *a, const struct termios *b)
{
    return a->c_iflag == b->c_iflag && a->c_oflag == b->c_oflag && a->c_cflag == b->c_cflag &&
           a->c_lflag == b->c_lflag && a->c_cc[VMIN] == b->c_cc[VMIN] && a->c_cc[VTIME] == b->c_cc[VTIME];
}

/* Only async-signal-safe calls: the parent may have threads. */
static void guard(int tty, int pipe, const struct termios *before, const struct termios *ours)
{
    sigset_t all;
    struct termios now;
    char byte;
    ssize_t n;

    /* Out of reach of the terminal's signals and of `kill -- -PGID`; a process without a controlling
     * terminal may set a terminal's attributes from the background. */
    sigfillset(&all);
    sigprocmask(SIG_SETMASK, &all, NULL);
    setsid();
    prctl(PR_SET_NAME, "guise-tty");
    /* Keep the terminal and the pipe, nothing else: above all not the pipe that stdout may be. */
    if (dup2(tty, 0) < 0 || dup2(pipe, 1) < 0 || close_range(2, ~0u, 0) < 0 || chdir("/") < 0)
        _exit(1);
    do
        n = read(1, &byte, 1);
    while (n < 0 && errno == EINTR);
    /* One byte: dismissed.  End of file: guise is dead. */
    if (n == 0 && tcgetattr(0, &now) == 0 && same_settings(&now, ours))
        tcsetattr(0, TCSANOW, before);
    _exit(0);
}

int guardian_start(struct guardian *g, int tty, const struct termios *before, const struct termios *ours)
{
    int ends[2], ready[2] = {-1, -1};
    char none;

    if (pipe2(ends, O_CLOEXEC) < 0)
        return -errno;
    g->pid = pipe2(ready, O_CLOEXEC) < 0 ? -1 : fork();
    if (g->pid < 0) {
        int r = -errno;
        close(ends[0]);
        close(ends[1]);
        if (ready[0] >= 0) {
            close(ready[0]);
            close(ready[1]);
        }
        return r;
    }
    if (g->pid == 0) {
        close(ends[1]);
        guard(tty, ends[0], before, ours);
    }
    close(ends[0]);
    close(ready[1]);
    /* Until it has left our process group whoever kills that kills it too: it closes its end behind that. */
    while (read(ready[0], &none, 1) < 0 && errno == EINTR)
        ;
    close(ready[0]);
    g->pipe = ends[1];
    return 0;
}

void guardian_dismiss(struct guardian *g)
{
    sigset_t pipe, old;

    /* Should somebody have killed the guardian the byte finds no reader. */
    sigemptyset(&pipe);
    sigaddset(&pipe, SIGPIPE);
    pthread_sigmask(SIG_BLOCK, &pipe, &old);
    if (write(g->pipe, "", 1) < 0)
        sigtimedwait(&pipe, NULL, &(struct timespec){0});
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    close(g->pipe);
    while (waitpid(g->pid, NULL, 0) < 0 && errno == EINTR)
        ;
}
