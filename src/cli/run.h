/* What `guise run`, `launch` and `create` have in common: one struct, three tables of options that fill it. */
#pragma once
#include <limits.h>

#include "cli/config.h"
#include "vm/record.h"

struct run_arguments {
    struct vm_settings settings;
    const char *config_file;
    bool verbose, quiet;
    /* run, launch */
    bool remove, detach, current_directory, warm;
    char here[2 * PATH_MAX];      /* with --cwd: the words of its share */
    const char *directory, *user; /* of the command */
    struct option_list environment;
    const char *wait;     /* "none", "agent", "boot", "ssh" */
    struct config config; /* owns the texts that the files gave */
};

/* The tables of the commands: each fills a struct run_arguments. */
extern const struct option_spec run_options[], launch_options[], create_options[];

/* Is that one of them? */
bool run_is_ours(const struct command *command);

/*
 * Parses into *a, with configuration files; the words behind "--" become *command (NULL without any; in argv).  Returns
 * how many operands there are, at most `most`, or -1 with *status set.  run_free afterwards, in any case but -1.
 */
int run_parse(const struct command *self, int argc, char **argv, struct run_arguments *a, int most, char ***command,
              int *status);
/* The image may be the first operand, too; then words follow, which is an error.  Returns STATUS_OK or STATUS_USAGE. */
int run_take_image(const struct command *self, struct run_arguments *a, int operands, char **argv);
void run_free(struct run_arguments *a);

/* `guise run IMAGE`, once the arguments are there (run_image.c). */
int run_image(const struct command *self, struct run_arguments *a, char **command);
