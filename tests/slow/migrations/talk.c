/*
 * A TCP connection that lasts: the client sends blocks of noise and the server sends them back; each byte that comes
 * back is compared.
 *
 *      talk serve PORT
 *      talk call ADDRESS PORT FILE      until FILE appears; prints blocks, bytes, and the longest time that one took,
 * in ms
 */
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define BLOCK 16384

static uint64_t now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000 + (uint64_t)t.tv_nsec;
}

static void fail(const char *what)
{
    printf("failed: %s: %s\n", what, strerror(errno));
    exit(1);
}

static void send_all(int fd, const uint8_t *p, size_t n)
{
    for (ssize_t done; n; p += done, n -= (size_t)done)
        if ((done = send(fd, p, n, MSG_NOSIGNAL)) <= 0)
            fail("send");
}

static void receive_all(int fd, uint8_t *p, size_t n)
{
    for (ssize_t got; n; p += got, n -= (size_t)got)
        if ((got = recv(fd, p, n, 0)) <= 0)
            fail(got ? "receive" : "the connection has ended");
}

static void serve(int port)
{
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    int listening = socket(AF_INET, SOCK_STREAM, 0), on = 1;
    uint8_t block[BLOCK];

    setsockopt(listening, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (bind(listening, (struct sockaddr *)&at, sizeof at) || listen(listening, 4))
        fail("listen");
    int fd = accept(listening, NULL, NULL);
    if (fd < 0)
        fail("accept");
    for (;;) {
        receive_all(fd, block, sizeof block);
        send_all(fd, block, sizeof block);
    }
}

static void call(const char *address, int port, const char *until)
{
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    uint64_t blocks = 0, longest = 0, x = 1;
    uint8_t sent[BLOCK], came[BLOCK];
    int fd = socket(AF_INET, SOCK_STREAM, 0), on = 1;

    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    if (inet_pton(AF_INET, address, &to.sin_addr) != 1 || connect(fd, (struct sockaddr *)&to, sizeof to))
        fail("connect");
    while (access(until, F_OK)) {
        uint64_t began = now();
        for (unsigned i = 0; i < BLOCK; i++)
            sent[i] = (uint8_t)((x = x * 6364136223846793005ull + 1442695040888963407ull) >> 56);
        send_all(fd, sent, BLOCK);
        receive_all(fd, came, BLOCK);
        if (memcmp(sent, came, BLOCK)) {
            printf("failed: block %llu came back otherwise\n", (unsigned long long)blocks);
            exit(1);
        }
        uint64_t took = now() - began;
        longest = took > longest ? took : longest;
        blocks++;
    }
    printf("%llu blocks, %llu bytes each way, the longest %.0f ms\n", (unsigned long long)blocks,
           (unsigned long long)blocks * BLOCK, (double)longest / 1e6);
}

int main(int argc, char **argv)
{
    if (argc == 3 && !strcmp(argv[1], "serve"))
        serve(atoi(argv[2]));
    else if (argc == 5 && !strcmp(argv[1], "call"))
        call(argv[2], atoi(argv[3]), argv[4]);
    return argc == 5 ? 0 : 2;
}
