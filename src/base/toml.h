/*
 * A strict subset of TOML 1.0, read from a text in memory: what configuration files need, and no more.
 *
 *      # a comment
 *      key = "text"                 escapes \b \t \n \f \r \e \" \\ \uXXXX \UXXXXXXXX
 *      key = 'text as it is'
 *      key = 12                     also +12, -12, 1_000
 *      key = true
 *      key = ["a", 'b', 3,          may go over several lines, may end with a comma
 *             "c"]
 *      [table]                      what follows belongs to it
 *
 * Keys are bare (letters, digits, - and _).  Not taken, with a sentence that says so: floats, dates, multi-line texts,
 * dotted and quoted keys, inline tables, arrays of arrays and of tables.  A key or a table given twice, a control
 * character and what is not UTF-8 are errors.  Whatever the bytes are, the parser ends, and uses memory in proportion
 * to them.
 */
#pragma once
#include <stdbool.h>
#include <stddef.h>

enum toml_kind { TOML_STRING, TOML_INTEGER, TOML_BOOLEAN };

/* One value, or one item of an array. */
struct toml_value {
    const char *table; /* "" before the first [table] */
    const char *key;
    enum toml_kind kind;
    const char *text; /* of an integer: without underscores and plus; of a boolean: "true" or "false" */
    bool in_array;
    unsigned line; /* from 1 */
};

/*
 * Calls `take` for each value in order; an array without items calls it never.  The strings are valid during the call.
 * take returns 0, or -errno with a sentence, which ends it.  0, or -EINVAL with "line N: sentence" in err[n].
 */
int toml_parse(const char *text, size_t len,
               int (*take)(void *opaque, const struct toml_value *value, char *err, size_t n), void *opaque, char *err,
               size_t n);
