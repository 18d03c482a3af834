/* `guise config show`: what holds for a command, and who says so. */
#include <stdio.h>
#include <string.h>

#include "cli/run.h"

struct show_arguments {
    bool origin;
    const char *file;
};

/* clang-format off */
const struct option_spec config_options[] = {
    {.name = "origin", .kind = OPTION_FLAG, .offset = offsetof(struct show_arguments, origin),
     .help = "say behind each line where it comes from"},
    CONFIG_OPTION(struct show_arguments, file),
    {0},
};
/* clang-format on */

/* A basic string of TOML. */
static void print_text(const char *text)
{
    putchar('"');
    for (; *text; text++) {
        if (*text == '"' || *text == '\\')
            printf("\\%c", *text);
        else if ((unsigned char)*text < ' ' || *text == 0x7f)
            printf("\\u%04x", (unsigned char)*text);
        else
            putchar(*text);
    }
    putchar('"');
}

static void print_list(const struct options_cursor *c, const struct option_spec *o, const void *values)
{
    const char *text;
    char buf[128];

    putchar('[');
    for (unsigned i = 0; (text = options_text(c, o, values, i, buf, sizeof buf)); i++) {
        fputs(i ? ", " : "", stdout);
        print_text(text);
    }
    putchar(']');
}

/* Options that are about the file or the moment are not shown. */
static bool is_shown(const struct option_spec *o)
{
    return strcmp(o->name, "config") != 0;
}

static void print_all(const struct command *c, const struct run_arguments *a, bool origin)
{
    struct options_cursor at = {.at = c->options};
    const struct option_spec *o;
    char buf[128];

    for (int i = 0; (o = options_next(&at)); i++) {
        const char *text = options_text(&at, o, a, 0, buf, sizeof buf), *by = a->config.origins.by[i];
        if (!is_shown(o) || (!text && !(by && o->kind == OPTION_FLAG)))
            continue;
        printf("%s = ", o->name);
        if (o->kind == OPTION_FLAG)
            fputs(text ? "true" : "false", stdout);
        else if (o->kind == OPTION_NUMBER && !strchr(text, ','))
            fputs(text, stdout);
        else if (o->kind == OPTION_LIST)
            print_list(&at, o, a);
        else
            print_text(text);
        if (origin)
            printf(" # %s", by ? by : "unless told");
        putchar('\n');
    }
}

int config_main(const struct command *self, int argc, char **argv)
{
    struct show_arguments s = {0};
    struct run_arguments a;
    char **command;
    int status, operands = cli_parse(self, argc, argv, &s, 2, &status);

    if (operands < 0)
        return status;
    const struct command *c = cli_find(operands == 2 ? argv[2] : "run");
    if (operands == 0 || strcmp(argv[1], "show") != 0 || !c || !run_is_ours(c))
        return cli_usage_error(self, "what can be shown is: show run, show create");
    char *words[] = {(char *)c->name, "--config", (char *)s.file, NULL};
    if (run_parse(c, s.file ? 3 : 1, words, &a, 0, &command, &status) < 0)
        return status;
    print_all(c, &a, s.origin);
    run_free(&a);
    return cli_flush();
}
