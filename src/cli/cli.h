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
    STATUS_UNREACHABLE = 3, /* a process that should answer does not */
    STATUS_NOT_FOUND = 4,   /* there is no such thing */
    STATUS_CONFLICT = 5,    /* it is there already, or in the wrong state */
    STATUS_TIMEOUT = 6,     /* --timeout passed */
    STATUS_UNAVAILABLE = 7, /* this host cannot */
    /* Of commands that hand on a status from inside the guest: */
    STATUS_OURS = 125,           /* guise itself failed */
    STATUS_NOT_EXECUTABLE = 126, /* the guest cannot run the command */
    STATUS_NO_COMMAND = 127,     /* the guest has no such command */
    STATUS_SIGNAL = 128,         /* + N: signal N ended it */
};

struct command {
    const char *name;    /* NULL ends the table */
    const char *summary; /* one line, for the list of commands */
    const char *usage;   /* what follows "guise NAME" */
    const char *details; /* further lines of the help, or NULL */
    const struct option_spec *options;
    const char *operands; /* words that completion offers for operands, separated by spaces, or NULL; @vm and @image
                           * stand for the names that there are */
    int (*main)(const struct command *self, int argc, char **argv);
    const struct command *subcommands; /* called "NAME WORD"; the operands are theirs.  NULL: none */
};

extern const struct command cli_commands[];        /* those that `guise help` lists */
extern const struct command cli_hidden_commands[]; /* for other parts of guise */

/*
 * Parses the options of `self` into `out`.  Returns the number of operands (<= max_operands), or -1: then
 * *status is what to exit with, and --help was answered or the error has been said.
 */
int cli_parse(const struct command *self, int argc, char **argv, void *out, int max_operands, int *status);

/* The same for one of several sources (options_parse_by). */
int cli_parse_by(const struct command *self, int argc, char **argv, void *out, struct options_origins *origins,
                 const char *by, int max_operands, int *status);

const struct command *cli_find(const char *name); /* NULL if there is none */
const struct command *cli_find_sub(const struct command *c, const char *word);

/* The word that a sub-command is called by: "build" of "image build". */
const char *cli_sub_word(const struct command *sub);

/* The main function of a command that has sub-commands: finds the one that argv[1] means and calls it. */
int cli_sub_main(const struct command *self, int argc, char **argv);

/* The sentence about a command that is none, with the nearest one. */
void cli_no_command(const char *name, char *err, size_t n);
void cli_explain(const struct command *c); /* the help of one command, on stdout */

/* Ends the output on stdout, which may be a full disk: STATUS_OK, or STATUS_FAILED after saying so. */
int cli_flush(void);

/* A command line that makes no sense: says so, and where to find help.  Returns STATUS_USAGE. */
int cli_usage_error(const struct command *self, const char *sentence);

/* After a failure: says `sentence` and returns the exit status for the errno. */
int cli_failed(int failed, const char *sentence);

extern const struct option_spec run_options[], doctor_options[], completion_options[], create_options[],
    launch_options[], start_options[], stop_options[], kill_options[], restart_options[], rm_options[], ls_options[],
    inspect_options[], info_options[], logs_options[], console_options[], stats_options[], cpus_options[],
    publish_options[], unpublish_options[], events_options[], config_options[], vm_command_options[], exec_options[],
    shell_options[], cp_options[], ssh_options[], tunnel_options[], snapshot_options[], restore_options[],
    fork_options[], clone_options[], migrate_options[], receive_options[];
int run_main(const struct command *self, int argc, char **argv);
extern const struct option_spec image_options[];
extern const struct command image_commands[];
extern const struct command disk_commands[];
extern const struct option_spec disk_options[];
int doctor_main(const struct command *self, int argc, char **argv);
int completion_main(const struct command *self, int argc, char **argv);
int launch_main(const struct command *self, int argc, char **argv);
int create_main(const struct command *self, int argc, char **argv);
int start_main(const struct command *self, int argc, char **argv);
int stop_main(const struct command *self, int argc, char **argv);
int kill_main(const struct command *self, int argc, char **argv);
int restart_main(const struct command *self, int argc, char **argv);
int rm_main(const struct command *self, int argc, char **argv);
int ls_main(const struct command *self, int argc, char **argv);
int inspect_main(const struct command *self, int argc, char **argv);
int info_main(const struct command *self, int argc, char **argv);
int logs_main(const struct command *self, int argc, char **argv);
int console_main(const struct command *self, int argc, char **argv);
int stats_main(const struct command *self, int argc, char **argv);
int cpus_main(const struct command *self, int argc, char **argv);
int publish_main(const struct command *self, int argc, char **argv);
int unpublish_main(const struct command *self, int argc, char **argv);
int events_main(const struct command *self, int argc, char **argv);
int config_main(const struct command *self, int argc, char **argv);
int exec_main(const struct command *self, int argc, char **argv);
int shell_main(const struct command *self, int argc, char **argv);
int cp_main(const struct command *self, int argc, char **argv);
extern const struct command snapshot_commands[];
int snapshot_main(const struct command *self, int argc, char **argv);
int migrate_main(const struct command *self, int argc, char **argv);
extern const struct command receive_commands[];
int receive_main(const struct command *self, int argc, char **argv);
int restore_main(const struct command *self, int argc, char **argv);
int fork_main(const struct command *self, int argc, char **argv);
int clone_main(const struct command *self, int argc, char **argv);
int ssh_main(const struct command *self, int argc, char **argv);
/* What `guise help` does not show: the VM process, the names for completion, and the way into a guest for ssh. */
int vm_main(const struct command *self, int argc, char **argv);
int attend_main(const struct command *self, int argc, char **argv);
int names_main(const struct command *self, int argc, char **argv);
int tunnel_main(const struct command *self, int argc, char **argv);
