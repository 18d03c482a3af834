/* One child process per backend; batches and results in shared memory, commands over pipes. */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "insn.h"

/* Without progress for this long the child is stuck (an endless loop is ended by the backend itself). */
#define STUCK_MS 10000
enum { CHILD_IN = 10, CHILD_OUT = 11 };

struct command {
    uint32_t from, cpl;
};

struct runner {
    const struct backend *backend;
    struct batch *batch;
    struct result *results;
    volatile uint32_t *progress;
    struct xstate_layout layout;
    pid_t pid;
    int to, from;
    unsigned cpl;
};

void *shared_alloc(size_t size)
{
    void *p = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    return p == MAP_FAILED ? NULL : p;
}

static void child(struct runner *r, int in, int out)
{
    void *ctx;
    int status;
    struct command c;
    dup2(in, 500), dup2(out, 501);
    dup2(500, CHILD_IN), dup2(501, CHILD_OUT);
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    status = r->backend->open(&ctx, &r->layout);
    if (write(CHILD_OUT, &status, sizeof status) != sizeof status || status)
        _exit(1);
    while (read(CHILD_IN, &c, sizeof c) == sizeof c) {
        r->backend->run(ctx, r->batch, r->results, c.from, c.cpl, r->progress);
        if (write(CHILD_OUT, &status, sizeof status) != sizeof status)
            break;
    }
    _exit(0);
}

static int spawn(struct runner *r)
{
    int in[2], out[2], status = -EIO;
    if (pipe2(in, O_CLOEXEC))
        return -errno;
    if (pipe2(out, O_CLOEXEC)) {
        close(in[0]), close(in[1]);
        return -errno;
    }
    fflush(NULL);
    r->pid = fork();
    if (r->pid == 0) {
        close(in[1]), close(out[0]);
        child(r, in[0], out[1]);
    }
    close(in[0]), close(out[1]);
    r->to = in[1], r->from = out[0];
    if (r->pid < 0)
        return -errno;
    if (read(r->from, &status, sizeof status) != sizeof status)
        return -EIO;
    return status;
}

static int reap(struct runner *r)
{
    int status = 0;
    kill(r->pid, SIGKILL);
    waitpid(r->pid, &status, 0);
    close(r->to), close(r->from);
    return status;
}

int runner_create(struct runner **out, const struct backend *backend, struct batch *shared_batch)
{
    struct runner *r = calloc(1, sizeof *r);
    if (!r)
        return -ENOMEM;
    r->backend = backend, r->batch = shared_batch;
    r->results = shared_alloc(sizeof(struct result) * BATCH);
    r->progress = shared_alloc(4096);
    xstate_layout_init(&r->layout);
    int status = r->results && r->progress ? spawn(r) : -ENOMEM;
    if (status) {
        free(r);
        return status;
    }
    *out = r;
    return 0;
}

void runner_destroy(struct runner *r)
{
    reap(r);
    free(r);
}

bool runner_maps(const struct runner *r, uint64_t address)
{
    char path[64];
    uint64_t first, last;
    bool found = false;
    snprintf(path, sizeof path, "/proc/%d/maps", (int)r->pid);
    FILE *f = fopen(path, "r");
    while (f && !found && fscanf(f, "%" SCNx64 "-%" SCNx64 "%*[^\n]", &first, &last) == 2)
        found = address >= first && address < last;
    if (f)
        fclose(f);
    return found;
}

static int command(struct runner *r, uint32_t from)
{
    struct command c = {from, r->cpl};
    *r->progress = from;
    return write(r->to, &c, sizeof c) == sizeof c ? 0 : -EIO;
}

int runner_start(struct runner *r, unsigned cpl)
{
    for (uint32_t n = 0; n < r->batch->n; n++)
        r->results[n].status = RUN_NONE;
    r->cpl = cpl;
    return command(r, 0);
}

struct result *runner_again(struct runner *r, uint32_t index)
{
    uint32_t n = r->batch->n;
    r->batch->n = index + 1;
    r->results[index].status = RUN_NONE;
    struct result *all = command(r, index) ? NULL : runner_finish(r);
    r->batch->n = n;
    return all ? &all[index] : NULL;
}

/* 1: the reply came.  0: the child is stuck.  -1: it died. */
static int wait_reply(struct runner *r)
{
    int status;
    for (;;) {
        uint32_t before = *r->progress;
        struct pollfd p = {.fd = r->from, .events = POLLIN};
        int n = poll(&p, 1, STUCK_MS);
        if (n > 0)
            return read(r->from, &status, sizeof status) == sizeof status ? 1 : -1;
        if (n == 0 && *r->progress == before)
            return 0;
    }
}

struct result *runner_finish(struct runner *r)
{
    for (int reply; (reply = wait_reply(r)) != 1;) {
        uint32_t at = *r->progress;
        siginfo_t info = {0};
        waitid(P_PID, (id_t)r->pid, &info, WEXITED | WNOWAIT | (reply ? 0 : WNOHANG));
        struct result *res = &r->results[at];
        memset(res, 0, sizeof *res);
        res->status = RUN_DIED;
        snprintf(res->note, sizeof res->note, reply ? "the %s process died (%s %d)" : "the %s process hangs",
                 r->backend->name, info.si_code == CLD_EXITED ? "status" : "signal", info.si_status);
        reap(r);
        if (spawn(r))
            return NULL;
        if (at + 1 >= r->batch->n)
            break;
        command(r, at + 1);
    }
    return r->results;
}
