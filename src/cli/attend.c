#include "cli/attend.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "agent/protocol.h"
#include "base/error.h"
#include "base/file.h"
#include "base/log.h"
#include "cli/environment.h"
#include "cli/reach.h"
#include "cli/session.h"
#include "host/child.h"

#define ORDER_FD 3

/* --- the one who starts: what is to be done goes over in a file in memory, as JSON ------------------------------- */

static json_t *texts(char *const *list)
{
    json_t *all = json_array();

    for (; list && *list; list++)
        json_array_append_new(all, json_string(*list));
    return all;
}

static int write_order(const struct run_arguments *a, char **command)
{
    char **environment = environment_make(&a->environment, false);
    json_t *order = json_pack("{s:o, s:o, s:s?, s:s?}", "command", texts(command), "environment", texts(environment),
                              "directory", a->directory, "user", a->user);
    int fd = order ? memfd_create("guise-order", MFD_CLOEXEC) : -1;
    int failed = fd < 0 ? -EINVAL : json_dumpfd(order, fd, JSON_COMPACT) ? -EIO : 0;

    environment_free(environment);
    json_decref(order);
    if (failed && fd >= 0)
        close(fd);
    return failed ? failed : fd;
}

int attend_start(const struct bring *b, const struct run_arguments *a, char **command, char *err, size_t n)
{
    const char *const argv[] = {NULL, "attend", b->record.name, NULL};
    char path[PATH_MAX];
    int failed = registry_path(&b->registry, b->record.name, "output.log", path, err, n);

    if (failed)
        return failed;
    int log = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (log < 0)
        return error_sys(err, n, -errno, "cannot write %s", path);
    int order = write_order(a, command);
    failed = order < 0 ? error_sys(err, n, order, "the command cannot be handed on (is it UTF-8?)") : 0;
    if (!failed)
        failed = child_detach(argv, &order, 1, log, err, n);
    if (order >= 0)
        close(order);
    close(log);
    return failed;
}

/* --- the one in the background ---------------------------------------------------------------------------------- */

/* An array of texts that point into it; ends with NULL. */
static const char **pointers(const json_t *array)
{
    size_t n = json_array_size(array);
    const char **list = calloc(n + 1, sizeof *list);

    for (size_t i = 0; list && i < n; i++)
        list[i] = json_string_value(json_array_get(array, i));
    return list;
}

static json_t *read_order(void)
{
    json_t *order = lseek(ORDER_FD, 0, SEEK_SET) == 0 ? json_loadfd(ORDER_FD, 0, NULL) : NULL;

    close(ORDER_FD);
    return order;
}

static int carry_out(const char *name, const json_t *order)
{
    char err[ERROR_SIZE];
    const char **argv = pointers(json_object_get(order, "command"));
    const char **environment = pointers(json_object_get(order, "environment"));
    const struct session_options o = {.argv = argv,
                                      .environment = environment,
                                      .directory = json_string_value(json_object_get(order, "directory")),
                                      .user = json_string_value(json_object_get(order, "user"))};
    int status = STATUS_OURS, fd = argv && environment ? reach_guest(name, AGENT_PORT, err, sizeof err) : -ENOMEM;

    if (fd >= 0) {
        status = session_run(fd, &o);
        close(fd);
    } else {
        log_say("%s", err);
    }
    free(argv);
    free(environment);
    return status;
}

int attend_main(const struct command *self, int argc, char **argv)
{
    struct bring b = {.lock = -1};
    char err[ERROR_SIZE];
    json_t *order = argc == 2 ? read_order() : NULL;

    if (!order)
        return cli_usage_error(self, "this is for other commands of guise");
    int failed = registry_find(&b.registry, err, sizeof err);
    if (!failed)
        failed = registry_load(&b.registry, argv[1], &b.record, err, sizeof err);
    if (!failed)
        failed = client_open(&b.start.client, &b.registry, argv[1], err, sizeof err);
    if (failed) {
        json_decref(order);
        return cli_failed(failed, err);
    }
    int status = carry_out(argv[1], order);
    json_decref(order);
    client_call(&b.start.client, "exited", json_pack("{s:i}", "status", status), NULL, NULL, 0);
    bring_end(&b);
    record_free(&b.record);
    return status;
}
