/*
 * Kernel modules from the initramfs, in the order given, each after those it needs: of drivers only those that this
 * machine has a device for.  Each costs milliseconds, most of them for its signature (see load).
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/file.h"
#include "guest/guest.h"

#define DIRECTORY "/" GUEST_MODULES_PATH
#define LIST_MAX (1u << 20)

/* PCI ids of virtio (Virtio 1.2, 4.1.2): type + 0x1040, or one of the older numbers. */
#define VIRTIO_VENDOR 0x1af4
#define VIRTIO_BASE 0x1040
#define NVME_CLASS 0x010802
#define TYPES 64

struct machine {
    bool virtio[TYPES]; /* by type */
    bool any_virtio, nvme;
};

static const unsigned char older_types[] = {1, 2, 5, 3, 8, 4, 0, 0, 0, 9}; /* of 0x1000, 0x1001, ... */

/* Drivers and the virtio type that they are for.  What is in no row is loaded: it is there for a reason. */
static const struct driver {
    const char *name;
    unsigned type;
    bool later; /* the system is complete without it */
} drivers[] = {
    {"virtio_net.ko", 1, false},   {"virtio_blk.ko", 2, false},    {"virtio_console.ko", 3, true},
    {"virtio_rng.ko", 4, true},    {"virtio_balloon.ko", 5, true}, {"virtio_scsi.ko", 8, false},
    {"9pnet_virtio.ko", 9, false}, {"virtio_fs.ko", 26, false},    {"vmw_vsock_virtio_transport.ko", 19, false},
    {"virtiofs.ko", 26, false},
};

/* Modules that are there because others need them, or for a purpose that the configuration tells. */
static const char *const on_demand[] = {
    "failover.ko", "net_failover.ko", "fuse.ko", "vsock.ko", "vmw_vsock_virtio_transport_common.ko", "9pnet.ko"};

static unsigned read_id(int directory, const char *device, const char *file)
{
    char path[300], text[16] = "";

    snprintf(path, sizeof(path), "%s/%s", device, file);
    int fd = openat(directory, path, O_RDONLY | O_CLOEXEC);
    if (fd >= 0 && read(fd, text, sizeof(text) - 1) < 0)
        text[0] = 0;
    if (fd >= 0)
        close(fd);
    return (unsigned)strtoul(text, NULL, 16);
}

static void look_around(struct machine *m)
{
    DIR *d = opendir("/sys/bus/pci/devices");
    struct dirent *e;

    while (d && (e = readdir(d)) != NULL) {
        if (e->d_name[0] == '.')
            continue;
        unsigned id = read_id(dirfd(d), e->d_name, "device");
        m->nvme |= read_id(dirfd(d), e->d_name, "class") == NVME_CLASS;
        if (read_id(dirfd(d), e->d_name, "vendor") != VIRTIO_VENDOR)
            continue;
        m->any_virtio = true;
        if (id >= 0x1000 && id < 0x1000 + sizeof(older_types))
            id = VIRTIO_BASE + older_types[id - 0x1000];
        if (id > VIRTIO_BASE && id < VIRTIO_BASE + TYPES)
            m->virtio[id - VIRTIO_BASE] = true;
    }
    if (d)
        closedir(d);
}

enum when { NOW, LATER, NEVER };

static enum when when_wanted(const struct machine *m, const struct guest_config *c, const char *name)
{
    for (size_t i = 0; i < sizeof(drivers) / sizeof(drivers[0]); i++)
        if (strcmp(drivers[i].name, name) == 0)
            return !m->virtio[drivers[i].type] ? NEVER : drivers[i].later ? LATER : NOW;
    for (size_t i = 0; i < sizeof(on_demand) / sizeof(on_demand[0]); i++)
        if (strcmp(on_demand[i], name) == 0)
            return NEVER;
    if (strcmp(name, "overlay.ko") == 0)
        return c->root_overlay ? NOW : NEVER;
    if (strcmp(name, "af_packet.ko") == 0)
        return LATER;
    if (strncmp(name, "nvme", 4) == 0)
        return m->nvme ? NOW : NEVER;
    if (strncmp(name, "virtio", 6) == 0) /* rings and the PCI transport */
        return m->any_virtio ? NOW : NEVER;
    return NOW;
}

/* Without the signature that may be at the end of a module ("scripts/sign-file.c" of the kernel): the text, behind
 * twelve bytes of which the last four are the length of what is in front of them. */
static size_t without_signature(const unsigned char *data, size_t len)
{
    static const char mark[] = "~Module signature appended~\n";
    size_t mark_len = sizeof(mark) - 1;

    if (len < mark_len + 12 || memcmp(data + len - mark_len, mark, mark_len) != 0)
        return len;
    const unsigned char *n = data + len - mark_len - 4;
    size_t signature = (size_t)n[0] << 24 | (size_t)n[1] << 16 | (size_t)n[2] << 8 | n[3];
    return signature < len - mark_len - 12 ? len - mark_len - 12 - signature : len;
}

/* The kernel marks itself tainted by it, and may be told to refuse. */
static int load_unsigned(int fd)
{
    struct stat st;

    if (fstat(fd, &st) || st.st_size <= 0)
        return -EINVAL;
    void *data = mmap(NULL, (size_t)st.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
    if (data == MAP_FAILED)
        return -errno;
    int r = syscall(SYS_init_module, data, without_signature(data, (size_t)st.st_size), "") ? -errno : 0;
    munmap(data, (size_t)st.st_size);
    return r;
}

/*
 * The signature says what we know: that the module is from the initramfs that the kernel is from.  To have the kernel
 * check it with RSA takes, in the software engine, longer than all else that this program does.  So where the first
 * process is ours anyway we leave it out; in a system of its own the kernel is left as its maker has it.
 */
static void load(int fd, const char *name, bool check)
{
    int r = check ? -EKEYREJECTED : 0;

    if (!check)
        r = load_unsigned(fd);
    if (r == -EKEYREJECTED || r == -EPERM || r == -ENOKEY)
        r = syscall(SYS_finit_module, fd, "", 0) ? -errno : 0;
    /* One that is built in, or loaded already, is as good; one without its device is none of our business. */
    if (r && r != -EEXIST && r != -ENODEV)
        say("the module %s cannot be loaded: %s", name, strerror(-r));
}

#define MODULES_MAX 256

struct lists {
    char *order; /* "NAME.ko", one a line */
    char *dep;   /* "NAME.ko: NEEDED.ko ..."; NULL: all are to be loaded, in their order */
    struct module {
        char *name;
        int fd;    /* of its file, or -1 */
        bool done; /* so that lists that go in a circle end */
    } module[MODULES_MAX];
    unsigned n;
    int directory;
    bool check; /* signatures */
};

typedef void module_fn(struct lists *l, struct module *m);

static void with_needs(struct lists *l, const char *name, module_fn *fn);

/* For what `name` needs, in the order of its line. */
static void for_needs(struct lists *l, const char *name, module_fn *fn)
{
    size_t len = strlen(name);

    for (const char *line = l->dep; line && *line; line = strchr(line, '\n') ? strchr(line, '\n') + 1 : NULL) {
        if (strncmp(line, name, len) != 0 || line[len] != ':')
            continue;
        char needed[128];
        int used = 0;
        for (const char *at = line + len + 1; sscanf(at, "%*[ ]%127[^ \n]%n", needed, &used) == 1; at += used)
            with_needs(l, needed, fn);
        return;
    }
}

/* Each module once, behind those that it needs. */
static void with_needs(struct lists *l, const char *name, module_fn *fn)
{
    for (unsigned i = 0; i < l->n; i++) {
        struct module *m = &l->module[i];
        if (m->done || strcmp(m->name, name) != 0)
            continue;
        m->done = true;
        for_needs(l, name, fn);
        fn(l, m);
    }
}

static void open_module(struct lists *l, struct module *m)
{
    m->fd = openat(l->directory, m->name, O_RDONLY | O_CLOEXEC);
    if (m->fd < 0)
        say("the module %s is not there: %s", m->name, strerror(errno));
}

static void load_module(struct lists *l, struct module *m)
{
    open_module(l, m);
    if (m->fd >= 0) {
        load(m->fd, m->name, l->check);
        close(m->fd);
    }
}

static void read_lists(struct lists *l)
{
    char *save = NULL;

    if (file_read(DIRECTORY "/order", LIST_MAX, &l->order, NULL, NULL, 0))
        l->order = NULL;
    if (file_read(DIRECTORY "/dep", LIST_MAX, &l->dep, NULL, NULL, 0))
        l->dep = NULL;
    for (char *word = l->order ? strtok_r(l->order, " \n", &save) : NULL; word && l->n < MODULES_MAX;
         word = strtok_r(NULL, " \n", &save))
        l->module[l->n++] = (struct module){.name = word, .fd = -1};
}

static void for_wanted(struct lists *l, const struct machine *m, const struct guest_config *c, enum when when,
                       module_fn *fn)
{
    for (unsigned i = 0; i < l->n; i++)
        if ((l->dep ? when_wanted(m, c, l->module[i].name) : NOW) == when)
            with_needs(l, l->module[i].name, fn);
}

/* What can wait is loaded by a process that runs when nobody else wants to.  It has the files open, and they vanish
 * with it: the initramfs is cleared meanwhile. */
static void load_later(struct lists *l)
{
    static const int priority = 0; /* struct sched_param */

    if (fork() != 0)
        return;
    syscall(SYS_sched_setscheduler, 0, 5 /* SCHED_IDLE */, &priority);
    for (unsigned i = 0; i < l->n; i++)
        if (l->module[i].fd >= 0)
            load(l->module[i].fd, l->module[i].name, l->check);
    _exit(0);
}

void modules_load(const struct guest_config *c)
{
    struct lists *l = calloc(1, sizeof(*l));
    struct machine m = {0};

    if (!l)
        return;
    l->directory = open(DIRECTORY, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (l->directory < 0) {
        free(l);
        return;
    }
    l->check = c->mode == GUEST_BOOT;
    read_lists(l);
    look_around(&m);
    for_wanted(l, &m, c, NOW, load_module);
    for (unsigned i = 0; i < l->n; i++)
        l->module[i].fd = -1;
    for_wanted(l, &m, c, LATER, open_module);
    load_later(l);
    for (unsigned i = 0; i < l->n; i++)
        if (l->module[i].fd >= 0)
            close(l->module[i].fd);
    close(l->directory);
    free(l->order);
    free(l->dep);
    free(l);
}
