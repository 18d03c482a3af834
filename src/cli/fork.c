/* `guise fork`: running copies of a virtual machine that runs; `guise clone`: a copy of one that does not. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "backends/net.h"
#include "base/error.h"
#include "base/log.h"
#include "cli/forking.h"
#include "cli/interrupt.h"
#include "host/loop.h"

#define COPIES_MOST 1000u

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

static double ms_since(uint64_t then)
{
    return (double)(clock_ns() - then) / 1e6;
}

static int run_all(struct forking *f, struct forked *copies, const struct fork_arguments *a, uint64_t began)
{
    struct copy_words words = {.name = a->name ? a->name : f->parent.name,
                               .numbered = !a->name || a->count > 1,
                               .number = 1,
                               .publish = &a->publish};
    char err[ERROR_SIZE];
    unsigned ready = 0;
    int status = STATUS_OK;

    for (uint64_t i = 0; i < a->count && !interrupt_came(); i++) {
        int failed = forking_copy(f, &copies[i], &words, false, err, sizeof err);
        if (failed) {
            status = cli_failed(failed, err);
            forking_take_away(f, &copies[i]);
            break; /* what is missing for one is missing for all */
        }
    }
    for (uint64_t i = 0; i < a->count && copies[i].runs; i++) {
        struct forked *c = &copies[i];
        int failed = forking_wait(f, c, err, sizeof err);
        if (failed) {
            status = interrupt_came() ? STATUS_FAILED : cli_failed(failed, err);
            forking_take_away(f, c);
        }
        client_close(&c->client);
        if (failed)
            continue;
        puts(c->record.name);
        ready++;
        if (a->verbose)
            log_say("%s was ready %.1f ms after the command", c->record.name, ms_since(began));
    }
    if (interrupt_came() && ready < a->count) {
        status = STATUS_FAILED;
        log_say("interrupted: %u of %llu copies are there", ready, (unsigned long long)a->count);
    }
    return status;
}

static void say_ports(const struct forking *f, const struct fork_arguments *a)
{
    const struct option_list *ports = &f->parent.settings.config.publish;

    if (ports->n && !a->publish.n && !a->quiet)
        log_say("%s keeps its published ports (%s%s); a copy has none: `guise publish` leads some to it",
                f->parent.name, ports->value[0], ports->n > 1 ? ", ..." : "");
}

static int fork_it(struct forking *f, const struct fork_arguments *a, uint64_t began)
{
    struct forked *copies = calloc(a->count, sizeof *copies);
    char err[ERROR_SIZE];
    int status = STATUS_OK;
    int failed = copies ? forking_begin(f, err, sizeof err) : error_set(err, sizeof err, -ENOMEM, "out of memory");

    if (failed) {
        status = cli_failed(failed, err);
    } else {
        if (a->verbose)
            log_say("%s stood still for %.1f ms", f->parent.name, (double)f->pause_us / 1000);
        status = run_all(f, copies, a, began);
        say_ports(f, a);
    }
    forking_end(f);
    free(copies);
    return status;
}

int fork_main(const struct command *self, int argc, char **argv)
{
    struct fork_arguments a = {.count = 1};
    struct registry r;
    struct forking f = {.registry = &r, .client.fd = -1, .layer = {.lock = -1, .state = -1, .top = -1}};
    char err[ERROR_SIZE];
    uint64_t began = clock_ns();
    int status, operands = life_parse(self, argc, argv, &a, 1, &r, &status);

    if (operands < 0)
        return status;
    if (operands == 0)
        return cli_usage_error(self, "the name of a virtual machine must be given");
    if (a.publish.n && a.count > 1)
        return cli_usage_error(self, "--publish: a port can lead to one copy only");
    int failed = registry_load(&r, argv[1], &f.parent, err, sizeof err);
    if (failed)
        return cli_failed(failed, err);
    interrupt_catch();
    status = fork_it(&f, &a, began);
    record_free(&f.parent);
    int flushed = cli_flush();
    interrupt_end();
    return status ? status : flushed;
}

/* --- clone ------------------------------------------------------------------------------------------------------- */

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
        failed = snapshot_make_layer(r, parent, NULL, &layer, err, n);
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
