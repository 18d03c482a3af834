/* Running commands through the agent: what comes out, what goes in, how it ends. */
#include "agent_fixture.h"

static char why[ERROR_SIZE];

struct result {
    struct agent_status status;
    char out[8192], err[8192];
    int r;
};

/* Runs argv with pipes; the output must fit into the pipes and the windows. */
static struct result run_with(struct agent_exec e, const char *input)
{
    struct result result = {0};
    int in[2], out[2], err[2], fd = agent_start(NULL);

    assert_int_equal(pipe2(out, O_CLOEXEC) | pipe2(err, O_CLOEXEC) | pipe2(in, O_CLOEXEC), 0);
    e.in = -1;
    if (input) {
        assert_int_equal(write(in[1], input, strlen(input)), strlen(input));
        e.in = in[0];
    }
    close(in[1]);
    e.out = out[1];
    e.err = err[1];
    e.wake = -1;
    result.r = agent_exec(fd, &e, &result.status, why, sizeof(why));
    close(out[1]);
    close(err[1]);
    close(in[0]);
    close(fd);
    drain(out[0], result.out, sizeof(result.out));
    drain(err[0], result.err, sizeof(result.err));
    close(out[0]);
    close(err[0]);
    while (waitpid(-1, NULL, WNOHANG) > 0)
        ;
    return result;
}

static struct result run_shell(const char *script)
{
    const char *const argv[] = {"sh", "-c", script, NULL};

    return run_with((struct agent_exec){.argv = argv}, NULL);
}

static void output_and_status_come_back(void **state)
{
    struct result r = run_shell("echo one; echo two >&2; exit 7");

    assert_int_equal(r.r, 0);
    assert_string_equal(r.out, "one\n");
    assert_string_equal(r.err, "two\n");
    assert_int_equal(r.status.kind, EXIT_STATUS);
    assert_int_equal(agent_exit_code(&r.status), 7);
}

static void death_by_a_signal_is_128_and_its_number(void **state)
{
    struct result r = run_shell("kill -KILL $$");

    assert_int_equal(r.status.kind, EXIT_SIGNAL);
    assert_int_equal(agent_exit_code(&r.status), 128 + SIGKILL);
}

static void what_cannot_begin_is_126_or_127(void **state)
{
    const char *const missing[] = {"/no/such/command", NULL}, *const directory[] = {"/", NULL},
                      *const good[] = {"true", NULL};
    struct result r = run_with((struct agent_exec){.argv = missing}, NULL);

    assert_int_equal(r.r, 0);
    assert_int_equal(agent_exit_code(&r.status), 127);
    assert_non_null(strstr(r.status.message, "/no/such/command"));
    r = run_with((struct agent_exec){.argv = directory}, NULL);
    assert_int_equal(agent_exit_code(&r.status), 126);
    r = run_with((struct agent_exec){.argv = good, .directory = "/no/such/directory"}, NULL);
    assert_int_equal(agent_exit_code(&r.status), 126);
    assert_non_null(strstr(r.status.message, "/no/such/directory"));
    r = run_with((struct agent_exec){.argv = good, .user = "nobody-of-this-name"}, NULL);
    assert_int_equal(agent_exit_code(&r.status), 126);
    assert_non_null(strstr(r.status.message, "nobody-of-this-name"));
}

static void environment_and_directory_are_the_requests(void **state)
{
    const char *const argv[] = {"sh", "-c", "echo $A $B $HOME $PATH; pwd", NULL};
    const char *const environment[] = {"A=1", "B=two words", "HOME=/elsewhere", NULL};
    struct result r = run_with((struct agent_exec){.argv = argv, .environment = environment, .directory = "/usr"},
                               NULL);

    assert_string_equal(r.out,
                        "1 two words /elsewhere /usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin\n/usr\n");
}

static void another_user_is_one(void **state)
{
    const char *const argv[] = {"sh", "-c", "id -u; id -g; echo $USER", NULL};

    if (geteuid() != 0)
        skip();
    struct result r = run_with((struct agent_exec){.argv = argv, .user = "65534:12"}, NULL);
    assert_string_equal(r.out, "65534\n12\nnobody\n");
    r = run_with((struct agent_exec){.argv = argv, .user = "4321"}, NULL); /* in no file */
    assert_string_equal(r.out, "4321\n4321\n4321\n");
}

static void a_login_shell_is_the_users(void **state)
{
    const char *const argv[] = {"-c", "echo $0", NULL};

    if (geteuid() != 0)
        skip();
    struct result r = run_with((struct agent_exec){.argv = argv, .login = true, .user = "4321"}, NULL);
    assert_string_equal(r.out, "-sh\n");
}

static void input_arrives_with_its_end(void **state)
{
    const char *const argv[] = {"cat", NULL};
    struct result r = run_with((struct agent_exec){.argv = argv}, "some\ninput");

    assert_string_equal(r.out, "some\ninput");
    r = run_with((struct agent_exec){.argv = argv}, "");
    assert_string_equal(r.out, "");
    assert_int_equal(agent_exit_code(&r.status), 0);
    r = run_with((struct agent_exec){.argv = argv}, NULL); /* an empty file */
    assert_int_equal(agent_exit_code(&r.status), 0);
}

/* In a child: fd as descriptor 0, and no other that would hold a pipe open. */
static int keep_only(int fd)
{
    dup2(fd, 0);
    close_range(3, ~0u, 0);
    return 0;
}

/* A process that writes `total` bytes of a pattern to fd. */
static pid_t start_writer(int fd, size_t total)
{
    pid_t pid = fork();

    if (pid == 0) {
        uint32_t block[1024];
        signal(SIGPIPE, SIG_DFL);
        fd = keep_only(fd);
        for (size_t i = 0; i < total / sizeof(block); i++) {
            for (unsigned k = 0; k < 1024; k++)
                block[k] = (uint32_t)(i * 1024 + k);
            if (write(fd, block, sizeof(block)) != sizeof(block))
                _exit(1);
        }
        _exit(0);
    }
    return pid;
}

/* A process that checks the pattern, slowly if told so. */
static pid_t start_checker(int fd, size_t total, unsigned pause_us)
{
    pid_t pid = fork();

    if (pid == 0) {
        uint32_t next = 0, block[4096];
        size_t have = 0;
        ssize_t n;
        fd = keep_only(fd);
        while ((n = read(fd, (char *)block + have, sizeof(block) - have)) > 0) {
            have += (size_t)n;
            for (size_t k = 0; k < have / 4; k++)
                if (block[k] != next++)
                    _exit(1);
            memmove(block, (char *)block + have / 4 * 4, have % 4);
            have %= 4;
            usleep(pause_us);
        }
        _exit((size_t)next * 4 == total ? 0 : 2);
    }
    return pid;
}

static int status_of(pid_t pid)
{
    int status = -1;

    assert_int_equal(waitpid(pid, &status, 0), pid);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

static void copy_through(const char *script, size_t total, unsigned pause_us, bool to_err)
{
    const char *const argv[] = {"sh", "-c", script, NULL};
    int in[2], out[2], null = open("/dev/null", O_WRONLY | O_CLOEXEC), fd = agent_start(NULL);
    struct agent_status status;

    assert_int_equal(pipe2(in, O_CLOEXEC) | pipe2(out, O_CLOEXEC), 0);
    pid_t writer = start_writer(in[1], total);
    close(in[1]);
    pid_t checker = start_checker(out[0], total, pause_us);
    const struct agent_exec e = {
        .argv = argv, .in = in[0], .out = to_err ? null : out[1], .err = to_err ? out[1] : null, .wake = -1};
    assert_int_equal(agent_exec(fd, &e, &status, why, sizeof(why)), 0);
    close(out[1]);
    close(out[0]);
    close(in[0]);
    close(fd);
    close(null);
    assert_int_equal(agent_exit_code(&status), 0);
    assert_int_equal(status_of(writer), 0);
    assert_int_equal(status_of(checker), 0);
    waitpid(-1, NULL, 0);
}

static void much_data_goes_both_ways_at_once(void **state)
{
    copy_through("cat", 64u << 20, 0, false);
    copy_through("cat >&2", 8u << 20, 0, true);
}

static void a_slow_reader_gets_everything(void **state)
{
    copy_through("cat", 2u << 20, 1000, false);
}

/* More than pipes and windows hold is written to one output while the other is not read at all. */
static void outputs_do_not_wait_for_each_other(void **state)
{
    const char *const argv[] = {"sh", "-c", "head -c 150000 /dev/zero >&2 & head -c 8000000 /dev/zero; wait", NULL};
    int out[2], err[2], fd = agent_start(NULL);
    struct agent_status status;

    assert_int_equal(pipe2(out, O_CLOEXEC) | pipe2(err, O_CLOEXEC), 0);
    pid_t pid = fork();
    if (pid == 0) { /* reads all of out before it looks at err */
        static char buffer[16384];
        size_t n_out = 0, n_err = 0;
        ssize_t n;
        close(out[1]);
        close(err[1]);
        while (n_out < 8000000 && (n = read(out[0], buffer, sizeof(buffer))) > 0)
            n_out += (size_t)n;
        while ((n = read(err[0], buffer, sizeof(buffer))) > 0)
            n_err += (size_t)n;
        _exit(n_out == 8000000 && n_err == 150000 ? 0 : 1);
    }
    const struct agent_exec e = {.argv = argv, .in = -1, .out = out[1], .err = err[1], .wake = -1};
    assert_int_equal(agent_exec(fd, &e, &status, why, sizeof(why)), 0);
    close(out[1]);
    close(err[1]);
    assert_int_equal(status_of(pid), 0);
    close(out[0]);
    close(err[0]);
    close(fd);
    waitpid(-1, NULL, 0);
}

static void input_that_nobody_reads_stops_nothing(void **state)
{
    const char *const argv[] = {"sh", "-c", "head -c 4; exec 0</dev/null; echo end", NULL};
    int in[2], out[2], fd = agent_start(NULL);
    struct agent_status status;
    char text[64];

    assert_int_equal(pipe2(in, O_CLOEXEC) | pipe2(out, O_CLOEXEC), 0);
    pid_t writer = start_writer(in[1], 1u << 30);
    close(in[1]);
    const struct agent_exec e = {.argv = argv, .in = in[0], .out = out[1], .err = -1, .wake = -1};
    assert_int_equal(agent_exec(fd, &e, &status, why, sizeof(why)), 0);
    assert_int_equal(agent_exit_code(&status), 0);
    close(out[1]);
    assert_int_equal(drain(out[0], text, sizeof(text)), 8);
    assert_string_equal(text + 4, "end\n");
    close(in[0]); /* the writer gets SIGPIPE */
    assert_int_equal(status_of(writer), -1);
    close(out[0]);
    close(fd);
    waitpid(-1, NULL, 0);
}

static void a_reader_that_leaves_ends_the_writer(void **state)
{
    const char *const argv[] = {"yes", NULL};
    int out[2], fd = agent_start(NULL);
    struct agent_status status;

    assert_int_equal(pipe2(out, O_CLOEXEC), 0);
    pid_t reader = fork();
    if (reader == 0) {
        char c;
        _exit(read(keep_only(out[0]), &c, 1) == 1 ? 0 : 1);
    }
    close(out[0]);
    const struct agent_exec e = {.argv = argv, .in = -1, .out = out[1], .err = -1, .wake = -1};
    assert_int_equal(agent_exec(fd, &e, &status, why, sizeof(why)), 0);
    assert_int_equal(agent_exit_code(&status), 128 + SIGPIPE);
    close(out[1]);
    close(fd);
    assert_int_equal(status_of(reader), 0);
    waitpid(-1, NULL, 0);
}

static void background_children_do_not_hold_the_session(void **state)
{
    double begin = seconds();
    struct result r = run_shell("sleep 20 & echo here");

    assert_string_equal(r.out, "here\n");
    assert_int_equal(agent_exit_code(&r.status), 0);
    assert_true(seconds() - begin < 5);
    /* One that ends soon still gets its last words through; on a busy host it may not be that soon. */
    for (int i = 0; i < 20; i++) {
        r = run_shell("(sleep 0.05; echo late) & echo here");
        if (!strcmp(r.out, "here\nlate\n"))
            break;
    }
    assert_string_equal(r.out, "here\nlate\n");
}

static void the_last_words_are_never_lost(void **state)
{
    for (int i = 0; i < 20; i++) {
        struct result r = run_shell("head -c 7000 /dev/zero | tr '\\0' x; sleep 20 & exit 3");
        assert_int_equal(strlen(r.out), 7000);
        assert_int_equal(agent_exit_code(&r.status), 3);
    }
}

struct waker {
    int number, times;
};

static int send_signal(void *opaque, struct agent_session *s)
{
    struct waker *w = opaque;

    if (w->times++ == 0)
        agent_session_signal(s, w->number);
    usleep(1000);
    return w->times > 20000 ? -ETIMEDOUT : 0;
}

static void signals_reach_the_command_behind_unread_input(void **state)
{
    /* The command reads nothing: the window is full when the signal is sent. */
    const char *const argv[] = {"sh", "-c", "trap 'echo caught; exit 5' TERM; while :; do sleep 0.01; done", NULL};
    int in[2], out[2], fd = agent_start(NULL), zero = open("/dev/zero", O_RDONLY | O_CLOEXEC);
    struct waker w = {.number = SIGTERM, .times = -200}; /* 0.2 s later: the trap is set */
    struct agent_status status;
    char text[64];

    assert_int_equal(pipe2(in, O_CLOEXEC) | pipe2(out, O_CLOEXEC), 0);
    const struct agent_exec e = {
        .argv = argv, .in = zero, .out = out[1], .err = -1, .wake = zero, .woken = send_signal, .opaque = &w};
    assert_int_equal(agent_exec(fd, &e, &status, why, sizeof(why)), 0);
    assert_int_equal(agent_exit_code(&status), 5);
    close(out[1]);
    drain(out[0], text, sizeof(text));
    assert_string_equal(text, "caught\n");
    close(out[0]);
    close(in[0]);
    close(in[1]);
    close(zero);
    close(fd);
    waitpid(-1, NULL, 0);
}

static int resize(void *opaque, struct agent_session *s)
{
    char c;

    if (read(*(int *)opaque, &c, 1) == 1)
        agent_session_resize(s, 50, 132);
    return 0;
}

static void a_terminal_is_one_and_changes_its_size(void **state)
{
    const char *const argv[] = {"sh", "-c",
                                "test -t 0 && test -t 1 && test -t 2 && stty size; trap 'stty size; exit 4' WINCH; "
                                "while :; do sleep 0.01; done",
                                NULL};
    int out[2], wake[2], fd = agent_start(NULL);
    struct agent_status status;
    char text[128];

    assert_int_equal(pipe2(out, O_CLOEXEC) | pipe2(wake, O_CLOEXEC), 0);
    pid_t later = fork();
    if (later == 0) {
        usleep(300000);
        _exit(write(wake[1], "x", 1) == 1 ? 0 : 1);
    }
    const struct agent_exec e = {.argv = argv,
                                 .tty = true,
                                 .rows = 24,
                                 .columns = 80,
                                 .in = -1,
                                 .out = out[1],
                                 .err = -1,
                                 .wake = wake[0],
                                 .woken = resize,
                                 .opaque = &wake[0]};
    assert_int_equal(agent_exec(fd, &e, &status, why, sizeof(why)), 0);
    assert_int_equal(agent_exit_code(&status), 4);
    close(out[1]);
    drain(out[0], text, sizeof(text));
    assert_string_equal(text, "24 80\r\n50 132\r\n");
    close(out[0]);
    close(wake[0]);
    close(wake[1]);
    close(fd);
    assert_int_equal(status_of(later), 0);
    waitpid(-1, NULL, 0);
}

static void a_terminal_takes_input_and_its_end(void **state)
{
    const char *const argv[] = {"sh", "-c", "stty -echo; echo ready; read a; echo got $a; cat; echo end", NULL};
    struct result r = run_with((struct agent_exec){.argv = argv, .tty = true}, "word\n");

    assert_int_equal(agent_exit_code(&r.status), 0);
    assert_non_null(strstr(r.out, "got word\r\n"));
    assert_non_null(strstr(r.out, "end\r\n"));
}

static void the_command_ends_when_the_host_goes(void **state)
{
    char path[] = "/tmp/guise-agent-XXXXXX", script[128], pid_text[32] = "";
    int file = mkstemp(path);
    pid_t agent;
    int fd = agent_start(&agent);
    struct stream s;

    snprintf(script, sizeof(script), "echo $$ >%s; exec sleep 100", path);
    stream_init(&s, fd);
    stream_begin(&s, FRAME_EXEC);
    stream_text(&s, FIELD_ARGUMENT, "sh");
    stream_text(&s, FIELD_ARGUMENT, "-c");
    stream_text(&s, FIELD_ARGUMENT, script);
    stream_end(&s);
    assert_int_equal(stream_send(&s), 0);
    for (int i = 0; i < 500 && pread(file, pid_text, sizeof(pid_text) - 1, 0) <= 0; i++)
        usleep(10000);
    pid_t pid = atoi(pid_text);
    assert_true(pid > 1);
    stream_release(&s);
    close(fd);
    waitpid(agent, NULL, 0);
    for (int i = 0; i < 500 && kill(pid, 0) == 0; i++)
        usleep(10000);
    assert_int_equal(kill(pid, 0), -1);
    unlink(path);
    close(file);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(output_and_status_come_back),
        cmocka_unit_test(death_by_a_signal_is_128_and_its_number),
        cmocka_unit_test(what_cannot_begin_is_126_or_127),
        cmocka_unit_test(environment_and_directory_are_the_requests),
        cmocka_unit_test(another_user_is_one),
        cmocka_unit_test(a_login_shell_is_the_users),
        cmocka_unit_test(input_arrives_with_its_end),
        cmocka_unit_test(much_data_goes_both_ways_at_once),
        cmocka_unit_test(a_slow_reader_gets_everything),
        cmocka_unit_test(outputs_do_not_wait_for_each_other),
        cmocka_unit_test(input_that_nobody_reads_stops_nothing),
        cmocka_unit_test(a_reader_that_leaves_ends_the_writer),
        cmocka_unit_test(background_children_do_not_hold_the_session),
        cmocka_unit_test(the_last_words_are_never_lost),
        cmocka_unit_test(signals_reach_the_command_behind_unread_input),
        cmocka_unit_test(a_terminal_is_one_and_changes_its_size),
        cmocka_unit_test(a_terminal_takes_input_and_its_end),
        cmocka_unit_test(the_command_ends_when_the_host_goes),
    };
    signal(SIGPIPE, SIG_IGN);
    alarm(50);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
