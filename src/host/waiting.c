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
#include <stdint.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>

static long call(long number, long a, long b, long c, long d, long e)
{
    long result;
    register long r10 __asm__("r10") = d;
    register long r8 __asm__("r8") = e;
    register long r9 __asm__("r9") = 0;

    __asm__ volatile("syscall"
                     : "=a"(result)
                     : "a"(number), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
                     : "rcx", "r11", "memory");
    return result;
}

static int has_something(const struct pollfd *p)
{
    char c;

    return p->revents & POLLIN && call(SYS_recvfrom, p->fd, (long)&c, 1, MSG_PEEK | MSG_DONTWAIT, 0) > 0;
}

/* Whether it is wanted. */
static int wait_for_any(unsigned n)
{
    struct pollfd p[9];
    int any = 0;

    for (unsigned i = 0; i < n; i++)
        p[i] = (struct pollfd){.fd = 3 + (int)i, .events = POLLIN};
    while (call(SYS_poll, (long)p, n, -1, 0, 0) < 1)
        ;
    for (unsigned i = 0; i < n; i++)
        any |= has_something(&p[i]);
    return any;
}

/* stack: as the kernel hands it over: argc, argv, NULL, environment, NULL. */
__attribute__((used)) static void waiting_main(char **stack)
{
    long argc = (long)(intptr_t)stack[0];
    char **argv = stack + 1;

    call(SYS_prctl, PR_SET_NAME, (long)"guise-waiting", 0, 0, 0);
    if (argc < 3 || argv[1][0] < '1' || argv[1][0] > '9' || !wait_for_any((unsigned)(argv[1][0] - '0')))
        call(SYS_exit_group, argc < 3, 0, 0, 0, 0);
    call(SYS_fcntl, WAITING_PROGRAM, F_SETFD, FD_CLOEXEC, 0, 0);
    call(SYS_execveat, WAITING_PROGRAM, (long)"", (long)(argv + 2), (long)(argv + argc + 1), AT_EMPTY_PATH);
    call(SYS_exit_group, 126, 0, 0, 0, 0);
}

__asm__(".globl _start\n _start:\n xor %ebp, %ebp\n mov %rsp, %rdi\n and $-16, %rsp\n call waiting_main\n hlt\n");
