/* The control socket's server before clients of every kind, and the client before a server. */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/error.h"
#include "base/file.h"
#include "host/loop.h"
#include "vm/client.h"
#include "vm/control.h"

static char err[ERROR_SIZE], directory[64], path[96];
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_t thread;
static struct loop *loop;
static struct control *control;
static struct control_ticket ticket;
static int first[2]; /* the connection the server begins with */
static bool first_gone;
static size_t typed_most = SIZE_MAX;
static char typed[64];
static size_t typed_len;

static json_t *command_echo(struct control_call *call)
{
    return json_deep_copy(call->arguments);
}

static json_t *command_fail(struct control_call *call)
{
    return control_fail(call, "wrong-state", "not on a %s", "Tuesday");
}

static json_t *command_subscribe(struct control_call *call)
{
    control_subscribe(call->client);
    return json_object();
}

static json_t *command_later(struct control_call *call)
{
    json_decref(ticket.id); /* of one that nobody will answer */
    ticket = control_ticket(call);
    call->later = true;
    return NULL;
}

static json_t *command_console(struct control_call *call)
{
    control_make_console(call);
    return json_object();
}

static json_t *command_big(struct control_call *call)
{
    char *text = malloc(200001);
    memset(text, 'x', 200000);
    text[200000] = 0;
    json_t *result = json_pack("{s:s}", "text", text);
    free(text);
    return result;
}

static const struct control_command commands[] = {
    {"echo", command_echo},
    {"fail", command_fail},
    {"subscribe", command_subscribe},
    {"later", command_later},
    {"console", command_console},
    {"big", command_big},
    {0},
};

static size_t type(void *opaque, const void *data, size_t len)
{
    size_t now = len < typed_most ? len : typed_most;

    now = now < sizeof typed - typed_len ? now : sizeof typed - typed_len;
    memcpy(typed + typed_len, data, now);
    typed_len += now;
    return now;
}

static void gone(void *opaque)
{
    first_gone = true;
}

static void *run_loop(void *opaque)
{
    loop_run(loop);
    return NULL;
}

static int set_up(void **state)
{
    snprintf(directory, sizeof directory, "/tmp/guise-test-XXXXXX");
    if (!mkdtemp(directory))
        return -1;
    snprintf(path, sizeof path, "%s/x.ctl", directory);
    first_gone = false;
    typed_len = 0;
    typed_most = SIZE_MAX;
    if (loop_create(&loop, &lock) || socketpair(AF_UNIX, SOCK_STREAM, 0, first))
        return -1;
    const struct control_config config = {
        .path = path, .client = first[1], .loop = loop, .commands = commands, .client_gone = gone};
    pthread_mutex_lock(&lock);
    int failed = control_create(&control, &config, err, sizeof err);
    control_set_console_input(control, type, NULL);
    pthread_mutex_unlock(&lock);
    return failed || pthread_create(&thread, NULL, run_loop, NULL);
}

static int tear_down(void **state)
{
    loop_stop(loop);
    pthread_join(thread, NULL);
    pthread_mutex_lock(&lock);
    control_destroy(control);
    pthread_mutex_unlock(&lock);
    loop_destroy(loop);
    close(first[0]);
    assert_int_equal(access(path, F_OK), -1);
    return rmdir(directory);
}

static int dial(void)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

    snprintf(address.sun_path, sizeof address.sun_path, "%s", path);
    if (connect(fd, (struct sockaddr *)&address, sizeof address)) {
        close(fd);
        return -1;
    }
    return fd;
}

static void say(int fd, const char *text)
{
    assert_int_equal(fd_write_all(fd, text, strlen(text)), 0);
}

/* Reads a line within five seconds; false at the end. */
static bool hear(int fd, char *line, size_t size)
{
    size_t len = 0;

    while (len < size - 1) {
        struct pollfd p = {.fd = fd, .events = POLLIN};
        if (poll(&p, 1, 5000) != 1)
            fail_msg("no answer");
        if (read(fd, line + len, 1) != 1)
            return false;
        if (line[len++] == '\n')
            break;
    }
    line[len] = 0;
    return true;
}

static void expect(int fd, const char *part)
{
    char line[4096];

    assert_true(hear(fd, line, sizeof line));
    if (!strstr(line, part))
        fail_msg("'%s' has no '%s'", line, part);
}

static void expect_end(int fd)
{
    char line[4096];

    assert_false(hear(fd, line, sizeof line));
}

static void requests_are_answered_by_id(void **state)
{
    struct stat st;
    int fd = dial();

    assert_int_equal(stat(path, &st), 0);
    assert_int_equal(st.st_mode & 0777, 0600);
    say(fd, "{\"id\": 1, \"command\": \"echo\", \"arguments\": {\"a\": [1, 2]}}\n");
    expect(fd, "{\"id\":1,\"result\":{\"a\":[1,2]}}");
    say(fd, "{\"id\": \"two\", \"command\": \"fail\"}\n{\"command\": \"echo\"}\n");
    expect(fd, "{\"id\":\"two\",\"error\":{\"code\":\"wrong-state\",\"message\":\"not on a Tuesday\"}}");
    expect(fd, "{\"id\":null,\"result\":{}}");
    say(fd, "{\"id\": 3, \"comm");
    usleep(20000);
    say(fd, "and\": \"echo\"}\n");
    expect(fd, "{\"id\":3,\"result\":{}}");
    close(fd);
}

static void nonsense_is_told_so(void **state)
{
    int fd = dial();

    say(fd, "hello\n\n[]\n{\"id\":1}\n{\"id\":2,\"command\":\"ecko\"}\n{\"id\":3,\"command\":7}\n"
            "{\"id\":4,\"command\":\"echo\",\"arguments\":[]}\n{\"a\":1,\"a\":2}\n{\"id\":5,\"command\":\"zzzzzz\"}\n");
    expect(fd, "not JSON");
    expect(fd, "not JSON");
    expect(fd, "not a JSON object");
    expect(fd, "\\\"command\\\" is missing");
    expect(fd, "did you mean \\\"echo\\\"?");
    expect(fd, "\\\"command\\\" is missing");
    expect(fd, "\\\"arguments\\\" is not an object");
    expect(fd, "duplicate");
    expect(fd, "there is no command \\\"zzzzzz\\\"");
    /* 40 bytes of it are quoted: the last one is the first of two */
    say(fd, "{\"id\":6,\"command\":\"zzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzz\xc3\xa4\"}\n");
    expect(fd, "zzz?\\\"");
    char *deep = malloc(60000);
    memset(deep, '[', 59999);
    deep[59998] = '\n';
    deep[59999] = 0;
    say(fd, deep);
    expect(fd, "not JSON");
    free(deep);
    close(fd);
}

static void a_line_that_does_not_end_is_cut_off(void **state)
{
    char *huge = malloc(CONTROL_LINE_MAX + 1);
    int fd = dial();

    memset(huge, 'x', CONTROL_LINE_MAX);
    huge[CONTROL_LINE_MAX] = 0;
    say(fd, huge);
    expect(fd, "too long");
    expect_end(fd);
    free(huge);
    close(fd);
}

/* A client that asks and does not read: its requests wait, others are served, and nothing grows. */
static void who_does_not_read_is_not_read_from(void **state)
{
    static const char request[] = "{\"command\":\"big\"}\n";
    int fd = dial(), other = dial();
    size_t sent = 0;
    struct rusage before, after;

    getrusage(RUSAGE_SELF, &before);
    fcntl(fd, F_SETFL, O_NONBLOCK);
    for (int idle = 0; idle < 20;) {
        ssize_t n = send(fd, request, sizeof request - 1, MSG_NOSIGNAL);
        if (n > 0)
            sent += (size_t)n;
        else if (n < 0 && errno == EAGAIN)
            usleep(5000), idle++;
        else
            break;
        if (sent > 4 << 20)
            fail_msg("4 MiB of requests were taken");
    }
    say(other, "{\"id\":1,\"command\":\"echo\"}\n");
    expect(other, "\"result\"");
    getrusage(RUSAGE_SELF, &after);
    assert_true(after.ru_maxrss - before.ru_maxrss < 32 << 10);
    close(fd);
    close(other);
}

static void events_reach_subscribers(void **state)
{
    int fd = dial(), deaf = dial();
    char line[64];

    say(fd, "{\"id\":1,\"command\":\"subscribe\"}\n");
    expect(fd, "\"result\"");
    say(deaf, "{\"id\":1,\"command\":\"echo\"}\n");
    expect(deaf, "\"result\"");
    pthread_mutex_lock(&lock);
    control_event(control, "{\"event\":\"x\"}\n", 14);
    pthread_mutex_unlock(&lock);
    expect(fd, "{\"event\":\"x\"}");
    expect(first[0], "{\"event\":\"x\"}"); /* subscribed from the start */
    assert_int_equal(recv(deaf, line, sizeof line, MSG_DONTWAIT), -1);
    /* One that subscribes and does not read is cut off in the end. */
    pthread_mutex_lock(&lock);
    char *long_line = malloc(100000);
    memset(long_line, 'y', 99999);
    long_line[99999] = '\n';
    for (int i = 0; i < 40; i++)
        control_event(control, long_line, 100000);
    pthread_mutex_unlock(&lock);
    free(long_line);
    shutdown(fd, SHUT_WR);
    char sink[65536];
    size_t total = 0;
    for (ssize_t n; (n = read(fd, sink, sizeof sink)) > 0;)
        total += (size_t)n;
    assert_true(total < 3 << 20);
    close(fd);
    close(deaf);
}

static void answers_may_come_later_or_find_nobody(void **state)
{
    int fd = dial();

    say(fd, "{\"id\":9,\"command\":\"later\"}\n{\"id\":10,\"command\":\"echo\"}\n");
    expect(fd, "\"id\":10");
    pthread_mutex_lock(&lock);
    control_reply(control, &ticket, json_pack("{s:i}", "n", 5), NULL, NULL);
    pthread_mutex_unlock(&lock);
    expect(fd, "{\"id\":9,\"result\":{\"n\":5}}");
    say(fd, "{\"id\":11,\"command\":\"later\"}\n{\"command\":\"echo\"}\n");
    expect(fd, "\"id\":null");
    close(fd);
    usleep(50000);
    pthread_mutex_lock(&lock);
    control_reply(control, &ticket, NULL, "failed", "nobody hears this");
    pthread_mutex_unlock(&lock);
    fd = dial();
    say(fd, "{\"id\":12,\"command\":\"later\"}\n{\"command\":\"echo\"}\n");
    expect(fd, "\"id\":null");
    pthread_mutex_lock(&lock);
    int taken = control_take(control, &ticket, json_object());
    pthread_mutex_unlock(&lock);
    assert_true(taken >= 0);
    expect(fd, "{\"id\":12,\"result\":{}}");
    say(fd, "raw");
    char raw[4];
    assert_int_equal(poll(&(struct pollfd){.fd = taken, .events = POLLIN}, 1, 5000), 1);
    assert_int_equal(read(taken, raw, 4), 3);
    close(taken);
    expect_end(fd);
    close(fd);
}

static void a_console_is_raw_and_lossy(void **state)
{
    int fd = dial();
    char *output = malloc(1 << 19), got[128] = "";

    typed_most = 2;
    say(fd, "{\"id\":1,\"command\":\"console\"}\nabcd");
    expect(fd, "\"result\"");
    for (int i = 0; i < 100 && typed_len < 4; i++) {
        usleep(10000);
        pthread_mutex_lock(&lock);
        control_console_resume(control);
        pthread_mutex_unlock(&lock);
    }
    assert_int_equal(typed_len, 4);
    assert_memory_equal(typed, "abcd", 4);
    memset(output, 'o', 1 << 19);
    pthread_mutex_lock(&lock);
    for (int i = 0; i < 8; i++) /* never waits */
        control_console_write(control, output, 1 << 19);
    pthread_mutex_unlock(&lock);
    size_t total = 0;
    while (poll(&(struct pollfd){.fd = fd, .events = POLLIN}, 1, 300) == 1)
        total += (size_t)read(fd, output, 1 << 19);
    assert_in_range(total, CONTROL_QUEUE_MAX / 2, 2 * CONTROL_QUEUE_MAX);
    pthread_mutex_lock(&lock);
    control_console_write(control, "tail", 4);
    pthread_mutex_unlock(&lock);
    usleep(50000);
    assert_true(read(fd, got, sizeof got - 1) > 0);
    assert_non_null(strstr(got, "bytes were not shown"));
    assert_non_null(strstr(got, "tail"));
    free(output);
    close(fd);
}

/* Thousands that connect and say nothing, or half a word: the next one is served all the same. */
static void crowds_do_not_keep_others_out(void **state)
{
    int fds[1000], n = 0, kept;

    say(first[0], "{\"id\":1,\"command\":\"echo\"}\n");
    expect(first[0], "\"result\"");
    kept = dial();
    say(kept, "{\"id\":1,\"command\":\"subscribe\"}\n");
    expect(kept, "\"result\"");
    for (int round = 0; round < 4; round++) {
        for (n = 0; n < 700; n++) {
            fds[n] = dial();
            if (fds[n] >= 0 && n % 3 == 0)
                send(fds[n], "{\"id\"", 5, MSG_NOSIGNAL | MSG_DONTWAIT);
        }
        int fd = dial();
        say(fd, "{\"id\":1,\"command\":\"echo\"}\n");
        expect(fd, "\"result\"");
        close(fd);
        for (int i = 0; i < n; i++)
            if (fds[i] >= 0)
                close(fds[i]);
    }
    pthread_mutex_lock(&lock);
    control_event(control, "{\"event\":\"y\"}\n", 14);
    pthread_mutex_unlock(&lock);
    expect(kept, "\"y\""); /* who waits for something is not thrown out */
    close(kept);
}

static void half_closed_clients_get_their_answer(void **state)
{
    int fd = dial();

    say(fd, "{\"id\":1,\"command\":\"echo\"}\n");
    shutdown(fd, SHUT_WR);
    expect(fd, "\"id\":1");
    expect_end(fd);
    close(fd);
    assert_false(first_gone);
    close(first[0]);
    for (int i = 0; i < 200 && !first_gone; i++)
        usleep(5000);
    assert_true(first_gone);
    first[0] = dial();
    for (int i = 0; i < 2000; i++) { /* in the middle of everything */
        fd = dial();
        static const char words[] = "{\"id\":1,\"command\":\"later\"}\n{\"id\":2,\"command\":\"big\"}\n";
        (void)!send(fd, words, (size_t)(i % (int)sizeof words), MSG_NOSIGNAL);
        close(fd);
        if (ticket.client && i % 27 == 0) {
            pthread_mutex_lock(&lock);
            if (ticket.id)
                control_reply(control, &ticket, json_object(), NULL, NULL);
            pthread_mutex_unlock(&lock);
        }
    }
    pthread_mutex_lock(&lock);
    if (ticket.id)
        control_reply(control, &ticket, NULL, "failed", "late");
    pthread_mutex_unlock(&lock);
}

static void the_socket_of_a_dead_one_is_replaced(void **state)
{
    struct control *second;
    const struct control_config config = {.path = path, .client = -1, .loop = loop, .commands = commands};

    pthread_mutex_lock(&lock);
    assert_int_equal(control_create(&second, &config, err, sizeof err), -EADDRINUSE);
    pthread_mutex_unlock(&lock);
    int fd = dial(); /* the first is as it was */
    assert_true(fd >= 0);
    close(fd);
    char other[108];
    snprintf(other, sizeof other, "%s/y.ctl", directory);
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    memcpy(address.sun_path, other, strlen(other) + 1);
    fd = socket(AF_UNIX, SOCK_STREAM, 0);
    assert_int_equal(bind(fd, (struct sockaddr *)&address, sizeof address), 0);
    close(fd); /* nobody listens */
    struct control_config third = config;
    third.path = other;
    pthread_mutex_lock(&lock);
    assert_int_equal(control_create(&second, &third, err, sizeof err), 0);
    control_destroy(second);
    pthread_mutex_unlock(&lock);
    /* What is no socket is not removed. */
    assert_int_equal(file_write(other, "precious", 8, 0600, err, sizeof err), 0);
    pthread_mutex_lock(&lock);
    assert_true(control_create(&second, &third, err, sizeof err) < 0);
    pthread_mutex_unlock(&lock);
    assert_int_equal(access(other, F_OK), 0);
    unlink(other);
}

static void the_client_finds_its_answer_among_events(void **state)
{
    struct client c;
    json_t *result = NULL, *event = NULL;

    client_adopt(&c, dup(first[0]));
    pthread_mutex_lock(&lock);
    control_event(control, "{\"event\":\"one\"}\n", 16);
    pthread_mutex_unlock(&lock);
    assert_int_equal(client_call(&c, "echo", json_pack("{s:i}", "a", 1), &result, err, sizeof err), 0);
    assert_int_equal(json_integer_value(json_object_get(result, "a")), 1);
    json_decref(result);
    assert_int_equal(client_call(&c, "fail", NULL, NULL, err, sizeof err), -EBUSY);
    assert_string_equal(err, "not on a Tuesday");
    assert_int_equal(client_call(&c, "nonesuch", NULL, NULL, err, sizeof err), -ENOENT);
    assert_int_equal(client_event(&c, 0, &event), 0);
    assert_string_equal(json_string_value(json_object_get(event, "event")), "one");
    json_decref(event);
    assert_int_equal(client_event(&c, 20, &event), -ETIMEDOUT);
    int fd = client_stream(&c, "console", NULL, err, sizeof err);
    assert_true(fd >= 0);
    pthread_mutex_lock(&lock);
    control_console_write(control, "out\n", 4);
    pthread_mutex_unlock(&lock);
    expect(fd, "out");
    close(fd);
}

/* A VM process that a guest has taken over may say anything: whoever asked for an event has none then. */
static void what_is_no_object_is_no_event(void **state)
{
    static const char *const lines[] = {"[]\n", "7\n", "{\n", "\n"};
    struct client c;
    int ends[2];

    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM, 0, ends), 0);
    client_adopt(&c, ends[0]);
    for (size_t i = 0; i < sizeof lines / sizeof *lines; i++) {
        json_t *event = NULL;
        assert_int_equal(send(ends[1], lines[i], strlen(lines[i]), 0), (ssize_t)strlen(lines[i]));
        assert_int_equal(client_event(&c, 1000, &event), -EPROTO);
        assert_null(event);
    }
    client_close(&c);
    close(ends[1]);
}

static void an_error_without_words_is_one(void **state)
{
    static const char line[] = "{\"id\":1,\"error\":{\"code\":\"wrong-state\",\"message\":\"\"}}\n";
    struct client c;
    int ends[2];

    err[0] = 0;
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM, 0, ends), 0);
    client_adopt(&c, ends[0]);
    assert_int_equal(send(ends[1], line, strlen(line), 0), (ssize_t)strlen(line));
    assert_int_equal(client_call(&c, "status", NULL, NULL, err, sizeof err), -EBUSY);
    assert_string_equal(err, "the VM process gave no reason");
    client_close(&c);
    close(ends[1]);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(requests_are_answered_by_id, set_up, tear_down),
        cmocka_unit_test_setup_teardown(nonsense_is_told_so, set_up, tear_down),
        cmocka_unit_test_setup_teardown(a_line_that_does_not_end_is_cut_off, set_up, tear_down),
        cmocka_unit_test_setup_teardown(who_does_not_read_is_not_read_from, set_up, tear_down),
        cmocka_unit_test_setup_teardown(events_reach_subscribers, set_up, tear_down),
        cmocka_unit_test_setup_teardown(answers_may_come_later_or_find_nobody, set_up, tear_down),
        cmocka_unit_test_setup_teardown(a_console_is_raw_and_lossy, set_up, tear_down),
        cmocka_unit_test_setup_teardown(crowds_do_not_keep_others_out, set_up, tear_down),
        cmocka_unit_test_setup_teardown(half_closed_clients_get_their_answer, set_up, tear_down),
        cmocka_unit_test_setup_teardown(the_socket_of_a_dead_one_is_replaced, set_up, tear_down),
        cmocka_unit_test_setup_teardown(the_client_finds_its_answer_among_events, set_up, tear_down),
        cmocka_unit_test(what_is_no_object_is_no_event),
        cmocka_unit_test(an_error_without_words_is_one),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
