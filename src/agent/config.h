/*
 * What the program in the guest is told at its start: the file /guise/config in the initramfs, written by the host,
 * read by src/guest/.
 *
 *      mode=boot
 *      root=/dev/nvme0n1
 *      share=rw guise0 /home/me/a directory
 *      share=ro guise1 /opt
 *
 * One key=value a line.  In a value `\\` stands for a backslash and `\n` for a line feed; every other byte but NUL is
 * itself, blanks and '=' too.  A backslash before anything else, an unknown key, a key given twice (unless it is a
 * list) and a line without '=' are errors: both ends are always of one version.
 */
#pragma once
#include <stdbool.h>
#include <stddef.h>

#include "base/options.h"

#define GUEST_CONFIG_PATH "guise/config" /* in the initramfs */
#define GUEST_INIT_PATH "guise/init"     /* give the kernel rdinit=/guise/init */
#define GUEST_MODULES_PATH "guise/modules"
#define GUEST_CONFIG_MAX (256u << 10)

enum guest_mode {
    GUEST_COMMAND, /* our program stays the first process */
    GUEST_BOOT,    /* the distribution's init takes over */
};

/* Strings may be NULL: not set. */
struct guest_config {
    unsigned mode;        /* enum guest_mode */
    const char *instance; /* another one than at the last start: host keys and machine id are made anew */
    const char *hostname;

    /* The root file system: a device ("/dev/nvme0n1"), "LABEL=...", "UUID=...", a disk's serial
     * number ("SERIAL=...", of a partition "SERIAL=.../2"), or "virtiofs:TAG".  On a disk with partitions that has no
     * file system itself, "/dev/nvme0n1" means the largest partition that has a Linux one. */
    const char *root;
    const char *root_type;    /* ext4, xfs, btrfs; NULL: recognized */
    const char *root_options; /* as for mount -o; "ro" and "rw" among them; NULL: rw */
    bool root_overlay;        /* mounted read-only; what is written goes to memory and is lost */
    bool root_grow;           /* the file system grows to its device's size */

    /* The first Ethernet device.  GUEST_BOOT: the distribution's own affair, unless 40 seconds later it has no address.
     */
    const char *address; /* "10.0.2.15/24" */
    const char *gateway; /* "10.0.2.2" */
    const char *dns;     /* "10.0.2.3" */

    struct option_list shares; /* "ro|rw TAG PATH": virtiofs */
    struct option_list keys;   /* lines of authorized_keys; GUEST_COMMAND: once somebody comes by ssh */
    const char *user;          /* whose; NULL: root */
    bool first_boot;           /* GUEST_BOOT: hostname, keys, ssh host keys, machine id: the image has no cloud-init */

    const char *init; /* GUEST_BOOT; NULL: /sbin/init */
    bool initrd_init; /* GUEST_BOOT: the image's own initrd mounts the root; its /init is started */
    bool console;     /* GUEST_COMMAND: a shell on the serial line */
};

/* The text of a configuration in a new string (*len bytes and a NUL); the caller frees it.  0 or -errno. */
int guest_config_format(const struct guest_config *c, char **text, size_t *len, char *err, size_t n);

/* Reads text[len]; strings of *c point into *storage, which the caller frees.  0, or -errno with a sentence that names
 * the line. */
int guest_config_parse(struct guest_config *c, const char *text, size_t len, char **storage, char *err, size_t n);
