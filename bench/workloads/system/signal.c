/* A signal to oneself, its handler, and back. */
#include "system.h"
#include <signal.h>
#include <unistd.h>

static volatile long received;

static void handler(int number)
{
    (void)number;
    received++;
}

static long send_signals(long n, void *arg)
{
    (void)arg;
    received = 0;
    for (long i = 0; i < n; i++)
        kill(getpid(), SIGUSR1);
    return received != n;
}

int main(void)
{
    signal(SIGUSR1, handler);
    return measure("signal", send_signals, NULL);
}
