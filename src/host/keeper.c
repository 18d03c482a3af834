#include "host/keeper_int.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/error.h"
#include "host/sandbox.h"
#include "host/thread.h"
#include "host/unix.h"

#define ANSWER_MS 1000
#define LAST_WORK_MS 2000

struct keeper {
    pid_t pid;
    int socket;
    uint64_t last_id;
    bool can_dial;
};

/* --- its side -------------------------------------------------------------------------------------------------- */

struct file {
    dev_t device;
    ino_t inode; /* 0: it was not there */
};

static void look(const struct keeper_config *c, struct file *files)
{
    struct stat st;

    for (unsigned i = 0; i < c->n_sockets; i++)
        files[i] = lstat(c->sockets[i], &st) == 0 && S_ISSOCK(st.st_mode) ? (struct file){st.st_dev, st.st_ino}
                                                                          : (struct file){0};
}

static void remove_all(const struct keeper_config *c, const struct file *files)
{
    struct stat st;

    for (unsigned i = 0; i < c->n_sockets; i++)
        if (files[i].inode && lstat(c->sockets[i], &st) == 0 && st.st_dev == files[i].device &&
            st.st_ino == files[i].inode)
            unlink(c->sockets[i]);
}

static int dial(const struct keeper_config *c, uint64_t number)
{
    char path[PATH_MAX];

    if (!c->prefix || number > UINT32_MAX ||
        snprintf(path, sizeof path, "%s_%u", c->prefix, (uint32_t)number) >= (int)sizeof path)
        return -EINVAL;
    return unix_connect(path);
}

static void reply(int socket, uint64_t id, int fd_or_err)
{
    struct keeper_answer a = {id, fd_or_err < 0 ? fd_or_err : 0};

    (void)unix_send_fds(socket, &a, sizeof a, &fd_or_err, fd_or_err > 0, 0);
    if (fd_or_err > 0)
        close(fd_or_err);
}

/* sealed: it has been, by another process. */
static void serve(int socket, const struct keeper_config *c, bool sealed)
{
    struct file files[KEEPER_SOCKETS_MAX] = {0};
    struct keeper_request r;

    while (recv(socket, &r, sizeof r, 0) == sizeof r) {
        if (r.what == KEEPER_SEAL && !sealed) {
            look(c, files);
            sealed = true;
            reply(socket, r.id, 0);
        } else {
            reply(socket, r.id, r.what == KEEPER_SEAL ? -EINVAL : dial(c, r.what));
        }
    }
    if (sealed)
        remove_all(c, files);
}

static void directory_of(const char *path, char *to, size_t size)
{
    const char *slash = strrchr(path, '/');
    size_t len = slash ? (size_t)(slash - path) : 0;

    snprintf(to, size, "%.*s", slash && !len ? 1 : (int)len, slash ? path : "");
    if (!slash)
        snprintf(to, size, ".");
}

static int confine(const struct keeper_config *c)
{
    char directories[KEEPER_SOCKETS_MAX][PATH_MAX];
    struct sandbox_path paths[KEEPER_SOCKETS_MAX];
    char err[ERROR_SIZE];

    for (unsigned i = 0; i < c->n_sockets; i++) {
        directory_of(c->sockets[i], directories[i], sizeof directories[i]);
        paths[i] = (struct sandbox_path){directories[i], SANDBOX_REMOVE};
    }
    const struct sandbox_spec spec = {
        .role = SANDBOX_KEEPER, .paths = paths, .n_paths = c->n_sockets, .keep_user = true};
    return sandbox_enter(&spec, NULL, err, sizeof err);
}

int keeper_dial_main(int argc, char **argv)
{
    const struct keeper_config c = {.sockets = {argv[1]}, .n_sockets = 1, .prefix = argv[1]};

    if (argc != 2)
        return 1;
    prctl(PR_SET_NAME, "guise-dialer");
    if (confine(&c))
        return 1;
    serve(0, &c, true);
    return 0;
}

/* Nothing but its socket is open.  Returns where the host does not let it. */
static void become_remover(const struct keeper_config *c)
{
    const char *words[KEEPER_SOCKETS_MAX + 3] = {"guise-keeper", c->prefix ? c->prefix : ""};
    int self = open("/proc/self/exe", O_PATH), program = memfd_create("guise-keeper", MFD_CLOEXEC);

    memcpy(words + 2, c->sockets, c->n_sockets * sizeof *c->sockets);
    if (self == 1 && program >= 0 &&
        write(program, remover_program, remover_program_size) == (ssize_t)remover_program_size)
        syscall(SYS_execveat, program, "", words, environ, AT_EMPTY_PATH);
    syscall(SYS_close_range, 1, ~0u, 0);
}

/* A session of its own: Ctrl-C is for the VM, whose end is what it waits for. */
static void become(const struct keeper_config *c, int socket)
{
    prctl(PR_SET_NAME, "guise-keeper");
    setsid();
    if (dup2(socket, 0) < 0 || syscall(SYS_close_range, 1, ~0u, 0))
        _exit(1);
    become_remover(c);
    if (confine(c))
        _exit(1);
    thread_trim_stack();
    serve(0, c, false);
    _exit(0);
}

/* --- the VM process's side ---------------------------------------------------------------------------------------- */

int keeper_start(struct keeper **out, const struct keeper_config *config, char *err, size_t n)
{
    struct keeper *k = calloc(1, sizeof *k);
    int ends[2];

    if (!k)
        return error_sys(err, n, -ENOMEM, "cannot start a helper process");
    if (config->n_sockets > KEEPER_SOCKETS_MAX || socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends)) {
        free(k);
        return error_sys(err, n, config->n_sockets > KEEPER_SOCKETS_MAX ? -E2BIG : -errno,
                         "cannot start a helper process");
    }
    k->pid = fork();
    if (k->pid == 0)
        become(config, ends[1]);
    int failed = k->pid < 0 ? -errno : 0;
    close(ends[1]);
    k->socket = ends[0];
    k->can_dial = config->prefix;
    if (!failed) {
        *out = k;
        return 0;
    }
    close(k->socket);
    free(k);
    return error_sys(err, n, failed, "cannot start a helper process");
}

/* An answer, with the descriptor or its error in *result.  0, or -errno: there is none. */
static int receive(int socket, struct keeper_answer *a, int *result)
{
    struct pollfd ready = {.fd = socket, .events = POLLIN};
    unsigned n = 1;
    int fd = 0;

    if (poll(&ready, 1, ANSWER_MS) != 1 || unix_receive_fds(socket, a, sizeof *a, &fd, &n, MSG_DONTWAIT) != sizeof *a)
        return -EPIPE;
    *result = a->err ? (int)a->err : fd;
    return 0;
}

static int ask(struct keeper *k, uint64_t what)
{
    const struct keeper_request r = {what, ++k->last_id};
    struct keeper_answer a;
    int result = -EPIPE;

    if (send(k->socket, &r, sizeof r, MSG_NOSIGNAL | MSG_DONTWAIT) != sizeof r)
        return -EPIPE;
    while (receive(k->socket, &a, &result) == 0) {
        if (a.id == r.id)
            return result;
        if (result > 0)
            close(result);
    }
    return -EPIPE;
}

int keeper_seal(struct keeper *k)
{
    return ask(k, KEEPER_SEAL);
}

int keeper_dial(struct keeper *k, uint32_t number)
{
    int fd = k->can_dial ? ask(k, number) : -ECONNREFUSED;

    return fd ? fd : -EPIPE;
}

void keeper_stop(struct keeper *k)
{
    if (!k)
        return;
    close(k->socket);
    for (int waited = 0; waitpid(k->pid, NULL, WNOHANG) == 0 && waited < LAST_WORK_MS; waited++)
        poll(NULL, 0, 1);
    free(k);
}
