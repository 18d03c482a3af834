/* fork + exec of a static program + wait. */
/* quick: yes */
#include "spawning.h"

static long spawn(long n, void *self)
{
    char *argv[] = {self, (char[]){"exit"}, NULL}, *envp[] = {NULL};
    long bad = 0;
    while (n--) {
        pid_t pid = fork();
        if (pid == 0) {
            execve(self, argv, envp);
            _exit(127);
        }
        bad += failed(pid);
    }
    return bad;
}

int main(int argc, char **argv)
{
    return spawn_main("forkexec", spawn, argc, argv);
}
