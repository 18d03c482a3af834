/* `guise console`: the serial console of a VM that runs, in this terminal. */
#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "backends/chr.h"
#include "base/error.h"
#include "base/log.h"
#include "cli/life.h"
#include "host/loop.h"

const struct option_spec console_options[] = {{0}};

struct session {
    struct loop *loop;
    struct chr *chr; /* this terminal */
    int fd;          /* the VM's console */
    bool full;       /* fd takes no more for now */
    bool ended;      /* the other end has closed */
};

static void on_socket(void *opaque, uint32_t events);

static void watch(struct session *s, bool full)
{
    s->full = full;
    loop_fd_mod(s->loop, s->fd, EPOLLIN | (full ? EPOLLOUT : 0));
}

/* Typed here, to the VM.  Returns how much went. */
static size_t typed(void *opaque, const void *data, size_t len)
{
    struct session *s = opaque;
    ssize_t n = s->full ? 0 : send(s->fd, data, len, MSG_DONTWAIT | MSG_NOSIGNAL);

    if (n < 0 && errno != EAGAIN)
        return len; /* it has gone: on_socket sees that, too */
    if (n < (ssize_t)len)
        watch(s, true);
    return n < 0 ? 0 : (size_t)n;
}

static void on_socket(void *opaque, uint32_t events)
{
    struct session *s = opaque;
    char piece[16384];

    if (events & EPOLLOUT) {
        watch(s, false);
        chr_resume_input(s->chr);
    }
    if (!(events & (EPOLLIN | EPOLLHUP | EPOLLERR)))
        return;
    ssize_t n = recv(s->fd, piece, sizeof piece, MSG_DONTWAIT);
    if (n > 0) {
        chr_write(s->chr, piece, (size_t)n);
    } else if (n == 0 || errno != EAGAIN) {
        s->ended = true;
        loop_stop(s->loop);
    }
}

/* Until Ctrl-] q, or the VM's end. */
static int run(struct session *s, char *err, size_t n)
{
    pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
    int failed = loop_create(&s->loop, &lock);

    if (failed)
        return error_sys(err, n, failed, "the console cannot be set up");
    failed = chr_open(&s->chr, "stdio", s->loop, err, n);
    if (!failed) {
        pthread_mutex_lock(&lock);
        loop_fd_add(s->loop, s->fd, EPOLLIN, on_socket, s);
        chr_set_input(s->chr, typed, s);
        pthread_mutex_unlock(&lock);
        while (!s->ended && !chr_user_left(s->chr))
            loop_run(s->loop);
        chr_close(s->chr);
    }
    loop_destroy(s->loop);
    return failed;
}

int console_main(const struct command *self, int argc, char **argv)
{
    struct registry r;
    struct client c;
    struct session s = {.fd = -1};
    char err[ERROR_SIZE];
    int status, operands = life_parse(self, argc, argv, NULL, 1, &r, &status);

    if (operands < 0)
        return status;
    if (operands == 0)
        return cli_usage_error(self, "the name of a virtual machine must be given");
    int failed = client_open(&c, &r, argv[1], err, sizeof err);
    if (!failed) {
        s.fd = client_stream(&c, "console", NULL, err, sizeof err);
        failed = s.fd < 0 ? s.fd : 0;
    }
    if (failed)
        return cli_failed(failed, err);
    if (isatty(STDIN_FILENO))
        log_say("every key goes to the guest; Ctrl-] then q leaves");
    failed = run(&s, err, sizeof err);
    close(s.fd);
    if (failed)
        return cli_failed(failed, err);
    if (s.ended)
        log_say("%s has ended", argv[1]);
    return STATUS_OK;
}
