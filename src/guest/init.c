/*
 * The first process: from the kernel's first instruction in user mode to the image's system, or to the agent.
 *
 *      command mode                                boot mode
 *      /dev, /proc, /sys, configuration, modules   the same
 *      root file system, switched to               the same, unless the image's own initrd does it
 *      network, mounts, names                      shares, names and keys (images without cloud-init)
 *      becomes the agent                           forks the agent, becomes the image's init
 */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/error.h"
#include "base/file.h"
#include "guest/guest.h"

#define DEFAULT_INIT "/sbin/init"
#define OPEN_FILES_MOST 524288 /* what systemd gives, too; a session's soft limit stays 1024 */

void say(const char *format, ...)
{
    char line[1024];
    va_list ap;

    va_start(ap, format);
    int len = vsnprintf(line, sizeof(line) - 1, format, ap);
    va_end(ap);
    if (len > (int)sizeof(line) - 2)
        len = sizeof(line) - 2;
    line[len] = '\n';
    dprintf(STDERR_FILENO, "guise: %.*s", len + 1, line);
}

static void fail(struct guest *g, const char *why) __attribute__((noreturn));
static void fail(struct guest *g, const char *why)
{
    say("this guest cannot start: %s", why);
    hello(g, why);
    sync();
    reboot(RB_POWER_OFF);
    for (;;)
        pause();
}

/* The kernel has opened /dev/console for us, unless it has none. */
static void open_standard_descriptors(void)
{
    for (int fd = 0; fd <= 2; fd++)
        if (fcntl(fd, F_GETFD) < 0)
            open("/dev/null", O_RDWR);
}

static void read_config(struct guest *g)
{
    char why[ERROR_SIZE], *text, *storage;
    size_t len;

    if (file_read("/" GUEST_CONFIG_PATH, GUEST_CONFIG_MAX, &text, &len, why, sizeof(why)) ||
        guest_config_parse(&g->config, text, len, &storage, why, sizeof(why)))
        fail(g, why);
    free(text); /* the storage stays: the configuration points into it */
}

/* Where systemd and others would write when asked to say something; the console is somebody else's by then. */
static void leave_console(void)
{
    int null = open("/dev/null", O_RDWR | O_CLOEXEC), log = open("/dev/kmsg", O_WRONLY | O_CLOEXEC);

    if (null >= 0) {
        dup2(null, 0);
        dup2(null, 1);
        dup2(log >= 0 ? log : null, 2);
    }
}

/* For what sessions start. */
static void raise_limits(void)
{
    const struct rlimit files = {.rlim_cur = 1024, .rlim_max = OPEN_FILES_MOST};

    setrlimit(RLIMIT_NOFILE, &files);
}

/*
 * The agent beside somebody else's init.  Its name begins with '@', which tells systemd to spare it when it ends all
 * processes (https://systemd.io/ROOT_STORAGE_DAEMONS): so the host can reach it until the very end.
 */
static void fork_agent(struct guest *g, char **argv)
{
    pid_t pid = fork();

    if (pid < 0)
        say("the agent cannot be started: %s", strerror(errno));
    if (pid != 0)
        return;
    argv[0][0] = '@';
    setsid();
    leave_console();
    raise_limits();
    serve(g, false);
}

/* Words of the kernel's command line that the kernel did not know are ours as arguments, and meant for init. */
static void become_init(struct guest *g, const char *path, char **argv)
{
    char why[ERROR_SIZE];

    argv[0] = strdup(path);
    execv(path, argv);
    error_sys(why, sizeof(why), -errno, "the image's init %s cannot be started", path);
    fail(g, why);
}

/* From here on the agent knows where the first process is, and that it is not where it began. */
static void hold_proc(struct guest *g)
{
    g->proc = open("/proc", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (g->proc < 0)
        fail(g, "/proc cannot be opened");
}

/* The image's initrd wants to find nothing mounted; our own hold on /proc remains. */
static void boot_by_initrd(struct guest *g, char **argv)
{
    static const char *const mounts[] = {"/proc", "/sys", "/dev"};

    hold_proc(g);
    fork_agent(g, argv);
    for (size_t i = 0; i < sizeof(mounts) / sizeof(mounts[0]); i++)
        umount2(mounts[i], MNT_DETACH);
    become_init(g, "/init", argv);
}

static void boot(struct guest *g, char **argv)
{
    if (g->config.root_grow)
        root_grow();
    mount_shares(&g->config.shares);
    if (g->config.first_boot)
        setup_first_boot(&g->config);
    hold_proc(g);
    fork_agent(g, argv);
    become_init(g, g->config.init ? g->config.init : DEFAULT_INIT, argv);
}

/* A login shell on the serial line, again and again. */
static void console_shell(void)
{
    char name[64] = "console", path[80];
    FILE *f = fopen("/sys/class/tty/console/active", "re");

    /* /dev/console can be no process's terminal: the last one that is active is what it stands for. */
    while (f && fscanf(f, "%63s", name) == 1)
        ;
    if (f)
        fclose(f);
    snprintf(path, sizeof(path), "/dev/%s", name);
    if (fork() != 0)
        return;
    for (;;) {
        pid_t pid = fork();
        if (pid == 0) {
            setsid();
            int fd = open(path, O_RDWR);
            ioctl(fd, TIOCSCTTY, 1);
            dup2(fd, 0);
            dup2(fd, 1);
            dup2(fd, 2);
            setenv("HOME", "/root", 1);
            if (chdir("/root"))
                say("there is no /root");
            execl("/bin/bash", "-bash", NULL);
            execl("/bin/sh", "-sh", NULL);
            _exit(127);
        }
        int status;
        if (pid < 0 || waitpid(pid, &status, 0) < 0 || (WIFEXITED(status) && WEXITSTATUS(status) == 127))
            _exit(1);
    }
}

static void command(struct guest *g)
{
    const struct guest_config *c = &g->config;

    if (c->root_grow)
        root_grow();
    mount_usual(c->root_overlay || strncmp(c->root, "virtiofs:", 9) == 0);
    mount_shares(&c->shares);
    network_start(c);
    setup_names(c->hostname, false);
    if (c->address)
        setup_resolver(c->dns);
    raise_limits();
    if (c->console)
        console_shell();
    setenv("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", 1);
    serve(g, true);
}

void init_main(struct guest *g, char **argv)
{
    char why[ERROR_SIZE];
    struct stat st;

    g->inside = true;
    umask(022);
    if (stat("/", &st) == 0) {
        g->first_dev = st.st_dev;
        g->first_ino = st.st_ino;
    }
    mount_early();
    open_standard_descriptors();
    read_config(g);
    modules_load(&g->config);
    if (g->config.mode == GUEST_BOOT && g->config.initrd_init)
        boot_by_initrd(g, argv);
    if (root_mount(&g->config, why, sizeof(why)) || root_enter(why, sizeof(why)))
        fail(g, why);
    if (g->config.mode == GUEST_BOOT)
        boot(g, argv);
    command(g);
    for (;;) /* not reached: serve does not return */
        pause();
}
