/* What a file is, by what is in it: its name is the user's own business. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/bytes.h"
#include "base/error.h"
#include "image/import.h"
#include "image/partition.h"

#define HEAD 4096

/* ---- formats of disks ---- */

static int refuse(const char *path, const char *what, char *err, size_t n)
{
    return error_set(
        err, n, -EINVAL,
        "%s needs another file (%s), which an image cannot have: make it one file first, with qemu-img convert "
        "-O qcow2",
        path, what);
}

/* docs/interop/qcow2.txt of QEMU: version at 4, offset of the backing file's name at 8, incompatible features at 72, of
 * which bit 2 says that the data are in another file. */
static int check_qcow2(const char *path, const unsigned char *head, int fd, char *err, size_t n)
{
    uint32_t version = be32_at(head + 4);

    if (version < 2 || version > 3)
        return error_set(err, n, -EINVAL, "%s is a qcow2 of version %u, which is not known", path, version);
    if (be64_at(head + 8))
        return refuse(path, "its backing file", err, n);
    if (version == 3 && be64_at(head + 72) & 4)
        return refuse(path, "its data file", err, n);
    return 0;
}

#define VMDK_DESCRIPTOR (20 * SECTOR) /* so much of it is looked at, by QEMU too */

static int check_vmdk_descriptor(const char *path, int fd, uint64_t at, size_t len, char *err, size_t n)
{
    char descriptor[VMDK_DESCRIPTOR + 1];
    ssize_t got = pread(fd, descriptor, len, (off_t)at);

    if (got <= 0)
        return error_set(err, n, -EINVAL, "%s is damaged", path);
    descriptor[got] = 0;
    const char *parent = strstr(descriptor, "parentCID=");
    if ((parent && strncasecmp(parent + 10, "ffffffff", 8) != 0) || strstr(descriptor, "parentFileNameHint"))
        return refuse(path, "its parent", err, n);
    return 0;
}

/* VMDK 1.1: capacity at 12, offset and size of the descriptor in sectors at 28 and 36; one without a capacity, or with
 * a parent, is only a list of other files.  QEMU looks for the parent behind the header, whatever that says. */
static int check_vmdk(const char *path, const unsigned char *head, int fd, char *err, size_t n)
{
    uint64_t at = le64_at(head + 28), sectors = le64_at(head + 36);

    if (sectors > VMDK_DESCRIPTOR / SECTOR)
        sectors = VMDK_DESCRIPTOR / SECTOR;
    if (le64_at(head + 12) == 0)
        return refuse(path, "its extents", err, n);
    if (at >= 1u << 20)
        return error_set(err, n, -EINVAL, "%s is damaged", path);
    int r = check_vmdk_descriptor(path, fd, SECTOR, VMDK_DESCRIPTOR, err, n);
    if (!r && at && sectors)
        r = check_vmdk_descriptor(path, fd, at * SECTOR, (size_t)sectors * SECTOR, err, n);
    return r;
}

static int check_text_vmdk(const char *path, const unsigned char *head, int fd, char *err, size_t n)
{
    return refuse(path, "its extents", err, n);
}

static int check_qed(const char *path, const unsigned char *head, int fd, char *err, size_t n)
{
    return error_set(err, n, -EINVAL, "%s is a QED disk, which nothing makes any more: convert it with qemu-img", path);
}

static const struct {
    unsigned at, len;
    const char *bytes, *format;
    int (*check)(const char *path, const unsigned char *head, int fd, char *err, size_t n);
} formats[] = {
    {0, 4, "QFI\xfb", "qcow2", check_qcow2},
    {0, 4, "KDMV", "vmdk", check_vmdk},
    {0, 21, "# Disk DescriptorFile", "vmdk", check_text_vmdk},
    {0, 4, "QED\0", "qed", check_qed},
    {0, 8, "conectix", "vpc", NULL},
    {0, 8, "vhdxfile", "vhdx", NULL},
    {64, 4, "\x7f\x10\xda\xbe", "vdi", NULL},
};

/* ---- archives ---- */

#define ENTRIES_LOOKED_AT 16

struct look {
    bool disk, metadata, oci, other;
};

static bool look_at(void *context, const char *path)
{
    struct look *l = context;

    while (strncmp(path, "./", 2) == 0)
        path += 2;
    if (strcmp(path, "disk.raw") == 0)
        l->disk = true;
    else if (strcmp(path, "metadata.json") == 0)
        l->metadata = true;
    else if (strcmp(path, "oci-layout") == 0 || strcmp(path, "index.json") == 0 ||
             strncmp(path, "blobs/sha256", 12) == 0)
        l->oci = true;
    else if (*path && strcmp(path, ".") != 0)
        l->other = true;
    return l->disk || l->metadata || l->oci;
}

static bool is_packed(const unsigned char *head)
{
    return memcmp(head, "\x1f\x8b", 2) == 0 ||
           memcmp(head,
                  "\xfd"
                  "7zXZ",
                  5) == 0 ||
           memcmp(head, "\x28\xb5\x2f\xfd", 4) == 0;
}

static enum source_kind detect_archive(int fd, const unsigned char *head)
{
    struct look l = {0};

    if (archive_list(fd, ENTRIES_LOOKED_AT, look_at, &l) > 0)
        return l.oci ? SOURCE_OCI_TAR : l.metadata || (l.disk && !l.other) ? SOURCE_EXPORT : SOURCE_TAR;
    return is_packed(head) ? SOURCE_PACKED_RAW : SOURCE_UNKNOWN;
}

/* ---- the whole ---- */

static int detect_file(const char *path, int fd, uint64_t size, enum source_kind *kind, const char **format, char *err,
                       size_t n)
{
    struct partition *p = malloc(PARTITIONS_MAX * sizeof *p);
    unsigned char head[HEAD] = {0};

    if (!p || pread(fd, head, sizeof head, 0) < 0) {
        free(p);
        return error_sys(err, n, p ? -errno : -ENOMEM, "cannot read %s", path);
    }
    for (size_t i = 0; i < sizeof formats / sizeof formats[0]; i++) {
        if (memcmp(head + formats[i].at, formats[i].bytes, formats[i].len) != 0)
            continue;
        *kind = SOURCE_FOREIGN;
        *format = formats[i].format;
        free(p);
        return formats[i].check ? formats[i].check(path, head, fd, err, n) : 0;
    }
    /* A disk may begin like an archive in no way that matters: with a table or a file system it is a disk. */
    *kind = partitions_read(fd, size, p) > 0 ? SOURCE_RAW : detect_archive(fd, head);
    /* A VHD of fixed size is a raw disk with a footer. */
    if (*kind == SOURCE_RAW && size > SECTOR && pread(fd, head, 8, (off_t)(size - SECTOR)) == 8 &&
        memcmp(head, "conectix", 8) == 0) {
        *kind = SOURCE_FOREIGN;
        *format = "vpc";
    }
    free(p);
    if (*kind == SOURCE_UNKNOWN)
        return error_set(err, n, -EINVAL, "%s is no disk with a file system, no archive and no container image", path);
    return 0;
}

int detect_source(const char *path, enum source_kind *kind, const char **format, char *err, size_t n)
{
    struct stat st;
    int fd = open(path, O_RDONLY | O_CLOEXEC), failed = 0;

    *kind = SOURCE_UNKNOWN;
    *format = NULL;
    if (fd < 0 || fstat(fd, &st))
        failed = error_sys(err, n, -errno, "cannot open %s", path);
    else if (S_ISDIR(st.st_mode))
        *kind = faccessat(fd, "oci-layout", F_OK, 0) == 0 ? SOURCE_OCI : SOURCE_DIRECTORY;
    else if (!S_ISREG(st.st_mode))
        failed = error_set(err, n, -EINVAL, "%s is neither a file nor a directory", path);
    else
        failed = detect_file(path, fd, (uint64_t)st.st_size, kind, format, err, n);
    if (fd >= 0)
        close(fd);
    return failed;
}
