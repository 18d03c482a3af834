/*
 * watch [-t SECONDS] [-i SECONDS] [-m MEBIBYTES] [-u TEXT] COMMAND...
 *
 * Runs a command and copies its standard output, each line preceded by the seconds since the
 * command was started and a tab.  With -m it also samples the memory of the process, guest RAM
 * left out, from the first line that begins with STAMP on: not before, so that the boot is not disturbed.
 * -i says how soon that line must come, if sooner than the end.  -u ends the command when a line has this text.  Ends
 * with two lines of its own: `MEMORY KIBIBYTES` and `EXIT STATUS` (124: time was up).
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define SAMPLE_SECONDS 0.5

struct watch {
    double start, limit, init_limit;
    long ram_kib; /* a mapping of at least half of this size, or called so, is guest RAM */
    pid_t pid;
    int out;
    bool sampling, enough;
    const char *until;
    double next_sample;
    long peak_kib;
    char line[8192];
    size_t used;
};

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

/* Proportional set size of every mapping that is not guest RAM, page tables included. */
static long memory_beyond_ram(const struct watch *w)
{
    char path[64], line[512], name[256];
    long total = 0, size = 0, value;
    bool ram = false;
    snprintf(path, sizeof path, "/proc/%d/smaps", (int)w->pid);
    FILE *f = fopen(path, "r");
    if (!f)
        return 0;
    while (fgets(line, sizeof line, f)) {
        unsigned long low, high;
        if (sscanf(line, "%lx-%lx %*s %*s %*s %*s %255[^\n]", &low, &high, name) >= 2 && strchr(line, '-')) {
            size = (long)((high - low) >> 10);
            ram = size >= w->ram_kib / 2 && !strstr(line, "code");
            ram |= strstr(line, "memfd:") && strstr(line, "ram");
        } else if (!ram && sscanf(line, "Pss: %ld kB", &value) == 1) {
            total += value;
        }
    }
    fclose(f);
    snprintf(path, sizeof path, "/proc/%d/status", (int)w->pid);
    f = fopen(path, "r");
    while (f && fgets(line, sizeof line, f))
        if (sscanf(line, "VmPTE: %ld kB", &value) == 1)
            total += value;
    if (f)
        fclose(f);
    return total;
}

static void sample(struct watch *w)
{
    if (!w->sampling || !w->ram_kib || now() < w->next_sample)
        return;
    long kib = memory_beyond_ram(w);
    if (kib > w->peak_kib)
        w->peak_kib = kib;
    w->next_sample = now() + SAMPLE_SECONDS;
}

static void finish_line(struct watch *w)
{
    w->line[w->used] = 0;
    printf("%.4f\t%s\n", now() - w->start, w->line);
    fflush(stdout);
    if (!strncmp(w->line, "STAMP\t", 6))
        w->sampling = true;
    if (w->until && strstr(w->line, w->until))
        w->enough = true;
    w->used = 0;
}

/* Returns false at the end of the output. */
static bool copy(struct watch *w)
{
    char data[4096];
    ssize_t n = read(w->out, data, sizeof data);
    for (ssize_t i = 0; i < n; i++) {
        if (data[i] == '\n' || w->used == sizeof w->line - 1)
            finish_line(w);
        if (data[i] != '\n' && data[i] != '\r')
            w->line[w->used++] = data[i];
    }
    return n > 0 || (n < 0 && errno == EINTR);
}

static int start(struct watch *w, char **argv)
{
    int ends[2];
    if (pipe2(ends, O_CLOEXEC))
        return -errno;
    w->start = now();
    w->pid = fork();
    if (w->pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        setpgid(0, 0);
        dup2(ends[1], STDOUT_FILENO);
        execvp(*argv, argv);
        fprintf(stderr, "watch: %s: %s\n", *argv, strerror(errno));
        _exit(127);
    }
    close(ends[1]);
    w->out = ends[0];
    return w->pid < 0 ? -errno : 0;
}

/* Ends the command and what it has started: by a signal that it can clean up after, if it is asked to in good time. */
static int stop(struct watch *w, bool ended, bool late)
{
    int status = 0;
    if (!ended)
        kill(-w->pid, late ? SIGKILL : SIGTERM);
    for (int tenths = 0; waitpid(w->pid, &status, WNOHANG) == 0; tenths++) {
        if (tenths == 50 && !ended)
            kill(-w->pid, SIGKILL);
        usleep(ended ? 1000 : 100000);
    }
    return status;
}

static int follow(struct watch *w)
{
    bool late = false, ended = false;
    while (!late && !w->enough && !ended) {
        struct pollfd p = {.fd = w->out, .events = POLLIN};
        int ready = poll(&p, 1, 100);
        ended = ready > 0 && !copy(w);
        sample(w);
        late = now() - w->start > (w->sampling ? w->limit : w->init_limit);
    }
    if (w->used)
        finish_line(w);
    int status = stop(w, ended, late);
    if (late || w->enough)
        return late ? 124 : 0;
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

int main(int argc, char **argv)
{
    struct watch w = {.limit = 300};
    int option;
    while ((option = getopt(argc, argv, "+t:i:m:u:")) != -1) {
        if (option == 't')
            w.limit = atof(optarg);
        else if (option == 'i')
            w.init_limit = atof(optarg);
        else if (option == 'm')
            w.ram_kib = atol(optarg) << 10;
        else if (option == 'u')
            w.until = optarg;
        else
            return 2;
    }
    if (optind == argc || start(&w, argv + optind)) {
        fprintf(stderr, "usage: watch [-t SECONDS] [-i SECONDS] [-m MEBIBYTES] [-u TEXT] COMMAND...\n");
        return 2;
    }
    if (w.init_limit == 0)
        w.init_limit = w.limit;
    int status = follow(&w);
    printf("%.4f\tMEMORY %ld\n%.4f\tEXIT %d\n", now() - w.start, w.peak_kib, now() - w.start, status);
    return status;
}
