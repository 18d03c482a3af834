/*
 * What a VM process says to the program that asks it, when a guest has taken that process over: answers and events on
 * the control socket, and the file that tells how a machine's last run ended. The socket is made up: each read takes
 * the next line out of the input.
 */
#include <errno.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/types.h>

#include "loop.h"

#include "base/error.h"
#include "json.h"
#include "vm/client.h"

#define SOCKET 1000
#define LOCK 1001
#define PATIENCE 8 /* polls without an answer */

static struct target {
    struct fuzz_input *in;
    char line[4096];
    size_t len, taken;
    unsigned polls;
    bool open;
} t;

static const char *const keys[] = {"id",    "result", "error",  "code",   "message", "event",      "data",     "seq",
                                   "state", "pid",    "engine", "reason", "failed",  "started_ms", "ended_ms", NULL};
static const char *const texts[] = {"bad-request", "not-found", "wrong-state", "running", "stopped",    "died",
                                    "created",     "",          "soft",        "x",       "\\u001b[2J", "\\u0000",
                                    NULL};

static void next_line(void)
{
    static const char *const right[] = {"{\"id\":1,\"result\":{}}", "{\"event\":\"started\"}",
                                        "{\"id\":1,\"error\":{}}", "[]"};
    uint8_t how = fuzz_u8(t.in);

    t.taken = 0;
    if (how < 64) {
        t.len = strlen(right[how % 4]);
        memcpy(t.line, right[how % 4], t.len);
    } else if (how < 96) {
        fuzz_bytes(t.in, t.line, t.len = fuzz_u8(t.in) % 64);
    } else {
        t.len = fuzz_json(t.in, keys, texts, t.line, sizeof t.line - 1);
    }
    if (how != 96)
        t.line[t.len++] = '\n';
}

ssize_t __wrap_recv(int fd, void *buf, size_t len, int flags);
ssize_t __wrap_recv(int fd, void *buf, size_t len, int flags)
{
    assert_true(fd == SOCKET && t.open);
    if (t.taken == t.len) {
        if (!t.in->left)
            return 0;
        next_line();
    }
    size_t n = t.len - t.taken < len ? t.len - t.taken : len;
    if (n > 50)
        n = 50; /* in pieces */
    memcpy(buf, t.line + t.taken, n);
    if (!(flags & MSG_PEEK))
        t.taken += n;
    return (ssize_t)n;
}

int __wrap_poll(struct pollfd *p, nfds_t n, int ms);
int __wrap_poll(struct pollfd *p, nfds_t n, int ms)
{
    fuzz_loop.now += 1000000;
    return t.taken < t.len || t.in->left || ++t.polls > PATIENCE;
}

int __real_close(int fd);
int __wrap_close(int fd);
int __wrap_close(int fd)
{
    if (fd != SOCKET)
        return __real_close(fd);
    assert_true(t.open);
    t.open = false;
    return 0;
}

int __wrap_fd_write_all(int fd, const void *data, size_t len);
int __wrap_fd_write_all(int fd, const void *data, size_t len)
{
    assert_true(fd == SOCKET && len && ((const char *)data)[len - 1] == '\n');
    return 0;
}

ssize_t __wrap_pread64(int fd, void *buf, size_t len, off_t offset);
ssize_t __wrap_pread64(int fd, void *buf, size_t len, off_t offset)
{
    assert_true(fd == LOCK && !offset);
    next_line();
    size_t n = t.len < len ? t.len : len;
    memcpy(buf, t.line, n);
    return (ssize_t)n;
}

static void last_run(void)
{
    struct vm_run run;

    registry_last_run(LOCK, &run);
    assert_true(run.state >= VM_CREATED && run.state <= VM_DIED && run.state != VM_RUNNING && !run.pid);
    assert_true(memchr(run.engine, 0, sizeof run.engine) && memchr(run.reason, 0, sizeof run.reason));
    t.taken = t.len = 0;
}

static void step(struct client *c, uint8_t how)
{
    json_t *result = NULL;
    char err[ERROR_SIZE] = "";
    int failed;

    if (how & 1) {
        failed = client_event(c, how & 2 ? 5 : -1, &result);
        assert_true(failed || json_is_object(result));
    } else {
        failed = client_call(c, "status", how & 2 ? json_object() : NULL, how & 4 ? NULL : &result, err, sizeof err);
        assert_true(failed <= 0 && (!failed || (err[0] && !result)));
    }
    json_decref(result);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct fuzz_input in = {data, size};
    struct client c;
    char err[ERROR_SIZE];

    t.in = &in;
    t.len = t.taken = t.polls = 0;
    t.open = true;
    fuzz_loop_begin();
    if (fuzz_u8(&in) & 1)
        last_run();
    client_adopt(&c, SOCKET);
    for (unsigned i = 0; i < 6 && in.left; i++)
        step(&c, fuzz_u8(&in));
    int fd = client_stream(&c, "console", NULL, err, sizeof err);
    if (fd >= 0)
        __wrap_close(fd);
    assert_true(!t.open);
    return 0;
}
