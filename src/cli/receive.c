/* `guise receive`: takes the machines that `guise migrate` sends here. */
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <unistd.h>

#include "base/error.h"
#include "base/log.h"
#include "cli/life.h"
#include "cli/receive.h"

struct receive_arguments {
    const char *name;
    bool once;
};

/* clang-format off */
const struct option_spec receive_options[] = {
    {.name = "name", .letter = 'n', .kind = OPTION_STRING, .offset = offsetof(struct receive_arguments, name),
     .value = "NAME", .help = "call what comes so, instead of as it is called where it comes from", .check = name_check},
    {.name = "once", .kind = OPTION_FLAG, .offset = offsetof(struct receive_arguments, once),
     .help = "end when one machine has come"},
    {0},
};
/* clang-format on */

int receive_main(const struct command *self, int argc, char **argv)
{
    struct receive_arguments a = {0};
    struct receiver r = {.listening = -1};
    char err[ERROR_SIZE];
    int status, operands = life_parse(self, argc, argv, &a, 1, &r.registry, &status);

    if (operands < 0)
        return status;
    if (operands == 0)
        return cli_usage_error(self, "where to listen must be given, as unix:PATH");
    int failed = peer_parse(&r.address, argv[1], err, sizeof err);
    if (failed || r.address.kind == PEER_NAME)
        return cli_usage_error(self, failed ? err : "where to listen must be given, as unix:PATH");
    r.name = a.name;
    r.listening = peer_listen(&r.address, err, sizeof err);
    if (r.listening < 0)
        return cli_failed(r.listening, err);
    signal(SIGPIPE, SIG_IGN);
    status = receive_all(&r, a.once);
    close(r.listening);
    if (r.address.kind == PEER_UNIX)
        unlink(r.address.path);
    return status;
}
