/*
 * In a guest with a shared folder at /mnt: opens files there, reads a directory half-way, and goes there; says `ready`,
 * waits for `go`, both in /dev/shm, and writes to `out` what it then finds in all that.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

static FILE *out;

static void say(const char *name, int fd)
{
    char line[64] = "";
    ssize_t got = pread(fd, line, sizeof line - 1, 0);

    line[strcspn(line, "\n")] = 0;
    fprintf(out, "%s: %s\n", name, got < 0 ? strerrorname_np(errno) : line);
}

int main(void)
{
    int changed = open("/mnt/changed", O_RDWR), replaced = open("/mnt/replaced", O_RDONLY);
    int unnamed = open("/mnt/unnamed", O_RDONLY), log = open("/mnt/log", O_WRONLY | O_APPEND);
    unsigned entries = 0;

    unlink("/mnt/unnamed");
    if (chdir("/mnt/d"))
        return 1;
    DIR *d = opendir(".");
    while (entries < 100 && readdir(d))
        entries++;
    close(creat("/dev/shm/ready", 0600));
    while (access("/dev/shm/go", F_OK))
        usleep(20000);
    out = fopen("/dev/shm/out.new", "w");
    say("changed", changed);
    say("replaced", replaced);
    say("unnamed", unnamed);
    fprintf(out, "appended: %zd\n", write(log, "line\n", 5));
    while (readdir(d))
        entries++;
    fprintf(out, "entries: %u\n", entries);
    say("here", open("file-7", O_RDONLY));
    fclose(out);
    rename("/dev/shm/out.new", "/dev/shm/out");
    pause();
}
