/*
 * CPUs that come while the system runs.  The kernel leaves it to user space to start them, and few distributions do;
 * where one does, it has been done before or will find it done.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include <linux/netlink.h>

#include "guest/guest.h"

int cpus_watch(const struct guest *g)
{
    const struct sockaddr_nl address = {.nl_family = AF_NETLINK, .nl_groups = 1 /* the kernel's own */};
    int fd = g->inside ? socket(AF_NETLINK, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, NETLINK_KOBJECT_UEVENT) : -1;

    if (fd >= 0 && bind(fd, (const struct sockaddr *)&address, sizeof(address))) {
        close(fd);
        fd = -1;
    }
    return fd;
}

/* Our own root may have no /sys; that of the first process has. */
static void start(const struct guest *g, unsigned cpu)
{
    char path[64];

    snprintf(path, sizeof(path), "%s/sys/devices/system/cpu/cpu%u/online", g->proc >= 0 ? "1/root" : "", cpu);
    int fd = openat(g->proc, path, O_WRONLY | O_CLOEXEC);
    if (fd < 0 || write(fd, "1", 1) != 1)
        say("CPU %u is there, but cannot be started: %s", cpu, strerror(errno));
    if (fd >= 0)
        close(fd);
}

void cpus_look(const struct guest *g, int fd)
{
    struct sockaddr_nl from;
    socklen_t len = sizeof(from);
    char message[2048];
    unsigned cpu;
    ssize_t n;

    for (; (n = recvfrom(fd, message, sizeof(message) - 1, 0, (struct sockaddr *)&from, &len)) > 0;
         len = sizeof(from)) {
        message[n] = 0;
        if (from.nl_pid == 0 && sscanf(message, "add@/devices/system/cpu/cpu%u", &cpu) == 1)
            start(g, cpu);
    }
}
