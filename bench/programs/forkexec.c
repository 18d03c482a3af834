/* fork + exec of a static program + wait. */
#include "system.h"
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

static long spawn(long n, void *self)
{
    char *argv[] = {self, (char[]){"exit"}, NULL}, *envp[] = {NULL};
    long failed = 0;
    while (n--) {
        int status;
        pid_t pid = fork();
        if (pid == 0) {
            execve(self, argv, envp);
            _exit(127);
        }
        if (pid < 0 || waitpid(pid, &status, 0) != pid || status)
            failed++;
    }
    return failed;
}

int main(int argc, char **argv)
{
    if (argc == 2 && !strcmp(argv[1], "exit"))
        return 0;
    return measure("forkexec", spawn, argv[0]);
}
