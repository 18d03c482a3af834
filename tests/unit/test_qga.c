/* QEMU's guest agent: with the real one, as an ordinary process, and with one that is hostile. */
#include "agent_fixture.h"

#include <fcntl.h>
#include <sys/un.h>

#include "agent/qga.h"

static char why[ERROR_SIZE], work[] = "/tmp/guise-qga-XXXXXX";
static pid_t agent;

static int connect_agent(void)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

    snprintf(address.sun_path, sizeof(address.sun_path), "%s/sock", work);
    for (int i = 0; i < 500; i++) {
        if (connect(fd, (struct sockaddr *)&address, sizeof(address)) == 0)
            return fd;
        usleep(10000);
    }
    return -1;
}

/* qemu-ga takes one connection after the other: it is started once. */
static int start_agent(void **state)
{
    char socket_path[64], state_path[64], pid_path[64];

    if (!mkdtemp(work) || access("/usr/sbin/qemu-ga", X_OK))
        return 0;
    snprintf(socket_path, sizeof(socket_path), "%s/sock", work);
    snprintf(state_path, sizeof(state_path), "%s", work);
    snprintf(pid_path, sizeof(pid_path), "%s/pid", work);
    agent = fork();
    if (agent == 0) {
        int null = open("/dev/null", O_RDWR);
        dup2(null, 1);
        dup2(null, 2);
        execl("/usr/sbin/qemu-ga", "qemu-ga", "-m", "unix-listen", "-p", socket_path, "-t", state_path, "-f", pid_path,
              NULL);
        _exit(127);
    }
    return 0;
}

static int stop_agent(void **state)
{
    char command[64];

    if (agent > 0) {
        kill(agent, SIGKILL);
        waitpid(agent, NULL, 0);
    }
    snprintf(command, sizeof(command), "rm -rf %s", work);
    return system(command);
}

static int open_agent(struct qga *q)
{
    if (agent <= 0)
        skip();
    int fd = connect_agent();
    assert_true(fd >= 0);
    assert_int_equal(qga_open(q, fd, why, sizeof(why)), 0);
    return fd;
}

static struct agent_status run(const char *script, const char *input, const char *directory, char out[4096])
{
    const char *const argv[] = {"sh", "-c", script, NULL};
    struct agent_status status;
    struct qga q;
    int pipe_out[2], in[2], fd = open_agent(&q);

    assert_int_equal(pipe2(pipe_out, O_CLOEXEC) | pipe2(in, O_CLOEXEC), 0);
    if (input)
        assert_int_equal(write(in[1], input, strlen(input)), strlen(input));
    close(in[1]);
    const struct qga_exec e = {.argv = argv,
                               .directory = directory,
                               .in = input ? in[0] : -1,
                               .out = pipe_out[1],
                               .err = pipe_out[1],
                               .wake = -1};
    assert_int_equal(qga_exec(&q, &e, &status, why, sizeof(why)), 0);
    close(pipe_out[1]);
    drain(pipe_out[0], out, 4096);
    close(pipe_out[0]);
    close(in[0]);
    qga_close(&q);
    close(fd);
    return status;
}

static void commands_run(void **state)
{
    char out[4096];
    struct agent_status s = run("echo one; echo two >&2; exit 7", NULL, NULL, out);

    assert_int_equal(agent_exit_code(&s), 7);
    assert_string_equal(out, "one\ntwo\n");
    s = run("cat; pwd", "some input\n", "/usr", out);
    assert_int_equal(agent_exit_code(&s), 0);
    assert_string_equal(out, "some input\n/usr\n");
    s = run("kill -TERM $$", NULL, NULL, out);
    assert_int_equal(agent_exit_code(&s), 128 + SIGTERM);
}

static void a_command_that_is_not_there_is_127(void **state)
{
    const char *const argv[] = {"/no/such/thing", NULL};
    const struct qga_exec e = {.argv = argv, .in = -1, .out = -1, .err = -1, .wake = -1};
    struct agent_status status;
    struct qga q;
    int fd = open_agent(&q);

    assert_int_equal(qga_exec(&q, &e, &status, why, sizeof(why)), 0);
    assert_int_equal(agent_exit_code(&status), 127);
    qga_close(&q);
    close(fd);
}

static int one_signal(void *opaque)
{
    char c;

    return read(*(int *)opaque, &c, 1) == 1 ? SIGINT : 0;
}

static void a_signal_ends_it(void **state)
{
    const char *const argv[] = {"sleep", "30", NULL};
    struct agent_status status;
    struct qga q;
    int wake[2], fd = open_agent(&q);

    assert_int_equal(pipe2(wake, O_CLOEXEC), 0);
    assert_int_equal(write(wake[1], "x", 1), 1);
    const struct qga_exec e = {
        .argv = argv, .in = -1, .out = -1, .err = -1, .wake = wake[0], .woken = one_signal, .opaque = &wake[0]};
    assert_int_equal(qga_exec(&q, &e, &status, why, sizeof(why)), 0);
    assert_int_equal(agent_exit_code(&status), 128 + SIGINT);
    qga_close(&q);
    close(fd);
    close(wake[0]);
    close(wake[1]);
}

static void files_go_in_and_out(void **state)
{
    char path[64], command[160];
    struct qga q;
    int fd = open_agent(&q), file;

    snprintf(command, sizeof(command), "cd %s && head -c 300001 /dev/urandom >source && : >empty", work);
    assert_int_equal(system(command), 0);
    static const char *const names[] = {"source", "empty"};
    for (int i = 0; i < 2; i++) {
        snprintf(path, sizeof(path), "%s/%s", work, names[i]);
        file = open(path, O_RDONLY);
        snprintf(path, sizeof(path), "%s/there", work);
        assert_int_equal(qga_write_file(&q, file, path, why, sizeof(why)), 0);
        close(file);
        char back[64];
        snprintf(back, sizeof(back), "%s/back", work);
        file = open(back, O_WRONLY | O_CREAT | O_TRUNC, 0600);
        assert_int_equal(qga_read_file(&q, path, file, why, sizeof(why)), 0);
        close(file);
        snprintf(command, sizeof(command), "cd %s && cmp %s there && cmp there back", work, names[i]);
        assert_int_equal(system(command), 0);
    }
    assert_int_equal(qga_read_file(&q, "/no/such/file", 1, why, sizeof(why)), -ENOENT);
    qga_close(&q);
    close(fd);
}

/* Answers each line of ours by the next line of a script; the first, of the synchronization, by what was asked. */
static void play(int fd, const void *data)
{
    const char *const *answers = data;
    char line[4096], c;
    size_t len = 0;
    long long id;

    signal(SIGPIPE, SIG_IGN);
    while (read(fd, &c, 1) == 1) {
        line[len++] = c;
        if (c != '\n' && len < sizeof(line) - 1)
            continue;
        line[len] = 0;
        len = 0;
        const char *at = strstr(line, "\"id\":");
        if (at && sscanf(at + 5, "%lld", &id) == 1)
            dprintf(fd, "{\"return\": 1}\nrubbish\n\xff{\"return\": %lld}\n", id);
        else if (*answers)
            dprintf(fd, "%s\n", *answers++);
        else
            return;
    }
}

static int run_against(const char *const *answers, struct agent_status *status)
{
    const char *const argv[] = {"x", NULL};
    const struct qga_exec e = {.argv = argv, .in = -1, .out = -1, .err = -1, .wake = -1};
    struct qga q;
    int fd = fake_guest(play, answers);

    assert_int_equal(qga_open(&q, fd, why, sizeof(why)), 0); /* what came first was not for us */
    int r = qga_exec(&q, &e, status, why, sizeof(why));
    qga_close(&q);
    close(fd);
    wait(NULL);
    return r;
}

static void a_hostile_agent_is_an_error(void **state)
{
    static const struct {
        const char *answers[3];
        int r;
    } cases[] = {
        {{"{\"return\": {\"pid\": 1}}", "{\"return\": {\"exited\": true, \"exitcode\": 3}}", NULL}, 0},
        {{"{\"return\": {\"pid\": 1}}", "{\"return\": {\"exited\": true, \"exitcode\": 300}}", NULL}, -EPROTO},
        {{"{\"return\": {\"pid\": 1}}", "{\"return\": {\"exited\": true, \"signal\": -1}}", NULL}, -EPROTO},
        {{"{\"return\": {\"pid\": 1}}", "{\"return\": {\"exited\": true, \"out-truncated\": true}}", NULL}, -EFBIG},
        {{"[]", NULL}, -EPROTO},
        {{"{", NULL}, -EPROTO},
        {{"", NULL}, -EPROTO},
        {{"{\"return\": {\"pid\": 1}}", "{\"nothing\": 1}", NULL}, -EPROTO},
        {{"{\"return\": {\"pid\": 1}}", NULL}, -ECONNRESET},
        {{NULL}, -ECONNRESET},
    };
    struct agent_status status;

    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++)
        assert_int_equal(run_against(cases[i].answers, &status), cases[i].r);

    static const char *const told[] = {"{\"error\": {\"desc\": \"no\\u001b[2J\"}}", NULL};
    assert_int_equal(run_against(told, &status), 0);
    assert_int_equal(agent_exit_code(&status), 126);
    assert_non_null(strstr(status.message, "no?[2J"));
}

static void answer_broken_base64(int fd, const void *data)
{
    static const char *const answers[] = {"{\"return\": 1}",
                                          "{\"return\": {\"count\": 4, \"buf-b64\": \"a===b\", \"eof\": true}}",
                                          "{\"return\": {}}", NULL};
    play(fd, answers);
}

static void answer_without_end(int fd, const void *data)
{
    static const char *const answers[] = {
        "{\"return\": 1}", "{\"return\": {\"count\": 0, \"buf-b64\": \"\", \"eof\": false}}", "{\"return\": {}}", NULL};
    play(fd, answers);
}

static void a_hostile_file_is_an_error(void **state)
{
    void (*const plays[])(int fd, const void *data) = {answer_broken_base64, answer_without_end};

    for (int i = 0; i < 2; i++) {
        struct qga q;
        int fd = fake_guest(plays[i], NULL);
        assert_int_equal(qga_open(&q, fd, why, sizeof(why)), 0);
        assert_int_equal(qga_read_file(&q, "/x", 1, why, sizeof(why)), -EPROTO);
        qga_close(&q);
        close(fd);
        wait(NULL);
    }
}

static void play_nothing(int fd, const void *data)
{
    char c;

    while (read(fd, &c, 1) == 1)
        ;
}

static void silence_ends(void **state)
{
    double begin = seconds();
    struct qga q;
    int fd = fake_guest(play_nothing, NULL);

    assert_int_equal(qga_open(&q, fd, why, sizeof(why)), -ETIMEDOUT);
    assert_true(seconds() - begin < 15);
    close(fd);
    wait(NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(commands_run),
        cmocka_unit_test(a_command_that_is_not_there_is_127),
        cmocka_unit_test(a_signal_ends_it),
        cmocka_unit_test(files_go_in_and_out),
        cmocka_unit_test(a_hostile_agent_is_an_error),
        cmocka_unit_test(a_hostile_file_is_an_error),
        cmocka_unit_test(silence_ends),
    };
    signal(SIGPIPE, SIG_IGN);
    alarm(50);
    return cmocka_run_group_tests(tests, start_agent, stop_agent);
}
