/* A guest that is hostile: whatever it sends ends in an error, not in a crash, a hang or unbounded memory. */
#include "agent_fixture.h"

#include <sys/resource.h>

static char why[ERROR_SIZE];

struct script {
    const uint8_t *bytes;
    size_t len;
};

/* Takes the request and answers by a fixed sequence of bytes. */
static void play(int fd, const void *data)
{
    const struct script *script = data;
    struct stream s;
    struct frame f;

    signal(SIGPIPE, SIG_IGN);
    stream_init(&s, fd);
    s.limit = REQUEST_MAX;
    if (stream_receive(&s, &f) == 0 && send(fd, script->bytes, script->len, 0) >= 0)
        shutdown(fd, SHUT_WR);
    while (stream_receive(&s, &f) == 0)
        ;
}

static int run_against(const uint8_t *bytes, size_t len, struct agent_status *status)
{
    static const char *const argv[] = {"true", NULL};
    const struct script script = {bytes, len};
    const struct agent_exec e = {.argv = argv, .in = -1, .out = -1, .err = -1, .wake = -1};
    int fd = fake_guest(play, &script);
    int r = agent_exec(fd, &e, status, why, sizeof(why));

    close(fd);
    wait(NULL);
    return r;
}

/* Frames that are built by the same functions as honest ones, with other content. */
struct built {
    struct stream s;
};

static void begin(struct built *b)
{
    stream_init(&b->s, -1);
}

static int run_built(struct built *b, struct agent_status *status)
{
    int r = run_against(b->s.out.data + b->s.out.start, stream_waiting(&b->s), status);

    stream_release(&b->s);
    return r;
}

static void broken_frames_are_refused(void **state)
{
    static const struct {
        uint8_t bytes[16];
        size_t len;
        int r;
    } wrong[] = {
        {{0}, 0, -ECONNRESET},                                         /* nothing at all */
        {{4, 0, 0}, 3, -ECONNRESET},                                   /* part of a header */
        {{8, 0, 0, 0, FRAME_STDOUT, 0, 0, 0, 'a'}, 9, -ECONNRESET},    /* part of a payload */
        {{0xff, 0xff, 0xff, 0xff, FRAME_STDOUT, 0, 0, 0}, 8, -EPROTO}, /* 4 GiB */
        {{1, 0, 1, 0, FRAME_STDOUT, 0, 0, 0}, 8, -EPROTO},             /* a byte more than may be */
        {{0, 0, 0, 0, FRAME_STDOUT, 1, 0, 0}, 8, -EPROTO},             /* not zero */
        {{0, 0, 0, 0, 255, 0, 0, 0}, 8, -EPROTO},                      /* no such frame */
        {{0, 0, 0, 0, FRAME_OK, 0, 0, 0}, 8, -EPROTO},                 /* not here */
        {{0, 0, 0, 0, FRAME_EXIT, 0, 0, 0}, 8, 0},                     /* without fields: our own failure */
        {{3, 0, 0, 0, FRAME_EXIT, 0, 0, 0, 1, 2, 3}, 11, 0},           /* with broken ones */
        {{8, 0, 0, 0, FRAME_EXIT, 0, 0, 0, 20, 0, 0, 0, 255, 0, 0, 0},
         16,
         0}, /* with one that is longer than the frame */
    };
    struct agent_status status;

    for (size_t i = 0; i < sizeof(wrong) / sizeof(wrong[0]); i++) {
        assert_int_equal(run_against(wrong[i].bytes, wrong[i].len, &status), wrong[i].r);
        if (wrong[i].r == 0)
            assert_int_equal(agent_exit_code(&status), 125);
    }
}

static void exit_codes_are_bounded(void **state)
{
    static const struct {
        uint64_t kind, code;
        int r;
    } exits[] = {
        {EXIT_STATUS, 256, -EPROTO}, {EXIT_SIGNAL, 0, -EPROTO}, {EXIT_SIGNAL, 128, -EPROTO},
        {EXIT_FAILED, 0, -EPROTO},   {3, 0, -EPROTO},           {EXIT_STATUS, UINT64_MAX, -EPROTO},
        {EXIT_STATUS, 255, 0},       {1ull << 32, 0, -EPROTO},
    };

    for (size_t i = 0; i < sizeof(exits) / sizeof(exits[0]); i++) {
        struct agent_status status;
        struct built b;
        begin(&b);
        stream_put_numbers(&b.s, FRAME_EXIT, FIELD_KIND, exits[i].kind, FIELD_CODE, exits[i].code);
        assert_int_equal(run_built(&b, &status), exits[i].r);
    }
}

static void more_output_than_granted_is_refused(void **state)
{
    static const char zeros[FRAME_MAX];
    struct agent_status status;
    struct built b;

    begin(&b);
    for (size_t i = 0; i < 2 * CHANNEL_WINDOW / FRAME_MAX; i++)
        stream_put(&b.s, FRAME_STDOUT, zeros, sizeof(zeros));
    stream_put_numbers(&b.s, FRAME_EXIT, FIELD_KIND, EXIT_STATUS, FIELD_CODE, 0);
    /* Thrown-away output is granted anew as it comes: here that is before the guest can know, and still fine. */
    assert_int_equal(run_built(&b, &status), 0);

    /* Not so when nobody takes it. */
    static const char *const argv[] = {"true", NULL};
    int out[2];
    begin(&b);
    for (size_t i = 0; i < 2 * CHANNEL_WINDOW / FRAME_MAX; i++)
        stream_put(&b.s, FRAME_STDOUT, zeros, sizeof(zeros));
    const struct script script = {b.s.out.data, stream_waiting(&b.s)};
    assert_int_equal(pipe2(out, O_CLOEXEC), 0);
    int fd = fake_guest(play, &script);
    const struct agent_exec e = {.argv = argv, .in = -1, .out = out[1], .err = -1, .wake = -1};
    assert_int_equal(agent_exec(fd, &e, &status, why, sizeof(why)), -EPROTO);
    assert_non_null(strstr(why, "protocol"));
    close(fd);
    close(out[0]);
    close(out[1]);
    stream_release(&b.s);
    wait(NULL);
}

static void input_is_granted_within_the_window(void **state)
{
    static const uint64_t grants[] = {1, CHANNEL_WINDOW, UINT64_MAX, 1ull << 63};

    for (size_t i = 0; i < sizeof(grants) / sizeof(grants[0]); i++) {
        struct agent_status status;
        struct built b;
        begin(&b);
        stream_put_numbers(&b.s, FRAME_WINDOW, FIELD_CHANNEL, CHANNEL_STDIN, FIELD_BYTES, grants[i]);
        assert_int_equal(run_built(&b, &status), -EPROTO);
    }
    for (uint64_t channel = 0; channel < 5; channel++) {
        struct agent_status status;
        struct built b;
        begin(&b);
        stream_put_numbers(&b.s, FRAME_WINDOW, FIELD_CHANNEL, channel, FIELD_BYTES, 0);
        stream_put_numbers(&b.s, FRAME_EXIT, FIELD_KIND, EXIT_STATUS, FIELD_CODE, 0);
        assert_int_equal(run_built(&b, &status), channel == CHANNEL_STDIN ? 0 : -EPROTO);
    }
}

static void messages_are_fit_for_a_terminal(void **state)
{
    struct agent_status status;
    struct built b;

    begin(&b);
    stream_put_error(&b.s, -ENOENT, "bad\033[2J\a%s\n",
                     "\x9b"
                     "thing");
    assert_int_equal(run_built(&b, &status), -ENOENT);
    assert_string_equal(why, "bad?[2J??thing?");
    begin(&b);
    stream_put_error(&b.s, 1 << 20, "strange");
    assert_int_equal(run_built(&b, &status), -EIO);
}

/* Sends as fast as it can what must not be kept. */
static void flood(int fd, const void *data)
{
    static uint8_t frame[FRAME_HEADER + FRAME_MAX];

    signal(SIGPIPE, SIG_IGN);
    put_le(frame, FRAME_MAX, 4);
    frame[4] = FRAME_STDERR;
    for (int i = 0; i < 4096; i++)
        if (send(fd, frame, sizeof(frame), 0) < 0)
            return;
}

static void a_flood_needs_no_memory(void **state)
{
    static const char *const argv[] = {"true", NULL};
    const struct agent_exec e = {.argv = argv, .in = -1, .out = -1, .err = -1, .wake = -1};
    struct agent_status status;
    struct rusage before, after;
    int fd = fake_guest(flood, NULL);

    getrusage(RUSAGE_SELF, &before);
    assert_int_equal(agent_exec(fd, &e, &status, why, sizeof(why)), -ECONNRESET);
    getrusage(RUSAGE_SELF, &after);
    assert_true(after.ru_maxrss - before.ru_maxrss < 8192);
    close(fd);
    wait(NULL);
}

/* Takes nothing until its peer has gone. */
static void say_and_hear_nothing(int fd, const void *data)
{
    poll(&(struct pollfd){.fd = fd}, 1, 60000);
}

static int signal_once_more(void *opaque, struct agent_session *s)
{
    agent_session_signal(s, SIGUSR1);
    return 0;
}

static void who_never_reads_is_given_up(void **state)
{
    static const char *const argv[] = {"true", NULL};
    struct agent_status status;
    int wake[2], fd = fake_guest(say_and_hear_nothing, NULL);

    assert_int_equal(pipe2(wake, O_CLOEXEC), 0);
    assert_int_equal(write(wake[1], "x", 1), 1); /* stays there */
    const struct agent_exec e = {
        .argv = argv, .in = -1, .out = -1, .err = -1, .wake = wake[0], .woken = signal_once_more};
    assert_int_equal(agent_exec(fd, &e, &status, why, sizeof(why)), -EPROTO);
    close(fd);
    close(wake[0]);
    close(wake[1]);
    wait(NULL);
}

static void announcements_are_checked(void **state)
{
    struct agent_hello hello;
    struct built b;

    begin(&b);
    stream_begin(&b.s, FRAME_HELLO);
    stream_number(&b.s, FIELD_VERSION, 1);
    stream_text(&b.s, FIELD_MODE, "boot");
    stream_number(&b.s, FIELD_UPTIME, 1234);
    stream_text(&b.s, FIELD_MESSAGE, "no\nroot");
    stream_end(&b.s);
    size_t len = stream_waiting(&b.s);
    for (size_t i = 0; i < len; i++)
        assert_int_equal(agent_hello_parse(b.s.out.data, i, &hello), 0);
    assert_int_equal(agent_hello_parse(b.s.out.data, len, &hello), len);
    assert_int_equal(hello.version, 1);
    assert_true(hello.boot_mode);
    assert_int_equal(hello.uptime_ms, 1234);
    assert_string_equal(hello.failure, "no?root");
    b.s.out.data[2] = 1;
    assert_int_equal(agent_hello_parse(b.s.out.data, len, &hello), -EPROTO);
    b.s.out.data[2] = 0;
    b.s.out.data[4] = FRAME_OK;
    assert_int_equal(agent_hello_parse(b.s.out.data, len, &hello), -EPROTO);
    stream_release(&b.s);
}

static void answer_tunnel(int fd, const void *data)
{
    static const uint8_t ok[] = {0, 0, 0, 0, FRAME_OK, 0, 0, 0, 'S', 'S', 'H', '-'};

    play(fd, &(struct script){ok, sizeof(ok)});
}

static void a_tunnels_first_bytes_are_not_lost(void **state)
{
    int fd = fake_guest(answer_tunnel, NULL);
    char bytes[8];

    assert_int_equal(agent_tunnel(fd, 22, NULL, 0, why, sizeof(why)), 0);
    assert_int_equal(drain(fd, bytes, sizeof(bytes)), 4);
    assert_string_equal(bytes, "SSH-");
    close(fd);
    wait(NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(broken_frames_are_refused),           cmocka_unit_test(exit_codes_are_bounded),
        cmocka_unit_test(more_output_than_granted_is_refused), cmocka_unit_test(input_is_granted_within_the_window),
        cmocka_unit_test(messages_are_fit_for_a_terminal),     cmocka_unit_test(a_flood_needs_no_memory),
        cmocka_unit_test(who_never_reads_is_given_up),         cmocka_unit_test(announcements_are_checked),
        cmocka_unit_test(a_tunnels_first_bytes_are_not_lost),
    };
    signal(SIGPIPE, SIG_IGN);
    alarm(50);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
