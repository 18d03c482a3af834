/*
 * The options table: one const array per command, from which the parser (getopt_long), the help text
 * and the shell completion are made, so that none of them can forget an option.
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
    OPTION_NUMBER,  /* parse_number;      uint64_t in [min, max] */
    OPTION_SECONDS, /* parse_seconds;     uint64_t in milliseconds */
    OPTION_CHOICE,  /* one of `words`;    unsigned, the word's value */
    OPTION_SET,     /* some of `words`, separated by commas; unsigned, the values or-ed together */
    OPTION_LIST,    /* any text, any number of times; struct option_list, in the order given */
};

#define OPTION_LIST_MAX 32

struct option_list {
    const char *value[OPTION_LIST_MAX];
    unsigned n;
};

struct option_word {
    const char *word;
    unsigned value;
};

struct option_spec {
    const char *name; /* the long name, without dashes; NULL ends the table */
    char letter;      /* the short name, or 0 */
    enum option_kind kind;
    size_t offset;
    const char *value;               /* how the help calls the value: "FILE", "SIZE"; NULL for a flag */
    const char *help;                /* one line */
    uint64_t min, max;               /* OPTION_NUMBER; OPTION_SIZE when max is not 0 */
    const struct option_word *words; /* OPTION_CHOICE, OPTION_SET; ends with a NULL word */
    const char *examples;            /* words that completion offers for an OPTION_STRING, separated by spaces */
};

/*
 * Parses argv[1..] into the struct at `out`; argv[0] is skipped.  Returns how many operands were
 * found (they are moved to argv[1..]), or -EINVAL with one sentence in err[n].  What is not on the command line
 * keeps the value the caller gave it.  An option given twice is an error unless it is a flag, a set or a list.
 */
int options_parse(const struct option_spec *specs, int argc, char **argv, void *out, char *err, size_t n);

/* The help: one or two lines for each option. */
void options_help(const struct option_spec *specs, FILE *out);
