/* What virtual machines have said and what has happened to them: logs, events. */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/inotify.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/error.h"
#include "base/file.h"
#include "base/path.h"
#include "cli/life.h"
#include "vm/events.h"

struct logs_arguments {
    bool follow, engine, serial, output;
};
struct events_arguments {
    bool follow, json;
};

/* clang-format off */
const struct option_spec logs_options[] = {
    {.name = "follow", .letter = 'f', .kind = OPTION_FLAG, .offset = offsetof(struct logs_arguments, follow),
     .help = "go on while the virtual machine runs"},
    {.name = "serial", .kind = OPTION_FLAG, .offset = offsetof(struct logs_arguments, serial),
     .help = "what the guest wrote to its serial port"},
    {.name = "output", .kind = OPTION_FLAG, .offset = offsetof(struct logs_arguments, output),
     .help = "what the command of `guise run --detach` has printed (shown unless told, if there is one)"},
    {.name = "engine", .kind = OPTION_FLAG, .offset = offsetof(struct logs_arguments, engine),
     .help = "what the process that runs it has said"},
    {0},
};
const struct option_spec events_options[] = {
    {.name = "follow", .letter = 'f', .kind = OPTION_FLAG, .offset = offsetof(struct events_arguments, follow),
     .help = "go on with what happens from now on"},
    {.name = "json", .kind = OPTION_FLAG, .offset = offsetof(struct events_arguments, json),
     .help = "print one JSON object a line"},
    {0},
};
/* clang-format on */

/* --- logs ---------------------------------------------------------------------------------------------------- */

/* All that is behind *at on standard output; a file that has shrunk was begun anew. */
static int copy_rest(int fd, off_t *at)
{
    char piece[16384];
    struct stat st;
    ssize_t len;

    if (fstat(fd, &st) == 0 && st.st_size < *at)
        *at = 0;
    while ((len = pread(fd, piece, sizeof piece, *at)) > 0) {
        if (fd_write_all(STDOUT_FILENO, piece, (size_t)len))
            return -EPIPE;
        *at += len;
    }
    return 0;
}

static void copy_file(const char *path)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    off_t at = 0;

    if (fd < 0)
        return;
    copy_rest(fd, &at);
    close(fd);
}

/* Goes on until the VM's process has ended, and then to the end of the file. */
static void follow(const struct registry *r, const char *name, const char *path, int fd, off_t *at)
{
    struct vm_run run;
    char events[4096];

    registry_run(r, name, &run);
    int process = run.state == VM_RUNNING ? (int)syscall(SYS_pidfd_open, run.pid, 0) : -1;
    int changes = inotify_init1(IN_CLOEXEC | IN_NONBLOCK);
    inotify_add_watch(changes, path, IN_MODIFY);
    struct pollfd fds[] = {{.fd = changes, .events = POLLIN}, {.fd = process, .events = POLLIN}};
    while (process >= 0 && !copy_rest(fd, at) && !fds[1].revents) {
        if (poll(fds, 2, -1) < 0 && errno != EINTR)
            break;
        while (read(changes, events, sizeof events) > 0)
            ;
    }
    copy_rest(fd, at);
    close(changes);
    if (process >= 0)
        close(process);
}

/* The file that is meant: unless told, a command's output if there is one, else the serial port's. */
static const char *which_log(const struct registry *r, const char *name, const struct logs_arguments *a)
{
    char path[PATH_MAX], none[1];

    if (a->engine)
        return "guise.log";
    if (!a->serial &&
        (a->output || (!registry_path(r, name, "output.log", path, none, sizeof none) && access(path, F_OK) == 0)))
        return "output.log";
    return "serial.log";
}

static int logs(const struct registry *r, const char *name, const void *arguments)
{
    const struct logs_arguments *a = arguments;
    char err[ERROR_SIZE], path[PATH_MAX], old[PATH_MAX];
    off_t at = 0;
    int failed = registry_exists(r, name, err, sizeof err);

    if (!failed)
        failed = registry_path(r, name, which_log(r, name, a), path, err, sizeof err);
    if (!failed)
        failed = path_format(old, sizeof old, err, sizeof err, "%s.1", path);
    if (failed)
        return cli_failed(failed, err);
    copy_file(old);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return STATUS_OK; /* it has never run */
    copy_rest(fd, &at);
    if (a->follow)
        follow(r, name, path, fd, &at);
    close(fd);
    return STATUS_OK;
}

int logs_main(const struct command *self, int argc, char **argv)
{
    struct logs_arguments a = {0};

    return life_each(self, argc, argv, &a, logs);
}

/* --- events ---------------------------------------------------------------------------------------------------- */

/* One VM's event log, and how far it has been read. */
struct source {
    char name[NAME_SIZE];
    uint64_t seq; /* the last event that was shown */
};

struct watcher {
    const struct registry *r;
    const char *only; /* one VM, or NULL */
    bool json, first;
    struct source *sources;
    int n_sources;
    int changes; /* inotify */
    json_t *found;
};

static struct source *find_source(struct watcher *w, const char *name)
{
    char path[PATH_MAX], none[1];

    for (int i = 0; i < w->n_sources; i++)
        if (strcmp(w->sources[i].name, name) == 0)
            return &w->sources[i];
    struct source *larger = realloc(w->sources, (size_t)(w->n_sources + 1) * sizeof *w->sources);
    if (!larger)
        return NULL;
    w->sources = larger;
    struct source *s = &w->sources[w->n_sources++];
    *s = (struct source){0};
    snprintf(s->name, sizeof s->name, "%s", name);
    if (w->changes >= 0 && !registry_path(w->r, name, "events.log", path, none, sizeof none))
        inotify_add_watch(w->changes, path, IN_MODIFY);
    return s;
}

static void take_lines(struct watcher *w, struct source *s, char *text)
{
    for (char *line = text, *end; (end = strchr(line, '\n')); line = end + 1) {
        json_t *event = json_loadb(line, (size_t)(end - line), 0, NULL);
        uint64_t seq = (uint64_t)json_integer_value(json_object_get(event, "seq"));
        if (event && seq > s->seq) {
            s->seq = seq;
            json_array_append(w->found, event);
        }
        json_decref(event);
    }
}

static void read_source(struct watcher *w, const char *name)
{
    static const char *const files[] = {"events.log.1", "events.log"};
    char path[PATH_MAX], err[ERROR_SIZE], *text;
    struct source *s = find_source(w, name);

    for (size_t i = 0; s && i < sizeof files / sizeof *files; i++) {
        if (registry_path(w->r, name, files[i], path, err, sizeof err) ||
            file_read(path, 2 * EVENT_LOG_BYTES, &text, NULL, err, sizeof err))
            continue;
        take_lines(w, s, text);
        free(text);
    }
}

static int by_time(const void *a, const void *b)
{
    const json_t *x = *(json_t *const *)a, *y = *(json_t *const *)b;
    const char *s = json_string_value(json_object_get(x, "time")), *t = json_string_value(json_object_get(y, "time"));

    return strcmp(s ? s : "", t ? t : "");
}

static void print_event(const struct watcher *w, const json_t *event)
{
    const char *time, *vm, *what;
    json_t *data;
    char *text;

    if (w->json) {
        json_dumpf(event, stdout, JSON_COMPACT);
        putchar('\n');
        return;
    }
    if (json_unpack((json_t *)event, "{s:s, s:s, s:s, s:o}", "time", &time, "vm", &vm, "event", &what, "data", &data))
        return;
    text = json_object_size(data) ? json_dumps(data, JSON_COMPACT) : NULL;
    printf("%s  %s  %s%s%s\n", time, vm, what, text ? "  " : "", text ? text : "");
    free(text);
}

/* Everything new, oldest first. */
static int show_new(struct watcher *w)
{
    char(*names)[NAME_SIZE], none[1];
    int n = registry_names(w->r, &names, none, sizeof none);

    w->found = json_array();
    for (int i = 0; i < n; i++)
        if (!w->only || strcmp(w->only, names[i]) == 0)
            read_source(w, names[i]);
    free(names);
    size_t count = json_array_size(w->found);
    json_t **sorted = count ? malloc(count * sizeof *sorted) : NULL;
    for (size_t i = 0; sorted && i < count; i++)
        sorted[i] = json_array_get(w->found, i);
    if (sorted)
        qsort(sorted, count, sizeof *sorted, by_time);
    for (size_t i = 0; sorted && i < count; i++)
        print_event(w, sorted[i]);
    free(sorted);
    json_decref(w->found);
    return cli_flush();
}

static int watch(struct watcher *w)
{
    char events[4096];
    int status = show_new(w);

    while (status == STATUS_OK && w->changes >= 0) {
        if (read(w->changes, events, sizeof events) < 0 && errno != EINTR)
            return STATUS_FAILED;
        status = show_new(w);
    }
    return status;
}

int events_main(const struct command *self, int argc, char **argv)
{
    struct events_arguments a = {0};
    struct registry r;
    char err[ERROR_SIZE];
    int status, operands = life_parse(self, argc, argv, &a, 1, &r, &status);

    if (operands < 0)
        return status;
    int failed = operands ? registry_exists(&r, argv[1], err, sizeof err) : 0;
    if (failed)
        return cli_failed(failed, err);
    struct watcher w = {.r = &r, .only = operands ? argv[1] : NULL, .json = a.json, .changes = -1};
    if (a.follow) {
        w.changes = inotify_init1(IN_CLOEXEC);
        inotify_add_watch(w.changes, r.vms, IN_MOVED_TO | IN_CREATE);
    }
    status = watch(&w);
    free(w.sources);
    return status;
}
