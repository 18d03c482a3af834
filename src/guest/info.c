/* INFO and IDENTITY: what this machine is, and what it is to be from now on. */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <ifaddrs.h>
#include <net/if.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/sysinfo.h>
#include <sys/utsname.h>
#include <time.h>
#include <unistd.h>

#include <linux/random.h>

#include "guest/guest.h"

#define SEED_MAX 512

static void put_fact(struct stream *s, const char *format, ...) __attribute__((format(printf, 2, 3)));
static void put_fact(struct stream *s, const char *format, ...)
{
    char fact[512];
    va_list ap;

    va_start(ap, format);
    vsnprintf(fact, sizeof(fact), format, ap);
    va_end(ap);
    stream_text(s, FIELD_INFO, fact);
}

/* Of os-release(5): the value of `key`, without its quotes. */
static bool os_release(const char *key, char *out, size_t size)
{
    FILE *f = fopen("/etc/os-release", "re");
    char line[512];
    size_t len = strlen(key);
    bool found = false;

    while (f && !found && fgets(line, sizeof(line), f)) {
        if (strncmp(line, key, len) != 0 || line[len] != '=')
            continue;
        char *value = line + len + 1;
        value[strcspn(value, "\n")] = 0;
        if (*value == '"') {
            value++;
            value[strcspn(value, "\"")] = 0;
        }
        snprintf(out, size, "%s", value);
        found = true;
    }
    if (f)
        fclose(f);
    return found;
}

static unsigned long long meminfo_kb(const char *key)
{
    FILE *f = fopen("/proc/meminfo", "re");
    char line[128];
    unsigned long long kb = 0;
    size_t len = strlen(key);

    while (f && fgets(line, sizeof(line), f))
        if (strncmp(line, key, len) == 0 && line[len] == ':')
            kb = strtoull(line + len + 1, NULL, 10);
    if (f)
        fclose(f);
    return kb;
}

static void put_addresses(struct stream *s)
{
    struct ifaddrs *all = NULL;
    char text[INET6_ADDRSTRLEN];

    if (getifaddrs(&all))
        return;
    for (struct ifaddrs *a = all; a; a = a->ifa_next) {
        if (!a->ifa_addr || a->ifa_flags & IFF_LOOPBACK)
            continue;
        const void *address = NULL;
        if (a->ifa_addr->sa_family == AF_INET)
            address = &((struct sockaddr_in *)a->ifa_addr)->sin_addr;
        else if (a->ifa_addr->sa_family == AF_INET6)
            address = &((struct sockaddr_in6 *)a->ifa_addr)->sin6_addr;
        if (address && inet_ntop(a->ifa_addr->sa_family, address, text, sizeof(text)))
            put_fact(s, "address=%s %s", a->ifa_name, text);
    }
    freeifaddrs(all);
}

void info_serve(struct guest *g, struct stream *s, const struct frame *request)
{
    struct utsname u;
    struct sysinfo si;
    char os[512];

    stream_begin(s, FRAME_OK);
    put_fact(s, "mode=%s", g->config.mode == GUEST_BOOT ? "boot" : "command");
    if (os_release("PRETTY_NAME", os, sizeof(os)))
        put_fact(s, "os=%s", os);
    if (uname(&u) == 0) {
        put_fact(s, "hostname=%s", u.nodename);
        put_fact(s, "kernel=%s", u.release);
    }
    if (sysinfo(&si) == 0) {
        put_fact(s, "uptime_seconds=%ld", si.uptime);
        put_fact(s, "processes=%u", si.procs);
        put_fact(s, "load=%.2f %.2f %.2f", (double)si.loads[0] / 65536, (double)si.loads[1] / 65536,
                 (double)si.loads[2] / 65536);
    }
    put_fact(s, "memory_bytes=%llu", meminfo_kb("MemTotal") * 1024);
    put_fact(s, "memory_available_bytes=%llu", meminfo_kb("MemAvailable") * 1024);
    put_addresses(s);
    stream_end(s);
}

/* The kernel counts the seed as entropy and starts its generator anew from it, at once: two copies of one machine must
 * not draw the same numbers. */
static int reseed(const struct field *seed)
{
    struct rand_pool_info *pool = calloc(1, sizeof(*pool) + seed->len);
    int fd = open("/dev/urandom", O_RDWR | O_CLOEXEC);

    int r = fd < 0 ? -errno : pool ? 0 : -ENOMEM;

    if (!r) {
        pool->entropy_count = (int)seed->len * 8;
        pool->buf_size = (int)seed->len;
        memcpy(pool->buf, seed->data, seed->len);
        r = ioctl(fd, RNDADDENTROPY, pool) || ioctl(fd, RNDRESEEDCRNG) ? -errno : 0;
    }
    if (fd >= 0)
        close(fd);
    free(pool);
    return r;
}

static int rename_host(const struct guest *g, const struct field *field)
{
    char *name = field_text(field);

    if (!name || !*name || strlen(name) > 64) {
        free(name);
        return -EINVAL;
    }
    setup_names(name, g->config.mode == GUEST_BOOT);
    free(name);
    return 0;
}

static int set_clock(const struct field *field)
{
    uint64_t ns = field_number(field);
    const struct timespec t = {.tv_sec = (time_t)(ns / 1000000000u), .tv_nsec = (long)(ns % 1000000000u)};

    return clock_settime(CLOCK_REALTIME, &t) ? -errno : 0;
}

void identity_serve(struct guest *g, struct stream *s, const struct frame *request)
{
    struct fields i;
    struct field field;
    int r = g->inside ? 0 : -EPERM;
    unsigned cards = 0;

    fields_begin(&i, request);
    while (!r && fields_next(&i, &field)) {
        if (field.tag == FIELD_SEED)
            r = field.len && field.len <= SEED_MAX ? reseed(&field) : -EINVAL;
        else if (field.tag == FIELD_HOSTNAME)
            r = rename_host(g, &field);
        else if (field.tag == FIELD_TIME)
            r = set_clock(&field);
        else if (field.tag == FIELD_MAC)
            r = field.len == 6 ? network_set_mac(cards++, field.data) : -EINVAL;
    }
    if (r || i.bad)
        stream_put_error(s, r ? r : -EINVAL, "the guest cannot take its new identity: %s", strerror(r ? -r : EINVAL));
    else
        stream_put(s, FRAME_OK, NULL, 0);
}
