/*
 * Between guise and qemu-nbd: the same process, after it has given away what serving a disk does not need.
 *
 * qemu-nbd reads what a stranger has made (an image's header) and what a guest asks for, and it is not ours.  It keeps
 * what its user may do with files, for an image may be made of several; it loses the ways to other processes, to the
 * network, and to more rights.
 */
#include "backends/disk/foreign.h"

#include <errno.h>
#include <seccomp.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/log.h"

enum { STATUS_CANNOT = 126, STATUS_MISSING = 127 };

/* Not what a disk server does.  The list is of what must not be, not of what may: another version of qemu-nbd has its
 * own needs. */
static const int forbidden[] = {
    SCMP_SYS(ptrace),
    SCMP_SYS(process_vm_readv),
    SCMP_SYS(process_vm_writev),
    SCMP_SYS(kill),
    SCMP_SYS(tkill),
    SCMP_SYS(pidfd_open),
    SCMP_SYS(pidfd_getfd),
    SCMP_SYS(pidfd_send_signal),
    SCMP_SYS(connect),
    SCMP_SYS(bind),
    SCMP_SYS(listen),
    SCMP_SYS(mount),
    SCMP_SYS(umount2),
    SCMP_SYS(pivot_root),
    SCMP_SYS(chroot),
    SCMP_SYS(move_mount),
    SCMP_SYS(open_tree),
    SCMP_SYS(fsopen),
    SCMP_SYS(fsmount),
    SCMP_SYS(unshare),
    SCMP_SYS(setns),
    SCMP_SYS(bpf),
    SCMP_SYS(perf_event_open),
    SCMP_SYS(userfaultfd),
    SCMP_SYS(keyctl),
    SCMP_SYS(add_key),
    SCMP_SYS(request_key),
    SCMP_SYS(init_module),
    SCMP_SYS(finit_module),
    SCMP_SYS(delete_module),
    SCMP_SYS(kexec_load),
    SCMP_SYS(kexec_file_load),
    SCMP_SYS(reboot),
    SCMP_SYS(swapon),
    SCMP_SYS(swapoff),
    SCMP_SYS(acct),
    SCMP_SYS(settimeofday),
    SCMP_SYS(clock_settime),
    SCMP_SYS(sethostname),
    SCMP_SYS(setdomainname),
    SCMP_SYS(iopl),
    SCMP_SYS(ioperm),
    SCMP_SYS(mknod),
    SCMP_SYS(mknodat),
    SCMP_SYS(open_by_handle_at),
    SCMP_SYS(execveat),
    SCMP_SYS(io_uring_setup),
    SCMP_SYS(quotactl),
    SCMP_SYS(setuid),
    SCMP_SYS(setgid),
    SCMP_SYS(setreuid),
    SCMP_SYS(setresuid),
    SCMP_SYS(chmod),
    SCMP_SYS(fchmod),
    SCMP_SYS(fchmodat),
    SCMP_SYS(chown),
    SCMP_SYS(fchown),
    SCMP_SYS(fchownat),
    SCMP_SYS(lchown),
    SCMP_SYS(setxattr),
};

static int forbid(void)
{
    scmp_filter_ctx filter = seccomp_init(SCMP_ACT_ALLOW);
    int err = filter ? 0 : -ENOMEM;

    for (size_t i = 0; i < sizeof forbidden / sizeof *forbidden && !err; i++)
        err = seccomp_rule_add(filter, SCMP_ACT_ERRNO(EPERM), forbidden[i], 0);
    if (!err)
        err = seccomp_load(filter);
    seccomp_release(filter);
    return err;
}

/* Of root's capabilities those that let it reach files stay: a disk may be another user's. */
static void drop_capabilities(void)
{
    const unsigned long long keep = 1ull << 1 | 1ull << 2; /* DAC_OVERRIDE, DAC_READ_SEARCH */

    for (unsigned long i = 0; i < 64; i++)
        if (!(keep >> i & 1))
            (void)prctl(PR_CAPBSET_DROP, i, 0, 0, 0); /* takes effect at exec; not root: has none */
}

int disk_helper_main(int argc, char **argv)
{
    char pid[24], file[4200];

    if (argc < 3 || argc > 4) {
        log_say("helper-disk is for guise itself");
        return STATUS_CANNOT;
    }
    bool read_only = argc == 4;
    /* "file:" keeps a name with a colon from being taken for a protocol. */
    snprintf(file, sizeof file, "file:%s", argv[2]);
    snprintf(pid, sizeof pid, "%d", (int)getpid());
    /* How systemd hands over a listening socket (sd_listen_fds(3)). */
    setenv("LISTEN_PID", pid, 1);
    setenv("LISTEN_FDS", "1", 1);
    unsetenv("LISTEN_FDNAMES");
    const char *const words[] = {
        "qemu-nbd", "--format", argv[1], "--discard", "unmap", file, read_only ? "--read-only" : NULL, NULL};
    drop_capabilities();
    int err = prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) ? -errno : forbid();
    if (err && err != -EINVAL && err != -ENOSYS) { /* a kernel without filters */
        log_say("cannot confine qemu-nbd: %s", strerror(-err));
        return STATUS_CANNOT;
    }
    execvp(words[0], (char *const *)(uintptr_t)words);
    log_say("cannot start qemu-nbd: %s", strerror(errno));
    return errno == ENOENT ? STATUS_MISSING : STATUS_CANNOT;
}
