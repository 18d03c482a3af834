/*
 * What people type, and what a configuration or the control socket says in their name: a command line of options, sizes
 * and numbers, the words of disks, networks, ports, shares, sockets, names. Any text is taken or refused with a
 * sentence.
 */
#include <errno.h>
#include <stdarg.h>

#include "fixture.h"

#include "backends/chr.h"
#include "backends/disk.h"
#include "backends/disk/disk_int.h"
#include "backends/net.h"
#include "backends/share.h"
#include "backends/vsock_host.h"
#include "base/error.h"
#include "base/parse.h"
#include "image/image.h"
#include "image/recipe.h"
#include "vm/names.h"
#include "vm/vm.h"

#define ARGUMENTS 16

static char text[1024];
static char err[ERROR_SIZE];

/* No file is looked for. */
char *__wrap_realpath(const char *path, char *resolved);
char *__wrap_realpath(const char *path, char *resolved)
{
    return NULL;
}
int __real_open64(const char *path, int flags, ...);
int __wrap_open64(const char *path, int flags, ...);
int __wrap_open64(const char *path, int flags, ...)
{
    if (path >= text && path < text + sizeof text) {
        errno = ENOENT;
        return -1;
    }
    va_list args;
    va_start(args, flags);
    int fd = __real_open64(path, flags, va_arg(args, int));
    va_end(args);
    return fd;
}
int __wrap_access(const char *path, int mode);
int __wrap_access(const char *path, int mode)
{
    errno = ENOENT;
    return -1;
}

static bool holds(int failed)
{
    assert_true(failed <= 0 && (!failed || err[0]));
    return !failed;
}

/* --- one text ---------------------------------------------------------------------------------------------------- */

static void take_size(void)
{
    uint64_t bytes;

    if (holds(parse_size(text, &bytes, err, sizeof err)))
        assert_true(strspn(text, "0123456789"));
}

static void take_number(void)
{
    uint64_t value;

    if (holds(parse_number(text, 3, 1000, &value, err, sizeof err)))
        assert_true(value >= 3 && value <= 1000);
    if (holds(parse_seconds(text, &value, err, sizeof err)))
        assert_true(value);
}

static void take_disk(void)
{
    static struct disk_spec spec;

    if (holds(disk_parse(text, &spec, err, sizeof err)))
        assert_true(spec.path[0] && strlen(spec.serial) <= DISK_SERIAL_MAX && disk_formats[spec.format].name);
}

static void take_share(void)
{
    static struct share_words words;

    if (holds(share_parse(text, &words, err, sizeof err)))
        assert_true(words.directory[0] && (!words.path || words.path[0] == '/'));
}

static void take_vsock(void)
{
    struct vsock_host_spec spec;

    if (holds(vsock_host_parse(text, &spec, err, sizeof err)))
        assert_true(spec.path[0] && spec.cid >= 3);
}

static void take_net(void)
{
    struct net_publish p;
    uint8_t mac[6];

    holds(net_check(text, err, sizeof err));
    if (holds(net_publish_parse(text, &p, err, sizeof err)))
        assert_true(p.guest_port);
    if (holds(net_mac_parse(text, mac, err, sizeof err)))
        assert_true(!(mac[0] & 1));
}

static void take_name(void)
{
    if (holds(name_check(text, err, sizeof err)))
        assert_true(strlen(text) < NAME_SIZE && !strpbrk(text, "/. "));
    if (holds(image_name_check(text, err, sizeof err)))
        assert_true(!strchr(text, '/') && text[0] != '.');
}

static void take_chr(void)
{
    if (holds(chr_check(text, err, sizeof err)) && chr_socket(text))
        assert_true(chr_socket(text) > text && chr_socket(text) <= text + strlen(text));
}

static void take_recipe(void)
{
    static char lines[RECIPE_SOURCES_MAX][512];
    struct image_build b = {.name = "x", .suite = text};

    holds(recipe_check(&b, err, sizeof err));
    b = (struct image_build){.name = "x", .include = text};
    holds(recipe_check(&b, err, sizeof err));
    b = (struct image_build){.name = "x", .mirror = text};
    if (holds(recipe_check(&b, err, sizeof err)))
        recipe_sources("trixie", text, NULL, lines);
    for (unsigned i = recipe_sources("bookworm", NULL, text, lines); i; i--)
        assert_true(!strncmp(lines[i - 1], "deb ", 4) && !strchr(lines[i - 1], '\n'));
}

/* --- many -------------------------------------------------------------------------------------------------------- */

/* The text's pieces, at NULs or line feeds, are a command line. */
static void take_options(size_t size)
{
    struct vm_config config = {0};
    char *argv[ARGUMENTS + 2] = {"guise"};
    int argc = 1;

    for (size_t at = 0; at < size && argc <= ARGUMENTS; argc++) {
        argv[argc] = text + at;
        at += strcspn(text + at, "\n");
        text[at++] = 0;
    }
    int operands = options_parse(vm_options, argc, argv, &config, err, sizeof err);
    assert_true(operands < argc && (operands >= 0 || err[0]));
    if (operands < 0)
        return;
    struct options_cursor c = {.at = vm_options};
    const struct option_spec *o;
    char buf[32];
    while ((o = options_next(&c)))
        for (unsigned i = 0; options_text(&c, o, &config, i, buf, sizeof buf); i++)
            assert_true(i <= OPTION_LIST_MAX);
}

/* name=text, as a configuration says it. */
static void take_setting(void)
{
    struct vm_config config = {0};
    size_t len = strcspn(text, "=");
    char *value = text[len] ? text + len + 1 : NULL;

    text[len] = 0;
    holds(options_set(vm_options, text, value, &config, err, sizeof err));
    holds(options_restore(vm_options, text, value, &config, err, sizeof err));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static void (*const takers[])(void) = {take_size, take_number, take_disk, take_share,  take_vsock,
                                           take_net,  take_name,   take_chr,  take_recipe, take_setting};
    unsigned what = size ? data[0] % (sizeof takers / sizeof *takers + 1) : 0;

    if (!size || size > sizeof text)
        return 0;
    memcpy(text, data + 1, size - 1);
    text[size - 1] = 0;
    err[0] = 0;
    if (what < sizeof takers / sizeof *takers)
        takers[what]();
    else
        take_options(size - 1);
    return 0;
}
