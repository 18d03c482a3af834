/* A file in memory: created, looked up, removed, one among 200. */
#include "system.h"
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

static long files(long n, void *arg)
{
    struct stat st;
    char name[64];
    long failed = 0;
    (void)arg;
    for (long i = 0; i < n; i++) {
        snprintf(name, sizeof name, "/tmp/files-%ld", i % 200);
        int fd = open(name, O_CREAT | O_WRONLY, 0600);
        failed += fd < 0 || write(fd, name, 20) != 20 || close(fd) || stat(name, &st) || unlink(name);
    }
    return failed;
}

int main(void)
{
    return measure("files", files, NULL);
}
