/*
 * What the files of the program inside a guest share.
 *
 * One program, three lives: the first process of the initramfs (init.c), the agent (serve.c), and the child of the
 * agent that serves one session (session.c).  A session's faults end that session and nothing else.
 */
#pragma once
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "agent/config.h"
#include "agent/frame.h"

struct guest {
    struct guest_config config;
    bool inside;     /* in a guest; false: an ordinary process, for tests, which must leave its host alone */
    int proc;        /* the directory /proc; -1: our own root is the root of all */
    dev_t first_dev; /* of the initramfs: while the first process's root is this one the real root is not there yet */
    ino_t first_ino;
};

/* Says so on the console, where it ends up in the VM's serial log. */
void say(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* init.c: the first process.  Does not return. */
void init_main(struct guest *g, char **argv) __attribute__((noreturn));

/* modules.c: loads what /guise/modules/order names and this machine has a use for. */
void modules_load(const struct guest_config *c);

/* root.c: mounts the root file system on /root.  0, or -errno with a sentence. */
int root_mount(const struct guest_config *c, char *err, size_t n);
/* Makes /root the root, and frees what was in the initramfs.  0, or -errno with a sentence. */
int root_enter(char *err, size_t n);
/* The root file system grows to its device's size, while the system goes on; where the kernel can (ext4, btrfs). */
void root_grow(void);

/* device.c: waits until the block device is there that `what` (struct guest_config: root) names.  0, its path in path[]
 * and what is on it; or -errno with a sentence. */
struct filesystem;
int device_wait(const char *what, char *path, size_t size, struct filesystem *fs, char *err, size_t n);

/* probe.c: what file system the block device at fd has. */
struct filesystem {
    const char *type; /* "ext4", "xfs", "btrfs", or NULL: unknown */
    char label[64], uuid[40];
};
void filesystem_probe(int fd, struct filesystem *out);

/* mounts.c */
void mount_early(void);                              /* /dev, /proc, /sys of the initramfs */
void mount_usual(bool memory_root);                  /* what a system without an init of its own expects */
void mount_shares(const struct option_list *shares); /* "ro|rw TAG PATH", in the root that we are in */
int make_path(const char *path, mode_t mode);        /* mkdir -p: 0 or -errno */

/* network.c: lo, and the first Ethernet device if there is an address. */
void network_start(const struct guest_config *c);
/* Has any device but lo an IPv4 address? */
bool network_has_address(void);

/* setup.c: files of the root file system. */
void setup_names(const char *hostname, bool keep);   /* hostname; keep: /etc/hostname too; /etc/hosts */
void setup_resolver(const char *dns);                /* /etc/resolv.conf */
void setup_first_boot(const struct guest_config *c); /* for images without cloud-init */
void setup_keys(const struct guest_config *c);       /* authorized_keys */
void setup_host_keys(bool anew);                     /* of sshd, if it is there and they are not */

/* serve.c: the agent: serves until the end.  `first`: it is also the first process. */
void serve(struct guest *g, bool first) __attribute__((noreturn));
/* The same on a Unix socket, for tests. */
int serve_unix(struct guest *g, const char *path);
/* Tells the host; failure NULL: that the agent is ready.  0 or -errno. */
int hello(const struct guest *g, const char *failure);

/* cpus.c: CPUs that come are started.  A descriptor to be polled, or -1; and what to do when it is readable. */
int cpus_watch(const struct guest *g);
void cpus_look(const struct guest *g, int fd);

/* session.c: one session on a connected stream; returns the process's exit status. */
int session_run(struct guest *g, int fd);

/* follow.c: the first process, where that is another program than ours. */
/* Into the root that it has.  0, -EAGAIN: it is not there yet; -errno. */
int follow_root(const struct guest *g);
/* Has it begun its work, so that it hears when it is asked for something? */
bool init_is_up(const struct guest *g);
/* Waits for that, at most so long. */
void wait_for_init(const struct guest *g, int ms);

/* The requests: `request` is the first frame of `s`. */
void exec_serve(struct guest *g, struct stream *s, const struct frame *request);
void tunnel_serve(struct guest *g, struct stream *s, const struct frame *request);
void info_serve(struct guest *g, struct stream *s, const struct frame *request);
void power_serve(struct guest *g, struct stream *s, const struct frame *request);
int network_set_mac(unsigned card, const uint8_t mac[6]); /* of the Ethernet device with that many before it */
void identity_serve(struct guest *g, struct stream *s, const struct frame *request);
void put_serve(struct guest *g, struct stream *s, const struct frame *request);
void get_serve(struct guest *g, struct stream *s, const struct frame *request);

/* power.c: the end of the system, by its first process. */
void power_down(int how) __attribute__((noreturn)); /* RB_POWER_OFF or RB_AUTOBOOT */

/* user.c: the system's own list of users. */
struct user {
    uid_t uid;
    gid_t gid;
    gid_t groups[64];
    size_t n_groups;
    char name[128], home[256], shell[256];
};
/* "NAME", "UID", either with ":GROUP"; NULL: root.  0, or -ENOENT with a sentence. */
int user_find(const char *who, struct user *u, char *err, size_t n);
/* Becomes that user, for good.  0 or -errno. */
int user_become(const struct user *u);
