/*
 * The guest's side of vsock.sh: says that it is ready, then serves each connection to port 1024 by its first line.
 *
 *      echo        sends back what comes, until the end, then ends
 *      source N    sends N bytes of the pattern
 *      sink        reads to the end, then prints how many bytes came and how many of them were not the pattern's
 *      dial P      connects to port P of the host and passes on what comes from there
 *      quit        ends the program
 */
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include <linux/vm_sockets.h>

static uint8_t block[65536];

static uint8_t pattern(unsigned long i)
{
    return (uint8_t)(i * 31 + i / 255);
}

static int send_all(int fd, const void *data, size_t len)
{
    while (len) {
        ssize_t n = write(fd, data, len);
        if (n <= 0)
            return -1;
        data = (const char *)data + n;
        len -= (size_t)n;
    }
    return 0;
}

static int dial(unsigned port)
{
    struct sockaddr_vm a = {.svm_family = AF_VSOCK, .svm_cid = VMADDR_CID_HOST, .svm_port = port};
    int fd = socket(AF_VSOCK, SOCK_STREAM, 0);
    if (fd >= 0 && connect(fd, (struct sockaddr *)&a, sizeof a) == 0)
        return fd;
    close(fd);
    return -1;
}

static void echo(int fd, const char *arg)
{
    ssize_t n;
    while ((n = read(fd, block, sizeof block)) > 0 && send_all(fd, block, (size_t)n) == 0) {
    }
}

static void source(int fd, const char *arg)
{
    unsigned long total = strtoul(arg, NULL, 10), i = 0;
    while (i < total) {
        size_t n = 0;
        for (; n < sizeof block && i < total; n++, i++)
            block[n] = pattern(i);
        if (send_all(fd, block, n))
            return;
    }
}

static void sink(int fd, const char *arg)
{
    unsigned long i = 0, wrong = 0;
    ssize_t n;
    while ((n = read(fd, block, sizeof block)) > 0)
        for (ssize_t k = 0; k < n; k++, i++)
            wrong += block[k] != pattern(i);
    dprintf(fd, "%lu %lu\n", i, wrong);
}

static void pass_on(int fd, const char *arg)
{
    int from = dial((unsigned)atoi(arg));
    ssize_t n;
    if (from < 0)
        dprintf(fd, "refused\n");
    while (from >= 0 && (n = read(from, block, sizeof block)) > 0 && send_all(fd, block, (size_t)n) == 0) {
    }
}

static const struct {
    const char *word;
    void (*serve)(int fd, const char *arg);
} services[] = {{"echo", echo}, {"source", source}, {"sink", sink}, {"dial", pass_on}};

/* Byte by byte: what follows the line is the service's. */
static int read_line(int fd, char *line, size_t size)
{
    size_t len = 0;
    while (len + 1 < size && read(fd, line + len, 1) == 1 && line[len] != '\n')
        len++;
    line[len] = 0;
    return len > 0;
}

static void serve(int fd)
{
    char line[64];
    if (!read_line(fd, line, sizeof line))
        return;
    char *arg = strchr(line, ' ');
    if (arg)
        *arg++ = 0;
    for (size_t i = 0; i < sizeof services / sizeof *services; i++)
        if (strcmp(line, services[i].word) == 0)
            services[i].serve(fd, arg ? arg : "");
    if (strcmp(line, "quit") == 0)
        kill(getppid(), 15);
}

int main(void)
{
    struct sockaddr_vm a = {.svm_family = AF_VSOCK, .svm_cid = VMADDR_CID_ANY, .svm_port = 1024};
    int listener = socket(AF_VSOCK, SOCK_STREAM, 0), fd;

    if (listener < 0 || bind(listener, (struct sockaddr *)&a, sizeof a) || listen(listener, 64)) {
        perror("vsock");
        return 1;
    }
    fd = dial(70);
    dprintf(fd, "ready\n");
    close(fd);
    signal(SIGCHLD, SIG_IGN);
    while ((fd = accept(listener, NULL, NULL)) >= 0) {
        if (fork() == 0) {
            close(listener);
            serve(fd);
            return 0;
        }
        close(fd);
    }
    return 0;
}
