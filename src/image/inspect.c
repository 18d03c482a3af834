#include "image/inspect.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/error.h"
#include "base/file.h"
#include "base/path.h"
#include "image/extfs.h"
#include "image/modules.h"
#include "image/partition.h"

#define KERNEL_MAX (512ull << 20)
#define INITRD_MAX (2ull << 30)
#define KERNEL_HEADER 65536
#define CANDIDATES_MAX 64

/* A kernel that may be the one. */
struct candidate {
    struct extfs *fs;
    char directory[16]; /* "/boot" or "" */
    char path[300], release[128];
    bool has_modules, long_mode;
};

struct search {
    struct job *j;
    const struct inspect *in;
    struct image_info *info;
    struct extfs *filesystems[PARTITIONS_MAX], *root; /* root is one of them, or NULL: none that can be read */
    unsigned n_filesystems;
    struct candidate best;
    /* For the callback of one directory. */
    struct extfs *listed;
    const char *listed_directory;
    unsigned candidates;
};

/* ---- the operating system ---- */

void os_release_value(const char *text, const char *key, char *out, size_t size)
{
    size_t len = strlen(key), used = 0;

    out[0] = 0;
    for (const char *line = text; *line; line += strcspn(line, "\n"), line += *line == '\n') {
        if (strncmp(line, key, len) != 0 || line[len] != '=')
            continue;
        const char *value = line + len + 1;
        char quote = *value == '"' || *value == '\'' ? *value++ : 0;
        for (used = 0; *value && *value != '\n' && *value != quote && used < size - 1; value++) {
            if (*value == '\\' && quote != '\'' && value[1] && value[1] != '\n')
                value++;
            if ((unsigned char)*value >= 0x20 && *value != 0x7f)
                out[used++] = *value;
        }
        out[used] = 0;
    }
}

/* A word of metadata.json has no blanks. */
static void word_of(const char *text, const char *key, char *out, size_t size)
{
    os_release_value(text, key, out, size);
    out[strcspn(out, " ")] = 0;
}

static const char *first_there(struct extfs *f, const char *const *paths)
{
    while (*paths && !extfs_has(f, *paths))
        paths++;
    return *paths;
}

static void read_system(struct search *s)
{
    static const char *const inits[] = {"/sbin/init", "/usr/lib/systemd/systemd", "/lib/systemd/systemd", "/init",
                                        NULL};
    static const char *const releases[] = {"/etc/os-release", "/usr/lib/os-release", NULL};
    struct image_info *info = s->info;
    char *text;

    for (const char *const *path = releases; *path; path++) {
        if (extfs_read(s->root, *path, 65536, &text, NULL))
            continue;
        word_of(text, "ID", info->os_id, sizeof info->os_id);
        word_of(text, "VERSION_ID", info->os_version, sizeof info->os_version);
        os_release_value(text, "PRETTY_NAME", info->os_name, sizeof info->os_name);
        free(text);
        break;
    }
    const char *init = first_there(s->root, inits);
    snprintf(info->init, sizeof info->init, "%s", init ? init : "");
    info->has_cloud_init = extfs_has(s->root, "/usr/bin/cloud-init");
    info->has_sshd = extfs_has(s->root, "/usr/sbin/sshd");
    info->has_qemu_guest_agent = extfs_has(s->root, "/usr/sbin/qemu-ga") || extfs_has(s->root, "/usr/bin/qemu-ga");
}

/* ---- partitions ---- */

static bool is_root(struct extfs *f)
{
    static const char *const signs[] = {
        "/etc/os-release", "/usr/lib/os-release", "/sbin/init", "/init", "/bin/sh", NULL};

    return first_there(f, signs) != NULL;
}

/* Can hold a root, but cannot be read here. */
static bool is_foreign(const char *type)
{
    return strcmp(type, "xfs") == 0 || strcmp(type, "btrfs") == 0 || strcmp(type, "f2fs") == 0 ||
           strcmp(type, "LVM2_member") == 0 || strcmp(type, "crypto_LUKS") == 0;
}

static void take_root(struct search *s, const struct partition *p)
{
    s->info->root_partition = p->number;
    snprintf(s->info->root_type, sizeof s->info->root_type, "%s", p->type);
}

static int open_filesystems(struct search *s, const char *disk, char *err, size_t n)
{
    struct partition *p = calloc(PARTITIONS_MAX, sizeof *p);
    const struct partition *foreign = NULL;
    int fd = open(disk, O_RDONLY | O_CLOEXEC);
    int count = !p ? -ENOMEM : fd < 0 ? -errno : partitions_read(fd, s->info->disk_bytes, p);

    for (int i = 0; i < count; i++) {
        struct extfs *f = strncmp(p[i].type, "ext", 3) == 0 ? extfs_open(disk, p[i].start, NULL, 0) : NULL;
        if (f) {
            s->filesystems[s->n_filesystems++] = f;
            if (!s->root && is_root(f)) {
                s->root = f;
                take_root(s, &p[i]);
            }
        } else if (is_foreign(p[i].type) && (!foreign || p[i].bytes > foreign->bytes)) {
            foreign = &p[i];
        }
    }
    if (!s->root && foreign)
        take_root(s, foreign);
    if (fd >= 0)
        close(fd);
    free(p);
    return count < 0 ? error_sys(err, n, count, "cannot read %s", disk) : 0;
}

/* ---- kernels ---- */

int bzimage_release(const unsigned char *data, size_t len, char release[128], bool *long_mode)
{
    size_t i = 0;

    if (len < 0x260 || data[0x1fe] != 0x55 || data[0x1ff] != 0xaa || memcmp(data + 0x202, "HdrS", 4) != 0)
        return -EINVAL;
    *long_mode = data[0x236] & 1;
    size_t at = 0x200u + (data[0x20e] | (size_t)data[0x20f] << 8);
    while (i < 127 && at + i < len && data[at + i] > 0x20 && data[at + i] < 0x7f && data[at + i] != '/') {
        release[i] = (char)data[at + i];
        i++;
    }
    release[i] = 0;
    return strncmp(release, "..", 2) == 0 ? -EINVAL : 0;
}

/* The directory of the modules of that release, into out[300]; false: it is not there. */
static bool modules_directory(struct extfs *root, const char *release, char out[300])
{
    snprintf(out, 300, "/lib/modules/%s", release);
    return root && release[0] && extfs_is_directory(root, out);
}

/* Newer and with its modules is better. */
static bool is_better(const struct candidate *a, const struct candidate *b)
{
    if (a->has_modules != b->has_modules)
        return a->has_modules;
    return strverscmp(a->release, b->release) > 0;
}

static void consider(void *context, const char *name)
{
    struct search *s = context;
    struct candidate c = {.fs = s->listed};
    unsigned char *header;
    char directory[300];

    if ((strncmp(name, "vmlinuz", 7) != 0 && strncmp(name, "bzImage", 7) != 0 && strncmp(name, "kernel", 6) != 0) ||
        strlen(name) > 250 || s->candidates++ >= CANDIDATES_MAX || !(header = malloc(KERNEL_HEADER)))
        return;
    snprintf(c.directory, sizeof c.directory, "%s", s->listed_directory);
    snprintf(c.path, sizeof c.path, "%s/%s", s->listed_directory, name);
    int len = extfs_peek(c.fs, c.path, header, KERNEL_HEADER);
    if (len > 0 && bzimage_release(header, (size_t)len, c.release, &c.long_mode) == 0) {
        c.has_modules = modules_directory(s->root, c.release, directory);
        if (!s->best.fs || is_better(&c, &s->best))
            s->best = c;
    }
    free(header);
}

/* In /boot and / of the root, and in those of what may be mounted there. */
static void find_kernel(struct search *s)
{
    static const char *const directories[] = {"/boot", ""};

    for (unsigned i = 0; i < s->n_filesystems; i++) {
        for (unsigned d = 0; d < 2; d++) {
            s->listed = s->filesystems[i];
            s->listed_directory = directories[d];
            extfs_list(s->listed, d ? "/" : "/boot", 10000, consider, s);
        }
    }
}

static const char *no_kernel_why(const struct search *s)
{
    if (s->root)
        return "there is no Linux kernel in it";
    return s->info->root_type[0] ? "guise cannot look into its file system"
                                 : "there is no file system in it that guise knows";
}

/* ---- files of the image ---- */

static int create(struct search *s, const char *name, char *err, size_t n)
{
    char path[IMAGE_PATH_SIZE];

    job_path(s->j, name, path);
    int fd = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    return fd < 0 ? error_sys(err, n, -errno, "cannot make %s", path) : fd;
}

static int copy_inside(struct search *s, struct extfs *f, const char *from, const char *name, uint64_t max, char *err,
                       size_t n)
{
    int fd = create(s, name, err, n);

    if (fd < 0)
        return fd;
    int failed = extfs_copy(f, from, max, fd);
    close(fd);
    return failed ? error_sys(err, n, failed, "cannot read %s of the disk", from) : 0;
}

/* From where both files are. */
static int copy_by_hand(int in, int out)
{
    char piece[65536];
    ssize_t got;

    while ((got = read(in, piece, sizeof piece)) > 0) {
        int failed = fd_write_all(out, piece, (size_t)got);
        if (failed)
            return failed;
    }
    return got < 0 ? -errno : 0;
}

static int copy_descriptor(int in, int out)
{
    struct stat st;

    if (fstat(in, &st))
        return -errno;
    if (!S_ISREG(st.st_mode))
        return -EINVAL;
    for (off_t left = st.st_size; left > 0;) {
        ssize_t now = copy_file_range(in, NULL, out, NULL, (size_t)left, 0);
        if (now < 0) /* between two kinds of file systems, for one */
            return copy_by_hand(in, out);
        if (now == 0)
            return -EIO;
        left -= now;
    }
    return 0;
}

static int copy_outside(struct search *s, const char *from, const char *name, char *err, size_t n)
{
    int in = open(from, O_RDONLY | O_CLOEXEC), failed;

    if (in < 0)
        return error_sys(err, n, -errno, "cannot open %s", from);
    int out = create(s, name, err, n);
    if (out < 0) {
        close(in);
        return out;
    }
    failed = copy_descriptor(in, out);
    close(out);
    close(in);
    return failed ? error_sys(err, n, failed, "cannot copy %s", from) : 0;
}

static int take_header(struct search *s, const char *from, char *err, size_t n)
{
    unsigned char *header = malloc(KERNEL_HEADER);
    int fd = open(from, O_RDONLY | O_CLOEXEC);
    ssize_t len = header && fd >= 0 ? pread(fd, header, KERNEL_HEADER, 0) : -1;
    int failed = len < 0 ? -EIO : bzimage_release(header, (size_t)len, s->best.release, &s->best.long_mode);

    if (fd >= 0)
        close(fd);
    free(header);
    return failed ? error_set(err, n, -EINVAL, "%s is not a Linux kernel (a bzImage)", from) : 0;
}

/* The kernel: one that was given, the base's, or the disk's own. */
static int take_kernel(struct search *s, bool *from_base, char *err, size_t n)
{
    const struct inspect *in = s->in;
    int failed;

    *from_base = false;
    if (in->kernel) {
        failed = copy_outside(s, in->kernel, "kernel", err, n);
        return failed ? failed : take_header(s, in->kernel, err, n);
    }
    if (!in->always_base)
        find_kernel(s);
    if (s->best.fs)
        return copy_inside(s, s->best.fs, s->best.path, "kernel", KERNEL_MAX, err, n);
    if (!in->base)
        return error_set(err, n, -ENOPKG, "%s: give --kernel FILE, or --kernel and the name of an image that has one",
                         no_kernel_why(s));
    *from_base = true;
    failed = copy_outside(s, in->base->kernel, "kernel", err, n);
    return failed ? failed : take_header(s, in->base->kernel, err, n);
}

/* Modules that reach the root: from the disk itself, or from the base's.  *complete: the root needs nothing else. */
static int write_modules(struct search *s, struct extfs *from, bool *complete, char *err, size_t n)
{
    struct modules m;
    char directory[300];
    bool any = modules_directory(from, s->best.release, directory);
    int failed = any ? modules_read(&m, from, directory) : 0;

    if (failed)
        return error_sys(err, n, failed, "cannot read %s/modules.dep of the disk", directory);
    *complete = any && modules_want_all(&m, s->info->root_type);
    int fd = create(s, "modules.cpio", err, n);
    failed = fd < 0 ? fd : modules_write(any ? &m : NULL, from, directory, fd, err, n);
    if (fd >= 0)
        close(fd);
    if (any)
        modules_free(&m);
    return failed;
}

static int take_modules(struct search *s, bool from_base, bool *complete, char *err, size_t n)
{
    struct extfs *base = NULL;

    if (!from_base)
        return write_modules(s, s->root, complete, err, n);
    if (s->in->base->root_partition == 0)
        base = extfs_open(s->in->base->disk, 0, err, n);
    else
        error_set(err, n, -EINVAL, "the image %s has partitions: its kernel cannot be taken", s->in->base->name);
    int failed = base ? write_modules(s, base, complete, err, n) : -EINVAL;
    extfs_close(base);
    return failed;
}

/* The initial file systems that distributions call by the kernel's name. */
static int take_initrd(struct search *s, bool complete, char *err, size_t n)
{
    static const struct {
        const char *before, *after;
        bool release;
    } names[] = {
        {"initrd.img-", "", true},          {"initramfs-", ".img", true},  {"initrd-", "", true},
        {"initramfs-linux.img", "", false}, {"initramfs-virt", "", false},
    };
    const struct candidate *c = &s->best;
    char path[300];

    if (s->in->initrd) {
        s->info->needs_initrd = true;
        return copy_outside(s, s->in->initrd, "initrd", err, n);
    }
    if (complete || !c->fs)
        return 0;
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        snprintf(path, sizeof path, "%s/%s%s%s", c->directory, names[i].before, names[i].release ? c->release : "",
                 names[i].after);
        if (!extfs_has(c->fs, path))
            continue;
        s->info->needs_initrd = true;
        return copy_inside(s, c->fs, path, "initrd", INITRD_MAX, err, n);
    }
    return 0; /* the kernel may have all it takes built in */
}

/* ---- the whole ---- */

static void write_command_line(struct search *s)
{
    struct image_info *info = s->info;
    char partition[16] = "", type[40] = "";

    if (info->root_partition)
        snprintf(partition, sizeof partition, "p%u", info->root_partition);
    if (info->root_type[0])
        snprintf(type, sizeof type, " rootfstype=%s", info->root_type);
    snprintf(info->command_line, sizeof info->command_line,
             "console=ttyS0 root=/dev/nvme0n1%s%s rw quiet panic=-1%s%.1800s", partition, type,
             s->in->append ? " " : "", s->in->append ? s->in->append : "");
}

static int write_metadata(struct search *s, char *err, size_t n)
{
    struct image_info *info = s->info, again;
    char path[IMAGE_PATH_SIZE], why[ERROR_SIZE];

    snprintf(info->architecture, sizeof info->architecture, "%s", s->best.long_mode ? "amd64" : "i386");
    snprintf(info->kernel_version, sizeof info->kernel_version, "%s", s->best.release);
    snprintf(info->name, sizeof info->name, "%s", s->in->name ? s->in->name : "");
    snprintf(info->source, sizeof info->source, "%s", s->in->source);
    for (char *c = info->source; *c; c++)
        if ((unsigned char)*c < 0x20 || *c == 0x7f)
            *c = '?';
    job_now(info->created);
    write_command_line(s);
    char *text = metadata_format(info, s->in->process);
    int failed = text ? metadata_parse(text, strlen(text), &again, why, sizeof why) : -ENOMEM;
    if (failed)
        error_set(err, n, failed, "the image cannot be described: %s", text ? why : "no memory");
    job_path(s->j, "metadata.json", path);
    if (!failed)
        failed = file_write(path, text, strlen(text), 0600, err, n);
    free(text);
    return failed;
}

static int inspect_all(struct search *s, const char *disk, char *err, size_t n)
{
    bool from_base, complete = false;
    int failed = open_filesystems(s, disk, err, n);

    if (failed)
        return failed;
    if (s->root)
        read_system(s);
    failed = take_kernel(s, &from_base, err, n);
    if (!failed)
        failed = take_modules(s, from_base, &complete, err, n);
    if (!failed)
        failed = take_initrd(s, complete, err, n);
    return failed ? failed : write_metadata(s, err, n);
}

int inspect_disk(struct job *j, const struct inspect *in, char *err, size_t n)
{
    struct image_info *info = calloc(1, sizeof *info);
    struct search *s = calloc(1, sizeof *s);
    char disk[IMAGE_PATH_SIZE];
    struct stat st;
    int failed = -ENOMEM;

    job_stage(j, "reading the kernel and its modules");
    job_path(j, "disk.raw", disk);
    if (!info || !s || stat(disk, &st)) {
        error_sys(err, n, info && s ? (failed = -errno) : failed, "cannot look into the disk %s", disk);
    } else {
        *s = (struct search){.j = j, .in = in, .info = info};
        info->disk_bytes = (uint64_t)st.st_size;
        failed = inspect_all(s, disk, err, n);
        for (unsigned i = 0; i < s->n_filesystems; i++)
            extfs_close(s->filesystems[i]);
    }
    free(s);
    free(info);
    return failed;
}
