/* The shortest system call there is. */
/* quick: yes */
#include "system.h"
#include <sys/syscall.h>
#include <unistd.h>

static long call(long n, void *arg)
{
    (void)arg;
    while (n--)
        syscall(SYS_getppid);
    return 0;
}

int main(void)
{
    return measure("getppid", call, NULL);
}
