#include "image/modules.h"

#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "agent/cpio.h"
#include "base/error.h"
#include "image/extfs.h"
#include "image/source.h"

#define TEXT_MAX (16u << 20)
#define ENTRIES_MAX 100000
#define MODULE_MAX (64u << 20)
#define MODULES_MAX (512u << 20) /* of them all, unpacked */
#define NAME_SIZE 128
#define DEPTH_MAX 32
#define SCANS_MAX 2000

struct modules_entry {
    char name[NAME_SIZE]; /* as the kernel has it: without directory and endings, '_' for '-' */
    const char *path;     /* NULL: built in; ends at the colon of the line */
    size_t path_len;
    const char *needs; /* the rest of the line */
    bool taken;
};

enum { DEP, BUILTIN, SOFTDEP, ALIAS };

/* What a guest may have devices for, wherever its root is. */
static const char *const usual[] = {
    "virtio",
    "virtio_ring",
    "virtio_pci_legacy_dev",
    "virtio_pci_modern_dev",
    "virtio_pci",
    "nvme",
    "virtio_blk",
    "virtio_net",
    "vmw_vsock_virtio_transport",
    "virtio_console",
    "virtio_rng",
    "virtio_balloon",
    "af_packet",
    "fuse",
    "virtiofs",
    "overlay",
};

/* The name of the module in a path of modules.dep; false: no module's. */
static bool name_of(const char *path, size_t len, char name[NAME_SIZE])
{
    const char *base = path;

    for (size_t i = 0; i < len; i++)
        if (path[i] == '/')
            base = path + i + 1;
    size_t rest = len - (size_t)(base - path), n = 0;
    while (n < rest && base[n] != '.')
        n++;
    if (n == 0 || n >= NAME_SIZE || rest < n + 3 || memcmp(base + n, ".ko", 3) != 0)
        return false;
    for (size_t i = 0; i < n; i++) {
        if (!strchr("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-", base[i]))
            return false;
        name[i] = base[i] == '-' ? '_' : base[i];
    }
    name[n] = 0;
    return true;
}

static int compare(const void *a, const void *b)
{
    return strcmp(((const struct modules_entry *)a)->name, ((const struct modules_entry *)b)->name);
}

static struct modules_entry *find(const struct modules *m, const char *name)
{
    struct modules_entry key = {0};

    for (size_t i = 0; i < NAME_SIZE - 1 && name[i]; i++)
        key.name[i] = name[i] == '-' ? '_' : name[i];
    return m->n_entries ? bsearch(&key, m->entries, m->n_entries, sizeof key, compare) : NULL;
}

static int add_lines(struct modules *m, const char *text, bool builtin)
{
    for (const char *line = text; line && *line; line += strcspn(line, "\n"), line += *line == '\n') {
        size_t len = strcspn(line, builtin ? "\n" : ":\n");
        struct modules_entry e = {.needs = ""};
        if (!name_of(line, len, e.name))
            continue;
        if (!builtin) {
            e.path = line;
            e.path_len = len;
            e.needs = line[len] == ':' ? line + len + 1 : "";
        }
        if (m->n_entries == ENTRIES_MAX)
            return -EBADMSG;
        if ((m->n_entries & (m->n_entries + 1)) == 0) { /* the room is a power of two less one */
            struct modules_entry *larger = realloc(m->entries, (2 * m->n_entries + 1) * sizeof *larger);
            if (!larger)
                return -ENOMEM;
            m->entries = larger;
        }
        m->entries[m->n_entries++] = e;
    }
    return 0;
}

/* Takes the texts over. */
static int build(struct modules *m)
{
    int failed = add_lines(m, m->texts[DEP], false);

    if (!failed)
        failed = add_lines(m, m->texts[BUILTIN], true);
    if (!failed && m->n_entries)
        qsort(m->entries, m->n_entries, sizeof *m->entries, compare);
    if (!failed && !(m->order = calloc(m->n_entries + 1, sizeof *m->order)))
        failed = -ENOMEM;
    if (failed)
        modules_free(m);
    return failed;
}

int modules_read(struct modules *m, struct extfs *f, const char *directory)
{
    static const char *const names[] = {"modules.dep", "modules.builtin", "modules.softdep", "modules.alias"};
    char path[512];

    *m = (struct modules){0};
    for (unsigned i = 0; i < 4; i++) {
        snprintf(path, sizeof path, "%s/%s", directory, names[i]);
        int failed = extfs_read(f, path, TEXT_MAX, &m->texts[i], NULL);
        if (failed && (i == DEP || failed != -ENOENT)) {
            modules_free(m);
            return failed;
        }
    }
    return build(m);
}

int modules_parse(struct modules *m, const char *dep, const char *builtin, const char *softdep, const char *alias)
{
    const char *const texts[] = {dep, builtin, softdep, alias};

    *m = (struct modules){0};
    for (unsigned i = 0; i < 4; i++)
        m->texts[i] = texts[i] ? strdup(texts[i]) : NULL;
    return build(m);
}

void modules_free(struct modules *m)
{
    for (unsigned i = 0; i < 4; i++)
        free(m->texts[i]);
    free(m->entries);
    free(m->order);
    *m = (struct modules){0};
}

/* ---- the order ---- */

static bool want(struct modules *m, const char *name, unsigned depth);

/* All modules that have the alias `name`. */
static bool want_alias(struct modules *m, const char *name, unsigned depth)
{
    size_t len = strlen(name);
    bool any = false;

    if (m->scans++ >= SCANS_MAX)
        return false;
    for (const char *line = m->texts[ALIAS]; line && *line; line += strcspn(line, "\n"), line += *line == '\n') {
        char module[NAME_SIZE];
        if (strncmp(line, "alias ", 6) != 0 || strncmp(line + 6, name, len) != 0 || line[6 + len] != ' ')
            continue;
        const char *word = line + 7 + len;
        size_t n = strcspn(word, " \n");
        if (n < sizeof module) {
            memcpy(module, word, n);
            module[n] = 0;
            any |= want(m, module, depth + 1);
        }
    }
    return any;
}

/* "softdep NAME pre: A B post: C": A and B, as names or aliases, are to be there before. */
static void want_soft(struct modules *m, const char *name, unsigned depth)
{
    size_t len = strlen(name);

    if (m->scans++ >= SCANS_MAX)
        return;
    for (const char *line = m->texts[SOFTDEP]; line && *line; line += strcspn(line, "\n"), line += *line == '\n') {
        if (strncmp(line, "softdep ", 8) != 0 || strncmp(line + 8, name, len) != 0 || line[8 + len] != ' ')
            continue;
        const char *word = line + 9 + len;
        bool before = false;
        while (*word && *word != '\n') {
            char other[NAME_SIZE];
            size_t n = strcspn(word, " \n");
            if (n < sizeof other) {
                memcpy(other, word, n);
                other[n] = 0;
                if (strcmp(other, "pre:") == 0 || strcmp(other, "post:") == 0)
                    before = other[1] == 'r';
                else if (before && n && !want(m, other, depth + 1))
                    want_alias(m, other, depth + 1);
            }
            word += n;
            word += strspn(word, " ");
        }
    }
}

/* modules.dep has the nearest first, and all of them. */
static void want_needs(struct modules *m, const char *needs, unsigned depth)
{
    size_t end = strcspn(needs, "\n");

    while (end > 0) {
        size_t start = end;
        while (start > 0 && needs[start - 1] != ' ')
            start--;
        char name[NAME_SIZE];
        if (name_of(needs + start, end - start, name))
            want(m, name, depth + 1);
        while (start > 0 && needs[start - 1] == ' ')
            start--;
        end = start;
    }
}

static bool want(struct modules *m, const char *name, unsigned depth)
{
    struct modules_entry *e = find(m, name);

    if (!e)
        return false;
    if (e->taken || !e->path || depth > DEPTH_MAX)
        return true;
    e->taken = true; /* first: soft dependencies may go round in a circle */
    want_soft(m, e->name, depth);
    want_needs(m, e->needs, depth);
    m->order[m->n_order++] = (unsigned)(e - m->entries);
    return true;
}

bool modules_want(struct modules *m, const char *name)
{
    return want(m, name, 0);
}

bool modules_want_all(struct modules *m, const char *root_type)
{
    for (size_t i = 0; i < sizeof usual / sizeof usual[0]; i++)
        modules_want(m, usual[i]);
    bool disk = modules_want(m, "nvme") || modules_want(m, "virtio_blk");
    /* ext4 is what mounts its ancestors. */
    return modules_want(m, strncmp(root_type, "ext", 3) == 0 ? "ext4" : root_type) && disk;
}

const char *modules_path(const struct modules *m, unsigned i)
{
    return i < m->n_order ? m->entries[m->order[i]].path : NULL;
}

/* ---- the archive ---- */

/* *room: bytes that may still be written. */
static int write_module(struct cpio *c, const struct modules_entry *e, struct extfs *f, const char *directory,
                        size_t *room, char *err, size_t n)
{
    char path[2048], *packed, *module;
    size_t packed_len, len;
    bool absolute = e->path[0] == '/';

    snprintf(path, sizeof path, "%s%s%.*s", absolute ? "" : directory, absolute ? "" : "/",
             (int)(e->path_len < 1500 ? e->path_len : 1500), e->path);
    int failed = extfs_read(f, path, MODULE_MAX, &packed, &packed_len);
    if (failed)
        return error_sys(err, n, failed, "cannot read the kernel module %s", path);
    failed = archive_unpack(packed, packed_len, MODULE_MAX < *room ? MODULE_MAX : *room, &module, &len);
    free(packed);
    if (failed == -EFBIG)
        return error_set(err, n, failed, "the kernel's modules, of which %s is the last, are too large", path);
    if (failed)
        return error_set(err, n, failed, "the kernel module %s is damaged", path);
    snprintf(path, sizeof path, "guise/modules/%s.ko", e->name);
    cpio_file(c, path, 0644, module, len);
    free(module);
    *room -= len;
    return 0;
}

static void write_list(struct cpio *c, const struct modules *m, bool with_needs)
{
    char *text = NULL;
    size_t len = 0;
    FILE *out = open_memstream(&text, &len);

    for (unsigned i = 0; out && m && i < m->n_order; i++) {
        const struct modules_entry *e = &m->entries[m->order[i]];
        fprintf(out, "%s.ko%s", e->name, with_needs ? ":" : "");
        for (const char *word = e->needs; with_needs && *word && *word != '\n';) {
            char name[NAME_SIZE];
            size_t n = strcspn(word, " \n");
            if (name_of(word, n, name))
                fprintf(out, " %s.ko", name);
            word += n;
            word += strspn(word, " ");
        }
        fputc('\n', out);
    }
    if (out && fclose(out) == 0)
        cpio_file(c, with_needs ? "guise/modules/dep" : "guise/modules/order", 0644, text, len);
    else
        c->error = -ENOMEM;
    free(text);
}

int modules_write(const struct modules *m, struct extfs *f, const char *directory, int fd, char *err, size_t n)
{
    struct cpio *c = malloc(sizeof *c);
    size_t room = MODULES_MAX;
    int failed = 0;

    if (!c)
        return error_sys(err, n, -ENOMEM, "cannot write the kernel's modules");
    cpio_begin(c, fd);
    cpio_directory(c, "guise", 0755);
    cpio_directory(c, "guise/modules", 0755);
    for (unsigned i = 0; m && i < m->n_order && !failed; i++)
        failed = write_module(c, &m->entries[m->order[i]], f, directory, &room, err, n);
    write_list(c, m, false);
    write_list(c, m, true);
    int written = cpio_end(c);
    free(c);
    if (!failed && written)
        failed = error_sys(err, n, written, "cannot write the kernel's modules");
    return failed;
}
