/*
 * What a helper process is until it is wanted (child_start_late): a program of its own, without a C library, that is
 * three pages of memory instead of a hundred.
 *
 *      guise-waiting N PROGRAM ARGUMENT...     N, a digit: something to read in one of descriptors 3 ... 3+N-1, which
 *                                              are sockets, is what it waits for.  Then it becomes what is open as
 *                                              WAITING_PROGRAM; when nobody is left to send anything it ends.
 */
#include "host/waiting.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>

#include "host/bare.h"

static int has_something(const struct pollfd *p)
{
    char c;

    return p->revents & POLLIN && bare_call(SYS_recvfrom, p->fd, (long)&c, 1, MSG_PEEK | MSG_DONTWAIT, 0) > 0;
}

/* Whether it is wanted. */
static int wait_for_any(unsigned n)
{
    struct pollfd p[9];
    int any = 0;

    for (unsigned i = 0; i < n; i++)
        p[i] = (struct pollfd){.fd = 3 + (int)i, .events = POLLIN};
    while (bare_call(SYS_poll, (long)p, n, -1, 0, 0) < 1)
        ;
    for (unsigned i = 0; i < n; i++)
        any |= has_something(&p[i]);
    return any;
}

void bare_main(int argc, char **argv, char **environment)
{
    bare_call(SYS_prctl, PR_SET_NAME, (long)"guise-waiting", 0, 0, 0);
    if (argc < 3 || argv[1][0] < '1' || argv[1][0] > '9')
        bare_call(SYS_exit_group, 1, 0, 0, 0, 0);
    if (!wait_for_any((unsigned)(argv[1][0] - '0')))
        return;
    bare_call(SYS_fcntl, WAITING_PROGRAM, F_SETFD, FD_CLOEXEC, 0, 0);
    bare_call(SYS_execveat, WAITING_PROGRAM, (long)"", (long)(argv + 2), (long)environment, AT_EMPTY_PATH);
    bare_call(SYS_exit_group, 126, 0, 0, 0, 0);
}
