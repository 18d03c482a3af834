/*
 * The agent: waits for streams, and gives each to a child of its own.  As the first process of the system it also reaps
 * what nobody else does, and ends the system when a session, or init's usual signals, ask for it.
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/reboot.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <linux/vm_sockets.h>

#include "guest/guest.h"

#define BACKLOG 64
/* Only when the kernel has no vsock yet: an image's own initrd may load it at any time. */
#define RETRY_MS 100
#define FAREWELL_MS 2000
#define INIT_MS 120000
#define NETWORK_SECONDS 40u

static int listen_vsock(void)
{
    const struct sockaddr_vm address = {.svm_family = AF_VSOCK, .svm_cid = VMADDR_CID_ANY, .svm_port = AGENT_PORT};
    int fd = socket(AF_VSOCK, SOCK_STREAM | SOCK_CLOEXEC, 0);

    if (fd < 0)
        return -errno;
    if (bind(fd, (const struct sockaddr *)&address, sizeof(address)) || listen(fd, BACKLOG)) {
        int r = -errno;
        close(fd);
        return r;
    }
    return fd;
}

static uint64_t uptime_ms(void)
{
    struct timespec t;

    clock_gettime(CLOCK_BOOTTIME, &t);
    return (uint64_t)t.tv_sec * 1000 + (uint64_t)t.tv_nsec / 1000000;
}

/* The power goes off next: until the host has closed its end our words may still be on their way. */
static void wait_for_end(int fd)
{
    struct pollfd p = {.fd = fd, .events = POLLIN};

    shutdown(fd, SHUT_WR);
    poll(&p, 1, FAREWELL_MS);
}

int hello(const struct guest *g, const char *failure)
{
    const struct sockaddr_vm address = {.svm_family = AF_VSOCK, .svm_cid = VMADDR_CID_HOST, .svm_port = AGENT_PORT};
    int fd = socket(AF_VSOCK, SOCK_STREAM | SOCK_CLOEXEC, 0);
    struct stream s;

    if (fd < 0)
        return -errno;
    int r = connect(fd, (const struct sockaddr *)&address, sizeof(address)) ? -errno : 0;
    stream_init(&s, fd);
    stream_begin(&s, FRAME_HELLO);
    stream_number(&s, FIELD_VERSION, AGENT_VERSION);
    stream_text(&s, FIELD_MODE, g->config.mode == GUEST_BOOT ? "boot" : "command");
    stream_number(&s, FIELD_UPTIME, uptime_ms());
    stream_text(&s, FIELD_MESSAGE, failure);
    stream_end(&s);
    if (!r)
        r = stream_send(&s);
    stream_release(&s);
    if (!r && failure)
        wait_for_end(fd);
    close(fd);
    return r;
}

/* Only the host is served: were there a loopback transport for vsock, every process of the guest could come and be
 * root. */
static bool is_host(const struct sockaddr_storage *peer)
{
    const struct sockaddr_vm *vm = (const struct sockaddr_vm *)peer;

    return peer->ss_family != AF_VSOCK || vm->svm_cid == VMADDR_CID_HOST;
}

/* The child that serves one stream. */
static void start_session(struct guest *g, int listener, int signals)
{
    struct sockaddr_storage peer = {0};
    socklen_t len = sizeof(peer);
    int fd = accept4(listener, (struct sockaddr *)&peer, &len, SOCK_CLOEXEC);

    if (fd >= 0 && !is_host(&peer)) {
        close(fd);
        return;
    }
    if (fd < 0)
        return;
    pid_t pid = fork();
    if (pid == 0) {
        close(listener);
        if (signals >= 0)
            close(signals);
        _exit(session_run(g, fd));
    }
    if (pid < 0) {
        struct stream s;
        stream_init(&s, fd);
        stream_put_error(&s, -errno, "the guest's agent cannot start a process: %s", strerror(errno));
        stream_flush(&s);
        stream_release(&s);
    }
    close(fd);
}

static void reap(void)
{
    while (waitpid(-1, NULL, WNOHANG) > 0)
        ;
}

/* As systemd's first process has them, so that a session asks either in the same way; and as BusyBox's, whose poweroff
 * and reboot commands then work. */
static const struct {
    int offset; /* from SIGRTMIN, or -1 */
    int number;
    int how;
} endings[] = {
    {4, 0, RB_POWER_OFF},       {5, 0, RB_AUTOBOOT},       {-1, SIGUSR1, RB_POWER_OFF}, {-1, SIGUSR2, RB_POWER_OFF},
    {-1, SIGTERM, RB_AUTOBOOT}, {-1, SIGINT, RB_AUTOBOOT}, {-1, SIGPWR, RB_POWER_OFF},
};
#define N_ENDINGS (sizeof(endings) / sizeof(endings[0]))

static int ending_signal(size_t i)
{
    return endings[i].offset >= 0 ? SIGRTMIN + endings[i].offset : endings[i].number;
}

static int open_signals(bool first)
{
    sigset_t set;

    sigemptyset(&set);
    sigaddset(&set, SIGCHLD);
    for (size_t i = 0; first && i < N_ENDINGS; i++)
        sigaddset(&set, ending_signal(i));
    sigprocmask(SIG_BLOCK, &set, NULL);
    return signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
}

static void on_signal(int signals)
{
    struct signalfd_siginfo info;

    while (read(signals, &info, sizeof(info)) == sizeof(info)) {
        if (info.ssi_signo == SIGCHLD)
            reap();
        for (size_t i = 0; i < N_ENDINGS; i++)
            if ((int)info.ssi_signo == ending_signal(i))
                power_down(endings[i].how);
    }
}

static void serve_on(struct guest *g, int listener, int signals, int cpus)
{
    struct pollfd p[] = {{.fd = listener, .events = POLLIN},
                         {.fd = signals, .events = POLLIN},
                         {.fd = cpus, .events = POLLIN}}; /* -1: poll looks past it */

    if (poll(p, 3, -1) < 0)
        return;
    if (p[1].revents)
        on_signal(signals);
    if (p[2].revents)
        cpus_look(g, cpus);
    if (p[0].revents)
        start_session(g, listener, signals);
}

/* A system that gives itself no address (an image that nobody has made for a machine) gets the one that we would have
 * given it.  A bridge or a client of DHCP that is only slow takes it away again. */
static void help_network(const struct guest *g)
{
    if (!g->config.address)
        return;
    sleep(NETWORK_SECONDS);
    if (follow_root(g) || network_has_address())
        return;
    say("the system has no network address after %u s: it gets %s", NETWORK_SECONDS, g->config.address);
    network_start(&g->config);
    setup_resolver(g->config.dns);
}

/* Beside another init not before that is up: who hears of us wants to use a system. */
static void announce(struct guest *g, bool first)
{
    if (first) {
        hello(g, NULL);
    } else if (fork() == 0) {
        wait_for_init(g, INIT_MS);
        hello(g, NULL);
        help_network(g);
        _exit(0);
    }
}

/* Without the agent nobody could free a guest that is out of memory.  What sessions start is as killable as anything.
 */
static void outlive_memory(const struct guest *g)
{
    static const char least[] = "-1000";
    int fd = g->proc >= 0 ? openat(g->proc, "self/oom_score_adj", O_WRONLY | O_CLOEXEC)
                          : open("/proc/self/oom_score_adj", O_WRONLY | O_CLOEXEC);

    if (fd < 0 || write(fd, least, sizeof(least) - 1) < 0)
        say("the kernel may end the agent when memory is short: %s", strerror(errno));
    if (fd >= 0)
        close(fd);
}

void serve(struct guest *g, bool first)
{
    int signals = open_signals(first), listener;

    signal(SIGPIPE, SIG_IGN);
    outlive_memory(g);
    while ((listener = listen_vsock()) < 0) {
        struct pollfd p = {.fd = signals, .events = POLLIN};
        if (poll(&p, 1, RETRY_MS) > 0)
            on_signal(signals);
    }
    announce(g, first);
    int cpus = cpus_watch(g);
    for (;;)
        serve_on(g, listener, signals, cpus);
}

int serve_unix(struct guest *g, const char *path)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    int listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0), signals = open_signals(false);

    snprintf(address.sun_path, sizeof(address.sun_path), "%s", path);
    if (listener < 0 || bind(listener, (const struct sockaddr *)&address, sizeof(address)) || listen(listener, BACKLOG))
        return 1;
    for (;;)
        serve_on(g, listener, signals, -1);
}
