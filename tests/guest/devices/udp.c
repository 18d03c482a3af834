/* UDP in a guest, where busybox has none:  udp echo PORT   |   udp ask ADDRESS PORT TEXT */
#include <arpa/inet.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>

int main(int argc, char **argv)
{
    int fd = socket(AF_INET, SOCK_DGRAM, 0);
    struct sockaddr_in at = {.sin_family = AF_INET}, from;
    socklen_t size = sizeof from;
    char data[65536];

    if (argc == 3 && strcmp(argv[1], "echo") == 0) {
        at.sin_port = htons((uint16_t)atoi(argv[2]));
        if (bind(fd, (struct sockaddr *)&at, sizeof at))
            return 1;
        for (ssize_t got; (got = recvfrom(fd, data, sizeof data, 0, (struct sockaddr *)&from, &size)) >= 0;)
            sendto(fd, data, (size_t)got, 0, (struct sockaddr *)&from, size);
        return 1;
    }
    if (argc != 5 || inet_pton(AF_INET, argv[2], &at.sin_addr) != 1)
        return 2;
    const struct timeval patience = {.tv_sec = 5};
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
    at.sin_port = htons((uint16_t)atoi(argv[3]));
    sendto(fd, argv[4], strlen(argv[4]), 0, (struct sockaddr *)&at, sizeof at);
    ssize_t got = recv(fd, data, sizeof data, 0);
    printf("%.*s\n", got < 0 ? 0 : (int)got, data);
    return got < 0;
}
