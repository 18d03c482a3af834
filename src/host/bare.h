/* A program without a C library: it has bare_main, and ends when that returns. */
#pragma once
#include <sys/syscall.h>

void bare_main(int argc, char **argv, char **environment);

/* A result, or -errno. */
static inline long bare_call(long number, long a, long b, long c, long d, long e)
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

/* stack: as the kernel hands it over: argc, argv, NULL, environment, NULL. */
__attribute__((used)) static void bare_begin(char **stack)
{
    const int argc = (int)(long)stack[0];

    bare_main(argc, stack + 1, stack + argc + 2);
    bare_call(SYS_exit_group, 0, 0, 0, 0, 0);
}

__asm__(".globl _start\n _start:\n xor %ebp, %ebp\n mov %rsp, %rdi\n and $-16, %rsp\n call bare_begin\n hlt\n");
