/*
 * Character backends.  A child process plays guise: it opens a chr on the descriptors the test gives it and
 * echoes what is typed.  The test sits at the other end: a pipe, a file, a socket, a pseudo-terminal.
 */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <pty.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <termios.h>
#include <unistd.h>

#include "backends/chr.h"
#include "host/loop.h"

/* --- the child ------------------------------------------------------------------------------------ */

struct guest {
    struct chr *chr;
    struct loop *loop;
    struct loop_timer timer;
    size_t portion; /* takes this much at a time and asks for more later; 0: everything at once */
};

static size_t echo(void *opaque, const void *data, size_t len)
{
    struct guest *g = opaque;
    size_t take = g->portion && len > g->portion ? g->portion : len;

    chr_write(g->chr, data, take);
    if (g->portion)
        loop_timer_set(g->loop, &g->timer, clock_ns() + 10000);
    return take;
}

static void more(void *opaque)
{
    struct guest *g = opaque;

    chr_resume_input(g->chr);
}

/* Exit status 0: left by Ctrl-] q, or everything was said. */
static int guise_main(const char *spec, size_t portion, size_t to_say)
{
    static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
    struct guest g = {.portion = portion};
    char err[512] = "";

    for (int i = 0; i < 5; i++) /* cmocka has its own ideas about these */
        signal((const int[]){SIGSEGV, SIGBUS, SIGABRT, SIGILL, SIGFPE}[i], SIG_DFL);
    signal(SIGPIPE, SIG_IGN);
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (loop_create(&g.loop, &lock) || chr_open(&g.chr, spec, g.loop, err, sizeof(err))) {
        fprintf(stderr, "%s\n", err);
        return 9;
    }
    loop_timer_init(&g.timer, more, &g);
    if (to_say) {
        char *text = malloc(to_say);
        for (size_t i = 0; i < to_say; i++)
            text[i] = (char)('a' + i % 23);
        chr_write(g.chr, text, to_say);
        free(text);
    } else {
        pthread_mutex_lock(&lock);
        chr_set_input(g.chr, echo, &g);
        pthread_mutex_unlock(&lock);
        loop_run(g.loop);
    }
    int status = to_say || chr_user_left(g.chr) ? 0 : 8;
    chr_close(g.chr);
    loop_destroy(g.loop);
    return status;
}

static pid_t start(int in, int out, const char *spec, size_t portion, size_t to_say)
{
    pid_t pid = fork();

    assert_true(pid >= 0);
    if (pid == 0) {
        dup2(in, 0);
        dup2(out, 1);
        close_range(3, ~0u, 0);
        _exit(guise_main(spec, portion, to_say));
    }
    return pid;
}

static int end(pid_t pid)
{
    int status;

    assert_int_equal(waitpid(pid, &status, 0), pid);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

/* Reads until `len` bytes have come, or the end, or two seconds of silence; returns how many. */
static size_t receive(int fd, char *to, size_t len)
{
    size_t got = 0;

    while (got < len && poll(&(struct pollfd){.fd = fd, .events = POLLIN}, 1, 2000) > 0) {
        ssize_t n = read(fd, to + got, len - got);
        if (n <= 0)
            break;
        got += (size_t)n;
    }
    return got;
}

static bool comes(int fd, const char *text)
{
    char buf[4096] = "";
    size_t n = receive(fd, buf, strlen(text));

    return n == strlen(text) && memcmp(buf, text, n) == 0;
}

/* --- pipes and files ------------------------------------------------------------------------------ */

static void wrong_specs_are_refused(void **state)
{
    static const char *const wrong[] = {
        "", "tty", "file", "file:", "socket", "stdio:x", "null:", "file:/nonexistent/x"};
    pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
    struct loop *loop;

    assert_int_equal(loop_create(&loop, &lock), 0);
    for (size_t i = 0; i < sizeof(wrong) / sizeof(wrong[0]); i++) {
        struct chr *chr;
        char err[256] = "";
        assert_true(chr_open(&chr, wrong[i], loop, err, sizeof(err)) < 0);
        assert_true(strlen(err) > 10);
    }
    loop_destroy(loop);
}

static void a_pipe_is_echoed_whole_although_the_guest_takes_little_at_a_time(void **state)
{
    enum { TOTAL = 100000 };
    static char sent[TOTAL], got[TOTAL];
    int in[2], out[2];

    for (int i = 0; i < TOTAL; i++)
        sent[i] = (char)(i * 7 + i / 251);
    assert_int_equal(pipe2(in, O_CLOEXEC) | pipe2(out, O_CLOEXEC), 0);
    pid_t guise = start(in[0], out[1], "stdio", 500, 0);
    close(in[0]);
    close(out[1]);
    pid_t writer = fork();
    if (writer == 0)
        _exit(write(in[1], sent, TOTAL) == TOTAL ? 0 : 1);
    close(in[1]);
    assert_int_equal(receive(out[0], got, TOTAL), TOTAL);
    assert_memory_equal(sent, got, TOTAL);
    assert_int_equal(end(writer), 0);
    /* End of file of its input is not the guest's end. */
    assert_int_equal(waitpid(guise, NULL, WNOHANG), 0);
    kill(guise, SIGTERM);
    assert_int_equal(end(guise), 128 + SIGTERM);
    close(out[0]);
}

static void control_bracket_in_a_pipe_is_data(void **state)
{
    int in[2], out[2];

    assert_int_equal(pipe2(in, O_CLOEXEC) | pipe2(out, O_CLOEXEC), 0);
    pid_t guise = start(in[0], out[1], "stdio", 0, 0);
    assert_int_equal(write(in[1], "a\x1dqb", 4), 4);
    assert_true(comes(out[0], "a\x1dqb"));
    kill(guise, SIGKILL);
    end(guise);
    close(in[0]), close(in[1]), close(out[0]), close(out[1]);
}

static void a_regular_file_can_be_stdin(void **state)
{
    char text[9000], got[9000];
    int out[2], file = memfd_create("stdin", MFD_CLOEXEC);

    for (size_t i = 0; i < sizeof(text); i++)
        text[i] = (char)(i / 3);
    assert_int_equal(write(file, text, sizeof(text)), sizeof(text));
    lseek(file, 0, SEEK_SET);
    assert_int_equal(pipe2(out, O_CLOEXEC), 0);
    pid_t guise = start(file, out[1], "stdio", 700, 0);
    assert_int_equal(receive(out[0], got, sizeof(got)), sizeof(got));
    assert_memory_equal(text, got, sizeof(got));
    kill(guise, SIGKILL);
    end(guise);
    close(file), close(out[0]), close(out[1]);
}

static void a_slow_reader_of_a_non_blocking_stdout_loses_nothing(void **state)
{
    enum { TOTAL = 3 << 20 };
    char *got = malloc(TOTAL);
    int out[2], null = open("/dev/null", O_RDWR | O_CLOEXEC);

    assert_int_equal(pipe2(out, O_CLOEXEC), 0);
    fcntl(out[1], F_SETFL, O_NONBLOCK);
    pid_t guise = start(null, out[1], "stdio", 0, TOTAL);
    close(out[1]);
    usleep(200000); /* its queue and the pipe fill up */
    assert_int_equal(receive(out[0], got, TOTAL), TOTAL);
    for (size_t i = 0; i < TOTAL; i++)
        if (got[i] != (char)('a' + i % 23))
            fail_msg("byte %zu is wrong", i);
    assert_int_equal(end(guise), 0);
    free(got);
    close(out[0]), close(null);
}

static void a_reader_that_leaves_does_not_stop_the_guest(void **state)
{
    int out[2], null = open("/dev/null", O_RDWR | O_CLOEXEC);

    assert_int_equal(pipe2(out, O_CLOEXEC), 0);
    close(out[0]);
    pid_t guise = start(null, out[1], "stdio", 0, 5 << 20);
    assert_int_equal(end(guise), 0);
    close(out[1]), close(null);
}

static void a_file_is_appended_to(void **state)
{
    char path[] = "/tmp/guise-test-XXXXXX", spec[64], got[64];
    int null = open("/dev/null", O_RDWR | O_CLOEXEC), fd = mkstemp(path);

    assert_int_equal(write(fd, "before:", 7), 7);
    snprintf(spec, sizeof(spec), "file:%s", path);
    assert_int_equal(end(start(null, null, spec, 0, 10)), 0);
    lseek(fd, 0, SEEK_SET);
    assert_int_equal(read(fd, got, sizeof(got)), 17);
    assert_memory_equal(got, "before:abcdefghij", 17);
    unlink(path);
    close(fd), close(null);
}

static void a_full_disk_is_reported_and_survived(void **state)
{
    int null = open("/dev/null", O_RDWR | O_CLOEXEC);

    assert_int_equal(end(start(null, null, "file:/dev/full", 0, 100000)), 0);
    close(null);
}

/* --- sockets -------------------------------------------------------------------------------------- */

static int connect_to(const char *path)
{
    struct sockaddr_un a = {.sun_family = AF_UNIX};
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

    snprintf(a.sun_path, sizeof(a.sun_path), "%s", path);
    for (int i = 0; i < 200; i++) {
        if (connect(fd, (struct sockaddr *)&a, sizeof(a)) == 0)
            return fd;
        usleep(10000);
    }
    close(fd);
    return -1;
}

static void a_socket_serves_one_client_after_the_other(void **state)
{
    char dir[] = "/tmp/guise-test-XXXXXX", path[64], spec[80];
    int null = open("/dev/null", O_RDWR | O_CLOEXEC);

    assert_non_null(mkdtemp(dir));
    snprintf(path, sizeof(path), "%s/console", dir);
    snprintf(spec, sizeof(spec), "socket:%s", path);
    /* Twice: the second finds the file that the first, killed, left behind. */
    for (int round = 0; round < 2; round++) {
        pid_t guise = start(null, null, spec, 3, 0);
        int first = connect_to(path);
        assert_true(first >= 0);
        assert_int_equal(write(first, "hello, guest", 12), 12);
        assert_true(comes(first, "hello, guest"));
        int second = connect_to(path); /* waits its turn */
        assert_int_equal(write(second, "next", 4), 4);
        char byte;
        assert_int_equal(recv(second, &byte, 1, MSG_DONTWAIT), -1);
        close(first);
        assert_true(comes(second, "next"));
        /* A client that stops sending still gets what it sent before. */
        assert_int_equal(write(second, "last words", 10), 10);
        shutdown(second, SHUT_WR);
        assert_true(comes(second, "last words"));
        close(second);
        struct stat st;
        assert_int_equal(stat(path, &st), 0);
        assert_int_equal(st.st_mode & 0777, 0600);
        kill(guise, SIGKILL);
        end(guise);
    }
    unlink(path);
    rmdir(dir);
    close(null);
}

static void a_socket_in_use_is_refused(void **state)
{
    char dir[] = "/tmp/guise-test-XXXXXX", path[64], spec[80];
    int null = open("/dev/null", O_RDWR | O_CLOEXEC);

    assert_non_null(mkdtemp(dir));
    snprintf(path, sizeof(path), "%s/console", dir);
    snprintf(spec, sizeof(spec), "socket:%s", path);
    pid_t guise = start(null, null, spec, 0, 0);
    int client = connect_to(path);
    assert_int_equal(end(start(null, null, spec, 0, 0)), 9);
    close(client);
    kill(guise, SIGKILL);
    end(guise);
    unlink(path);
    rmdir(dir);
    close(null);
}

/* --- terminals ------------------------------------------------------------------------------------ */

struct tty {
    int master, slave;
    struct termios before;
    pid_t shell; /* leads the session and holds the terminal in the foreground for guise */
    pid_t guise;
    int status; /* pipe: the shell tells guise's pid, then how it ended */
};

/* The "shell": a session leader that starts guise in a group of its own, in the foreground, and waits. */
static void shell_main(struct tty *t, int report)
{
    int status;

    setsid();
    ioctl(t->slave, TIOCSCTTY, 0);
    signal(SIGTTOU, SIG_IGN);
    signal(SIGHUP, SIG_IGN);
    pid_t guise = fork();
    if (guise == 0) {
        setpgid(0, 0);
        tcsetpgrp(t->slave, getpid());
        signal(SIGTTOU, SIG_DFL);
        signal(SIGHUP, SIG_DFL);
        dup2(t->slave, 0), dup2(t->slave, 1);
        close_range(3, ~0u, 0);
        _exit(guise_main("stdio", 0, 0));
    }
    if (write(report, &guise, sizeof(guise)) != sizeof(guise))
        _exit(1);
    while (waitpid(guise, &status, WUNTRACED) == guise)
        if (write(report, &status, sizeof(status)) != sizeof(status) || !WIFSTOPPED(status))
            break;
    pause();
}

static bool is_raw(const struct tty *t)
{
    struct termios now;

    tcgetattr(t->slave, &now);
    return !(now.c_lflag & (ICANON | ECHO | ISIG)) && !(now.c_oflag & OPOST);
}

static bool is_set_as(const struct tty *t, const struct termios *wanted)
{
    struct termios now;

    tcgetattr(t->slave, &now);
    return now.c_iflag == wanted->c_iflag && now.c_oflag == wanted->c_oflag && now.c_cflag == wanted->c_cflag &&
           now.c_lflag == wanted->c_lflag && memcmp(now.c_cc, wanted->c_cc, sizeof(now.c_cc)) == 0;
}

static bool is_as_before(const struct tty *t)
{
    return is_set_as(t, &t->before);
}

static bool soon(bool (*test)(const struct tty *), const struct tty *t)
{
    for (int i = 0; i < 300; i++) {
        if (test(t))
            return true;
        usleep(10000);
    }
    return false;
}

static void tty_start(struct tty *t)
{
    int report[2];

    assert_int_equal(openpty(&t->master, &t->slave, NULL, NULL, NULL), 0);
    tcgetattr(t->slave, &t->before);
    assert_int_equal(pipe2(report, O_CLOEXEC), 0);
    t->shell = fork();
    if (t->shell == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        shell_main(t, report[1]);
        _exit(0);
    }
    close(report[1]);
    t->status = report[0];
    assert_int_equal(read(t->status, &t->guise, sizeof(t->guise)), sizeof(t->guise));
    assert_true(soon(is_raw, t));
}

static int tty_wait(struct tty *t)
{
    int status = -1;

    assert_int_equal(receive(t->status, (char *)&status, sizeof(status)), sizeof(status));
    return status;
}

static void tty_end(struct tty *t)
{
    kill(t->guise, SIGKILL);
    kill(t->shell, SIGKILL);
    end(t->shell);
    close(t->master), close(t->slave), close(t->status);
}

static void escape_q_leaves_and_restores(void **state)
{
    struct tty t;

    tty_start(&t);
    assert_int_equal(write(t.master,
                           "a\003\032\x1d\x1d"
                           "b",
                           6),
                     6); /* Ctrl-C and Ctrl-Z are the guest's */
    assert_true(comes(t.master, "a\003\032\x1d"
                                "b"));
    assert_int_equal(write(t.master, "\x1dx", 2), 2);
    assert_true(comes(t.master, "\x1dx"));
    assert_int_equal(write(t.master, "\x1d", 1), 1); /* the two keys may come apart */
    usleep(50000);
    assert_int_equal(write(t.master, "q", 1), 1);
    int status = tty_wait(&t);
    assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    assert_true(is_as_before(&t)); /* at once: before the parent knows of the end */
    tty_end(&t);
}

static void every_signal_that_kills_leaves_the_terminal_as_it_was(void **state)
{
    static const int signals[] = {SIGINT, SIGTERM, SIGHUP, SIGQUIT, SIGSEGV, SIGABRT, SIGKILL, SIGBUS};

    for (size_t i = 0; i < sizeof(signals) / sizeof(signals[0]); i++) {
        struct tty t;
        tty_start(&t);
        kill(t.guise, signals[i]);
        int status = tty_wait(&t);
        assert_true(WIFSIGNALED(status) && WTERMSIG(status) == signals[i]);
        if (!soon(is_as_before, &t))
            fail_msg("the terminal is not restored after signal %d", signals[i]);
        tty_end(&t);
    }
}

static void killing_the_whole_group_leaves_the_terminal_as_it_was(void **state)
{
    struct tty t;

    tty_start(&t);
    kill(-t.guise, SIGKILL);
    tty_wait(&t);
    assert_true(soon(is_as_before, &t));
    tty_end(&t);
}

static void settings_of_a_shell_that_has_taken_over_are_left_alone(void **state)
{
    struct tty t;
    struct termios shells;

    tty_start(&t);
    shells = t.before;
    shells.c_lflag &= ~(tcflag_t)ECHO;
    tcsetattr(t.slave, TCSANOW, &shells);
    kill(t.guise, SIGKILL);
    tty_wait(&t);
    usleep(200000);
    assert_true(is_set_as(&t, &shells));
    tty_end(&t);
}

static void stopping_restores_and_continuing_is_raw_again(void **state)
{
    struct tty t;

    tty_start(&t);
    kill(t.guise, SIGTSTP);
    assert_true(WIFSTOPPED(tty_wait(&t)));
    assert_true(is_as_before(&t));
    kill(t.guise, SIGCONT);
    assert_true(soon(is_raw, &t));
    assert_int_equal(write(t.master, "here", 4), 4);
    assert_true(comes(t.master, "here"));
    /* SIGSTOP cannot be caught: the shell sets the terminal, and guise makes it raw again afterwards. */
    kill(t.guise, SIGSTOP);
    assert_true(WIFSTOPPED(tty_wait(&t)));
    tcsetattr(t.slave, TCSANOW, &t.before);
    kill(t.guise, SIGCONT);
    assert_true(soon(is_raw, &t));
    kill(t.guise, SIGTERM);
    assert_true(WIFSIGNALED(tty_wait(&t)));
    assert_true(soon(is_as_before, &t));
    tty_end(&t);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(wrong_specs_are_refused),
        cmocka_unit_test(a_pipe_is_echoed_whole_although_the_guest_takes_little_at_a_time),
        cmocka_unit_test(control_bracket_in_a_pipe_is_data),
        cmocka_unit_test(a_regular_file_can_be_stdin),
        cmocka_unit_test(a_slow_reader_of_a_non_blocking_stdout_loses_nothing),
        cmocka_unit_test(a_reader_that_leaves_does_not_stop_the_guest),
        cmocka_unit_test(a_file_is_appended_to),
        cmocka_unit_test(a_full_disk_is_reported_and_survived),
        cmocka_unit_test(a_socket_serves_one_client_after_the_other),
        cmocka_unit_test(a_socket_in_use_is_refused),
        cmocka_unit_test(escape_q_leaves_and_restores),
        cmocka_unit_test(every_signal_that_kills_leaves_the_terminal_as_it_was),
        cmocka_unit_test(killing_the_whole_group_leaves_the_terminal_as_it_was),
        cmocka_unit_test(settings_of_a_shell_that_has_taken_over_are_left_alone),
        cmocka_unit_test(stopping_restores_and_continuing_is_raw_again),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
