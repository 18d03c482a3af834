/* What the guest is told at its start. */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "agent/config.h"
#include "agent/initrd.h"
#include "agent/key.h"
#include "backends/disk.h"
#include "backends/share.h"
#include "base/error.h"
#include "base/file.h"
#include "base/path.h"
#include "image/seed.h"
#include "vm/prepare_int.h"

#define KEY_FILE_MOST (64u << 10)
/* What the network of one's own has (backends/net/slirp.c). */
#define USER_ADDRESS "10.0.2.15/24"
#define USER_GATEWAY "10.0.2.2"
#define USER_DNS "10.0.2.3"

/* A file of public keys: a line each. */
static int add_keys(struct prepared *p, struct guest_config *g, const char *path, char *err, size_t n)
{
    char *text, *save = NULL;
    int failed = file_read(path, KEY_FILE_MOST, &text, NULL, err, n);

    if (failed)
        return failed;
    for (char *line = strtok_r(text, "\r\n", &save); line && !failed; line = strtok_r(NULL, "\r\n", &save))
        if (line[0] != '#')
            failed = prepare_add(&g->keys, prepare_keep(p, "%s", line), err, n);
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
        failed = prepare_add(&g->keys, prepare_keep(p, "%s", line), err, n);
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
            failed = prepare_add(&g->shares,
                                 prepare_keep(p, "%s %s %s", words.read_only ? "ro" : "rw", tag, words.path), err, n);
    }
    return failed;
}

/* A directory of the host as the root: read-only, what is written goes to memory. */
static int host_root(const char *directory, struct prepared *p, struct guest_config *g, char *err, size_t n)
{
    char tag[SHARE_TAG_SIZE];

    share_tag(tag, p->config.shares.n);
    int failed = prepare_add(&p->config.shares, prepare_keep(p, "%s:ro:mounts", directory), err, n);
    g->root = prepare_keep(p, "virtiofs:%s", tag);
    g->root_options = "ro";
    g->root_overlay = true;
    return failed ? failed : g->root ? 0 : prepare_no_room(err, n);
}

static int disk_root(struct prepared *p, struct guest_config *g, char *err, size_t n)
{
    const struct image_info *i = &p->image;

    /* Not /dev/nvme0n1: since Linux 6.4 several NVMe disks get their names in any order. */
    g->root = i->root_partition ? prepare_keep(p, "SERIAL=" ROOT_SERIAL "/%u", i->root_partition)
                                : "SERIAL=" ROOT_SERIAL;
    g->root_type = i->root_type[0] ? i->root_type : NULL;
    g->root_grow = !i->root_partition;
    return g->root ? 0 : prepare_no_room(err, n);
}

static bool has_user_network(const struct vm_config *c)
{
    return c->nets.n && (strcmp(c->nets.value[0], "user") == 0 || strncmp(c->nets.value[0], "user,", 5) == 0);
}

static bool has_cloud_init(const struct vm_record *record, const struct prepared *p)
{
    return record->mode == VM_MODE_BOOT && p->image.has_cloud_init;
}

static void describe(const struct vm_record *record, const struct prepared *p, struct guest_config *g)
{
    const struct vm_settings *s = &record->settings;
    bool boot = record->mode == VM_MODE_BOOT;

    g->mode = boot ? GUEST_BOOT : GUEST_COMMAND;
    g->instance = record->uuid;
    g->hostname = s->hostname ? s->hostname : record->name;
    if (has_user_network(&p->config)) {
        g->address = USER_ADDRESS;
        g->gateway = USER_GATEWAY;
        g->dns = USER_DNS;
    }
    if (boot) {
        g->init = p->image.init[0] ? p->image.init : NULL;
        g->initrd_init = p->image.needs_initrd;
        g->first_boot = !has_cloud_init(record, p);
    }
}

/* --- cloud-init ---------------------------------------------------------------------------------------------- */

static int write_seed(const char *path, const struct seed *seed, char *err, size_t n)
{
    int fd = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0600);
    int failed = fd < 0 ? error_sys(err, n, -errno, "cannot make %s", path) : seed_write(fd, seed, err, n);

    if (fd >= 0)
        close(fd);
    return failed;
}

struct seed_texts {
    char *user, *meta, *network;
};

/* A file that need not be there, of a directory. */
static int read_part(const char *directory, const char *name, char **text, char *err, size_t n)
{
    char path[PATH_MAX];
    int failed = path_format(path, sizeof path, err, n, "%s/%s", directory, name);

    return failed || access(path, F_OK) ? failed : file_read(path, SEED_TEXT_MAX, text, NULL, err, n);
}

/* --cloud-init: user data in a file, or a directory with the datasource's files. */
static int read_seed(const char *path, struct seed_texts *t, char *err, size_t n)
{
    struct stat st;

    if (!path)
        return 0;
    if (stat(path, &st) || !S_ISDIR(st.st_mode))
        return file_read(path, SEED_TEXT_MAX, &t->user, NULL, err, n);
    int failed = read_part(path, "user-data", &t->user, err, n);
    if (!failed)
        failed = read_part(path, "meta-data", &t->meta, err, n);
    if (!failed)
        failed = read_part(path, "network-config", &t->network, err, n);
    if (!failed && !t->user && !t->meta && !t->network)
        failed = error_set(err, n, -ENOENT,
                           "--cloud-init: none of user-data, meta-data and network-config is in the directory %s",
                           path);
    return failed;
}

/*
 * Names, keys and the user's own data, on a further disk that the guest can only read.  It is virtio's: cloud-init
 * looks for it before udev has loaded a driver, but our program has loaded that one; and Linux gives several NVMe disks
 * their names in any order.
 */
static int add_seed(const struct registry *r, const struct vm_record *record, struct prepared *p,
                    const struct guest_config *g, char *err, size_t n)
{
    struct seed_texts texts = {0};
    char path[PATH_MAX];
    int failed = registry_path(r, record->name, "seed.img", path, err, n);

    if (!failed)
        failed = read_seed(record->settings.cloud_init, &texts, err, n);
    const struct seed seed = {.instance = g->instance,
                              .hostname = g->hostname,
                              .keys = g->keys.value,
                              .n_keys = g->keys.n,
                              .user_data = texts.user,
                              .meta_data = texts.meta,
                              .network_config = texts.network};
    if (!failed)
        failed = write_seed(path, &seed, err, n);
    free(texts.user);
    free(texts.meta);
    free(texts.network);
    char *words = failed ? NULL : disk_quote(path, "raw");
    if (!failed)
        failed = prepare_add(&p->config.disks, words ? prepare_keep(p, "%s,ro,bus=virtio", words) : NULL, err, n);
    free(words);
    return failed;
}

/* --- the whole -------------------------------------------------------------------------------------------------- */

static int write_late(void *opaque, char *err, size_t n)
{
    struct prepared *p = opaque;

    p->config.write_initrd = NULL;
    return agent_initrd_append(p->initrd, &p->guest, err, n);
}

/* The process is in its sandbox when it is written: so the file is there before. */
static int add_late_initrd(struct prepared *p, char *err, size_t n)
{
    p->initrd = memfd_create("guise-initrd", MFD_CLOEXEC);
    if (p->initrd < 0)
        return error_sys(err, n, -errno, "the guest's initramfs cannot be made");
    p->config.write_initrd = write_late;
    p->config.write_initrd_opaque = p;
    return prepare_add(&p->config.initrds, prepare_keep(p, "/proc/self/fd/%d", p->initrd), err, n);
}

static int add_initrd(const struct registry *r, const struct vm_record *record, struct prepared *p, char *err, size_t n)
{
    char path[PATH_MAX];

    if (p->runs)
        return add_late_initrd(p, err, n);
    int failed = registry_path(r, record->name, "guise.cpio", path, err, n);
    if (!failed)
        failed = agent_initrd_write(path, &p->guest, err, n);
    return failed ? failed : prepare_add(&p->config.initrds, prepare_keep(p, "%s", path), err, n);
}

int prepare_guest(const struct registry *r, const struct vm_record *record, struct prepared *p, char *err, size_t n)
{
    const char *root = record->settings.root;
    struct guest_config *g = &p->guest;

    describe(record, p, g);
    int failed = root ? host_root(root, p, g, err, n) : disk_root(p, g, err, n);
    if (!failed)
        failed = all_shares(p, g, err, n);
    if (!failed)
        failed = all_keys(record, p, g, err, n);
    if (!failed && has_cloud_init(record, p))
        failed = add_seed(r, record, p, g, err, n);
    else if (!failed && record->settings.cloud_init)
        failed = error_set(err, n, -ENOTSUP, "--cloud-init: this image has no cloud-init, or it is not booted");
    return failed ? failed : add_initrd(r, record, p, err, n);
}
