/* `guise image ...`: a table of sub-commands over the room image/. */
#include <errno.h>
#include <inttypes.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/error.h"
#include "base/log.h"
#include "cli/cli.h"
#include "cli/image_progress.h"
#include "cli/table.h"
#include "image/make.h"

#define SCHEMA 1
#define LEAST_DISK (256ull << 20)
#define MOST_DISK (16ull << 40)

const struct option_spec image_options[] = {{0}};

/* Returns the number of operands, or -1 with *status after saying what is missing. */
static int parse(const struct command *self, int argc, char **argv, void *out, int least, int most, int *status)
{
    char err[ERROR_SIZE];
    int operands = cli_parse(self, argc, argv, out, most, status);

    if (operands < 0 || operands >= least)
        return operands;
    error_set(err, sizeof err, 0, "more is needed: guise %s %s", self->name, self->usage);
    *status = cli_usage_error(self, err);
    return -1;
}

/* ---- build, import, export ---- */

struct make_arguments {
    struct image_build build;
    bool quiet;
};

#define BUILD(field) offsetof(struct make_arguments, build.field)
/* clang-format off */
static const struct option_spec build_options[] = {
    {.name = "suite", .letter = 's', .kind = OPTION_STRING, .offset = BUILD(suite), .value = "NAME",
     .help = "the release of Debian (bookworm unless told)", .examples = "bookworm trixie sid"},
    {.name = "include", .letter = 'i', .kind = OPTION_STRING, .offset = BUILD(include), .value = "PACKAGE,...",
     .help = "further packages"},
    {.name = "size", .kind = OPTION_SIZE, .offset = BUILD(bytes), .value = "SIZE",
     .help = "of the disk, with a unit (4G unless told)", .min = LEAST_DISK, .max = MOST_DISK, .examples = "4G 8G 20G"},
    {.name = "hook", .kind = OPTION_FILE, .offset = BUILD(hook), .value = "FILE",
     .help = "a program to run at the end, inside the new system"},
    {.name = "mirror", .kind = OPTION_STRING, .offset = BUILD(mirror), .value = "URL",
     .help = "where packages come from (the mirrors of this host unless told)"},
    {.name = "replace", .kind = OPTION_FLAG, .offset = BUILD(replace),
     .help = "take the name from the image that has it"},
    {.name = "quiet", .letter = 'q', .kind = OPTION_FLAG, .offset = offsetof(struct make_arguments, quiet),
     .help = "no progress"},
    {0},
};
/* clang-format on */

/* What came of it: the name or digest on stdout. */
static int made(int failed, const struct image_info *info, const char *err)
{
    if (failed)
        return cli_failed(failed, err);
    puts(info->name[0] ? info->name : info->digest);
    return cli_flush();
}

static int build_main(const struct command *self, int argc, char **argv)
{
    struct make_arguments a = {0};
    struct image_show show;
    struct image_info info;
    char err[ERROR_SIZE];
    int status;

    if (parse(self, argc, argv, &a, 1, 1, &status) < 0)
        return status;
    a.build.name = argv[1];
    image_show_begin(&show, a.quiet);
    int failed = image_build(&a.build, &show.report, &info, err, sizeof err);
    image_show_end(&show);
    return made(failed, &info, err);
}

struct import_arguments {
    struct image_import import;
    bool quiet;
};

#define IMPORT(field) offsetof(struct import_arguments, import.field)
/* clang-format off */
static const struct option_spec import_options[] = {
    {.name = "name", .letter = 'n', .kind = OPTION_STRING, .offset = IMPORT(name), .value = "NAME",
     .help = "how to call it (otherwise it has its digest only)"},
    {.name = "sha256", .kind = OPTION_STRING, .offset = IMPORT(sha256), .value = "DIGITS",
     .help = "refuse a file with another checksum"},
    {.name = "kernel", .letter = 'k', .kind = OPTION_FILE, .offset = IMPORT(kernel), .value = "FILE",
     .help = "boot this kernel, or that of the image of this name"},
    {.name = "initrd", .kind = OPTION_FILE, .offset = IMPORT(initrd), .value = "FILE",
     .help = "the initial file system that mounts the root"},
    {.name = "append", .letter = 'a', .kind = OPTION_STRING, .offset = IMPORT(append), .value = "STRING",
     .help = "more words for the kernel command line"},
    {.name = "size", .kind = OPTION_SIZE, .offset = IMPORT(bytes), .value = "SIZE",
     .help = "of the disk that is made of files (enough unless told)", .min = LEAST_DISK, .max = MOST_DISK,
     .examples = "4G 8G 20G"},
    {.name = "replace", .kind = OPTION_FLAG, .offset = IMPORT(replace),
     .help = "take the name from the image that has it"},
    {.name = "quiet", .letter = 'q', .kind = OPTION_FLAG, .offset = offsetof(struct import_arguments, quiet),
     .help = "no progress"},
    {0},
};
static const struct option_spec export_options[] = {
    {.name = "quiet", .letter = 'q', .kind = OPTION_FLAG, .offset = 0, .help = "no progress"},
    {0},
};
/* clang-format on */

static int import_main(const struct command *self, int argc, char **argv)
{
    struct import_arguments a = {0};
    struct image_show show;
    struct image_info info;
    char err[ERROR_SIZE];
    int status;

    if (parse(self, argc, argv, &a, 1, 1, &status) < 0)
        return status;
    a.import.source = argv[1];
    image_show_begin(&show, a.quiet);
    int failed = image_import(&a.import, &show.report, &info, err, sizeof err);
    image_show_end(&show);
    return made(failed, &info, err);
}

static int export_main(const struct command *self, int argc, char **argv)
{
    struct image_show show;
    char err[ERROR_SIZE];
    bool quiet = false;
    int status;

    if (parse(self, argc, argv, &quiet, 2, 2, &status) < 0)
        return status;
    image_show_begin(&show, quiet);
    int failed = image_export(argv[1], argv[2], &show.report, err, sizeof err);
    image_show_end(&show);
    return failed ? cli_failed(failed, err) : STATUS_OK;
}

/* ---- ls, info ---- */

struct look_arguments {
    bool json, verify;
};

#define LOOK(field) offsetof(struct look_arguments, field)
#define JSON_ROW                                                                                                       \
    {                                                                                                                  \
        .name = "json", .kind = OPTION_FLAG, .offset = LOOK(json), .help = "print one JSON document"                   \
    }
static const struct option_spec list_options[] = {JSON_ROW, {0}};
static const struct option_spec look_options[] = {
    JSON_ROW,
    {.name = "verify", .kind = OPTION_FLAG, .offset = LOOK(verify), .help = "read all of it and compare its digest"},
    {0},
};

static json_t *string_or_null(const char *text)
{
    return text[0] ? json_string(text) : json_null();
}

static json_t *describe(const struct image_info *i)
{
    json_t *all = json_object();

    json_object_set_new(all, "schema_version", json_integer(SCHEMA));
    json_object_set_new(all, "name", string_or_null(i->name));
    json_object_set_new(all, "digest", json_string(i->digest));
    json_object_set_new(all, "created", json_string(i->created));
    json_object_set_new(all, "source", string_or_null(i->source));
    json_object_set_new(all, "architecture", json_string(i->architecture));
    json_object_set_new(all, "os_id", string_or_null(i->os_id));
    json_object_set_new(all, "os_version", string_or_null(i->os_version));
    json_object_set_new(all, "os_name", string_or_null(i->os_name));
    json_object_set_new(all, "kernel_version", string_or_null(i->kernel_version));
    json_object_set_new(all, "command_line", json_string(i->command_line));
    json_object_set_new(all, "root_partition", json_integer(i->root_partition));
    json_object_set_new(all, "root_type", string_or_null(i->root_type));
    json_object_set_new(all, "init", string_or_null(i->init));
    json_object_set_new(all, "needs_initrd", json_boolean(i->needs_initrd));
    json_object_set_new(all, "cloud_init", json_boolean(i->has_cloud_init));
    json_object_set_new(all, "sshd", json_boolean(i->has_sshd));
    json_object_set_new(all, "qemu_guest_agent", json_boolean(i->has_qemu_guest_agent));
    json_object_set_new(all, "disk_bytes", json_integer((json_int_t)i->disk_bytes));
    json_object_set_new(all, "used_bytes", json_integer((json_int_t)i->used_bytes));
    json_object_set_new(all, "directory", json_string(i->directory));
    return all;
}

static int print_json(json_t *document)
{
    json_dumpf(document, stdout, JSON_INDENT(2));
    putchar('\n');
    json_decref(document);
    return cli_flush();
}

static int print_list(const struct image_info *list, size_t count)
{
    struct table t;

    table_init(&t, "NAME DIGEST OS KERNEL DISK USED CREATED");
    for (size_t i = 0; i < count; i++) {
        char digest[13], disk[16], used[16];
        snprintf(digest, sizeof digest, "%.12s", list[i].digest + strlen("sha256-"));
        table_size(list[i].disk_bytes, disk, sizeof disk);
        table_size(list[i].used_bytes, used, sizeof used);
        const char *os = list[i].os_name[0] ? list[i].os_name : list[i].os_id;
        const char *const cells[] = {list[i].name[0] ? list[i].name : "-",
                                     digest,
                                     os[0] ? os : "-",
                                     list[i].kernel_version,
                                     disk,
                                     used,
                                     list[i].created};
        table_add(&t, cells);
    }
    table_print(&t, stdout);
    table_free(&t);
    return cli_flush();
}

static int list_main(const struct command *self, int argc, char **argv)
{
    struct look_arguments a = {0};
    struct image_info *list;
    char err[ERROR_SIZE];
    size_t count;
    int status;

    if (parse(self, argc, argv, &a, 0, 0, &status) < 0)
        return status;
    int failed = image_list(&list, &count, err, sizeof err);
    if (failed)
        return cli_failed(failed, err);
    if (a.json) {
        json_t *all = json_array();
        for (size_t i = 0; i < count; i++)
            json_array_append_new(all, describe(&list[i]));
        status = print_json(all);
    } else {
        if (count == 0 && isatty(STDERR_FILENO))
            log_say("there is no image yet: `guise image build debian` makes one");
        status = count ? print_list(list, count) : STATUS_OK;
    }
    free(list);
    return status;
}

static void print_info(const struct image_info *i)
{
    static const char *const answer[] = {"no", "yes"};
    char disk[16], used[16];

    table_size(i->disk_bytes, disk, sizeof disk);
    table_size(i->used_bytes, used, sizeof used);
    printf("name:          %s\ndigest:        %s\nmade of:       %s\ncreated:       %s\n", i->name[0] ? i->name : "-",
           i->digest, i->source[0] ? i->source : "-", i->created);
    printf("system:        %s (%s)\nkernel:        %s\ncommand line:  %s\n", i->os_name[0] ? i->os_name : "not known",
           i->architecture, i->kernel_version, i->command_line);
    printf("root:          %s", i->root_type[0] ? i->root_type : "not known");
    if (i->root_partition)
        printf(" on partition %u", i->root_partition);
    printf("%s\ninit:          %s\n", i->needs_initrd ? ", by its own initrd" : "", i->init[0] ? i->init : "-");
    printf("cloud-init:    %s\nssh server:    %s\nguest agent:   %s\n", answer[i->has_cloud_init], answer[i->has_sshd],
           answer[i->has_qemu_guest_agent]);
    printf("disk:          %s, %s used on this host\ndirectory:     %s\n", disk, used, i->directory);
}

static int look_main(const struct command *self, int argc, char **argv)
{
    struct look_arguments a = {0};
    struct image_info info;
    char err[ERROR_SIZE];
    int status;

    if (parse(self, argc, argv, &a, 1, 1, &status) < 0)
        return status;
    int failed = image_find(argv[1], &info, err, sizeof err);
    if (!failed && a.verify)
        failed = image_verify(&info, err, sizeof err);
    if (failed)
        return cli_failed(failed, err);
    if (a.json)
        return print_json(describe(&info));
    print_info(&info);
    if (a.verify)
        puts("verified:      yes");
    return cli_flush();
}

/* ---- rm, tag ---- */

static const struct option_spec no_options[] = {{0}};

static int remove_main(const struct command *self, int argc, char **argv)
{
    char err[ERROR_SIZE];
    int status, result = STATUS_OK, operands = parse(self, argc, argv, NULL, 1, 1000, &status);

    if (operands < 0)
        return status;
    for (int i = 1; i <= operands; i++) {
        bool deleted;
        int failed = image_remove(argv[i], &deleted, err, sizeof err);
        if (failed)
            result = cli_failed(failed, err);
        else if (!deleted)
            log_say("the name %s is gone; the image has others", argv[i]);
    }
    return result;
}

static int tag_main(const struct command *self, int argc, char **argv)
{
    char err[ERROR_SIZE];
    int status;

    if (parse(self, argc, argv, NULL, 2, 2, &status) < 0)
        return status;
    int failed = image_tag(argv[1], argv[2], err, sizeof err);
    return failed ? cli_failed(failed, err) : STATUS_OK;
}

const struct command image_commands[] = {
    {"image build", "build a Debian image", "NAME [OPTION]...",
     "By mmdebstrap (the package mmdebstrap), in about a minute.  Prints the name.  NAME alone chooses the suite for\n"
     "debian, debian-12, debian-13, bookworm, trixie and sid.\n",
     build_options, NULL, build_main},
    {"image import", "make an image of a disk, an archive, a directory or a container image",
     "FILE|URL|DIRECTORY [OPTION]...",
     "Disks: raw, qcow2, vmdk, vhd, vhdx, vdi (the package qemu-utils).  Archives: tar, also compressed.  Containers: "
     "an\n"
     "OCI layout, as a directory or a tar archive.  Prints the name, or the digest.\n",
     import_options, NULL, import_main},
    {"image export", "write an image to one file, for `guise image import`", "NAME FILE.tar.zst", NULL, export_options,
     "@image", export_main},
    {"image ls", "list images", "[--json]", NULL, list_options, NULL, list_main},
    {"image info", "say what an image is", "NAME [--json] [--verify]", NULL, look_options, "@image", look_main},
    {"image rm", "remove images", "NAME...",
     "Of an image with several names only the name goes, unless a digest is given.  Exit status 5: a VM uses it.\n",
     no_options, "@image", remove_main},
    {"image tag", "give an image another name", "NAME NEW", NULL, no_options, "@image", tag_main},
    {0},
};
