/* `guise fork`: running copies of a virtual machine that runs; `guise clone`: a copy of one that does not. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "backends/net.h"
#include "base/error.h"
#include "base/log.h"
#include "cli/life.h"
#include "host/loop.h"
#include "vm/copy.h"
#include "vm/fork.h"

#define COPIES_MOST 1000u
#define BEGIN_MS 120000   /* a busy disk's flush, and the moment itself */
#define IDENTITY_MS 30000 /* a copy's agent answers, or there is something wrong with it */

struct fork_arguments {
    uint64_t count;
    const char *name;
    struct option_list publish;
    bool quiet, verbose;
};

/* clang-format off */
const struct option_spec fork_options[] = {
    {.name = "count", .letter = 'n', .kind = OPTION_NUMBER, .offset = offsetof(struct fork_arguments, count),
     .min = 1, .max = COPIES_MOST, .value = "K", .help = "make K copies (1 unless told)"},
    {.name = "name", .kind = OPTION_STRING, .offset = offsetof(struct fork_arguments, name), .value = "NAME",
     .help = "call the copy NAME, or with -n copies NAME-1, NAME-2, ...", .check = name_check},
    {.name = "publish", .letter = 'p', .kind = OPTION_LIST, .offset = offsetof(struct fork_arguments, publish),
     .value = "PORTS", .help = "lead a port of the host to the copy, as `guise run --publish`", .check = net_publish_check},
    {.name = "quiet", .letter = 'q', .kind = OPTION_FLAG, .offset = offsetof(struct fork_arguments, quiet),
     .help = "say nothing of published ports"},
    {.name = "verbose", .letter = 'v', .kind = OPTION_FLAG, .offset = offsetof(struct fork_arguments, verbose),
     .help = "say how long the machine stood still, and when each copy was ready"},
    {0},
};
const struct option_spec clone_options[] = {{0}};
/* clang-format on */

struct copy {
    struct vm_record record;
    struct life_start start;
    int lock;
    bool made, runs;
};

/* A fork being made. */
struct forking {
    const struct registry *registry;
    const struct fork_arguments *arguments;
    struct vm_record parent;
    struct client client; /* of the parent */
    struct snapshot_making layer;
    struct copy *copies;
    int fds[FORK_FDS_MAX];
    int n_fds;
    bool agent;
    uint64_t began;
};

static double ms_since(uint64_t then)
{
    return (double)(clock_ns() - then) / 1e6;
}

/* --- the machine that is copied ----------------------------------------------------------------------------------- */

/* Does it write to the new layer?  When it cannot be asked it may. */
static bool is_layered(struct forking *f)
{
    json_t *status = NULL;
    char none[1];

    if (client_call(&f->client, "snapshot", json_pack("{s:s}", "action", "status"), &status, none, sizeof none))
        return true;
    bool layered = json_is_true(json_object_get(status, "layered"));
    json_decref(status);
    return layered;
}

static int ask(struct forking *f, char *err, size_t n)
{
    json_t *result = NULL;
    int ends[2];

    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends))
        return error_sys(err, n, -errno, "cannot talk to the machine");
    const int fds[] = {ends[1], f->layer.top};
    int failed = fork_offer(ends[0], err, n);
    json_t *arguments = json_pack("{s:s, s:s?}", "tag", "fork", "layer", f->layer.top >= 0 ? f->layer.layer : NULL);
    f->client.patience_ms = BEGIN_MS;
    if (!failed)
        failed = client_call_fds(&f->client, "fork", json_incref(arguments), fds, 1 + (f->layer.top >= 0), &result, err,
                                 n);
    json_decref(arguments);
    close(ends[1]);
    if (!failed && (f->n_fds = fork_receive(ends[0], f->fds, err, n)) < 0)
        failed = f->n_fds;
    close(ends[0]);
    if (!failed && f->arguments->verbose)
        log_say("%s stood still for %.1f ms", f->parent.name,
                (double)json_integer_value(json_object_get(result, "pause_us")) / 1000);
    json_decref(result);
    return failed;
}

/* What it is made of while it runs on: its disk's layer, its memory, its state. */
static int take_apart(struct forking *f, char *err, size_t n)
{
    json_t *status = NULL;
    int failed = client_open(&f->client, f->registry, f->parent.name, err, n);

    if (!failed)
        failed = client_call(&f->client, "status", NULL, &status, err, n);
    f->agent = json_is_true(json_object_get(status, "agent"));
    json_decref(status);
    if (!failed)
        failed = snapshot_make_layer(f->registry, &f->parent, &f->layer, err, n);
    if (failed)
        return failed;
    failed = ask(f, err, n);
    if (failed)
        snapshot_make_layer_end(&f->layer, is_layered(f));
    return failed;
}

/* --- copies ------------------------------------------------------------------------------------------------------- */

static int make(struct forking *f, struct copy *c, struct copy_words *words, char *err, size_t n)
{
    static const struct option_list none;

    words->publish = words->publish ? words->publish : &none;
    int failed = copy_make(f->registry, &f->parent, f->layer.layer, words, &c->record, &c->lock, err, n);
    c->made = !failed;
    return failed;
}

static int start(struct forking *f, struct copy *c, char *err, size_t n)
{
    const struct process_source source = {.copy = f->fds, .n_copy = (unsigned)f->n_fds};
    int fd, failed = process_start(f->registry, &c->record, c->lock, false, &source, &fd, err, n);

    if (failed)
        return failed;
    close(c->lock);
    c->lock = -1;
    c->runs = true;
    client_adopt(&c->start.client, fd);
    return 0;
}

/* Its CPUs run; and its agent, if it has one, has told it who it is. */
static int wait_ready(const struct forking *f, struct copy *c, char *err, size_t n)
{
    static const char *const ends[] = {"stopped", "crashed", "failed"};
    const char *const wanted = f->agent ? "identity" : "started";
    char reason[ERROR_SIZE] = "its process died";
    bool ready = false;
    int failed = 0;

    while (!ready && !failed) {
        json_t *event = NULL;
        failed = client_event(&c->start.client, IDENTITY_MS, &event);
        const char *name = json_string_value(json_object_get(event, "event"));
        const char *why = json_string_value(json_object_get(json_object_get(event, "data"), "reason"));
        for (size_t i = 0; name && i < sizeof ends / sizeof *ends; i++)
            failed = strcmp(name, ends[i]) == 0 ? -EIO : failed;
        if (failed == -ETIMEDOUT)
            snprintf(reason, sizeof reason, "there is no word from inside the guest");
        else if (why)
            snprintf(reason, sizeof reason, "%s", why);
        ready = name && strcmp(name, wanted) == 0;
        json_decref(event);
    }
    return failed ? error_set(err, n, failed, "%s has not come up: %s", c->record.name, reason) : 0;
}

/* One that has not come up is not there. */
static void take_away(const struct forking *f, struct copy *c)
{
    char none[1];

    if (c->runs) {
        life_cut_power(f->registry, c->record.name);
        if (registry_lock(f->registry, c->record.name, &c->lock, none, sizeof none))
            c->lock = -1;
    }
    if (c->made && c->lock >= 0)
        registry_remove(f->registry, c->record.name, c->lock, none, sizeof none);
    c->made = false;
}

static int run_all(struct forking *f)
{
    const struct fork_arguments *a = f->arguments;
    struct copy_words words = {.name = a->name ? a->name : f->parent.name,
                               .numbered = !a->name || a->count > 1,
                               .number = 1,
                               .publish = &a->publish};
    char err[ERROR_SIZE];
    int status = STATUS_OK;

    for (uint64_t i = 0; i < a->count; i++) {
        int failed = make(f, &f->copies[i], &words, err, sizeof err);
        if (!failed)
            failed = start(f, &f->copies[i], err, sizeof err);
        if (failed) {
            status = cli_failed(failed, err);
            take_away(f, &f->copies[i]);
            break; /* what is missing for one is missing for all */
        }
    }
    for (uint64_t i = 0; i < a->count && f->copies[i].runs; i++) {
        struct copy *c = &f->copies[i];
        int failed = wait_ready(f, c, err, sizeof err);
        client_close(&c->start.client);
        if (failed) {
            status = cli_failed(failed, err);
            take_away(f, c);
            continue;
        }
        puts(c->record.name);
        if (a->verbose)
            log_say("%s was ready %.1f ms after the command", c->record.name, ms_since(f->began));
    }
    return status;
}

static void say_ports(const struct forking *f)
{
    const struct option_list *ports = &f->parent.settings.config.publish;

    if (ports->n && !f->arguments->publish.n && !f->arguments->quiet)
        log_say("%s keeps its published ports (%s%s); a copy has none: `guise publish` leads some to it",
                f->parent.name, ports->value[0], ports->n > 1 ? ", ..." : "");
}

int fork_main(const struct command *self, int argc, char **argv)
{
    struct fork_arguments a = {.count = 1};
    struct forking f = {.arguments = &a, .client.fd = -1, .began = clock_ns()};
    struct registry r;
    char err[ERROR_SIZE];
    int status, operands = life_parse(self, argc, argv, &a, 1, &r, &status);

    if (operands < 0)
        return status;
    if (operands == 0)
        return cli_usage_error(self, "the name of a virtual machine must be given");
    if (a.publish.n && a.count > 1)
        return cli_usage_error(self, "--publish: a port can lead to one copy only");
    f.registry = &r;
    int failed = registry_load(&r, argv[1], &f.parent, err, sizeof err);
    if (failed)
        return cli_failed(failed, err);
    f.copies = calloc(a.count, sizeof *f.copies);
    failed = f.copies ? take_apart(&f, err, sizeof err) : error_set(err, sizeof err, -ENOMEM, "out of memory");
    if (failed) {
        status = cli_failed(failed, err);
    } else {
        status = run_all(&f);
        snapshot_make_layer_end(&f.layer, true);
        say_ports(&f);
    }
    while (f.n_fds > 0)
        close(f.fds[--f.n_fds]);
    client_close(&f.client);
    record_free(&f.parent);
    free(f.copies);
    int flushed = cli_flush();
    return status ? status : flushed;
}

/* --- clone ---------------------------------------------------------------------------------------------------------
 */

static int clone_it(const struct registry *r, const struct vm_record *parent, const char *name, char *err, size_t n)
{
    static const struct option_list none;
    struct copy_words words = {.name = name, .publish = &none};
    struct snapshot_making layer;
    struct vm_record copy;
    int lock, made, failed = registry_lock(r, parent->name, &lock, err, n);

    if (failed == -EBUSY)
        return error_set(err, n, failed, "%s runs: `guise fork %s` copies a machine that does", parent->name,
                         parent->name);
    if (!failed)
        failed = snapshot_make_layer(r, parent, &layer, err, n);
    if (!failed) {
        failed = copy_make(r, parent, layer.layer, &words, &copy, &made, err, n);
        snapshot_make_layer_end(&layer, true);
        if (!failed)
            close(made);
    }
    if (lock >= 0)
        close(lock);
    return failed;
}

int clone_main(const struct command *self, int argc, char **argv)
{
    struct vm_record parent;
    struct registry r;
    char err[ERROR_SIZE];
    int status, operands = life_parse(self, argc, argv, NULL, 2, &r, &status);

    if (operands < 0)
        return status;
    if (operands < 2)
        return cli_usage_error(self, "the name of a virtual machine and that of its copy must be given");
    int failed = name_check(argv[2], err, sizeof err);
    if (!failed)
        failed = registry_load(&r, argv[1], &parent, err, sizeof err);
    if (failed)
        return cli_failed(failed, err);
    failed = clone_it(&r, &parent, argv[2], err, sizeof err);
    record_free(&parent);
    if (failed)
        return cli_failed(failed, err);
    puts(argv[2]);
    return cli_flush();
}
