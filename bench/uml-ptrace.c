/*
 * A library that Debian 12's User-Mode Linux is started with (LD_PRELOAD), so that it runs where the CPU has AMX.
 *
 * It keeps the vector registers of its programs in 2696 bytes, all that there was before AMX, and gives them back by
 * PTRACE_SETREGSET of NT_X86_XSTATE.  The host reads out as many bytes as it is asked for, but takes all of them or
 * none: with AMX they are 11008, it refuses 2696, and no program ever starts.  So what is given back is filled up with
 * zeroes. They stand for AMX's tiles, which are not there: the registers' own header (XSTATE_BV) says which parts are,
 * and a program has tiles only after a system call that asks for them, which User-Mode Linux lacks.
 *
 * Where the registers fit, nothing is changed.  Else this costs a copy of 2696 bytes each time that a program goes on,
 * less than the 8 KB more that User-Mode Linux would read out each time if its own buffer were larger.
 */
#include <elf.h>
#include <stdarg.h>
#include <stdbool.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#define XSTATE_BYTES_MAX 65536

/* All that the host has of such a process, in bytes; 0 when it cannot say. */
static size_t xstate_bytes(pid_t pid)
{
    static unsigned char all[XSTATE_BYTES_MAX];
    static size_t bytes;
    struct iovec io = {all, sizeof all};
    if (!bytes && syscall(SYS_ptrace, PTRACE_GETREGSET, pid, NT_X86_XSTATE, &io) == 0)
        bytes = io.iov_len;
    return bytes;
}

/* It traces from one thread only, so that one buffer does; behind what is copied it stays zero, as all are of one
 * length. */
static long put_xstate(pid_t pid, const struct iovec *given)
{
    static unsigned char padded[XSTATE_BYTES_MAX];
    struct iovec io = *given;
    const size_t bytes = xstate_bytes(pid);
    if (given->iov_len < bytes) {
        memcpy(padded, given->iov_base, given->iov_len);
        io = (struct iovec){padded, bytes};
    }
    return syscall(SYS_ptrace, PTRACE_SETREGSET, pid, NT_X86_XSTATE, &io);
}

/* As glibc's, which is what User-Mode Linux calls: of requests that read a word (PEEK...) this returns the word. */
long ptrace(enum __ptrace_request request, ...)
{
    va_list list;
    va_start(list, request);
    const pid_t pid = va_arg(list, pid_t);
    void *address = va_arg(list, void *), *data = va_arg(list, void *);
    va_end(list);
    if (request == PTRACE_SETREGSET && address == (void *)NT_X86_XSTATE)
        return put_xstate(pid, data);
    long word;
    const bool peeks = request == PTRACE_PEEKTEXT || request == PTRACE_PEEKDATA || request == PTRACE_PEEKUSER;
    const long result = syscall(SYS_ptrace, request, pid, address, peeks ? &word : data);
    return peeks && result == 0 ? word : result;
}
