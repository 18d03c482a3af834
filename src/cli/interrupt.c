#include "cli/interrupt.h"

#include <signal.h>
#include <stddef.h>

static volatile sig_atomic_t came;

static void note(int number)
{
    came = number;
}

void interrupt_catch(void)
{
    static const int numbers[] = {SIGINT, SIGTERM, SIGHUP};
    const struct sigaction noted = {.sa_handler = note, .sa_flags = (int)(SA_RESETHAND | SA_RESTART)};
    struct sigaction before;

    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++)
        if (sigaction(numbers[i], NULL, &before) == 0 && before.sa_handler != SIG_IGN) /* as nohup has it */
            sigaction(numbers[i], &noted, NULL);
}

bool interrupt_came(void)
{
    return came;
}

void interrupt_end(void)
{
    if (!came)
        return;
    signal(came, SIG_DFL);
    raise(came);
}
