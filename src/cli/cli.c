/* What the sub-commands share: finding, parsing, explaining. */
#include "cli/cli.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "base/error.h"
#include "base/log.h"
#include "base/similar.h"

const struct command *cli_find(const char *name)
{
    for (const struct command *c = cli_commands; c->name; c++)
        if (strcmp(c->name, name) == 0)
            return c;
    return NULL;
}

const char *cli_sub_word(const struct command *sub)
{
    const char *space = strchr(sub->name, ' ');

    return space ? space + 1 : sub->name;
}

const struct command *cli_find_sub(const struct command *c, const char *word)
{
    for (const struct command *sub = c->subcommands; sub && sub->name; sub++)
        if (strcmp(cli_sub_word(sub), word) == 0)
            return sub;
    return NULL;
}

int cli_sub_main(const struct command *self, int argc, char **argv)
{
    struct similar near = {.word = argc > 1 ? argv[1] : ""};
    char err[ERROR_SIZE];

    if (argc < 2) {
        error_set(err, sizeof err, 0, "say what to do: guise %s %s", self->name, self->usage);
        return cli_usage_error(self, err);
    }
    if (strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-h") == 0) {
        cli_explain(self);
        return cli_flush();
    }
    const struct command *sub = cli_find_sub(self, argv[1]);
    if (sub)
        return sub->main(sub, argc - 1, argv + 1);
    for (const struct command *s = self->subcommands; s->name; s++)
        similar_try(&near, cli_sub_word(s));
    error_set(err, sizeof err, 0, "there is no command '%s %s'%s%s%s", self->name, argv[1],
              near.best ? "; did you mean " : "", near.best ? near.best : "", near.best ? "?" : "");
    return cli_usage_error(self, err);
}

void cli_no_command(const char *name, char *err, size_t n)
{
    struct similar near = {.word = name};

    for (const struct command *c = cli_commands; c->name; c++)
        similar_try(&near, c->name);
    if (near.best)
        error_set(err, n, 0, "there is no command '%s'; did you mean %s?", name, near.best);
    else
        error_set(err, n, 0, "there is no command '%s'", name);
}

void cli_explain(const struct command *c)
{
    printf("usage: guise %s %s\n\n%s.\n", c->name, c->usage, c->summary);
    if (c->options->name || c->options->more) {
        putchar('\n');
        options_help(c->options, stdout);
    }
    if (c->subcommands)
        putchar('\n');
    for (const struct command *sub = c->subcommands; sub && sub->name; sub++)
        printf("  %-12s%s\n", cli_sub_word(sub), sub->summary);
    if (c->details)
        printf("\n%s", c->details);
}

/* stdout may be a full disk: what was printed has to arrive. */
int cli_flush(void)
{
    if (fflush(stdout) == 0 && !ferror(stdout))
        return STATUS_OK;
    log_say("standard output cannot be written");
    return STATUS_FAILED;
}

int cli_usage_error(const struct command *self, const char *sentence)
{
    log_say("%s (see `guise help%s%s`)", sentence, self ? " " : "", self ? self->name : "");
    return STATUS_USAGE;
}

int cli_failed(int failed, const char *sentence)
{
    static const struct {
        int number, status;
    } statuses[] = {
        {-ENOENT, STATUS_NOT_FOUND},      {-EEXIST, STATUS_CONFLICT},   {-EBUSY, STATUS_CONFLICT},
        {-ECONNREFUSED, STATUS_CONFLICT}, {-ETIMEDOUT, STATUS_TIMEOUT}, {-ECONNRESET, STATUS_UNREACHABLE},
        {-ENOTSUP, STATUS_UNAVAILABLE},   {-EINVAL, STATUS_USAGE},
    };

    log_say("%s", sentence);
    for (size_t i = 0; i < sizeof statuses / sizeof *statuses; i++)
        if (statuses[i].number == failed)
            return statuses[i].status;
    return STATUS_FAILED;
}

int cli_parse_by(const struct command *self, int argc, char **argv, void *out, struct options_origins *origins,
                 const char *by, int max_operands, int *status)
{
    char err[ERROR_SIZE];

    for (int i = 1; i < argc && strcmp(argv[i], "--") != 0; i++) {
        if (strcmp(argv[i], "--help") == 0 || strcmp(argv[i], "-h") == 0) {
            cli_explain(self);
            *status = cli_flush();
            return -1;
        }
    }
    int operands = options_parse_by(self->options, argc, argv, out, origins, by, err, sizeof(err));
    if (operands > max_operands)
        error_set(err, sizeof(err), 0, "'%s' is one word too many", argv[1 + max_operands]);
    if (operands < 0 || operands > max_operands) {
        *status = cli_usage_error(self, err);
        return -1;
    }
    return operands;
}

int cli_parse(const struct command *self, int argc, char **argv, void *out, int max_operands, int *status)
{
    struct options_origins nobody = {{NULL}};

    return cli_parse_by(self, argc, argv, out, &nobody, "", max_operands, status);
}
