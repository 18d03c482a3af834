/*
 * Runs the benchmark programs one after the other: as PID 1 of a guest, then powering it off, or
 * as an ordinary program on the host, pinned to the CPU it starts on since the guest has one vCPU.
 *
 * The first line says the seconds since the kernel started; whoever reads the console times its
 * arrival.
 */
#include "bench.h"
#include <errno.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/wait.h>
#include <unistd.h>

static const char *const programs[] = {
    "sha256", "hash", "interp", "sort", "matrix", "fib", "forkexec", "getppid", "pipe", "fault",
};

static int run(const char *directory, const char *name)
{
    char path[4096];
    int status;
    snprintf(path, sizeof path, "%s/%s", directory, name);
    pid_t pid = fork();
    if (pid == 0) {
        execl(path, path, (char *)NULL);
        _exit(127);
    }
    if (pid < 0 || waitpid(pid, &status, 0) != pid)
        status = -1;
    if (status)
        printf("FAILED %s %d\n", name, status);
    return status != 0;
}

static void pin(void)
{
    cpu_set_t set;
    int cpu = sched_getcpu();
    CPU_ZERO(&set);
    CPU_SET(cpu < 0 ? 0 : cpu, &set);
    sched_setaffinity(0, sizeof set, &set);
}

static int all(const char *directory)
{
    const char *only = getenv("only"); /* a kernel passes only=NAME of its command line on to us */
    int failed = 0;
    for (size_t i = 0; i < sizeof programs / sizeof *programs; i++)
        if (!only || !strcmp(only, programs[i]))
            failed += run(directory, programs[i]);
    printf("DONE %d\n", failed);
    fflush(stdout);
    return failed;
}

int main(int argc, char **argv)
{
    struct timespec up;
    clock_gettime(CLOCK_BOOTTIME, &up);
    printf("INIT %ld.%03ld\n", (long)up.tv_sec, up.tv_nsec / 1000000);
    fflush(stdout);
    if (getpid() != 1) {
        pin();
        return all(argc > 1 ? argv[1] : ".") != 0;
    }
    mount("proc", "/proc", "proc", 0, NULL);
    all("/bench");
    sync();
    reboot(getenv("reset") ? RB_AUTOBOOT : RB_POWER_OFF);
    printf("power off: %s\n", strerror(errno));
    for (;;)
        pause();
}
