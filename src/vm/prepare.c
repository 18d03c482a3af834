#include "vm/prepare.h"

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "agent/config.h"
#include "agent/initrd.h"
#include "agent/key.h"
#include "backends/net.h"
#include "backends/share.h"
#include "backends/disk.h"
#include "base/error.h"
#include "base/file.h"
#include "base/path.h"

#define KEY_FILE_MOST (64u << 10)
/* What the network of one's own has (backends/net/slirp.c). */
#define USER_ADDRESS "10.0.2.15/24"
#define USER_GATEWAY "10.0.2.2"
#define USER_DNS "10.0.2.3"

/* A text that lives as long as *p; NULL without memory, or when there are too many. */
__attribute__((format(printf, 2, 3))) static const char *keep(struct prepared *p, const char *format, ...)
{
    char *text = NULL;
    va_list args;

    va_start(args, format);
    if (p->n_texts == PREPARED_TEXTS_MAX || vasprintf(&text, format, args) < 0)
        text = NULL;
    va_end(args);
    if (text)
        p->texts[p->n_texts++] = text;
    return text;
}

void prepare_free(struct prepared *p)
{
    while (p->n_texts)
        free(p->texts[--p->n_texts]);
}

static int no_room(char *err, size_t n)
{
    return error_set(err, n, -ENOMEM, "the configuration is too large");
}

static int add(struct option_list *list, const char *word, char *err, size_t n)
{
    if (!word)
        return no_room(err, n);
    if (list->n == OPTION_LIST_MAX)
        return error_set(err, n, -E2BIG, "there are more than %d of a kind", OPTION_LIST_MAX);
    list->value[list->n++] = word;
    return 0;
}

static int add_first(struct option_list *list, const char *word, char *err, size_t n)
{
    int failed = add(list, word, err, n);

    for (unsigned i = failed ? 0 : list->n - 1; i > 0; i--) {
        const char *other = list->value[i - 1];
        list->value[i - 1] = list->value[i];
        list->value[i] = other;
    }
    return failed;
}

bool record_has_disk(const struct vm_record *record)
{
    return record->image_digest[0] && !record->settings.root;
}

/* --- kernel and initramfs ------------------------------------------------------------------------------------ */

/* The release of a bzImage (Documentation/arch/x86/boot.rst: 0x202 "HdrS", 0x20e kernel_version), up to a blank; empty
 * when it does not say. */
static void kernel_release(const char *path, char *release, size_t n)
{
    unsigned char head[0x210];
    char text[128] = "";
    int fd = open(path, O_RDONLY | O_CLOEXEC);

    release[0] = 0;
    if (fd < 0)
        return;
    if (pread(fd, head, sizeof head, 0) == sizeof head && memcmp(head + 0x202, "HdrS", 4) == 0) {
        off_t at = 0x200 + (head[0x20e] | head[0x20f] << 8);
        if (at > 0x200 && pread(fd, text, sizeof text - 1, at) > 0)
            snprintf(release, n, "%.*s", (int)strcspn(text, " "), text);
    }
    close(fd);
}

/* A kernel of one's own gets the image's modules when they are made for it; else it must have built in what it needs.
 */
static int choose_kernel(struct prepared *p, char *err, size_t n)
{
    char release[128];

    if (!p->config.kernel_path)
        p->config.kernel_path = p->image.kernel;
    kernel_release(p->config.kernel_path, release, sizeof release);
    bool fits = p->config.kernel_path == p->image.kernel || strcmp(release, p->image.kernel_version) == 0;
    return fits && p->image.modules[0] ? add_first(&p->config.initrds, p->image.modules, err, n) : 0;
}

/* The tests of its own ciphers are a fifth of the time that a kernel takes to its first process; a machine that lives
 * for one command does without. */
#define FAST_BOOT " cryptomgr.notests"

/* What the kernel is told: the image's words, ours, the user's. */
static int command_line(const struct vm_record *record, struct prepared *p, char *err, size_t n)
{
    const char *words = p->image.command_line, *more = record->settings.config.append;

    if (record->settings.root)
        words = "console=ttyS0 quiet panic=-1";
    p->config.append = keep(p, "%s%s rdinit=/" GUEST_INIT_PATH "%s%s", words,
                            record->mode == VM_MODE_COMMAND ? FAST_BOOT : "", more ? " " : "", more ? more : "");
    return p->config.append ? 0 : no_room(err, n);
}

/* --- what the guest is told ------------------------------------------------------------------------------------- */

/* A file of public keys: a line each. */
static int add_keys(struct prepared *p, struct guest_config *g, const char *path, char *err, size_t n)
{
    char *text, *save = NULL;
    int failed = file_read(path, KEY_FILE_MOST, &text, NULL, err, n);

    if (failed)
        return failed;
    for (char *line = strtok_r(text, "\r\n", &save); line && !failed; line = strtok_r(NULL, "\r\n", &save))
        if (line[0] != '#')
            failed = add(&g->keys, keep(p, "%s", line), err, n);
    free(text);
    return failed;
}

/* guise's own key, by which `guise ssh` logs in, and the user's. */
static int all_keys(const struct vm_record *record, struct prepared *p, struct guest_config *g, char *err, size_t n)
{
    char data[PATH_MAX], line[512];
    int failed = path_data(data, sizeof data, err, n);

    if (!failed)
        failed = agent_key(data, NULL, 0, line, sizeof line, err, n);
    if (!failed)
        failed = add(&g->keys, keep(p, "%s", line), err, n);
    for (unsigned i = 0; i < record->settings.ssh_keys.n && !failed; i++)
        failed = add_keys(p, g, record->settings.ssh_keys.value[i], err, n);
    return failed;
}

/* Those that name a place inside; the others are the guest's own affair. */
static int all_shares(struct prepared *p, struct guest_config *g, char *err, size_t n)
{
    const struct option_list *shares = &p->config.shares;
    struct share_words words;
    char tag[SHARE_TAG_SIZE];
    int failed = 0;

    for (unsigned i = 0; i < shares->n && !failed; i++) {
        failed = share_parse(shares->value[i], &words, err, n);
        share_tag(tag, i);
        if (!failed && words.path)
            failed = add(&g->shares, keep(p, "%s %s %s", words.read_only ? "ro" : "rw", tag, words.path), err, n);
    }
    return failed;
}

/* A directory of the host as the root: read-only, what is written goes to memory. */
static int host_root(const char *directory, struct prepared *p, struct guest_config *g, char *err, size_t n)
{
    char tag[SHARE_TAG_SIZE];

    share_tag(tag, p->config.shares.n);
    int failed = add(&p->config.shares, keep(p, "%s:ro:mounts", directory), err, n);
    g->root = keep(p, "virtiofs:%s", tag);
    g->root_options = "ro";
    g->root_overlay = true;
    return failed ? failed : g->root ? 0 : no_room(err, n);
}

static int disk_root(struct prepared *p, struct guest_config *g, char *err, size_t n)
{
    const struct image_info *i = &p->image;

    g->root = i->root_partition ? keep(p, "/dev/nvme0n1p%u", i->root_partition) : "/dev/nvme0n1";
    g->root_type = i->root_type[0] ? i->root_type : NULL;
    g->root_grow = !i->root_partition;
    return g->root ? 0 : no_room(err, n);
}

static bool has_user_network(const struct vm_config *c)
{
    return c->nets.n && (strcmp(c->nets.value[0], "user") == 0 || strncmp(c->nets.value[0], "user,", 5) == 0);
}

static void describe(const struct vm_record *record, const struct prepared *p, struct guest_config *g)
{
    const struct vm_settings *s = &record->settings;
    bool boot = record->mode == VM_MODE_BOOT;

    g->mode = boot ? GUEST_BOOT : GUEST_COMMAND;
    g->instance = record->uuid;
    g->hostname = s->hostname ? s->hostname : record->name;
    if (!boot && has_user_network(&p->config)) {
        g->address = USER_ADDRESS;
        g->gateway = USER_GATEWAY;
        g->dns = USER_DNS;
    }
    if (boot) {
        g->init = p->image.init[0] ? p->image.init : NULL;
        g->initrd_init = p->image.needs_initrd;
        g->first_boot = !(p->image.has_cloud_init && s->cloud_init);
    }
}

static int write_initrd(const struct registry *r, const struct vm_record *record, struct prepared *p, char *err,
                        size_t n)
{
    struct guest_config g = {0};
    char path[PATH_MAX];

    describe(record, p, &g);
    int failed = record->settings.root ? host_root(record->settings.root, p, &g, err, n) : disk_root(p, &g, err, n);
    if (!failed)
        failed = all_shares(p, &g, err, n);
    if (!failed && g.mode == GUEST_BOOT)
        failed = all_keys(record, p, &g, err, n);
    if (!failed)
        failed = registry_path(r, record->name, "guise.cpio", path, err, n);
    if (!failed)
        failed = agent_initrd_write(path, &g, err, n);
    return failed ? failed : add(&p->config.initrds, keep(p, "%s", path), err, n);
}

/* --- devices ------------------------------------------------------------------------------------------------------ */

static int add_devices(const struct registry *r, const struct vm_record *record, struct prepared *p, char *err,
                       size_t n)
{
    char path[PATH_MAX], socket[108];
    int failed = 0;

    if (record_has_disk(record)) {
        failed = registry_path(r, record->name, VM_DISK, path, err, n);
        char *words = failed ? NULL : disk_quote(path, "overlay");
        if (!failed)
            failed = add_first(&p->config.disks, words ? keep(p, "%s", words) : NULL, err, n);
        free(words);
    }
    if (!failed && !p->config.nets.n)
        failed = add(&p->config.nets, "user", err, n);
    if (!failed && !p->config.vsock_path) {
        failed = registry_socket(r, record->name, "vsock", socket, err, n);
        if (!failed && !(p->config.vsock_path = keep(p, "%s", socket)))
            failed = no_room(err, n);
    }
    p->config.balloon = true;
    return failed;
}

int prepare(const struct registry *r, const struct vm_record *record, struct prepared *p, char *err, size_t n)
{
    *p = (struct prepared){.config = record->settings.config};
    if (record->mode == VM_MODE_KERNEL)
        return 0;
    int failed = image_find(record->image_digest, &p->image, err, n);
    if (!failed && record->mode == VM_MODE_COMMAND && p->image.needs_initrd && !record->settings.root)
        failed = error_set(err, n, -ENOTSUP,
                           "the root of this image is reached by its own initrd only: `guise launch` it");
    if (!failed)
        failed = choose_kernel(p, err, n);
    if (!failed && p->image.needs_initrd && p->image.initrd[0])
        failed = add_first(&p->config.initrds, p->image.initrd, err, n);
    if (!failed)
        failed = command_line(record, p, err, n);
    if (!failed)
        failed = add_devices(r, record, p, err, n);
    if (!failed)
        failed = write_initrd(r, record, p, err, n);
    if (record->mode == VM_MODE_COMMAND)
        p->config.no_reboot = true;
    return failed;
}
