/* The network without anybody's tools: the loopback device and one static address. */
#include <arpa/inet.h>
#include <dirent.h>
#include <errno.h>
#include <ifaddrs.h>
#include <limits.h>
#include <net/if.h>
#include <net/if_arp.h>
#include <net/route.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include "guest/guest.h"

static void set_address(struct sockaddr *to, in_addr_t address)
{
    struct sockaddr_in in = {.sin_family = AF_INET, .sin_addr.s_addr = address};

    memcpy(to, &in, sizeof(in));
}

static int bring_up(int fd, const char *name)
{
    struct ifreq r = {0};

    snprintf(r.ifr_name, sizeof(r.ifr_name), "%s", name);
    if (ioctl(fd, SIOCGIFFLAGS, &r))
        return -errno;
    r.ifr_flags |= IFF_UP;
    return ioctl(fd, SIOCSIFFLAGS, &r) ? -errno : 0;
}

static long read_number(const char *name, const char *file)
{
    char path[PATH_MAX], text[32] = "";
    FILE *f;

    snprintf(path, sizeof(path), "/sys/class/net/%s/%s", name, file);
    f = fopen(path, "re");
    if (f && !fgets(text, sizeof(text), f))
        text[0] = 0;
    if (f)
        fclose(f);
    return text[0] ? strtol(text, NULL, 10) : -1;
}

/* Of the Ethernet devices, which are devices and not bridges or tunnels, the first that was found after number `after`;
 * its number, or LONG_MAX. */
static long next_ethernet(long after, char *name, size_t size)
{
    DIR *d = opendir("/sys/class/net");
    long best = LONG_MAX;
    struct dirent *e;

    while (d && (e = readdir(d)) != NULL) {
        char device[PATH_MAX];
        snprintf(device, sizeof(device), "/sys/class/net/%s/device", e->d_name);
        long index = read_number(e->d_name, "ifindex");
        if (e->d_name[0] == '.' || access(device, F_OK) || read_number(e->d_name, "type") != ARPHRD_ETHER ||
            index <= after || index >= best)
            continue;
        best = index;
        snprintf(name, size, "%.*s", IFNAMSIZ - 1, e->d_name);
    }
    if (d)
        closedir(d);
    return best;
}

static bool first_ethernet(char *name, size_t size)
{
    return next_ethernet(-1, name, size) != LONG_MAX;
}

int network_set_mac(unsigned card, const uint8_t mac[6])
{
    struct ifreq r = {.ifr_hwaddr.sa_family = ARPHRD_ETHER};
    long index = -1;

    for (unsigned i = 0; i <= card && index != LONG_MAX; i++)
        index = next_ethernet(index, r.ifr_name, sizeof(r.ifr_name));
    if (index == LONG_MAX)
        return 0; /* its driver is not there */
    int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0), err = fd < 0 ? -errno : 0;
    memcpy(r.ifr_hwaddr.sa_data, mac, 6);
    if (!err && ioctl(fd, SIOCSIFHWADDR, &r))
        err = -errno;
    if (fd >= 0)
        close(fd);
    return err;
}

/* "10.0.2.15/24" */
static int configure_address(int fd, const char *name, const char *text)
{
    struct ifreq r = {0};
    struct in_addr address;
    char host[32];
    unsigned bits;

    if (sscanf(text, "%31[0-9.]/%u", host, &bits) != 2 || bits > 32 || inet_pton(AF_INET, host, &address) != 1)
        return -EINVAL;
    snprintf(r.ifr_name, sizeof(r.ifr_name), "%s", name);
    set_address(&r.ifr_addr, address.s_addr);
    if (ioctl(fd, SIOCSIFADDR, &r))
        return -errno;
    set_address(&r.ifr_netmask, htonl(bits ? ~0u << (32 - bits) : 0));
    return ioctl(fd, SIOCSIFNETMASK, &r) ? -errno : 0;
}

static int configure_gateway(int fd, const char *text)
{
    struct rtentry r = {.rt_flags = RTF_UP | RTF_GATEWAY};
    struct in_addr address;

    if (inet_pton(AF_INET, text, &address) != 1)
        return -EINVAL;
    set_address(&r.rt_dst, INADDR_ANY);
    set_address(&r.rt_genmask, INADDR_ANY);
    set_address(&r.rt_gateway, address.s_addr);
    return ioctl(fd, SIOCADDRT, &r) && errno != EEXIST ? -errno : 0;
}

static void configure(int fd, const struct guest_config *c)
{
    char name[IFNAMSIZ];

    if (!c->address)
        return;
    if (!first_ethernet(name, sizeof(name))) {
        say("there is no network device for the address %s", c->address);
        return;
    }
    int r = configure_address(fd, name, c->address);
    if (!r)
        r = bring_up(fd, name);
    if (!r && c->gateway)
        r = configure_gateway(fd, c->gateway);
    if (r)
        say("the network device %s cannot be set to %s: %s", name, c->address, strerror(-r));
}

void network_start(const struct guest_config *c)
{
    int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);

    if (fd < 0) /* a kernel without it */
        return;
    bring_up(fd, "lo");
    configure(fd, c);
    close(fd);
}

bool network_has_address(void)
{
    struct ifaddrs *all = NULL;
    bool found = false;

    if (getifaddrs(&all))
        return true; /* who knows */
    for (const struct ifaddrs *a = all; a; a = a->ifa_next)
        found |= a->ifa_addr && a->ifa_addr->sa_family == AF_INET && !(a->ifa_flags & IFF_LOOPBACK);
    freeifaddrs(all);
    return found;
}
