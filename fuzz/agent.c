/* What a guest answers, to each of the host's requests. */
#include <fcntl.h>
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "agent/client.h"
#include "agent/frame.h"
#include "agent/tree.h"
#include "base/error.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* The input as frames, [type, length, bytes]...: so that most of it gets past the headers; or as it is. */
static void feed(int fd, const uint8_t *data, size_t size, int raw)
{
    struct stream s;

    stream_init(&s, fd);
    if (raw) {
        uint8_t *to = stream_space(&s, size);
        memcpy(to, data, size);
        stream_used(&s, size);
    }
    while (!raw && size >= 2) {
        size_t len = data[1] < size - 2 ? data[1] : size - 2;
        stream_put(&s, data[0] & 0x7f, data + 2, len);
        data += 2 + len;
        size -= 2 + len;
    }
    stream_flush(&s);
    stream_release(&s);
    shutdown(fd, SHUT_WR);
}

static void on_fact(void *opaque, const char *key, const char *value)
{
    if (!key[0] || strlen(key) + strlen(value) > 2048)
        abort();
}

static void run_exec(int fd, int out, char *err)
{
    static const char *const argv[] = {"x", NULL};
    const struct agent_exec e = {.argv = argv, .in = -1, .out = out, .err = -1, .wake = -1};
    struct agent_status status = {0};

    if (agent_exec(fd, &e, &status, err, ERROR_SIZE) == 0 && (unsigned)agent_exit_code(&status) > 255)
        abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static int null = -1;
    struct agent_hello hello;
    char err[ERROR_SIZE];
    int ends[2];

    if (null < 0) {
        null = open("/dev/null", O_WRONLY | O_CLOEXEC);
        signal(SIGPIPE, SIG_IGN);
    }
    if (size < 1 || size > 65536 || socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends))
        return 0;
    feed(ends[1], data + 1, size - 1, data[0] & 0x80);
    switch (data[0] & 7) {
    case 0:
        run_exec(ends[0], -1, err);
        break;
    case 1:
        run_exec(ends[0], null, err);
        break;
    case 2:
        agent_info(ends[0], on_fact, NULL, err, sizeof(err));
        break;
    case 3:
        agent_tunnel(ends[0], 22, NULL, 0, err, sizeof(err));
        break;
    case 4:
        agent_power(ends[0], POWER_OFF, err, sizeof(err));
        break;
    default:
        if (agent_hello_parse(data + 1, size - 1, &hello) > (int)size - 1)
            abort();
    }
    close(ends[0]);
    close(ends[1]);
    return 0;
}
