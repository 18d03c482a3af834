/*
 * The options table: one const array per command, from which the parser (getopt_long), the help text, the
 * shell completion, saved configurations and configuration files are made, so that none of them can forget an option.
 *
 * A table may go on in another one: its last row, without a name, then says where (`more`) and at which offset of
 * the struct the other table's struct lies.  So what several commands share is written once.
 */
#pragma once
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

/* What an option's value is, and the type of the field at `offset` that receives it. */
enum option_kind {
    OPTION_FLAG,    /* no value;          bool, set to true */
    OPTION_STRING,  /* any text;          const char * */
    OPTION_FILE,    /* a file's name;     const char * (completed as a file) */
    OPTION_SIZE,    /* parse_size;        uint64_t in bytes */
    OPTION_NUMBER,  /* parse_number;      uint64_t in [min, max]; with `most`, N[,max=M] */
    OPTION_SECONDS, /* parse_seconds;     uint64_t in milliseconds */
    OPTION_WORD,    /* one of `words`;    const char *, the word itself */
    OPTION_CHOICE,  /* one of `words`;    unsigned, the word's value */
    OPTION_SET,     /* some of `words`, separated by commas; unsigned, the values or-ed together */
    OPTION_LIST,    /* any text, any number of times; struct option_list, in the order given */
};

#define OPTION_LIST_MAX 32
#define OPTIONS_MAX 96 /* rows of a table with all that it goes on in */

struct option_list {
    const char *value[OPTION_LIST_MAX];
    unsigned n;
};

struct option_word {
    const char *word;
    unsigned value;
};

struct option_spec {
    const char *name; /* the long name, without dashes; NULL ends the table, or leads to `more` */
    char letter;      /* the short name, or 0 */
    enum option_kind kind;
    size_t offset;
    const char *value;               /* how the help calls the value: "FILE", "SIZE"; NULL for a flag */
    const char *help;                /* one line */
    uint64_t min, max;               /* OPTION_NUMBER; OPTION_SIZE when max is not 0 */
    size_t most;                     /* OPTION_NUMBER: where M of N[,max=M] goes, a uint64_t, N..max; 0 if untold */
    const struct option_word *words; /* OPTION_WORD, OPTION_CHOICE, OPTION_SET; ends with a NULL word */
    const char *examples;            /* words that completion offers for an OPTION_STRING, separated by spaces */
    const char *implied;             /* the value may be left out (--name instead of --name=VALUE), and is then this */
    /* For OPTION_STRING, OPTION_FILE and OPTION_LIST: does the text make sense?  0, or -EINVAL with a sentence. */
    int (*check)(const char *text, char *err, size_t n);
    const struct option_spec *more; /* in the row that ends the table: where it goes on */
};

/*
 * The rows of a table and of those that it leads to:
 *
 *      for (struct options_cursor c = {.at = specs}; (o = options_next(&c));)
 */
struct options_cursor {
    const struct option_spec *at; /* the next row */
    size_t base;                  /* what to add to the offset of the row that was handed out last */
};
const struct option_spec *options_next(struct options_cursor *c);

/*
 * Parses argv[1..] into the struct at `out`; argv[0] is skipped.  Returns how many operands were
 * found (they are moved to argv[1..]), or -EINVAL with one sentence in err[n].  What is not on the command line
 * keeps the value the caller gave it.  An option given twice is an error unless it is a flag, a set or a list.
 */
int options_parse(const struct option_spec *specs, int argc, char **argv, void *out, char *err, size_t n);

/*
 * Who has set which option, when several sources speak: those that count more come first, and what one of them has set
 * stays (a list as a whole).  `by` is the source's own name, compared as a pointer; row i is the i-th that options_next
 * gives.
 */
struct options_origins {
    const char *by[OPTIONS_MAX];
};

/* As options_parse, and notes `by` for what is on the command line.  What somebody has set already stays. */
int options_parse_by(const struct option_spec *specs, int argc, char **argv, void *out, struct options_origins *origins,
                     const char *by, char *err, size_t n);
/* As options_set, unless somebody else has set the option.  A flag's text may be "true" or "false". */
int options_set_by(const struct option_spec *specs, const char *name, const char *text, void *out,
                   struct options_origins *origins, const char *by, char *err, size_t n);

/* Sets one option by its long name, as the command line would; `text` is NULL for a flag.  0, or -EINVAL (-ENOENT:
 * there is no such option) with one sentence, which does not name the option.  Texts are kept by reference. */
int options_set(const struct option_spec *specs, const char *name, const char *text, void *out, char *err, size_t n);

/* As options_set, for what was checked when it was given and has been kept since: rows' own checks are left out, for
 * the file that a text names may have gone meanwhile. */
int options_restore(const struct option_spec *specs, const char *name, const char *text, void *out, char *err,
                    size_t n);

/*
 * Value number i (lists have several) of the option at the cursor's last row, in the words that options_set takes:
 * a pointer into the struct, or buf[n] filled.  NULL: there is no such value, or it is zero, which is the same as not
 * given.
 */
const char *options_text(const struct options_cursor *c, const struct option_spec *o, const void *values, unsigned i,
                         char *buf, size_t n);

/* The help: one or two lines for each option. */
void options_help(const struct option_spec *specs, FILE *out);
