/*
 * PID 1 of tests/guest/smp.sh: what several CPUs promise each other.
 *
 * Each line "ok NAME" or "not ok NAME: REASON" is a check.  The kernel's command line chooses: only=WORD, the checks
 * whose names begin with it; long=FACTOR, for so many times as long; cpus=N, how many there have to be;
 * direct=MODE, if programs may run directly; times=1 says how long each took.  All of these are in the environment.  As
 * another process it is a program like others, that tries all but CPUs that go.
 */
#include "smp.h"

#include <sys/klog.h>
#include <sys/mount.h>
#include <sys/reboot.h>

unsigned n_cpus;
bool in_guest;

static const char *all_there(void)
{
    const char *wanted = getenv("cpus");
    if (wanted && n_cpus != (unsigned)atoi(wanted))
        complain("%u of %s CPUs", n_cpus, wanted);
    return complaint();
}

static const struct check first_checks[] = {{"all CPUs are there", all_there, 1}, {0}};
static const struct check *const groups[] = {first_checks, litmus_checks,    locked_checks,
                                             code_checks,  shootdown_checks, pages_checks,
                                             clock_checks, talk_checks,      hotplug_checks};

static void run(const struct check *c)
{
    const double start = now();
    int status;
    pid_t pid = fork();
    if (pid == 0) {
        setpgid(0, 0);
        const char *why = c->check();
        printf(why ? "not ok %s: %s\n" : "ok %s\n", c->name, why);
        if (getenv("times"))
            printf("    %.2f s %s\n", now() - start, c->name);
        fflush(stdout);
        _exit(0);
    }
    /* Nothing else ends a check whose threads wait for one another. */
    for (unsigned ms = 0; waitpid(pid, &status, WNOHANG) == 0; ms++) {
        if (!time_left(start, 60)) {
            kill(-pid, SIGKILL);
            waitpid(pid, &status, 0);
            printf("not ok %s: hangs\n", c->name);
            fflush(stdout);
            return;
        }
        nanosleep(&(struct timespec){0, 2000000}, NULL);
    }
    kill(-pid, SIGKILL);
    if (status)
        printf("not ok %s: wait status %x\n", c->name, (unsigned)status);
    fflush(stdout);
}

/* The kernel's messages of level warning and worse, as tests/guest/boot-init prints them. */
static void show_log(void)
{
    static char log[1 << 20];
    const int n = klogctl(3 /* SYSLOG_ACTION_READ_ALL */, log, sizeof log - 1);
    printf("LOG-BEGIN\n");
    log[n > 0 ? n : 0] = 0;
    for (char *line = log, *next; *line; line = next) {
        next = strchrnul(line, '\n');
        if (*next)
            *next++ = 0;
        char *text = strchr(line, '>');
        if (*line == '<' && text && atoi(line + 1) % 8 <= 4)
            printf("%d %s\n", atoi(line + 1) % 8, text + 1);
    }
    printf("LOG-END\n");
}

/* In `only`, _ is a blank. */
static bool is_chosen(const char *name, const char *only)
{
    for (; only && *only; name++, only++)
        if (*name != *only && !(*name == ' ' && *only == '_'))
            return false;
    return true;
}

static void set_up(void)
{
    mount("proc", "/proc", "proc", 0, NULL);
    mount("sys", "/sys", "sysfs", 0, NULL);
    mount("dev", "/dev", "devtmpfs", 0, NULL);
}

int main(void)
{
    const char *only = getenv("only");
    in_guest = getpid() == 1;
    if (in_guest)
        set_up();
    n_cpus = (unsigned)sysconf(_SC_NPROCESSORS_ONLN);
    for (unsigned i = 0; i < sizeof groups / sizeof *groups; i++)
        for (const struct check *c = groups[i]; c->name; c++)
            if (c->cpus <= n_cpus && is_chosen(c->name, only))
                run(c);
    if (in_guest)
        show_log();
    puts("DONE");
    fflush(stdout);
    if (in_guest)
        reboot(RB_POWER_OFF);
    return 0;
}
