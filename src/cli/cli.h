/*
 * The sub-commands of `guise`.
 *
 * A command gets argv with its own name at [0], prints results on stdout and everything else on stderr,
 * and returns the exit status.
 */
#pragma once
#include "base/options.h"

/* The exit statuses of every guise command (docs/man/guise.1.scd). */
enum cli_status {
    STATUS_OK = 0,
    STATUS_FAILED = 1,      /* the guest crashed, or guise could not go on */
    STATUS_USAGE = 2,       /* the command line is wrong */
    STATUS_TIMEOUT = 6,     /* --timeout passed */
    STATUS_UNAVAILABLE = 7, /* this host cannot */
};

struct command {
    const char *name;    /* NULL ends the table */
    const char *summary; /* one line, for the list of commands */
    const char *usage;   /* what follows "guise NAME" */
    const char *details; /* further lines of the help, or NULL */
    const struct option_spec *options;
    const char *operands; /* words that completion offers for operands, separated by spaces, or NULL */
    int (*main)(const struct command *self, int argc, char **argv);
};

extern const struct command cli_commands[];

/*
 * Parses the options of `self` into `out`.  Returns the number of operands (<= max_operands), or -1: then
 * *status is what to exit with, and --help was answered or the error has been said.
 */
int cli_parse(const struct command *self, int argc, char **argv, void *out, int max_operands, int *status);

const struct command *cli_find(const char *name); /* NULL if there is none */

void cli_explain(const struct command *c); /* the help of one command, on stdout */

/* Ends the output on stdout, which may be a full disk: STATUS_OK, or STATUS_FAILED after saying so. */
int cli_flush(void);

/* A command line that makes no sense: says so, and where to find help.  Returns STATUS_USAGE. */
int cli_usage_error(const struct command *self, const char *sentence);

extern const struct option_spec run_options[], doctor_options[], completion_options[];
int run_main(const struct command *self, int argc, char **argv);
int doctor_main(const struct command *self, int argc, char **argv);
int completion_main(const struct command *self, int argc, char **argv);
