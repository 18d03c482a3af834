/* The words that name a disk, and the formats there are. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "backends/disk/disk_int.h"
#include "base/error.h"
#include "base/parse.h"

const struct disk_format disk_formats[] = {
    {"raw", NULL, NULL, 0, disk_raw_open},
    {"overlay", "overlay", "GUISEOVL", 8, disk_overlay_open},
    {"nbd", NULL, NULL, 0, disk_nbd_open},
    {"qcow2", "qcow2", "QFI\xfb", 4, disk_foreign_open},
    {"vmdk", "vmdk", "KDMV", 4, disk_foreign_open},
    {"vpc", "vhd", "conectix", 8, disk_foreign_open},
    {"vhdx", "vhdx", "vhdxfile", 8, disk_foreign_open},
    {"vdi", "vdi", "<<< ", 4, disk_foreign_open},
    {"qed", "qed", "QED", 4, disk_foreign_open},
    {0},
};

/* The next word of *text, with doubled commas made single, into word[size].  -EINVAL when it is too long. */
static int next_word(const char **text, char *word, size_t size)
{
    const char *p = *text;
    size_t n = 0;

    for (; *p && (*p != ',' || p[1] == ','); p++) {
        p += *p == ',';
        if (n + 1 == size)
            return -EINVAL;
        word[n++] = *p;
    }
    word[n] = 0;
    *text = *p ? p + 1 : NULL;
    return 0;
}

static int set_format(struct disk_spec *s, const char *value, char *err, size_t n)
{
    char known[128] = "";

    for (unsigned i = 0; disk_formats[i].name; i++) {
        if (strcmp(value, disk_formats[i].name) == 0) {
            s->format = i;
            s->guessed = false;
            return 0;
        }
        size_t used = strlen(known);
        if (!i || strcmp(disk_formats[i].name, disk_formats[i - 1].name) != 0)
            snprintf(known + used, sizeof known - used, "%s%s", i ? ", " : "", disk_formats[i].name);
    }
    return error_set(err, n, -EINVAL, "there is no disk format '%s': choose one of %s", value, known);
}

static int set_bus(struct disk_spec *s, const char *value, char *err, size_t n)
{
    if (strcmp(value, "nvme") == 0)
        s->bus = DISK_BUS_NVME;
    else if (strcmp(value, "virtio") == 0)
        s->bus = DISK_BUS_VIRTIO;
    else
        return error_set(err, n, -EINVAL, "a disk's bus is nvme or virtio, not '%s'", value);
    return 0;
}

static int set_serial(struct disk_spec *s, const char *value, char *err, size_t n)
{
    size_t len = strlen(value);

    if (!len || len > DISK_SERIAL_MAX)
        return error_set(err, n, -EINVAL, "a disk's serial number has 1 to %u characters, not %zu", DISK_SERIAL_MAX,
                         len);
    for (size_t i = 0; i < len; i++)
        if (value[i] <= ' ' || value[i] > '~')
            return error_set(err, n, -EINVAL, "a disk's serial number consists of printable ASCII without blanks");
    strcpy(s->serial, value);
    return 0;
}

static int set_base(struct disk_spec *s, const char *value, char *err, size_t n)
{
    if (!value[0] || strlen(value) >= sizeof s->base)
        return error_set(err, n, -EINVAL, "a disk's base is a path of at most %zu bytes", sizeof s->base - 1);
    strcpy(s->base, value);
    return 0;
}

static int set_read_only(struct disk_spec *s, const char *value, char *err, size_t n)
{
    if (value)
        return error_set(err, n, -EINVAL, "ro takes no value: 'ro=%s'", value);
    s->read_only = true;
    return 0;
}

static int set_rate(struct disk_spec *s, const char *value, char *err, size_t n)
{
    int failed = parse_size(value, &s->bytes_per_second, err, n);

    if (failed)
        return -EINVAL;
    return s->bytes_per_second ? 0 : error_set(err, n, -EINVAL, "a disk's bps is more than zero");
}

static int set_operations(struct disk_spec *s, const char *value, char *err, size_t n)
{
    return parse_number(value, 1, 1000000000, &s->operations_per_second, err, n) ? -EINVAL : 0;
}

static const struct disk_key {
    const char *name;
    int (*set)(struct disk_spec *s, const char *value, char *err, size_t n);
    bool bare; /* may stand without a value */
} disk_keys[] = {
    {"format", set_format, false},   {"ro", set_read_only, true}, {"bus", set_bus, false},
    {"serial", set_serial, false},   {"base", set_base, false},   {"bps", set_rate, false},
    {"iops", set_operations, false},
};

static int set_key(struct disk_spec *s, char *word, char *err, size_t n)
{
    char *value = strchr(word, '=');

    if (value)
        *value++ = 0;
    for (unsigned i = 0; i < sizeof disk_keys / sizeof *disk_keys; i++) {
        if (strcmp(word, disk_keys[i].name) != 0)
            continue;
        if (!value && !disk_keys[i].bare)
            return error_set(err, n, -EINVAL, "a disk's %s needs a value: %s=...", word, word);
        return disk_keys[i].set(s, value, err, n);
    }
    return error_set(err, n, -EINVAL, "'%s' is not a word for a disk (a comma in a path is written twice)", word);
}

static unsigned format_number(const char *name)
{
    unsigned i = 0;

    while (disk_formats[i].name && strcmp(disk_formats[i].name, name) != 0)
        i++;
    return i;
}

static bool is_nbd_uri(const char *path)
{
    return strncmp(path, "nbd://", 6) == 0 || strncmp(path, "nbds://", 7) == 0 ||
           strncmp(path, "nbd+unix://", 11) == 0 || strncmp(path, "nbds+unix://", 12) == 0;
}

static void guess_format(struct disk_spec *s)
{
    const char *name = strrchr(s->path, '/');

    name = name ? name + 1 : s->path;
    const char *suffix = strrchr(name, '.');
    for (unsigned i = 0; disk_formats[i].name; i++)
        if (suffix && disk_formats[i].suffix && strcasecmp(suffix + 1, disk_formats[i].suffix) == 0)
            s->format = i;
    if (is_nbd_uri(s->path))
        s->format = format_number("nbd");
    s->guessed = true;
}

/* The same path gets the same number in each run: FNV-1a of the file's full name. */
static void make_serial(struct disk_spec *s)
{
    char *full = realpath(s->path, NULL);
    uint64_t hash = 0xcbf29ce484222325ull;

    for (const char *p = full ? full : s->path; *p; p++)
        hash = (hash ^ (unsigned char)*p) * 0x100000001b3ull;
    free(full);
    snprintf(s->serial, sizeof s->serial, "G%016llX", (unsigned long long)hash);
}

int disk_parse(const char *words, struct disk_spec *s, char *err, size_t n)
{
    char word[PATH_MAX];
    const char *rest = words;

    memset(s, 0, sizeof *s);
    if (next_word(&rest, s->path, sizeof s->path))
        return error_set(err, n, -EINVAL, "a disk's path is longer than %d bytes", PATH_MAX - 1);
    if (!s->path[0])
        return error_set(err, n, -EINVAL, "a disk begins with its path, as in disk.img,ro");
    guess_format(s);
    while (rest) {
        if (next_word(&rest, word, sizeof word))
            return error_set(err, n, -EINVAL, "a word for disk %s is too long", s->path);
        int failed = set_key(s, word, err, n);
        if (failed)
            return failed;
    }
    if (!s->serial[0])
        make_serial(s);
    if (s->base[0] && strcmp(disk_formats[s->format].name, "overlay") != 0)
        return error_set(err, n, -EINVAL, "disk %s is no overlay (format=overlay), so it has no base", s->path);
    return 0;
}

int disk_check(const char *words, char *err, size_t n)
{
    struct disk_spec spec;

    return disk_parse(words, &spec, err, n);
}

char *disk_quote(const char *path, const char *format)
{
    char *words = malloc(2 * strlen(path) + sizeof ",format=" + (format ? strlen(format) : 0)), *to = words;

    if (!words)
        return NULL;
    for (; *path; path++) {
        *to++ = *path;
        if (*path == ',')
            *to++ = ',';
    }
    *to = 0;
    if (format)
        sprintf(to, ",format=%s", format);
    return words;
}
