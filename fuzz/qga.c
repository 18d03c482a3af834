/*
 * What QEMU's guest agent answers, or what a guest says in its name: commands with output, files, errors, lines that
 * are none. The socket is made up: each read of it takes the next answer out of the input, which fits the question or
 * not.
 */
#include <errno.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/types.h>
#include <time.h>
#include <unistd.h>

#include "json.h"

#include "agent/qga.h"
#include "base/error.h"

#define SOCKET 1000
#define WAKE 1001
#define FILE_FD 1002
#define SYNC_ID "42"

static struct target {
    struct fuzz_input *in;
    char question[64]; /* the beginning of the last one */
    char answer[4096];
    size_t len, taken;
    uint64_t ms;
    unsigned file_left;
} t;

static const char *const keys[] = {"return",   "error",    "desc",          "pid",   "exited",  "exitcode", "signal",
                                   "out-data", "err-data", "out-truncated", "count", "buf-b64", "eof",      NULL};
static const char *const texts[] = {"",
                                    "aGVsbG8=",
                                    "aGk=",
                                    "QQ==",
                                    "====",
                                    "QQQQ",
                                    "   =",
                                    "AAAA    ",
                                    "not base64",
                                    "No such file",
                                    "\\u0000\\u001b[31m",
                                    "\\ud83d\\ude00",
                                    NULL};

/* The right answer, with numbers and texts of the input. */
static int right_answer(char *out, size_t size)
{
    uint8_t how = fuzz_u8(t.in);
    const char *text = texts[fuzz_u8(t.in) % (sizeof texts / sizeof *texts - 1)];
    int number = how & 0x40 ? (int)fuzz_u16(t.in) - 100 : 1;

    if (strstr(t.question, "guest-sync"))
        return snprintf(out, size, "\xff{\"return\":%s}", how & 1 ? "7" : SYNC_ID);
    if (how & 0x80)
        return snprintf(out, size, "{\"error\":{\"class\":\"GenericError\",\"desc\":\"%s\"}}", text);
    if (strstr(t.question, "guest-exec-status"))
        return snprintf(
            out, size,
            "{\"return\":{\"exited\":%s,\"%s\":%d,\"out-data\":\"%s\",\"err-data\":\"%s\",\"out-truncated\":%s}}",
            how & 1 ? "true" : "false", how & 2 ? "exitcode" : "signal", number, text,
            how & 4 ? text : "aGk=", how & 8 ? "true" : "false");
    if (strstr(t.question, "guest-exec"))
        return snprintf(out, size, "{\"return\":{\"pid\":%d}}", number);
    if (strstr(t.question, "guest-file-open"))
        return snprintf(out, size, "{\"return\":%d}", number);
    if (strstr(t.question, "guest-file-read"))
        return snprintf(out, size, "{\"return\":{\"count\":%d,\"buf-b64\":\"%s\",\"eof\":%s}}", number, text,
                        how & 1 ? "true" : "false");
    return snprintf(out, size, "{\"return\":{\"count\":%d}}", number);
}

static void next_answer(void)
{
    uint8_t how = fuzz_u8(t.in);

    t.taken = t.len = 0;
    if (how < 8) {
        t.len = fuzz_u8(t.in) % 64;
        fuzz_bytes(t.in, t.answer, t.len);
        return;
    }
    if (how < 32)
        t.len = fuzz_json(t.in, keys, texts, t.answer, sizeof t.answer - 1);
    else
        t.len = (size_t)right_answer(t.answer, sizeof t.answer - 1);
    if (how != 32)
        t.answer[t.len++] = '\n';
}

/* --- the system -------------------------------------------------------------------------------------------------- */

ssize_t __wrap_recv(int fd, void *buf, size_t len, int flags);
ssize_t __wrap_recv(int fd, void *buf, size_t len, int flags)
{
    assert_true(fd == SOCKET && len);
    if (t.taken == t.len) {
        if (!t.in->left)
            return 0;
        next_answer();
    }
    size_t n = t.len - t.taken < len ? t.len - t.taken : len;
    if (n > 1 && t.len > 100)
        n = n / 2; /* in pieces */
    memcpy(buf, t.answer + t.taken, n);
    t.taken += n;
    if (n)
        return (ssize_t)n;
    errno = EAGAIN;
    return -1;
}

ssize_t __wrap_send(int fd, const void *buf, size_t len, int flags);
ssize_t __wrap_send(int fd, const void *buf, size_t len, int flags)
{
    if (len > 1) {
        size_t n = len < sizeof t.question - 1 ? len : sizeof t.question - 1;
        memcpy(t.question, buf, n);
        t.question[n] = 0;
    }
    return (ssize_t)len;
}

int __wrap_poll(struct pollfd *p, nfds_t n, int ms);
int __wrap_poll(struct pollfd *p, nfds_t n, int ms)
{
    t.ms += 10;
    return p->fd != WAKE || fuzz_u8(t.in) > 200;
}

int __wrap_clock_gettime(clockid_t id, struct timespec *ts);
int __wrap_clock_gettime(clockid_t id, struct timespec *ts)
{
    *ts = (struct timespec){(time_t)(t.ms / 1000), (long)(t.ms % 1000 * 1000000)};
    return 0;
}

/* With the time of the beginning, zero, it is what the client asks to hear again. */
pid_t __wrap_getpid(void);
pid_t __wrap_getpid(void)
{
    return 42;
}

ssize_t __real_read(int fd, void *buf, size_t len);
ssize_t __wrap_read(int fd, void *buf, size_t len);
ssize_t __wrap_read(int fd, void *buf, size_t len)
{
    if (fd != FILE_FD)
        return __real_read(fd, buf, len);
    size_t n = len < t.file_left ? len : t.file_left;
    memset(buf, 'f', n);
    t.file_left -= (unsigned)n;
    return (ssize_t)n;
}

int __wrap_fd_write_all(int fd, const void *data, size_t len);
int __wrap_fd_write_all(int fd, const void *data, size_t len)
{
    unsigned sum = 0;

    assert_int_equal(fd, FILE_FD);
    for (size_t i = 0; i < len; i++) /* all of it is there */
        sum += ((const uint8_t *)data)[i];
    return sum == 1 ? -EPIPE : 0;
}

/* --- what the client does ---------------------------------------------------------------------------------------- */

static int woken(void *opaque)
{
    return (int)fuzz_u8(t.in) % 20 - 1;
}

static void run(struct qga *q, uint8_t how)
{
    static const char *const argv[] = {"true", "x", NULL};
    const struct qga_exec e = {.argv = argv,
                               .environment = how & 1 ? argv : NULL,
                               .directory = how & 2 ? "/tmp" : NULL,
                               .user = how & 4 ? "me" : NULL,
                               .in = how & 8 ? FILE_FD : -1,
                               .out = FILE_FD,
                               .err = how & 16 ? FILE_FD : -1,
                               .wake = WAKE,
                               .woken = woken};
    struct agent_status status;
    char err[ERROR_SIZE] = "";

    int r = qga_exec(q, &e, &status, err, sizeof err);
    assert_true(r <= 0 && (!r || err[0]));
    if (!r && status.kind == EXIT_STATUS)
        assert_true(status.code >= 0 && status.code < 256);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct fuzz_input in = {data, size};
    struct qga q;
    char err[ERROR_SIZE] = "";

    t = (struct target){.in = &in, .file_left = 100};
    if (qga_open(&q, SOCKET, err, sizeof err)) {
        assert_true(err[0]);
        return 0;
    }
    for (unsigned i = 0; i < 4 && in.left; i++) {
        uint8_t how = fuzz_u8(&in);
        if (how >> 6 == 0)
            qga_read_file(&q, "/etc/motd", FILE_FD, err, sizeof err);
        else if (how >> 6 == 1)
            qga_write_file(&q, FILE_FD, "/etc/motd", err, sizeof err);
        else if (how == 0xff)
            qga_power(&q, POWER_REBOOT, err, sizeof err);
        else
            run(&q, how);
    }
    qga_close(&q);
    return 0;
}
