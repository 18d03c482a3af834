/* fork + wait, of a process with 4 MiB of memory that is touched. */
#include "spawning.h"

static char memory[4 << 20];

static long spawn(long n, void *self)
{
    long bad = 0;
    (void)self;
    while (n--) {
        pid_t pid = fork();
        if (pid == 0)
            _exit(0);
        bad += failed(pid);
    }
    return bad;
}

int main(int argc, char **argv)
{
    memset(memory, 1, sizeof memory);
    return spawn_main("fork", spawn, argc, argv);
}
