/* From an EXEC request to a running process. */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/error.h"
#include "guest/exec.h"

#define DEFAULT_PATH "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
#define DEFAULTS 6 /* variables that we set before those of the request */

/* The fields that a list in the request is made of: counted first, so that the arrays have their size. */
static unsigned count_fields(const struct frame *f, uint16_t tag)
{
    struct fields i;
    struct field field;
    unsigned count = 0;

    fields_begin(&i, f);
    while (fields_next(&i, &field))
        count += field.tag == tag;
    return count;
}

static int keep_field(struct exec_request *r, const struct field *field)
{
    char **to = NULL;

    switch (field->tag) {
    case FIELD_ARGUMENT:
        to = &r->argv[r->n_argv++];
        break;
    case FIELD_ENVIRONMENT:
        to = &r->environment[r->n_environment++];
        break;
    case FIELD_DIRECTORY:
        to = r->directory ? NULL : &r->directory;
        break;
    case FIELD_USER:
        to = r->user ? NULL : &r->user;
        break;
    default:
        return 0;
    }
    if (!to)
        return -EINVAL;
    *to = field_text(field);
    return *to ? 0 : -EINVAL;
}

int exec_parse(const struct frame *f, struct exec_request *r, char *err, size_t n)
{
    struct fields i;
    struct field field;
    int failed = 0;

    r->argv = calloc(count_fields(f, FIELD_ARGUMENT) + 1, sizeof(*r->argv));
    r->environment = calloc(count_fields(f, FIELD_ENVIRONMENT) + 1, sizeof(*r->environment));
    if (!r->argv || !r->environment)
        return error_set(err, n, -ENOMEM, "the guest is out of memory");
    fields_begin(&i, f);
    while (!failed && fields_next(&i, &field))
        failed = keep_field(r, &field);
    r->flags = frame_number(f, FIELD_FLAGS, 0);
    r->rows = (unsigned)frame_number(f, FIELD_ROWS, 0);
    r->columns = (unsigned)frame_number(f, FIELD_COLUMNS, 0);
    if (failed || i.bad)
        return error_set(err, n, -EINVAL, "the request is malformed");
    if (!r->n_argv && !(r->flags & EXEC_LOGIN))
        return error_set(err, n, -EINVAL, "no command was given");
    return 0;
}

static void free_list(char **list)
{
    for (char **p = list; p && *p; p++)
        free(*p);
    free(list);
}

void exec_release(struct exec_request *r)
{
    free_list(r->argv);
    free_list(r->environment);
    free(r->directory);
    free(r->user);
    *r = (struct exec_request){.flags = r->flags};
}

/* What the new process becomes, and on what. */
struct plan {
    const struct exec_request *r;
    struct user user;
    char **argv, **environment; /* their strings are the request's, but for these: */
    char *own[DEFAULTS + 1];
    int fd[3];    /* -1 each with a terminal */
    char tty[64]; /* the terminal's name */
    int report;
};

/* How far the child got, with errno; both are read by the parent. */
struct outcome {
    enum { IN_TERMINAL, IN_USER, IN_DIRECTORY, IN_EXEC } where;
    int error;
};

static void fail(const struct plan *p, int where)
{
    struct outcome o = {.where = where, .error = errno};

    if (write(p->report, &o, sizeof(o)) != sizeof(o))
        _exit(125);
    _exit(127);
}

static int take_terminal(const struct plan *p)
{
    int fd = open(p->tty, O_RDWR);

    if (fd < 0 || ioctl(fd, TIOCSCTTY, 0) || fchown(fd, p->user.uid, (gid_t)-1))
        return -1;
    for (int i = 0; i < 3; i++)
        if (fd != i && dup2(fd, i) < 0)
            return -1;
    if (fd > 2)
        close(fd);
    return 0;
}

static int take_pipes(const struct plan *p)
{
    for (int i = 0; i < 3; i++)
        if (dup2(p->fd[i], i) < 0)
            return -1;
    return 0;
}

/* What exec would keep: the mask, and what whoever started us ignores. */
static void reset_signals(void)
{
    sigset_t none;

    for (int i = 1; i < NSIG; i++)
        signal(i, SIG_DFL);
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
}

/* The agent is spared by the kernel when memory is short (serve.c), what it starts is not. */
static void be_killable(void)
{
    int fd = open("/proc/self/oom_score_adj", O_WRONLY | O_CLOEXEC);

    if (fd < 0)
        return;
    (void)!write(fd, "0", 1); /* refused where we were never spared: outside of a guest, not as root */
    close(fd);
}

/* All our descriptors close at exec; those below 3 were dup2'ed and do not. */
static void become(const struct plan *p)
{
    setsid();
    reset_signals();
    be_killable();
    if (p->tty[0] ? take_terminal(p) : take_pipes(p))
        fail(p, IN_TERMINAL);
    int r = user_become(&p->user);
    if (r) {
        errno = -r;
        fail(p, IN_USER);
    }
    if (p->r->directory ? chdir(p->r->directory) : chdir(p->user.home) && chdir("/"))
        fail(p, IN_DIRECTORY);
    environ = p->environment;
    const char *program = p->r->flags & EXEC_LOGIN ? p->user.shell : p->argv[0];
    execvp(program, p->argv);
    fail(p, IN_EXEC);
}

/* The status and sentence for a command that could not begin, as shells and container tools have them. */
static int explain(const struct plan *p, const struct outcome *o, char *err, size_t n)
{
    const char *program = p->r->flags & EXEC_LOGIN ? p->user.shell : p->argv[0];

    switch (o->where) {
    case IN_TERMINAL:
        error_set(err, n, 0, "the guest gives no terminal: %s", strerror(o->error));
        return 125;
    case IN_USER:
        error_set(err, n, 0, "the guest's agent cannot become user %s: %s", p->user.name, strerror(o->error));
        return 126;
    case IN_DIRECTORY:
        error_set(err, n, 0, "the guest's directory %s cannot be entered: %s", p->r->directory, strerror(o->error));
        return 126;
    case IN_EXEC:
        if (o->error == ENOENT)
            error_set(err, n, 0, "the guest has no command '%s'", program);
        else
            error_set(err, n, 0, "the guest cannot run '%s': %s", program, strerror(o->error));
        return o->error == ENOENT ? 127 : 126;
    }
    return 125;
}

/* A later variable of the same name replaces an earlier one. */
static void set_variable(char **list, unsigned *n, char *variable)
{
    size_t name = strcspn(variable, "=");

    for (unsigned i = 0; i < *n; i++)
        if (strncmp(list[i], variable, name + 1) == 0) {
            list[i] = variable;
            return;
        }
    list[(*n)++] = variable;
}

/* asprintf leaves its result undefined when it fails. */
static char *format(const char *name, const char *value)
{
    char *text;

    return asprintf(&text, "%s%s", name, value) < 0 ? NULL : text;
}

static int make_environment(struct plan *p)
{
    const struct exec_request *r = p->r;
    char **own = p->own;
    unsigned n = 0;

    p->environment = calloc(DEFAULTS + r->n_environment + 1, sizeof(char *));
    own[0] = format("PATH=", DEFAULT_PATH);
    own[1] = format("HOME=", p->user.home);
    own[2] = format("USER=", p->user.name);
    own[3] = format("LOGNAME=", p->user.name);
    own[4] = format("SHELL=", p->user.shell);
    own[5] = r->flags & EXEC_TTY ? format("TERM=", "linux") : NULL;
    if (!p->environment)
        return -ENOMEM;
    for (unsigned i = 0; i < DEFAULTS; i++)
        if (own[i])
            set_variable(p->environment, &n, own[i]);
    for (unsigned i = 0; i < r->n_environment; i++)
        set_variable(p->environment, &n, r->environment[i]);
    return 0;
}

static int make_arguments(struct plan *p)
{
    const struct exec_request *r = p->r;
    unsigned n = 0;

    p->argv = calloc(r->n_argv + 2, sizeof(char *));
    if (!p->argv)
        return -ENOMEM;
    if (r->flags & EXEC_LOGIN) {
        const char *slash = strrchr(p->user.shell, '/');
        p->own[DEFAULTS] = format("-", slash ? slash + 1 : p->user.shell);
        if (!p->own[DEFAULTS])
            return -ENOMEM;
        p->argv[n++] = p->own[DEFAULTS];
    }
    for (unsigned i = 0; i < r->n_argv; i++)
        p->argv[n++] = r->argv[i];
    return 0;
}

static int open_terminal(struct plan *p, struct exec_child *child)
{
    const struct winsize size = {.ws_row = (unsigned short)p->r->rows, .ws_col = (unsigned short)p->r->columns};
    int unlock = 0;
    unsigned number;
    int master = open("/dev/ptmx", O_RDWR | O_NOCTTY | O_CLOEXEC | O_NONBLOCK);

    if (master < 0)
        return -errno;
    if (ioctl(master, TIOCSPTLCK, &unlock) || ioctl(master, TIOCGPTN, &number) || ioctl(master, TIOCSWINSZ, &size)) {
        int r = -errno;
        close(master);
        return r;
    }
    snprintf(p->tty, sizeof(p->tty), "/dev/pts/%u", number);
    child->master = child->in = child->out = master;
    return 0;
}

/* The child's ends are fd[0..2]; ours do not block. */
static int open_pipes(struct plan *p, struct exec_child *child)
{
    int in[2], out[2], err[2];

    if (p->r->flags & EXEC_STDIN) {
        if (pipe2(in, O_CLOEXEC))
            return -errno;
        child->in = in[1];
        fcntl(in[1], F_SETFL, O_NONBLOCK);
    } else if ((in[0] = open("/dev/null", O_RDONLY | O_CLOEXEC)) < 0) {
        return -errno;
    }
    if (pipe2(out, O_CLOEXEC) || pipe2(err, O_CLOEXEC))
        return -errno;
    fcntl(out[0], F_SETFL, O_NONBLOCK);
    fcntl(err[0], F_SETFL, O_NONBLOCK);
    child->out = out[0];
    child->err = err[0];
    p->fd[0] = in[0];
    p->fd[1] = out[1];
    p->fd[2] = err[1];
    return 0;
}

/* Forks and waits until the child has become the command, or has said why not. */
static int launch(struct plan *p, struct exec_child *child, char *err, size_t n)
{
    struct outcome o;
    int report[2], code = 0;

    if (pipe2(report, O_CLOEXEC)) {
        error_sys(err, n, -errno, "the guest cannot start a process");
        return 125;
    }
    p->report = report[1];
    child->pid = fork();
    if (child->pid == 0)
        become(p);
    if (child->pid < 0) {
        error_sys(err, n, -errno, "the guest cannot start a process");
        code = 125;
    }
    close(report[1]);
    if (!code && read(report[0], &o, sizeof(o)) == sizeof(o)) {
        waitpid(child->pid, NULL, 0);
        code = explain(p, &o, err, n);
    }
    close(report[0]);
    return code;
}

static void release_plan(struct plan *p)
{
    for (unsigned i = 0; i <= DEFAULTS; i++)
        free(p->own[i]);
    free(p->argv);
    free(p->environment);
    for (int i = 0; i < 3; i++)
        if (p->fd[i] >= 0)
            close(p->fd[i]);
}

int exec_start(const struct exec_request *r, struct exec_child *child, char *err, size_t n)
{
    struct plan p = {.r = r, .fd = {-1, -1, -1}};
    int code = 125;

    *child = (struct exec_child){.in = -1, .out = -1, .err = -1, .master = -1};
    if (user_find(r->user, &p.user, err, n))
        return 126;
    int failed = make_arguments(&p);
    if (!failed)
        failed = make_environment(&p);
    if (!failed)
        failed = r->flags & EXEC_TTY ? open_terminal(&p, child) : open_pipes(&p, child);
    if (failed)
        error_sys(err, n, failed, "the guest cannot start a process");
    else
        code = launch(&p, child, err, n);
    release_plan(&p);
    return code;
}
