/*
 * The last words of a process that has asked for what its sandbox does not allow: which system call it was.
 *
 * The call has not been executed.  The handler cannot be replaced (rt_sigaction with SIGSYS is itself forbidden), and
 * ends the process by a second forbidden call, which the kernel answers with death because SIGSYS is blocked in its
 * handler.
 */
#include <errno.h>
#include <signal.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "host/sandbox_int.h"

static const char *const names[] = {
#include "host/syscall_names.h"
};

/* Decimal, without libc: the handler may have interrupted any of it. */
static size_t number(char *to, unsigned value)
{
    char digits[12];
    size_t n = 0, len = 0;

    do
        digits[n++] = (char)('0' + value % 10);
    while (value /= 10);
    while (n)
        to[len++] = digits[--n];
    return len;
}

static size_t text(char *to, const char *from)
{
    size_t len = 0;

    while (from[len]) {
        to[len] = from[len];
        len++;
    }
    return len;
}

static void forbidden(int signal_number, siginfo_t *info, void *context)
{
    unsigned call = (unsigned)info->si_syscall;
    char line[256];
    size_t n = text(line, "guise: stopped: the sandbox does not allow the system call ");

    if (call < sizeof names / sizeof *names && names[call])
        n += text(line + n, names[call]);
    else
        n += number(line + n, call);
    n += text(line + n, ". Either a guest has tried to get out, or this is a fault of guise: please report it\n");
    (void)!write(STDERR_FILENO, line, n);
    syscall(SYS_reboot, 0, 0, 0, NULL); /* in nobody's list; without its magic numbers it would do nothing */
    for (;;)
        syscall(SYS_exit_group, 128 + SIGSYS);
}

int sandbox_watch(void)
{
    struct sigaction action = {.sa_sigaction = forbidden, .sa_flags = SA_SIGINFO | SA_ONSTACK};
    sigset_t set;

    sigfillset(&action.sa_mask);
    sigemptyset(&set);
    sigaddset(&set, SIGSYS);
    if (sigaction(SIGSYS, &action, NULL))
        return -errno;
    return -pthread_sigmask(SIG_UNBLOCK, &set, NULL);
}
