/* Kernel modules from the initramfs, in the order given: each after those it needs. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "guest/guest.h"

#define DIRECTORY "/" GUEST_MODULES_PATH

static void load(int directory, const char *name)
{
    int fd = openat(directory, name, O_RDONLY | O_CLOEXEC);

    if (fd < 0) {
        say("the module %s is not there: %s", name, strerror(errno));
        return;
    }
    /* One that is built in, or loaded already, is as good. */
    if (syscall(SYS_finit_module, fd, "", 0) && errno != EEXIST)
        say("the module %s cannot be loaded: %s", name, strerror(errno));
    close(fd);
}

void modules_load(void)
{
    char line[256];
    FILE *order = fopen(DIRECTORY "/order", "re");
    int directory = open(DIRECTORY, O_PATH | O_DIRECTORY | O_CLOEXEC);

    while (order && directory >= 0 && fgets(line, sizeof(line), order)) {
        line[strcspn(line, " \t\n")] = 0;
        if (*line && *line != '#')
            load(directory, line);
    }
    if (order)
        fclose(order);
    if (directory >= 0)
        close(directory);
}
