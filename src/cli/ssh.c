/* `guise ssh`, and `guise tunnel` below it: OpenSSH's client, through the agent instead of a network. */
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "agent/client.h"
#include "agent/key.h"
#include "agent/relay.h"
#include "base/error.h"
#include "base/log.h"
#include "base/path.h"
#include "cli/cli.h"
#include "cli/life.h"
#include "cli/reach.h"

#define FIXED_ARGUMENTS 32
#define PATIENCE "120" /* seconds for a system that has just been started */

struct ssh_arguments {
    const char *user;
};

const struct option_spec ssh_options[] = {
    {.name = "user",
     .letter = 'u',
     .kind = OPTION_STRING,
     .offset = offsetof(struct ssh_arguments, user),
     .value = "USER",
     .help = "as whom to log in (root unless told)"},
    {0},
};

struct tunnel_arguments {
    uint64_t patience_ms;
};

const struct option_spec tunnel_options[] = {
    {.name = "wait",
     .kind = OPTION_SECONDS,
     .offset = offsetof(struct tunnel_arguments, patience_ms),
     .value = "SECONDS",
     .help = "so long for somebody to listen there"},
    {0},
};

/* --- tunnel -------------------------------------------------------------------------------------------------- */

int tunnel_main(const struct command *self, int argc, char **argv)
{
    struct tunnel_arguments a = {0};
    char err[ERROR_SIZE];
    int status, operands = cli_parse(self, argc, argv, &a, 2, &status);

    if (operands < 0)
        return status;
    if (operands != 2)
        return cli_usage_error(self, "a virtual machine, and a port or a socket's path in it, must be given");
    int fd = reach_guest(argv[1], AGENT_PORT, err, sizeof(err));
    const char *path = argv[2][0] == '/' ? argv[2] : NULL;
    int r = fd < 0 ? fd
                   : agent_tunnel(fd, path ? 0 : (unsigned)strtoul(argv[2], NULL, 10), path, (unsigned)a.patience_ms,
                                  err, sizeof(err));
    if (r) {
        if (fd >= 0)
            close(fd);
        return cli_failed(r, err);
    }
    relay(STDIN_FILENO, STDOUT_FILENO, fd, true);
    close(fd);
    return STATUS_OK;
}

/* --- ssh ----------------------------------------------------------------------------------------------------- */

/* What is after the virtual machine's name is for ssh, options included. */
static int find_name(int argc, char **argv)
{
    int i = 1;

    while (i < argc && argv[i][0] == '-' && strcmp(argv[i], "--") != 0)
        i += strcmp(argv[i], "-u") == 0 || strcmp(argv[i], "--user") == 0 ? 2 : 1;
    if (i < argc && strcmp(argv[i], "--") == 0)
        i++;
    return i;
}

/* "KEY=VALUE" for -o: the value in quotes, as ssh_config(5) wants those with blanks, with its %-signs doubled. */
static const char *quoted(const char *key, const char *value)
{
    char *text = NULL, *to;
    size_t len = 0;
    FILE *f = open_memstream(&text, &len);

    if (!f)
        return NULL;
    fprintf(f, "%s=\"", key);
    for (; *value; value++)
        fputs(*value == '%' ? "%%" : (char[]){*value, 0}, f);
    fputc('"', f);
    to = fclose(f) == 0 ? text : NULL;
    return to;
}

/* For a shell, which is what ssh gives its ProxyCommand to. */
static void put_shell_word(FILE *f, const char *word)
{
    fputc('\'', f);
    for (; *word; word++)
        fputs(*word == '\'' ? "'\\''" : *word == '%' ? "%%" : (char[]){*word, 0}, f);
    fputc('\'', f);
}

static const char *proxy_command(const char *vm)
{
    char self[PATH_MAX], *text = NULL;
    ssize_t n = readlink("/proc/self/exe", self, sizeof(self) - 1);
    size_t len = 0;
    FILE *f = n > 0 ? open_memstream(&text, &len) : NULL;

    if (!f)
        return NULL;
    self[n] = 0;
    fputs("ProxyCommand=", f);
    put_shell_word(f, self);
    fputs(" tunnel --wait " PATIENCE " ", f);
    put_shell_word(f, vm);
    fputs(" 22", f);
    return fclose(f) == 0 ? text : NULL;
}

/* Is there a -l among ssh's options?  They end where the command begins, and some have a value. */
static bool names_user(char **args)
{
    for (; *args && (*args)[0] == '-' && (*args)[1]; args++) {
        if ((*args)[1] == 'l')
            return true;
        if (!(*args)[2] && strchr("BbcDEeFIiJLmOopQRSWw", (*args)[1]) && !*++args)
            return false;
    }
    return false;
}

/* A VM's own list of hosts lives and dies with it; behind a bare socket anybody may be. */
static int known_hosts(const char *vm, char path[PATH_MAX], char *err, size_t n)
{
    struct registry r;

    if (strchr(vm, '/'))
        return path_format(path, PATH_MAX, err, n, "/dev/null");
    int failed = registry_find(&r, err, n);
    return failed ? failed : registry_path(&r, vm, "known_hosts", path, err, n);
}

static int run_ssh(const char *vm, const char *user, const char *key, const char *hosts, char **args, int n_args)
{
    const char **argv = calloc((size_t)n_args + FIXED_ARGUMENTS, sizeof(*argv));
    unsigned n = 0;

    if (!argv)
        return STATUS_OURS;
    argv[n++] = "ssh";
    const char *const options[] = {
        proxy_command(vm),
        quoted("UserKnownHostsFile", hosts),
        "GlobalKnownHostsFile=/dev/null",
        strcmp(hosts, "/dev/null") == 0 ? "StrictHostKeyChecking=no" : "StrictHostKeyChecking=accept-new",
        quoted("IdentityFile", key),
        "IdentitiesOnly=yes",
        "CheckHostIP=no",
        "LogLevel=ERROR",
    };
    for (size_t i = 0; i < sizeof(options) / sizeof(options[0]); i++) {
        if (!options[i]) {
            free(argv);
            return STATUS_OURS;
        }
        argv[n++] = "-o";
        argv[n++] = options[i];
    }
    if (!names_user(args)) {
        argv[n++] = "-l";
        argv[n++] = user ? user : "root";
    }
    const char *slash = strrchr(vm, '/');
    argv[n++] = slash && slash[1] ? slash + 1 : vm; /* only a name: ProxyCommand knows the way */
    for (int i = 0; i < n_args; i++)
        argv[n++] = args[i];
    execvp("ssh", (char *const *)argv);
    log_say(errno == ENOENT ? "there is no ssh on this host: install openssh-client, or use `guise shell`"
                            : "ssh cannot be started");
    free(argv);
    return STATUS_OURS;
}

int ssh_main(const struct command *self, int argc, char **argv)
{
    struct ssh_arguments a = {0};
    char err[ERROR_SIZE], data[PATH_MAX], key[PATH_MAX], hosts[PATH_MAX];
    int at = find_name(argc, argv), rest = at + 1 < argc ? argc - at - 1 : 0, status;
    char **args = argv + argc - rest, *vm = at < argc ? argv[at] : NULL;

    if (cli_parse(self, argc - rest, argv, &a, 1, &status) < 0)
        return status;
    if (!vm)
        return cli_usage_error(self, "the name of a virtual machine must be given");
    int r = path_data(data, sizeof(data), err, sizeof(err));
    if (!r)
        r = agent_key(data, key, sizeof(key), NULL, 0, err, sizeof(err));
    if (!r)
        r = known_hosts(vm, hosts, err, sizeof(err));
    if (r) {
        log_say("%s", err);
        return STATUS_OURS;
    }
    return run_ssh(vm, a.user, key, hosts, args, rest);
}
