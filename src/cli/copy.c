/* `guise cp`: files and directories between this host and a VM that runs. */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "agent/client.h"
#include "agent/tree.h"
#include "base/error.h"
#include "base/log.h"
#include "cli/cli.h"
#include "cli/reach.h"

#define OPERANDS_MAX 100000

struct copy_arguments {
    bool archive, quiet;
    const char *user;
};

#define AT(field) offsetof(struct copy_arguments, field)
const struct option_spec cp_options[] = {
    {.name = "archive",
     .letter = 'a',
     .kind = OPTION_FLAG,
     .offset = AT(archive),
     .help = "keep owners, by number, and set-user-id bits too"},
    {.name = "user",
     .letter = 'u',
     .kind = OPTION_STRING,
     .offset = AT(user),
     .value = "USER[:GROUP]",
     .help = "with whose rights in the guest (root's unless told)"},
    {.name = "quiet",
     .letter = 'q',
     .kind = OPTION_FLAG,
     .offset = AT(quiet),
     .help = "say nothing about what was left out"},
    {0},
};

struct copy {
    const struct copy_arguments *a;
    uint64_t left_out;
};

/* "NAME:PATH": *name_len is how long the name is; "./a:b" and "/a:b" are this host's.  False: no name. */
static bool in_guest(const char *word, size_t *name_len)
{
    const char *colon = strrchr(word, ':');
    size_t slash = strcspn(word, "/");

    *name_len = strcspn(word, ":");
    if (!colon || *name_len == 0)
        return false;
    if (slash > *name_len)
        return true;
    /* The path of a socket, as reach_guest takes it, is told from a file's by what it is. */
    *name_len = (size_t)(strstr(word, ".vsock:") ? strstr(word, ".vsock:") - word + 6 : 0);
    return *name_len != 0;
}

static void on_note(void *opaque, const char *text)
{
    struct copy *c = opaque;

    c->left_out++;
    if (!c->a->quiet)
        log_say("left out: %s", text);
}

static int copy_one(struct copy *c, const char *from, const char *to, char *err, size_t n)
{
    const struct tree_watch watch = {.note = on_note, .opaque = c};
    struct agent_copy options = {.user = c->a->user, .owners = c->a->archive, .stream = -1, .watch = &watch};
    size_t from_len, to_len;
    bool from_guest = in_guest(from, &from_len), to_guest = in_guest(to, &to_len);
    char vm[256];

    if (from_guest == to_guest)
        return error_set(err, n, -EINVAL,
                         from_guest ? "%s and %s are both in a guest: copy by way of this host"
                                    : "neither %s nor %s is in a guest: write NAME:PATH",
                         from, to);
    snprintf(vm, sizeof(vm), "%.*s", (int)(from_guest ? from_len : to_len), from_guest ? from : to);
    int fd = reach_guest(vm, AGENT_PORT, err, n), r;
    if (fd < 0)
        return fd;
    if (from_guest) {
        options.stream = strcmp(to, "-") == 0 ? STDOUT_FILENO : -1;
        r = agent_get(fd, from + from_len + 1, to, &options, err, n);
    } else {
        options.stream = strcmp(from, "-") == 0 ? STDIN_FILENO : -1;
        r = agent_put(fd, from, to + to_len + 1, &options, err, n);
    }
    close(fd);
    return r;
}

int cp_main(const struct command *self, int argc, char **argv)
{
    struct copy_arguments a = {0};
    struct copy c = {.a = &a};
    char err[ERROR_SIZE];
    int status, operands = cli_parse(self, argc, argv, &a, OPERANDS_MAX, &status);

    if (operands < 0)
        return status;
    if (operands < 2)
        return cli_usage_error(self, "a source and a destination must be given");
    /* Several go into a directory, which must be there. */
    char *to = argv[operands];
    if (operands > 2 && asprintf(&to, "%s/.", argv[operands]) < 0)
        return STATUS_FAILED;
    for (int i = 1; i < operands; i++) {
        int failed = copy_one(&c, argv[i], to, err, sizeof(err));
        if (failed)
            return cli_failed(failed, err);
    }
    return c.left_out ? STATUS_FAILED : STATUS_OK;
}
