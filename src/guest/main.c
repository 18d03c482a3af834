/*
 * The program inside a guest.  As the first process of the initramfs it is init; the agent is a fork of that.
 *
 *      init --agent-fd N       serves the stream at descriptor N, once
 *      init --listen PATH      serves streams of a Unix socket
 *
 * The two are for tests on the host: requests that concern the whole machine are refused then.
 */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "guest/guest.h"

int main(int argc, char **argv)
{
    struct guest g = {.proc = -1};

    if (getpid() == 1 && !(argc == 3 && strncmp(argv[1], "--", 2) == 0))
        init_main(&g, argv);
    signal(SIGPIPE, SIG_IGN);
    if (argc == 3 && strcmp(argv[1], "--agent-fd") == 0)
        return session_run(&g, atoi(argv[2]));
    if (argc == 3 && strcmp(argv[1], "--listen") == 0)
        return serve_unix(&g, argv[2]);
    fputs("this is the first program of a guise guest: it is started by a guest's kernel\n", stderr);
    return 2;
}
