/* One byte to another process and back through two pipes: two context switches an operation. */
/* quick: yes */
#include "system.h"
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

struct link {
    int to_child[2], to_parent[2];
};

static long round_trip(long n, void *arg)
{
    const struct link *l = arg;
    long failed = 0;
    char byte = 1;
    while (n--)
        failed += write(l->to_child[1], &byte, 1) != 1 || read(l->to_parent[0], &byte, 1) != 1;
    return failed;
}

int main(void)
{
    struct link l;
    char byte;
    if (pipe(l.to_child) || pipe(l.to_parent))
        return 1;
    pid_t pid = fork();
    if (pid < 0)
        return 1;
    if (pid == 0) {
        close(l.to_child[1]);
        while (read(l.to_child[0], &byte, 1) == 1 && write(l.to_parent[1], &byte, 1) == 1)
            ;
        _exit(0);
    }
    int status = measure("pipe", round_trip, &l);
    close(l.to_child[1]);
    waitpid(pid, NULL, 0);
    return status;
}
