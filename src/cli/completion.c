/*
 * Completion scripts, made from the same tables as the parser.  Each is a list of what may follow; the
 * shell does the matching.
 */
#include <stdio.h>
#include <string.h>

#include "cli/cli.h"

const struct option_spec completion_options[] = {{0}};

static void print_commands(void)
{
    for (const struct command *c = cli_commands; c->name; c++)
        printf("%s%s", c == cli_commands ? "" : " ", c->name);
}

static bool is_file(const struct option_spec *o)
{
    return o->kind == OPTION_FILE || (o->kind == OPTION_LIST && strcmp(o->value, "FILE") == 0);
}

/* "@vm" stands for the names that there are when somebody completes: the shell asks for them. */
static bool is_dynamic(const struct command *c)
{
    return c->operands && c->operands[0] == '@';
}

static void print_words(const struct option_spec *o)
{
    for (const struct option_word *w = o->words; w && w->word; w++)
        printf("%s%s", w == o->words ? "" : " ", w->word);
    if (o->examples)
        fputs(o->examples, stdout);
}

static void bash_option(const struct option_spec *o)
{
    if (o->kind == OPTION_FLAG)
        return;
    if (o->letter)
        printf("            -%c|--%s) ", o->letter, o->name);
    else
        printf("            --%s) ", o->name);
    if (is_file(o)) {
        puts("COMPREPLY=($(compgen -f -- \"$cur\")); return ;;");
        return;
    }
    fputs("COMPREPLY=($(compgen -W '", stdout);
    print_words(o);
    puts("' -- \"$cur\")); return ;;");
}

static void bash(void)
{
    const struct option_spec *o;

    puts("# bash completion for guise; made by `guise completion bash`\n"
         "_guise() {\n"
         "    local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD-1]} command=${COMP_WORDS[1]}\n"
         "    COMPREPLY=()\n"
         "    if [ \"$COMP_CWORD\" -eq 1 ]; then");
    fputs("        COMPREPLY=($(compgen -W '", stdout);
    print_commands();
    puts(" --help --version' -- \"$cur\")); return\n    fi\n    case $command in");
    for (const struct command *c = cli_commands; c->name; c++) {
        printf("    %s)\n        case $prev in\n", c->name);
        for (struct options_cursor at = {.at = c->options}; (o = options_next(&at));)
            bash_option(o);
        fputs("        esac\n        COMPREPLY=($(compgen -W '--help", stdout);
        for (struct options_cursor at = {.at = c->options}; (o = options_next(&at));)
            printf(" --%s", o->name);
        if (is_dynamic(c))
            printf(" '\"$(guise names %s 2>/dev/null)\"'", c->operands + 1);
        else if (c->operands)
            printf(" %s", c->operands);
        puts("' -- \"$cur\")) ;;");
    }
    puts("    esac\n}\ncomplete -o filenames -o bashdefault -F _guise guise");
}

/* Help texts go into single-quoted strings: none of them may hold a quote or, for zsh, a bracket or colon. */
static void print_escaped(const char *text, const char *special)
{
    for (; *text; text++) {
        if (*text == '\'')
            fputs("'\\'", stdout);
        else if (strchr(special, *text))
            putchar('\\');
        putchar(*text);
    }
}

static void zsh_option(const struct option_spec *o)
{
    printf("            '--%s[", o->name);
    print_escaped(o->help, "[]:\\");
    putchar(']');
    if (is_file(o))
        printf(":%s:_files", o->value);
    else if (o->words || o->examples) {
        printf(":%s:(", o->value);
        print_words(o);
        putchar(')');
    } else if (o->kind != OPTION_FLAG)
        printf(":%s: ", o->value);
    puts("' \\");
}

static void zsh(void)
{
    const struct option_spec *o;

    puts("#compdef guise\n# zsh completion for guise; made by `guise completion zsh`\n"
         "_guise() {\n    local -a commands\n    commands=(");
    for (const struct command *c = cli_commands; c->name; c++) {
        printf("        '%s:", c->name);
        print_escaped(c->summary, ":\\");
        puts("'");
    }
    puts("    )\n    if (( CURRENT == 2 )); then\n        _describe 'command' commands\n        return\n    fi\n"
         "    local command=$words[2]\n    shift words\n    (( CURRENT-- ))\n    case $command in");
    for (const struct command *c = cli_commands; c->name; c++) {
        printf("    %s)\n        _arguments \\\n", c->name);
        for (struct options_cursor at = {.at = c->options}; (o = options_next(&at));)
            zsh_option(o);
        if (is_dynamic(c))
            printf("            '*:name:($(guise names %s 2>/dev/null))' \\\n", c->operands + 1);
        else if (c->operands)
            printf("            '1:word:(%s)' \\\n", c->operands);
        puts("            '--help[explain the command]' ;;");
    }
    puts("    esac\n}\n"
         "# sourced: register; autoloaded from fpath as _guise: run\n"
         "if [ \"$funcstack[1]\" = _guise ]; then _guise \"$@\"; else compdef _guise guise; fi");
}

static void fish_option(const char *command, const struct option_spec *o)
{
    printf("complete -c guise -n '__fish_seen_subcommand_from %s' -l %s", command, o->name);
    if (o->letter)
        printf(" -s %c", o->letter);
    if (is_file(o))
        fputs(" -r -F", stdout);
    else if (o->kind != OPTION_FLAG)
        fputs(" -x", stdout);
    if (o->words || o->examples) {
        fputs(" -a '", stdout);
        print_words(o);
        putchar('\'');
    }
    fputs(" -d '", stdout);
    print_escaped(o->help, "\\");
    puts("'");
}

static void fish(void)
{
    const struct option_spec *o;

    puts("# fish completion for guise; made by `guise completion fish`\ncomplete -c guise -f");
    for (const struct command *c = cli_commands; c->name; c++) {
        printf("complete -c guise -n __fish_use_subcommand -a %s -d '", c->name);
        print_escaped(c->summary, "\\");
        puts("'");
        if (is_dynamic(c))
            printf("complete -c guise -n '__fish_seen_subcommand_from %s' -a '(guise names %s 2>/dev/null)'\n", c->name,
                   c->operands + 1);
        else if (c->operands)
            printf("complete -c guise -n '__fish_seen_subcommand_from %s' -a '%s'\n", c->name, c->operands);
        for (struct options_cursor at = {.at = c->options}; (o = options_next(&at));)
            fish_option(c->name, o);
    }
}

int completion_main(const struct command *self, int argc, char **argv)
{
    static const struct {
        const char *shell;
        void (*print)(void);
    } shells[] = {{"bash", bash}, {"zsh", zsh}, {"fish", fish}};
    int status;
    int operands = cli_parse(self, argc, argv, NULL, 1, &status);

    if (operands < 0)
        return status;
    for (size_t i = 0; operands && i < sizeof(shells) / sizeof(shells[0]); i++) {
        if (strcmp(shells[i].shell, argv[1]) == 0) {
            shells[i].print();
            return cli_flush();
        }
    }
    return cli_usage_error(self, "name a shell: bash, zsh or fish");
}
