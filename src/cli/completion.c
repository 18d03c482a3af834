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

/* The words of the sub-commands, with `between` between them. */
static void print_subcommands(const struct command *c, const char *between)
{
    for (const struct command *sub = c->subcommands; sub->name; sub++)
        printf("%s%s", sub == c->subcommands ? "" : between, cli_sub_word(sub));
}

/* What may follow one command, as the body of a branch of a case. */
static void bash_command(const struct command *c)
{
    const struct option_spec *o;

    puts("        case $prev in");
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

static void bash_subcommands(const struct command *c)
{
    fputs("        if [ \"$COMP_CWORD\" -eq 2 ]; then\n            COMPREPLY=($(compgen -W '", stdout);
    print_subcommands(c, " ");
    puts("' -- \"$cur\")); return\n        fi\n        case ${COMP_WORDS[2]} in");
    for (const struct command *sub = c->subcommands; sub->name; sub++) {
        printf("        %s)\n", cli_sub_word(sub));
        bash_command(sub);
    }
    puts("        esac ;;");
}

static void bash(void)
{
    puts("# bash completion for guise; made by `guise completion bash`\n"
         "_guise() {\n"
         "    local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD-1]} command=${COMP_WORDS[1]}\n"
         "    COMPREPLY=()\n"
         "    if [ \"$COMP_CWORD\" -eq 1 ]; then");
    fputs("        COMPREPLY=($(compgen -W '", stdout);
    print_commands();
    puts(" --help --version' -- \"$cur\")); return\n    fi\n    case $command in");
    for (const struct command *c = cli_commands; c->name; c++) {
        printf("    %s)\n", c->name);
        (c->subcommands ? bash_subcommands : bash_command)(c);
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

/* "=": the value is in the same word or the next; "=-": only in the same; with a second colon it may be left out. */
static void zsh_spec(const struct option_spec *o, const char *dashes, const char *name, const char *assignment)
{
    printf("            '%s%s%s%s[", o->kind == OPTION_LIST ? "*" : "", dashes, name, assignment);
    print_escaped(o->help, "[]:\\");
    fputs(o->implied ? "]:" : "]", stdout);
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

static void zsh_option(const struct option_spec *o)
{
    const char letter[] = {o->letter, 0};

    zsh_spec(o, "--", o->name, o->kind == OPTION_FLAG ? "" : o->implied ? "=-" : "=");
    if (o->letter)
        zsh_spec(o, "-", letter, o->kind == OPTION_FLAG ? "" : "+");
}

static void zsh_command(const struct command *c)
{
    const struct option_spec *o;

    puts("        _arguments \\");
    for (struct options_cursor at = {.at = c->options}; (o = options_next(&at));)
        zsh_option(o);
    if (is_dynamic(c))
        printf("            '*:name:($(guise names %s 2>/dev/null))' \\\n", c->operands + 1);
    else if (c->operands)
        printf("            '1:word:(%s)' \\\n", c->operands);
    puts("            '--help[explain the command]' ;;");
}

static void zsh_subcommands(const struct command *c)
{
    fputs("        if (( CURRENT == 2 )); then\n            compadd ", stdout);
    print_subcommands(c, " ");
    puts("\n            return\n        fi\n        command=$words[2]\n        shift words\n        (( CURRENT-- ))\n"
         "        case $command in");
    for (const struct command *sub = c->subcommands; sub->name; sub++) {
        printf("        %s)\n", cli_sub_word(sub));
        zsh_command(sub);
    }
    puts("        esac ;;");
}

static void zsh(void)
{
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
        printf("    %s)\n", c->name);
        (c->subcommands ? zsh_subcommands : zsh_command)(c);
    }
    puts("    esac\n}\n"
         "# sourced: register; autoloaded from fpath as _guise: run\n"
         "if [ \"$funcstack[1]\" = _guise ]; then _guise \"$@\"; else compdef _guise guise; fi");
}

/* "image build": both words have been typed; "run": that one. */
static void fish_condition(const char *name)
{
    const char *space = strchr(name, ' ');
    int len = space ? (int)(space - name) : (int)strlen(name);

    printf("complete -c guise -n '__fish_seen_subcommand_from %.*s", len, name);
    if (space)
        printf("; and __fish_seen_subcommand_from %s", space + 1);
    putchar('\'');
}

static void fish_option(const char *command, const struct option_spec *o)
{
    fish_condition(command);
    printf(" -l %s", o->name);
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

static void fish_command(const struct command *c)
{
    const struct option_spec *o;

    if (c->operands) {
        fish_condition(c->name);
        if (is_dynamic(c))
            printf(" -a '(guise names %s 2>/dev/null)'\n", c->operands + 1);
        else
            printf(" -a '%s'\n", c->operands);
    }
    for (struct options_cursor at = {.at = c->options}; (o = options_next(&at));)
        fish_option(c->name, o);
}

static void fish(void)
{
    puts("# fish completion for guise; made by `guise completion fish`\ncomplete -c guise -f");
    for (const struct command *c = cli_commands; c->name; c++) {
        printf("complete -c guise -n __fish_use_subcommand -a %s -d '", c->name);
        print_escaped(c->summary, "\\");
        puts("'");
        fish_command(c);
        if (!c->subcommands)
            continue;
        printf("complete -c guise -n '__fish_seen_subcommand_from %s; and not __fish_seen_subcommand_from ", c->name);
        print_subcommands(c, " ");
        fputs("' -a '", stdout);
        print_subcommands(c, " ");
        puts("'");
        for (const struct command *sub = c->subcommands; sub->name; sub++)
            fish_command(sub);
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
