/*
 * The control socket's server: clients whose bytes, pauses and hang-ups are the input's; handlers of every kind.
 * A step is one byte for what to do and with whom, and what it needs.
 */
#include <pthread.h>
#include <stdio.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/error.h"
#include "fixture.h"
#include "socket_loop.h"
#include "sockets.h"
#include "vm/control.h"

#define CLIENTS 3u
#define STEPS_MAX 64u
#define PATH "/nowhere/guise-fuzz.ctl"

enum {
    STEP_SEND,
    STEP_COMMAND,
    STEP_READ,
    STEP_HANG_UP,
    STEP_END_WRITING,
    STEP_EVENT,
    STEP_CONSOLE,
    STEP_ANSWER,
    STEPS
};

struct target {
    pthread_mutex_t lock;
    struct loop *loop;
    struct control *control;
    int fds[CLIENTS];
    struct control_ticket ticket;
    bool asked;
};

static int fuzz_dial(const char *path)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0);

    snprintf(address.sun_path, sizeof address.sun_path, "%s", path);
    assert_int_equal(connect(fd, (struct sockaddr *)&address, sizeof address), 0);
    return fd;
}

static json_t *echo(struct control_call *call)
{
    return json_deep_copy(call->arguments);
}

static json_t *fail_so(struct control_call *call)
{
    return control_fail(call, "failed", "%s", "as was asked");
}

static json_t *subscribe(struct control_call *call)
{
    control_subscribe(call->client);
    return json_object();
}

static json_t *console(struct control_call *call)
{
    control_make_console(call);
    return json_object();
}

static json_t *later(struct control_call *call)
{
    struct target *t = call->opaque;

    if (t->asked)
        return control_fail(call, "wrong-state", "one at a time");
    t->ticket = control_ticket(call);
    t->asked = true;
    call->later = true;
    return NULL;
}

static json_t *become(struct control_call *call)
{
    int fd = control_connection(call);

    if (fd < 0)
        return control_fail(call, "bad-request", "not now");
    close(fd);
    return later(call);
}

static const struct control_command commands[] = {{"echo", echo},
                                                  {"fail", fail_so},
                                                  {"events", subscribe},
                                                  {"console", console},
                                                  {"later", later},
                                                  {"connect", become},
                                                  {0}};

static size_t type(void *opaque, const void *data, size_t len)
{
    return len > 7 ? 7 : len;
}

/* Whatever is due happens. */
static void settle(struct target *t)
{
    pthread_mutex_unlock(&t->lock);
    loop_run(t->loop);
    pthread_mutex_lock(&t->lock);
}

static void answer(struct target *t, unsigned how)
{
    if (!t->asked)
        return;
    t->asked = false;
    if (how % 3 == 0) {
        control_reply(t->control, &t->ticket, json_pack("{s:i}", "a", 1), NULL, NULL);
    } else if (how % 3 == 1) {
        control_reply(t->control, &t->ticket, NULL, "failed", "no");
    } else {
        int fd = control_take(t->control, &t->ticket, json_object());
        if (fd >= 0)
            close(fd);
    }
}

static void send_bytes(int fd, const void *data, size_t len)
{
    (void)!send(fd, data, len, MSG_DONTWAIT | MSG_NOSIGNAL);
}

static void send_command(struct fuzz_input *in, int fd)
{
    char line[128];
    const char *name = commands[fuzz_u8(in) % 6].name;

    snprintf(line, sizeof line, "{\"id\":%u,\"command\":\"%s\",\"arguments\":{\"a\":%u}}\n", fuzz_u8(in), name,
             fuzz_u8(in));
    send_bytes(fd, line, strlen(line) - (fuzz_u8(in) == 255));
}

static void step(struct target *t, struct fuzz_input *in)
{
    uint8_t what = fuzz_u8(in), bytes[512];
    int *fd = &t->fds[what / STEPS % CLIENTS];
    size_t len = fuzz_u16(in) % sizeof bytes;

    switch (what % STEPS) {
    case STEP_SEND:
        fuzz_bytes(in, bytes, len);
        send_bytes(*fd, bytes, len);
        break;
    case STEP_COMMAND:
        send_command(in, *fd);
        break;
    case STEP_READ:
        (void)!recv(*fd, bytes, len, MSG_DONTWAIT);
        break;
    case STEP_HANG_UP:
        if (*fd >= 0)
            close(*fd);
        *fd = *fd >= 0 ? -1 : fuzz_dial(PATH);
        break;
    case STEP_END_WRITING:
        shutdown(*fd, SHUT_WR);
        break;
    case STEP_EVENT:
        control_event(t->control, "{\"event\":\"x\"}\n", 14);
        break;
    case STEP_CONSOLE:
        control_console_write(t->control, bytes, 0);
        control_console_write(t->control, "out", 3);
        control_console_resume(t->control);
        break;
    case STEP_ANSWER:
        answer(t, what / STEPS / CLIENTS);
        break;
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static struct target t = {.lock = PTHREAD_MUTEX_INITIALIZER};
    struct fuzz_input in = {data, size};
    char err[ERROR_SIZE];
    struct control_config config = {.path = PATH, .client = -1, .commands = commands, .opaque = &t};

    assert_true(t.loop || loop_create(&t.loop, &t.lock) == 0);
    config.loop = t.loop;
    pthread_mutex_lock(&t.lock);
    int ends[2];
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, ends), 0);
    config.client = ends[1];
    assert_int_equal(control_create(&t.control, &config, err, sizeof err), 0);
    control_set_console_input(t.control, type, NULL);
    t.fds[0] = ends[0];
    for (unsigned i = 1; i < CLIENTS; i++)
        t.fds[i] = fuzz_dial(PATH);
    settle(&t);
    for (unsigned i = 0; i < STEPS_MAX && in.left; i++) {
        step(&t, &in);
        settle(&t);
    }
    answer(&t, 0);
    for (unsigned i = 0; i < CLIENTS; i++)
        if (t.fds[i] >= 0)
            close(t.fds[i]);
    settle(&t);
    control_destroy(t.control);
    pthread_mutex_unlock(&t.lock);
    assert_true(!sockets_open());
    return 0;
}
