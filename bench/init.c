/*
 * What runs the workloads, one after the other: as PID 1 of a guest, which it powers off in the end, or as a program of
 * a chroot on the host, pinned to the CPU it starts on since guests have one.
 *
 * /bench/list names them, a line each: the name, how it is measured, the file.  `self`: the file is a program that
 * prints its own measurement.  `timed`: /bench/step makes ready, then does the work, which is timed here; the check is
 * of what it has printed.  The environment's `only` may choose some of them, with commas between; in a guest it comes
 * from the kernel's command line.  `copies` says that each is to run so many times at once, one on each CPU: what is
 * measured then is the time of all, divided by their number.  Without the list this is a guest that says that it is up,
 * and powers off.
 */
#include "bench.h"
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/wait.h>
#include <unistd.h>

#define LIST "/bench/list"
#define OUTPUT "/tmp/output"
#define LOG "/tmp/log"
#define LIMIT_SECONDS 400
#define COPIES_MAX 8

static void redirect(const char *path, int fd)
{
    int file = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0644);
    if (file < 0 || dup2(file, fd) < 0)
        _exit(126);
}

/* Returns the wait status; the program has a process group of its own so that nothing of it stays. */
static int run(char *const *argv, const char *output)
{
    int status;
    pid_t pid = fork();
    if (pid == 0) {
        setpgid(0, 0);
        alarm(LIMIT_SECONDS);
        redirect(LOG, STDERR_FILENO);
        if (output)
            redirect(output, STDOUT_FILENO);
        execv(*argv, argv);
        _exit(127);
    }
    if (pid < 0 || waitpid(pid, &status, 0) != pid)
        return -1;
    kill(-pid, SIGKILL);
    return status;
}

static uint64_t sum_of_file(const char *path)
{
    uint64_t sum = 0xcbf29ce484222325ull; /* FNV-1a */
    FILE *f = fopen(path, "r");
    for (int c; f && (c = getc(f)) != EOF;)
        sum = (sum ^ (uint64_t)c) * 0x100000001b3ull;
    if (f)
        fclose(f);
    return sum;
}

static void say_failed(const char *name, int status)
{
    char line[200] = "";
    FILE *f = fopen(LOG, "r");
    while (f && fgets(line, sizeof line, f))
        ;
    if (f)
        fclose(f);
    line[strcspn(line, "\r\n")] = 0;
    printf("FAILED\t%s: status %#x %s\n", name, (unsigned)status, line);
}

static int run_timed(const char *name, const char *file)
{
    char *prepare[] = {"/bin/bash", "/bench/step", "prepare", (char *)file, NULL};
    char *work[] = {"/bin/bash", "/bench/step", "work", (char *)file, NULL};
    int status = run(prepare, OUTPUT);
    if (status)
        return status;
    printf("START\t%s\n", name);
    fflush(stdout);
    double start = now();
    status = run(work, OUTPUT);
    double seconds = now() - start;
    if (!status)
        report(name, seconds, sum_of_file(OUTPUT));
    return status;
}

/* What a program has printed behind the last tab: its check.  0: nothing. */
static uint64_t check_of_file(const char *path)
{
    char line[200] = "";
    FILE *f = fopen(path, "r");
    while (f && fgets(line, sizeof line, f))
        ;
    if (f)
        fclose(f);
    const char *last = strrchr(line, '\t');
    return last ? strtoull(last + 1, NULL, 16) : 0;
}

static void pin_to(int cpu)
{
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET(cpu, &set);
    sched_setaffinity(0, sizeof set, &set);
}

static int run_copies(const char *name, char *file, unsigned copies)
{
    char *argv[] = {file, NULL}, output[COPIES_MAX][sizeof OUTPUT + 4];
    pid_t pids[COPIES_MAX];
    int failed = 0;
    const double start = now();
    for (unsigned i = 0; i < copies; i++) {
        snprintf(output[i], sizeof output[i], OUTPUT "%u", i);
        pids[i] = fork();
        if (pids[i] == 0) {
            pin_to((int)i);
            _exit(run(argv, output[i]) != 0);
        }
    }
    for (unsigned i = 0; i < copies; i++) {
        int status = -1;
        if (waitpid(pids[i], &status, 0) != pids[i] || status)
            failed = status ? status : -1;
    }
    const double seconds = (now() - start) / copies;
    for (unsigned i = 1; i < copies && !failed; i++)
        failed = check_of_file(output[i]) != check_of_file(output[0]) ? -1 : 0;
    if (!failed)
        report(name, seconds, check_of_file(output[0]));
    return failed;
}

static bool chosen(const char *name)
{
    const char *only = getenv("only");
    size_t n = strlen(name);
    for (const char *p = only; p && *p; p += strcspn(p, ","), p += *p == ',')
        if (!strncmp(p, name, n) && (!p[n] || p[n] == ','))
            return true;
    return !only;
}

static void run_line(char *line)
{
    char *rest = line, *name = strsep(&rest, "\t\n"), *how = strsep(&rest, "\t\n"), *file = strsep(&rest, "\t\n");
    if (!file || !chosen(name))
        return;
    char *self[] = {file, NULL};
    const char *copies = getenv("copies");
    int status = copies && atoi(copies) > 0 && atoi(copies) <= COPIES_MAX
                     ? run_copies(name, file, (unsigned)atoi(copies))
                 : strcmp(how, "self") ? run_timed(name, file)
                                       : run(self, NULL);
    if (status)
        say_failed(name, status);
    fflush(stdout);
}

static void run_all(FILE *list)
{
    char line[512];
    while (fgets(line, sizeof line, list))
        run_line(line);
    fclose(list);
}

static void pin(void)
{
    const int cpu = sched_getcpu();
    pin_to(cpu < 0 ? 0 : cpu);
}

static void set_up_guest(void)
{
    mount("proc", "/proc", "proc", 0, NULL);
    mount("sys", "/sys", "sysfs", 0, NULL);
    mount("dev", "/dev", "devtmpfs", 0, NULL);
    mount("tmp", "/tmp", "tmpfs", 0, "mode=1777");
}

int main(void)
{
    struct timespec up;
    clock_gettime(CLOCK_BOOTTIME, &up);
    if (getpid() == 1) {
        printf("STAMP\tboot\nuptime, s\t%ld.%03ld\n", (long)up.tv_sec, up.tv_nsec / 1000000);
        fflush(stdout);
        set_up_guest();
    } else if (!getenv("copies")) {
        pin();
    }
    setenv("PATH", "/usr/sbin:/usr/bin:/sbin:/bin", 1);
    setenv("HOME", "/tmp", 1);
    setenv("LC_ALL", "C", 1);
    FILE *list = fopen(LIST, "re");
    if (list)
        run_all(list);
    printf("DONE\n");
    fflush(stdout);
    if (getpid() != 1)
        return 0;
    sync();
    reboot(RB_POWER_OFF);
    printf("power off: %s\n", strerror(errno));
    for (;;)
        pause();
}
