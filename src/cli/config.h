/*
 * Where the options of a command come from; who is first in this list counts more:
 *
 *      the command line
 *      the environment          GUISE_MEMORY=2G, GUISE_NO_REBOOT=true
 *      --config FILE            or else ./guise.toml
 *      the user's               ~/.config/guise/guise.toml
 *      the system's             /etc/guise/guise.toml
 *
 * A file's keys are the long options' names (guise.toml(5)); a table [run] counts for `guise run` only.
 */
#pragma once
#include "base/options.h"
#include "cli/cli.h"

#define CONFIG_FILES_MAX 4
#define CONFIG_TEXTS_MAX 512

struct config {
    struct options_origins origins;
    char *texts[CONFIG_TEXTS_MAX]; /* what options point into */
    unsigned n_texts;
    char *files[CONFIG_FILES_MAX]; /* names, which are also the origins' */
    unsigned n_files;
};

/* A row for the tables of commands that read configuration files: `field` is a const char *. */
#define CONFIG_OPTION(type, field)                                                                                     \
    {                                                                                                                  \
        .name = "config", .letter = 'f', .kind = OPTION_FILE, .offset = offsetof(type, field), .value = "FILE",        \
        .help = "read options from this file instead of ./guise.toml"                                                  \
    }

#define VERBOSITY_OPTIONS(type)                                                                                        \
    {.name = "verbose", .kind = OPTION_FLAG, .offset = offsetof(type, verbose), .help = "a line for each stage"},      \
    {                                                                                                                  \
        .name = "quiet", .letter = 'q', .kind = OPTION_FLAG, .offset = offsetof(type, quiet), .help = "no progress"    \
    }

/*
 * As cli_parse, with everything above; `file` is the field of --config in `out`.  `config` must live as long as `out`,
 * and be given to config_free.
 */
int config_parse(const struct command *self, int argc, char **argv, void *out, const char *const *file,
                 struct config *config, int max_operands, int *status);
void config_free(struct config *config);
