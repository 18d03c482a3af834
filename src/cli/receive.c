/* `guise receive`: takes the machines that `guise migrate` sends here. */
#include <errno.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <unistd.h>

#include "base/error.h"
#include "base/log.h"
#include "cli/life.h"
#include "cli/receive.h"
#include "cli/tls.h"

struct receive_arguments {
    const char *name;
    bool once;
    struct option_list maps;
};

/* clang-format off */
const struct option_spec receive_options[] = {
    {.name = "name", .letter = 'n', .kind = OPTION_STRING, .offset = offsetof(struct receive_arguments, name),
     .value = "NAME", .help = "call what comes so, instead of as it is called where it comes from", .check = name_check},
    {.name = "map", .kind = OPTION_LIST, .offset = offsetof(struct receive_arguments, maps), .value = "FROM=TO",
     .help = "what a machine has below FROM where it comes from is below TO here; any number of times",
     .check = receive_map_check},
    {.name = "once", .kind = OPTION_FLAG, .offset = offsetof(struct receive_arguments, once),
     .help = "end when one machine has come"},
    {0},
};
/* clang-format on */

/* --- hosts that know each other ---------------------------------------------------------------------------------- */

static void print_line(void *opaque, const char *fingerprint)
{
    puts(fingerprint);
}

static int key(const struct command *self, int argc, char **argv)
{
    char err[ERROR_SIZE], fingerprint[TLS_FINGERPRINT_SIZE];
    int status;

    if (cli_parse(self, argc, argv, NULL, 0, &status) < 0)
        return status;
    int failed = tls_fingerprint(fingerprint, err, sizeof err);
    if (failed)
        return cli_failed(failed, err);
    puts(fingerprint);
    return cli_flush();
}

static int trust(const struct command *self, int argc, char **argv)
{
    char err[ERROR_SIZE];
    int status, failed = 0, operands = cli_parse(self, argc, argv, NULL, INT_MAX, &status);

    if (operands < 0)
        return status;
    for (int i = 1; i <= operands && !failed; i++)
        failed = tls_trust(argv[i], err, sizeof err);
    if (!failed && !operands)
        failed = tls_trusted(print_line, NULL, err, sizeof err);
    return failed == -EINVAL ? cli_usage_error(self, err) : failed ? cli_failed(failed, err) : cli_flush();
}

static int distrust(const struct command *self, int argc, char **argv)
{
    char err[ERROR_SIZE];
    int status, failed = 0, operands = cli_parse(self, argc, argv, NULL, INT_MAX, &status);

    if (operands < 0)
        return status;
    if (!operands)
        return cli_usage_error(self, "the fingerprint of a host must be given");
    for (int i = 1; i <= operands && !failed; i++)
        failed = tls_distrust(argv[i], err, sizeof err);
    return failed == -EINVAL ? cli_usage_error(self, err) : failed ? cli_failed(failed, err) : STATUS_OK;
}

static const struct option_spec no_options[] = {{0}};

const struct command receive_commands[] = {
    {"receive key", "print the fingerprint of this host's certificate", "",
     "It is made when it is first needed.  The other host is told to trust it, and this one to trust the other's.\n",
     no_options, NULL, key},
    {"receive trust", "trust the certificates of other hosts, or list those that are", "[FINGERPRINT]...",
     "Those hosts may send machines here, and be sent some.\n", no_options, NULL, trust},
    {"receive distrust", "trust them no longer", "FINGERPRINT...", NULL, no_options, NULL, distrust},
    {0},
};

/* --- receive ----------------------------------------------------------------------------------------------------- */

int receive_main(const struct command *self, int argc, char **argv)
{
    struct receive_arguments a = {0};
    struct receiver r = {.listening = -1};
    char err[ERROR_SIZE];
    int status;

    if (argc > 1 && cli_find_sub(self, argv[1]))
        return cli_sub_main(self, argc, argv);
    int operands = life_parse(self, argc, argv, &a, 1, &r.registry, &status);
    if (operands < 0)
        return status;
    if (operands == 0)
        return cli_usage_error(self, "where to listen must be given, as unix:PATH or tcp://HOST[:PORT]");
    int failed = peer_parse(&r.address, argv[1], err, sizeof err);
    if (failed || r.address.kind == PEER_NAME)
        return cli_usage_error(self, failed ? err : "where to listen must be given, as unix:PATH or tcp://HOST[:PORT]");
    r.name = a.name;
    r.maps = a.maps;
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
