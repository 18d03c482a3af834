/* `guise disk ...`: making, copying and checking the files that are disks. */
#include <errno.h>
#include <inttypes.h>
#include <jansson.h>
#include <stdio.h>

#include "backends/disk.h"
#include "backends/disk/overlay.h"
#include "base/error.h"
#include "base/parse.h"
#include "cli/cli.h"
#include "cli/table.h"

#define SCHEMA 1
#define MOST_DISK (16ull << 40)

const struct option_spec disk_options[] = {{0}};
static const struct option_spec no_options[] = {{0}};

/* Returns 0, or -1 with *status after saying what is missing. */
static int parse(const struct command *self, int argc, char **argv, void *out, int operands, int *status)
{
    char err[ERROR_SIZE];
    int got = cli_parse(self, argc, argv, out, operands, status);

    if (got < 0 || got == operands)
        return got < 0 ? -1 : 0;
    error_set(err, sizeof err, 0, "more is needed: guise %s %s", self->name, self->usage);
    *status = cli_usage_error(self, err);
    return -1;
}

struct create_arguments {
    const char *base;
    uint64_t bytes;
};

/* clang-format off */
static const struct option_spec disk_create_options[] = {
    {.name = "base", .letter = 'b', .kind = OPTION_STRING, .offset = offsetof(struct create_arguments, base),
     .value = "DISK", .help = "the disk below, by words as of run's --disk; it is only read", .check = disk_check},
    {.name = "size", .letter = 's', .kind = OPTION_SIZE, .offset = offsetof(struct create_arguments, bytes),
     .value = "SIZE", .help = "of the disk, with a unit (the base's unless told)", .min = 1, .max = MOST_DISK,
     .examples = "4G 8G 20G"},
    {0},
};
static const struct option_spec disk_check_options[] = {
    {.name = "json", .kind = OPTION_FLAG, .offset = 0, .help = "print one JSON document"},
    {0},
};
/* clang-format on */

static int create_overlay(const struct command *self, int argc, char **argv)
{
    struct create_arguments a = {0};
    char err[ERROR_SIZE];
    int status;

    if (parse(self, argc, argv, &a, 1, &status))
        return status;
    if (!a.base && !a.bytes)
        return cli_usage_error(self, "a new disk needs a base or a size: --base DISK, --size SIZE");
    int failed = disk_overlay_create(argv[1], a.base, a.bytes, err, sizeof err);
    return failed ? cli_failed(failed, err) : STATUS_OK;
}

static int grow_overlay(const struct command *self, int argc, char **argv)
{
    char err[ERROR_SIZE];
    uint64_t bytes;
    int status;

    if (parse(self, argc, argv, NULL, 2, &status))
        return status;
    if (parse_size(argv[2], &bytes, err, sizeof err))
        return cli_usage_error(self, err);
    int failed = disk_overlay_grow(argv[1], bytes, err, sizeof err);
    return failed ? cli_failed(failed, err) : STATUS_OK;
}

static int copy_disk(const struct command *self, int argc, char **argv)
{
    char err[ERROR_SIZE];
    int status;

    if (parse(self, argc, argv, NULL, 2, &status))
        return status;
    if (disk_check(argv[1], err, sizeof err))
        return cli_usage_error(self, err);
    int failed = disk_export(argv[1], argv[2], err, sizeof err);
    return failed ? cli_failed(failed, err) : STATUS_OK;
}

static void print_json(const struct disk_overlay_report *r, bool sound)
{
    json_t *all = json_pack("{si sb sI sI ss? sI sI sI sI sI}", "schema_version", SCHEMA, "sound", (int)sound,
                            "disk_bytes", (json_int_t)r->size, "base_bytes", (json_int_t)r->base_size, "base",
                            r->base[0] ? r->base : NULL, "granules", (json_int_t)r->granules, "owned_granules",
                            (json_int_t)r->owned, "bad_sectors", (json_int_t)r->bad_sectors, "stray_bits",
                            (json_int_t)r->stray_bits, "missing_bytes", (json_int_t)r->missing_bytes);

    json_dumpf(all, stdout, JSON_INDENT(2));
    putchar('\n');
    json_decref(all);
}

static void print_report(const struct disk_overlay_report *r)
{
    char disk[16], own[16];

    table_size(r->size, disk, sizeof disk);
    table_size(r->owned * 4096, own, sizeof own);
    printf("disk:     %s (%" PRIu64 " bytes)\nbase:     %s\nown:      %s, %" PRIu64 " of %" PRIu64 " granules\n", disk,
           r->size, r->base[0] ? r->base : "-", own, r->owned, r->granules);
}

static int check_overlay(const struct command *self, int argc, char **argv)
{
    struct disk_overlay_report report;
    char err[ERROR_SIZE];
    bool json = false;
    int status;

    if (parse(self, argc, argv, &json, 1, &status))
        return status;
    int failed = disk_overlay_check(argv[1], &report, err, sizeof err);
    if (failed && !report.granules)
        return cli_failed(failed, err);
    if (json)
        print_json(&report, !failed);
    else
        print_report(&report);
    status = cli_flush();
    return failed ? cli_failed(failed, err) : status;
}

const struct command disk_commands[] = {
    {"disk create", "make an overlay: a disk that holds what differs from another", "PATH [OPTION]...",
     "Without --base, over zeroes.  A name that ends in .overlay is known as one.\n", disk_create_options, NULL,
     create_overlay},
    {"disk grow", "make the disk of an overlay larger", "PATH SIZE",
     "The file system on it is to be grown inside the guest.\n", no_options, NULL, grow_overlay},
    {"disk check", "look through an overlay for damage, and say what is in it", "PATH [--json]",
     "Exit status 1: it is damaged.\n", disk_check_options, NULL, check_overlay},
    {"disk copy", "copy any disk into a new raw file", "DISK PATH", "DISK by words as of run's --disk.\n", no_options,
     NULL, copy_disk},
    {0},
};
