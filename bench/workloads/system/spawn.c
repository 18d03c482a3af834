/* posix_spawn (a vfork) of a static program + wait. */
#include "spawning.h"
#include <spawn.h>

static long spawn(long n, void *self)
{
    char *argv[] = {self, (char[]){"exit"}, NULL}, *envp[] = {NULL};
    long bad = 0;
    while (n--) {
        pid_t pid;
        bad += posix_spawn(&pid, self, NULL, NULL, argv, envp) || failed(pid);
    }
    return bad;
}

int main(int argc, char **argv)
{
    return spawn_main("spawn", spawn, argc, argv);
}
