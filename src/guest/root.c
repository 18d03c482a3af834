/* The root file system: mounting it on /root, and going there. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <linux/btrfs.h>
#include <linux/magic.h>

#include "base/error.h"
#include "guest/guest.h"

#define ROOT "/root"
#define LOWER "/guise/lower"
#define UPPER "/guise/upper"

/* The words of mount(8) that are flags of mount(2); all others go to the file system. */
static const struct {
    const char *word;
    unsigned long set, clear;
} flag_words[] = {
    {"defaults", 0, 0},           {"ro", MS_RDONLY, 0},         {"rw", 0, MS_RDONLY},
    {"noatime", MS_NOATIME, 0},   {"relatime", MS_RELATIME, 0}, {"nodiratime", MS_NODIRATIME, 0},
    {"lazytime", MS_LAZYTIME, 0}, {"sync", MS_SYNCHRONOUS, 0},  {"nodev", MS_NODEV, 0},
    {"nosuid", MS_NOSUID, 0},     {"noexec", MS_NOEXEC, 0},
};

static bool take_flag(const char *word, unsigned long *flags)
{
    for (size_t i = 0; i < sizeof(flag_words) / sizeof(flag_words[0]); i++)
        if (strcmp(flag_words[i].word, word) == 0) {
            *flags = (*flags | flag_words[i].set) & ~flag_words[i].clear;
            return true;
        }
    return false;
}

static void split_options(const char *options, unsigned long *flags, char *rest, size_t size)
{
    char copy[512], *save = NULL;
    size_t used = 0;

    rest[0] = 0;
    snprintf(copy, sizeof(copy), "%s", options ? options : "");
    for (char *word = strtok_r(copy, ",", &save); word; word = strtok_r(NULL, ",", &save))
        if (!take_flag(word, flags) && used + 1 < size)
            used += (size_t)snprintf(rest + used, size - used, "%s%s", used ? "," : "", word);
}

static int mount_on(const char *from, const char *to, const char *type, unsigned long flags, const char *options,
                    char *err, size_t n)
{
    if (mount(from, to, type, flags, options) == 0)
        return 0;
    /* A disk that is attached read-only is still a root. */
    if ((errno == EROFS || errno == EACCES) && !(flags & MS_RDONLY) &&
        mount(from, to, type, flags | MS_RDONLY, options) == 0) {
        say("%s can only be read", from);
        return 0;
    }
    return error_sys(err, n, -errno, "the root file system %s cannot be mounted as %s", from, type);
}

/* A disk's file system, or a tag of virtiofs, on `to`. */
static int mount_base(const struct guest_config *c, const char *to, bool read_only, char *err, size_t n)
{
    unsigned long flags = 0;
    char options[512], path[PATH_MAX];
    struct filesystem fs;

    split_options(c->root_options, &flags, options, sizeof(options));
    if (read_only)
        flags |= MS_RDONLY;
    if (strncmp(c->root, "virtiofs:", 9) == 0)
        return mount_on(c->root + 9, to, "virtiofs", flags, options, err, n);
    int r = device_wait(c->root, path, sizeof(path), &fs, err, n);
    if (r)
        return r;
    const char *type = c->root_type ? c->root_type : fs.type;
    if (!type)
        return error_set(err, n, -EINVAL, "there is no file system on %s that could be a root (ext4, xfs or btrfs)",
                         path);
    return mount_on(path, to, type, flags, options, err, n);
}

/* Reads come from below, writes go to memory. */
static int mount_overlay(const struct guest_config *c, char *err, size_t n)
{
    if (mkdir(LOWER, 0755) || mkdir(UPPER, 0755))
        return error_sys(err, n, -errno, "the overlay's directories cannot be made");
    int r = mount_base(c, LOWER, true, err, n);
    if (r)
        return r;
    if (mount("tmpfs", UPPER, "tmpfs", 0, "mode=0755") || mkdir(UPPER "/files", 0755) || mkdir(UPPER "/work", 0755) ||
        mount("overlay", ROOT, "overlay", 0, "lowerdir=" LOWER ",upperdir=" UPPER "/files,workdir=" UPPER "/work"))
        return error_sys(err, n, -errno, "the root file system cannot be laid under one in memory");
    /* The overlay has references of its own. */
    umount2(LOWER, MNT_DETACH);
    umount2(UPPER, MNT_DETACH);
    return 0;
}

int root_mount(const struct guest_config *c, char *err, size_t n)
{
    if (!c->root)
        return error_set(err, n, -EINVAL, "the configuration names no root");
    if (mkdir(ROOT, 0755) && errno != EEXIST)
        return error_sys(err, n, -errno, "%s cannot be made", ROOT);
    return c->root_overlay ? mount_overlay(c, err, n) : mount_base(c, ROOT, false, err, n);
}

/* Removes what is in the initramfs, and nothing that is mounted over it: its memory is the guest's again. */
static void free_directory(int parent, const char *name, dev_t dev, int depth)
{
    int fd = openat(parent, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    struct stat st;
    struct dirent *e;
    DIR *d = fd < 0 || fstat(fd, &st) || st.st_dev != dev || depth > 32 ? NULL : fdopendir(fd);

    if (!d) {
        if (fd >= 0)
            close(fd);
        return;
    }
    while ((e = readdir(d)) != NULL) {
        if (strcmp(e->d_name, ".") == 0 || strcmp(e->d_name, "..") == 0)
            continue;
        if (unlinkat(fd, e->d_name, 0) == 0 || errno != EISDIR)
            continue;
        free_directory(fd, e->d_name, dev, depth + 1);
        unlinkat(fd, e->d_name, AT_REMOVEDIR);
    }
    closedir(d);
}

static int move(const char *from, const char *to, char *err, size_t n)
{
    mkdir(to, 0755);
    return mount(from, to, NULL, MS_MOVE, NULL) ? error_sys(err, n, -errno, "%s cannot be moved to %s", from, to) : 0;
}

int root_enter(char *err, size_t n)
{
    struct stat st;
    int r = move("/dev", ROOT "/dev", err, n);

    if (!r)
        r = move("/proc", ROOT "/proc", err, n);
    if (!r)
        r = move("/sys", ROOT "/sys", err, n);
    if (r)
        return r;
    if (stat("/", &st) == 0)
        free_directory(AT_FDCWD, "/", st.st_dev, 0);
    if (chdir(ROOT) || mount(".", "/", NULL, MS_MOVE, NULL) || chroot(".") || chdir("/"))
        return error_sys(err, n, -errno, "the root file system cannot be made the root");
    return 0;
}

/* ext4: fs/ext4/ext4.h; the number of blocks wanted. */
#define EXT4_IOC_RESIZE_FS _IOW('f', 16, uint64_t)

static uint64_t device_bytes(dev_t dev)
{
    char path[64];
    snprintf(path, sizeof(path), "/sys/dev/block/%u:%u/size", major(dev), minor(dev));
    FILE *f = fopen(path, "re");
    unsigned long long sectors = 0;

    if (f && fscanf(f, "%llu", &sectors) != 1)
        sectors = 0;
    if (f)
        fclose(f);
    return sectors * 512;
}

/* What the superblock says: statfs(2) leaves out what the file system needs for itself.  0: not known. */
static uint64_t ext4_bytes(dev_t dev)
{
    char path[64], line[64] = "", name[32] = "";
    uint32_t blocks[2] = {0}, log_size = 0;

    snprintf(path, sizeof(path), "/sys/dev/block/%u:%u/uevent", major(dev), minor(dev));
    FILE *f = fopen(path, "re");
    while (f && !name[0] && fgets(line, sizeof(line), f))
        if (sscanf(line, "DEVNAME=%31s", name) != 1)
            name[0] = 0;
    if (f)
        fclose(f);
    snprintf(path, sizeof(path), "/dev/%s", name);
    int fd = name[0] ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    bool ok = fd >= 0 && pread(fd, &blocks[0], 4, 1024 + 4) == 4 && pread(fd, &log_size, 4, 1024 + 24) == 4 &&
              pread(fd, &blocks[1], 4, 1024 + 0x150) == 4;
    if (fd >= 0)
        close(fd);
    return ok && log_size <= 6 ? ((uint64_t)blocks[1] << 32 | blocks[0]) * (1024ull << log_size) : 0;
}

static void grow(void)
{
    struct btrfs_ioctl_vol_args args = {.name = "max"};
    int fd = open("/", O_RDONLY | O_DIRECTORY | O_CLOEXEC), r = 0;
    struct statfs fs;
    struct stat st;

    if (fd < 0 || fstatfs(fd, &fs) || fstat(fd, &st))
        return;
    if (fs.f_type == EXT4_SUPER_MAGIC) {
        uint64_t blocks = device_bytes(st.st_dev) / (uint64_t)fs.f_bsize;
        if (blocks * (uint64_t)fs.f_bsize > ext4_bytes(st.st_dev)) /* it would only say so */
            r = ioctl(fd, EXT4_IOC_RESIZE_FS, &blocks);
    } else if (fs.f_type == BTRFS_SUPER_MAGIC) {
        r = ioctl(fd, BTRFS_IOC_RESIZE, &args);
    }
    if (r)
        say("the root file system cannot grow to its device's size: %s", strerror(errno));
}

void root_grow(void)
{
    if (fork() == 0) {
        grow();
        _exit(0);
    }
}
