/* Recognizes the Linux file systems that a root can be, by their superblocks. */
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "guest/guest.h"

struct layout {
    const char *type;
    unsigned magic_at;
    const char *magic;
    unsigned magic_len;
    unsigned uuid_at, label_at, label_len; /* from the beginning of the device */
};

/* ext4: kernel's Documentation/filesystems/ext4/super.rst, the superblock is at 1024.  xfs: fs/xfs/libxfs/xfs_format.h,
 * struct xfs_dsb.  btrfs: include/uapi/linux/btrfs_tree.h, struct btrfs_super_block at 64 KiB. */
static const struct layout layouts[] = {
    {"ext4", 1024 + 0x38, "\x53\xef", 2, 1024 + 0x68, 1024 + 0x78, 16},
    {"xfs", 0, "XFSB", 4, 32, 108, 12},
    {"btrfs", 65536 + 64, "_BHRfS_M", 8, 65536 + 32, 65536 + 299, 60},
};

static void read_names(int fd, const struct layout *l, struct filesystem *out)
{
    unsigned char uuid[16];
    char *to = out->uuid;

    if (pread(fd, out->label, l->label_len, l->label_at) < 0)
        out->label[0] = 0;
    if (pread(fd, uuid, sizeof(uuid), l->uuid_at) != sizeof(uuid))
        return;
    for (int i = 0; i < 16; i++)
        to += sprintf(to, "%s%02x", i == 4 || i == 6 || i == 8 || i == 10 ? "-" : "", uuid[i]);
}

void filesystem_probe(int fd, struct filesystem *out)
{
    char magic[8];

    *out = (struct filesystem){0};
    for (size_t i = 0; i < sizeof(layouts) / sizeof(layouts[0]) && !out->type; i++) {
        const struct layout *l = &layouts[i];
        if (pread(fd, magic, l->magic_len, l->magic_at) != (ssize_t)l->magic_len ||
            memcmp(magic, l->magic, l->magic_len) != 0)
            continue;
        out->type = l->type;
        read_names(fd, l, out);
    }
}
