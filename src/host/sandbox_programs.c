/*
 * Programs that are not ours and that read what strangers have made: qemu-nbd, qemu-img, e2fsck, and the process of
 * ours that looks into images.  Here the list of calls is of what must not be, not of what may: another version of a
 * program has its own needs.
 */
#include <errno.h>
#include <seccomp.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/error.h"
#include "base/log.h"
#include "host/sandbox_int.h"

#define PATHS_MAX 48u

/* What any program needs to start: libraries and their configuration. */
static const struct sandbox_path system_paths[] = {
    {"/usr", SANDBOX_READ | SANDBOX_EXECUTE},
    {"/lib", SANDBOX_READ | SANDBOX_EXECUTE},
    {"/lib64", SANDBOX_READ | SANDBOX_EXECUTE},
    {"/lib32", SANDBOX_READ | SANDBOX_EXECUTE},
    {"/bin", SANDBOX_READ | SANDBOX_EXECUTE},
    {"/sbin", SANDBOX_READ | SANDBOX_EXECUTE},
    {"/nix/store", SANDBOX_READ | SANDBOX_EXECUTE},
    {"/gnu/store", SANDBOX_READ | SANDBOX_EXECUTE},
    {"/etc/ld.so.cache", SANDBOX_READ},
    {"/etc/localtime", SANDBOX_READ},
    {"/etc/alternatives", SANDBOX_READ},
    {"/etc/mke2fs.conf", SANDBOX_READ},
    {"/etc/ssl/openssl.cnf", SANDBOX_READ},
    {"/sys/devices/system", SANDBOX_READ},
    {"/dev/null", SANDBOX_READ | SANDBOX_WRITE},
    {"/dev/zero", SANDBOX_READ},
    {"/dev/urandom", SANDBOX_READ},
    {"/dev/random", SANDBOX_READ},
};
#define SYSTEM_PATHS (sizeof system_paths / sizeof system_paths[0])

#define SERVER (1u << SANDBOX_DISK_SERVER) /* qemu-nbd: one process, which serves one connection */
#define MAKER (1u << SANDBOX_IMAGE_MAKER)  /* makes files and starts tools, which it may end */
#define ALL (SERVER | MAKER)

static const struct {
    int call;
    unsigned whom;
} forbidden[] = {
    /* other processes */
    {SCMP_SYS(ptrace), ALL},
    {SCMP_SYS(process_vm_readv), ALL},
    {SCMP_SYS(process_vm_writev), ALL},
    {SCMP_SYS(pidfd_getfd), ALL},
    {SCMP_SYS(kill), SERVER},
    {SCMP_SYS(tkill), SERVER},
    {SCMP_SYS(pidfd_open), SERVER},
    {SCMP_SYS(pidfd_send_signal), SERVER},
    {SCMP_SYS(execveat), SERVER},
    /* services of the host */
    {SCMP_SYS(connect), ALL},
    {SCMP_SYS(bind), ALL},
    {SCMP_SYS(listen), ALL},
    {SCMP_SYS(socket), MAKER},
    /* other names */
    {SCMP_SYS(mount), ALL},
    {SCMP_SYS(umount2), ALL},
    {SCMP_SYS(pivot_root), ALL},
    {SCMP_SYS(chroot), ALL},
    {SCMP_SYS(move_mount), ALL},
    {SCMP_SYS(open_tree), ALL},
    {SCMP_SYS(fsopen), ALL},
    {SCMP_SYS(fsmount), ALL},
    {SCMP_SYS(unshare), ALL},
    {SCMP_SYS(setns), ALL},
    {SCMP_SYS(open_by_handle_at), ALL},
    /* the kernel's deeper parts */
    {SCMP_SYS(bpf), ALL},
    {SCMP_SYS(perf_event_open), ALL},
    {SCMP_SYS(userfaultfd), ALL},
    {SCMP_SYS(io_uring_setup), ALL},
    {SCMP_SYS(keyctl), ALL},
    {SCMP_SYS(add_key), ALL},
    {SCMP_SYS(request_key), ALL},
    {SCMP_SYS(init_module), ALL},
    {SCMP_SYS(finit_module), ALL},
    {SCMP_SYS(delete_module), ALL},
    {SCMP_SYS(kexec_load), ALL},
    {SCMP_SYS(kexec_file_load), ALL},
    {SCMP_SYS(iopl), ALL},
    {SCMP_SYS(ioperm), ALL},
    /* the host as a whole */
    {SCMP_SYS(reboot), ALL},
    {SCMP_SYS(swapon), ALL},
    {SCMP_SYS(swapoff), ALL},
    {SCMP_SYS(acct), ALL},
    {SCMP_SYS(settimeofday), ALL},
    {SCMP_SYS(clock_settime), ALL},
    {SCMP_SYS(sethostname), ALL},
    {SCMP_SYS(setdomainname), ALL},
    {SCMP_SYS(quotactl), ALL},
    /* whose files are, and who one is */
    {SCMP_SYS(mknod), ALL},
    {SCMP_SYS(mknodat), ALL},
    {SCMP_SYS(setuid), ALL},
    {SCMP_SYS(setgid), ALL},
    {SCMP_SYS(setreuid), ALL},
    {SCMP_SYS(setresuid), ALL},
    {SCMP_SYS(chmod), SERVER},
    {SCMP_SYS(fchmod), SERVER},
    {SCMP_SYS(fchmodat), SERVER},
    {SCMP_SYS(chown), SERVER},
    {SCMP_SYS(fchown), SERVER},
    {SCMP_SYS(fchownat), SERVER},
    {SCMP_SYS(lchown), SERVER},
    {SCMP_SYS(setxattr), SERVER},
};

static int forbid(enum sandbox_program program)
{
    scmp_filter_ctx filter = seccomp_init(SCMP_ACT_ALLOW);
    int err = filter ? 0 : -ENOMEM;

    for (size_t i = 0; i < sizeof forbidden / sizeof *forbidden && !err; i++)
        if (forbidden[i].whom & 1u << program)
            err = seccomp_rule_add(filter, SCMP_ACT_ERRNO(EPERM), forbidden[i].call, 0);
    if (!err)
        err = seccomp_load(filter);
    seccomp_release(filter);
    return err == -EINVAL || err == -ENOSYS ? 0 : err; /* a kernel without filters */
}

/* Of root's capabilities those that let it reach files stay: a disk may be another user's. */
static void drop_capabilities(void)
{
    const unsigned long long keep = 1ull << 1 | 1ull << 2; /* DAC_OVERRIDE, DAC_READ_SEARCH */

    for (unsigned long i = 0; i < 64; i++)
        if (!(keep >> i & 1))
            (void)prctl(PR_CAPBSET_DROP, i, 0, 0, 0); /* takes effect at exec; not root: has none */
}

/* By landlock; else by mounts.  In a user namespace the files of others have no owners: not for who copies them. */
static int restrict_names(enum sandbox_program program, const struct sandbox_path *paths, unsigned n)
{
    struct sandbox_path all[PATHS_MAX];

    if (n > PATHS_MAX - SYSTEM_PATHS)
        return -E2BIG;
    memcpy(all, system_paths, sizeof system_paths);
    memcpy(all + SYSTEM_PATHS, paths, n * sizeof *paths);
    int err = sandbox_landlock(all, SYSTEM_PATHS + n, false);
    if (err == -ENOSYS && (program == SANDBOX_DISK_SERVER || geteuid() == 0))
        err = sandbox_mounts(all, SYSTEM_PATHS + n);
    return err;
}

int sandbox_program(enum sandbox_program program, const struct sandbox_path *paths, unsigned n_paths, bool *names,
                    char *err, size_t n)
{
    int failed = prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) ? -errno : 0;

    *names = false;
    if (!failed && !SANDBOX_INSTRUMENTED) {
        failed = restrict_names(program, paths, n_paths);
        *names = !failed;
        failed = failed == -ENOSYS ? 0 : failed;
    }
    drop_capabilities();
    if (!failed)
        failed = forbid(program);
    return failed ? error_sys(err, n, failed, "a program for disks cannot be confined") : 0;
}
