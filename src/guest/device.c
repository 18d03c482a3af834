/*
 * Waits for the root's block device.  Drivers find their devices while we run: the kernel's messages of new devices
 * (NETLINK_KOBJECT_UEVENT) say when it is worth to look again, so that no time is slept away.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include <linux/fs.h>
#include <linux/netlink.h>

#include "base/error.h"
#include "guest/guest.h"

#define WAIT_MS 15000
/* A device that is there and has nothing that we know on it: its partitions may be on their way. */
#define SETTLE_MS 2000

static int64_t now_ms(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

static int open_uevents(void)
{
    const struct sockaddr_nl address = {.nl_family = AF_NETLINK, .nl_groups = 1};
    int fd = socket(AF_NETLINK, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, NETLINK_KOBJECT_UEVENT);

    if (fd >= 0 && bind(fd, (const struct sockaddr *)&address, sizeof(address))) {
        close(fd);
        fd = -1;
    }
    return fd;
}

/* Without such messages (a kernel without networking) we look 100 times a second. */
static void wait_for_uevent(int fd, int64_t ms)
{
    char message[2048];
    struct pollfd p = {.fd = fd, .events = POLLIN};

    poll(&p, 1, fd >= 0 ? (int)ms : 10);
    while (fd >= 0 && recv(fd, message, sizeof(message), MSG_DONTWAIT) > 0)
        ;
}

static bool probe(const char *path, struct filesystem *fs, uint64_t *size)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);

    if (fd < 0)
        return false;
    filesystem_probe(fd, fs);
    if (ioctl(fd, BLKGETSIZE64, size))
        *size = 0;
    close(fd);
    return true;
}

static bool is_named(const char *what, const struct filesystem *fs)
{
    if (strncmp(what, "LABEL=", 6) == 0)
        return strcmp(what + 6, fs->label) == 0;
    return strncmp(what, "UUID=", 5) == 0 && strcasecmp(what + 5, fs->uuid) == 0;
}

/* Is `name` a partition of the disk, as /sys/class/block has it? */
static bool is_part_of(const char *name, const char *disk)
{
    char path[PATH_MAX];

    snprintf(path, sizeof(path), "/sys/class/block/%s/%s/partition", disk, name);
    return access(path, F_OK) == 0;
}

/* Looks through all block devices: one that bears the name that `what` gives, or, where that is a disk's path, the
 * largest of its partitions with a Linux file system. */
static bool search(const char *what, char *path, size_t size, struct filesystem *fs)
{
    DIR *d = opendir("/sys/class/block");
    const char *disk = strncmp(what, "/dev/", 5) == 0 ? what + 5 : NULL;
    uint64_t best = 0;
    struct dirent *e;

    while (d && (e = readdir(d)) != NULL) {
        char candidate[PATH_MAX];
        struct filesystem found;
        uint64_t bytes;
        if (e->d_name[0] == '.' || (disk && !is_part_of(e->d_name, disk)))
            continue;
        snprintf(candidate, sizeof(candidate), "/dev/%s", e->d_name);
        if (!probe(candidate, &found, &bytes) || !found.type || bytes <= best || !(disk || is_named(what, &found)))
            continue;
        best = bytes;
        *fs = found;
        snprintf(path, size, "%s", candidate);
    }
    if (d)
        closedir(d);
    return best > 0;
}

/* The serial number of a disk, without the blanks that it is padded with; false: there is none, as of partitions. */
static bool has_serial(const char *name, const char *serial, size_t len)
{
    static const char *const files[] = {"/sys/class/block/%s/device/serial", "/sys/class/block/%s/serial"};
    char path[PATH_MAX], text[128];
    bool same = false;

    for (size_t i = 0; i < sizeof(files) / sizeof(files[0]) && !same; i++) {
        snprintf(path, sizeof(path), files[i], name);
        int fd = open(path, O_RDONLY | O_CLOEXEC);
        ssize_t got = fd < 0 ? -1 : read(fd, text, sizeof(text) - 1);
        if (fd >= 0)
            close(fd);
        text[got > 0 ? got : 0] = 0;
        same = got > 0 && strcspn(text, " \n") == len && memcmp(text, serial, len) == 0;
    }
    return same;
}

/* "SERIAL=X" is the disk with this serial number, "SERIAL=X/N" its partition N. */
static bool find_serial(const char *what, char *path, size_t size)
{
    const char *serial = what + strlen("SERIAL="), *part = strchr(serial, '/');
    size_t len = part ? (size_t)(part - serial) : strlen(serial);
    DIR *d = opendir("/sys/class/block");
    struct dirent *e;
    bool found = false;

    while (d && !found && (e = readdir(d)) != NULL) {
        bool digit = e->d_name[0] && strchr("0123456789", e->d_name[strlen(e->d_name) - 1]);
        found = e->d_name[0] != '.' && has_serial(e->d_name, serial, len);
        if (found)
            snprintf(path, size, "/dev/%s%s%s", e->d_name, part && digit ? "p" : "", part ? part + 1 : "");
    }
    if (d)
        closedir(d);
    return found;
}

/* The names of the block devices that are there, for the message that the right one is not. */
static void list_devices(char *out, size_t size)
{
    DIR *d = opendir("/sys/class/block");
    struct dirent *e;
    size_t used = 0;

    out[0] = 0;
    while (d && (e = readdir(d)) != NULL)
        if (e->d_name[0] != '.' && used + 1 < size)
            used += (size_t)snprintf(out + used, size - used, " %s", e->d_name);
    if (d)
        closedir(d);
}

/* One look: found, with what is on it (*fs, or type NULL: nothing that we know). */
static bool look(const char *what, char *path, size_t size, struct filesystem *fs)
{
    char disk[PATH_MAX];
    uint64_t bytes;

    *fs = (struct filesystem){0};
    if (strncmp(what, "SERIAL=", 7) == 0) {
        if (!find_serial(what, disk, sizeof(disk)))
            return false;
        what = disk;
    }
    if (strncmp(what, "/dev/", 5) != 0)
        return search(what, path, size, fs);
    if (!probe(what, fs, &bytes))
        return false;
    snprintf(path, size, "%s", what);
    if (!fs->type)
        search(what, path, size, fs);
    return true;
}

int device_wait(const char *what, char *path, size_t size, struct filesystem *fs, char *err, size_t n)
{
    int uevents = open_uevents();
    int64_t begin = now_ms(), seen = 0;
    bool found;

    for (;;) {
        found = look(what, path, size, fs);
        if (found && fs->type)
            break;
        int64_t now = now_ms();
        seen = found && !seen ? now : seen;
        int64_t left = seen ? seen + SETTLE_MS - now : begin + WAIT_MS - now;
        if (left <= 0)
            break;
        wait_for_uevent(uevents, left);
    }
    if (uevents >= 0)
        close(uevents);
    if (found)
        return 0;
    char devices[256];
    list_devices(devices, sizeof(devices));
    return error_set(err, n, -ENODEV, "there is no root device %s; the block devices are:%s", what,
                     devices[0] ? devices : " none");
}
