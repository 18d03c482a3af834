#include "base/options.h"

#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <string.h>

#include "base/error.h"
#include "base/parse.h"

#define MAX_OPTIONS 96
#define LONG_OPTION 256 /* what getopt_long returns for the first of the table */

static size_t count(const struct option_spec *specs)
{
    size_t n = 0;

    while (specs[n].name)
        n++;
    return n;
}

static void list_words(const struct option_word *words, char *out, size_t n)
{
    size_t used = 0;

    out[0] = 0;
    for (const struct option_word *w = words; w->word && used < n; w++)
        used += (size_t)snprintf(out + used, n - used, "%s%s", w == words ? "" : ", ", w->word);
}

/* Or-s (or stores) the value of the word text[0..len). */
static int store_word(const struct option_spec *o, const char *text, size_t len, unsigned *to, char *err, size_t n)
{
    char all[256];

    for (const struct option_word *w = o->words; w->word; w++) {
        if (strlen(w->word) == len && memcmp(w->word, text, len) == 0) {
            *to = o->kind == OPTION_SET ? *to | w->value : w->value;
            return 0;
        }
    }
    list_words(o->words, all, sizeof(all));
    return error_set(err, n, -EINVAL, "'%.*s' is not one of %s", (int)len, text, all);
}

static int store_words(const struct option_spec *o, const char *text, unsigned *to, char *err, size_t n)
{
    int r = 0;

    while (!r) {
        size_t len = strcspn(text, ",");
        r = store_word(o, text, len, to, err, n);
        if (!text[len])
            break;
        text += len + 1;
    }
    return r;
}

static int store_size(const struct option_spec *o, const char *text, uint64_t *to, char *err, size_t n)
{
    int r = parse_size(text, to, err, n);

    if (r == 0 && o->max && (*to < o->min || *to > o->max))
        return error_set(err, n, -ERANGE, "%s is not between %" PRIu64 "M and %" PRIu64 "M", text, o->min >> 20,
                         o->max >> 20);
    return r;
}

static int store_item(const char *text, struct option_list *to, char *err, size_t n)
{
    if (to->n == OPTION_LIST_MAX)
        return error_set(err, n, -E2BIG, "more than %d are given", OPTION_LIST_MAX);
    to->value[to->n++] = text;
    return 0;
}

static int store(const struct option_spec *o, const char *text, void *out, char *err, size_t n)
{
    void *field = (char *)out + o->offset;

    switch (o->kind) {
    case OPTION_FLAG:
        *(bool *)field = true;
        return 0;
    case OPTION_STRING:
    case OPTION_FILE:
        *(const char **)field = text;
        return 0;
    case OPTION_SIZE:
        return store_size(o, text, field, err, n);
    case OPTION_NUMBER:
        return parse_number(text, o->min, o->max, field, err, n);
    case OPTION_SECONDS:
        return parse_seconds(text, field, err, n);
    case OPTION_CHOICE:
        return store_word(o, text, strlen(text), field, err, n);
    case OPTION_SET:
        return store_words(o, text, field, err, n);
    case OPTION_LIST:
        return store_item(text, field, err, n);
    }
    return -EINVAL;
}

/* getopt's own tables; the values of long options are above any letter. */
static void build_getopt(const struct option_spec *specs, size_t n, struct option *longs, char *shorts)
{
    *shorts++ = ':';
    for (size_t i = 0; i < n; i++) {
        longs[i] = (struct option){specs[i].name, specs[i].kind == OPTION_FLAG ? no_argument : required_argument, NULL,
                                   LONG_OPTION + (int)i};
        if (!specs[i].letter)
            continue;
        *shorts++ = specs[i].letter;
        if (specs[i].kind != OPTION_FLAG)
            *shorts++ = ':';
    }
    longs[n] = (struct option){0};
    *shorts = 0;
}

static const struct option_spec *find(const struct option_spec *specs, size_t n, int c)
{
    if (c >= LONG_OPTION && (size_t)(c - LONG_OPTION) < n)
        return &specs[c - LONG_OPTION];
    for (size_t i = 0; i < n; i++)
        if (specs[i].letter == c)
            return &specs[i];
    return NULL;
}

/* What getopt could not take: say it in words that name what was typed. */
static int complain(const struct option_spec *specs, size_t n_specs, int c, char **argv, char *err, size_t n)
{
    const struct option_spec *o = find(specs, n_specs, optopt);

    if (c == ':')
        return error_set(err, n, -EINVAL, "--%s needs a value (%s)", o ? o->name : "?", o ? o->value : "?");
    if (optopt && o && optopt >= LONG_OPTION)
        return error_set(err, n, -EINVAL, "--%s takes no value", o->name);
    if (optopt)
        return error_set(err, n, -EINVAL, "there is no option -%c", optopt);
    return error_set(err, n, -EINVAL, "there is no option %s (or it could mean several)", argv[optind - 1]);
}

int options_parse(const struct option_spec *specs, int argc, char **argv, void *out, char *err, size_t n)
{
    struct option longs[MAX_OPTIONS + 1];
    char shorts[2 * MAX_OPTIONS + 2];
    bool seen[MAX_OPTIONS] = {false};
    char why[ERROR_SIZE];
    size_t n_specs = count(specs);
    int c;

    if (n_specs > MAX_OPTIONS)
        return error_set(err, n, -EINVAL, "the options table is too long");
    build_getopt(specs, n_specs, longs, shorts);
    optind = 0; /* glibc: start afresh */
    opterr = 0;
    while ((c = getopt_long(argc, argv, shorts, longs, NULL)) != -1) {
        const struct option_spec *o = c == '?' || c == ':' ? NULL : find(specs, n_specs, c);
        if (!o)
            return complain(specs, n_specs, c, argv, err, n);
        if (seen[o - specs] && o->kind != OPTION_FLAG && o->kind != OPTION_SET && o->kind != OPTION_LIST)
            return error_set(err, n, -EINVAL, "--%s is given twice", o->name);
        seen[o - specs] = true;
        if (store(o, optarg, out, why, sizeof(why)))
            return error_set(err, n, -EINVAL, "--%s: %s", o->name, why);
    }
    /* getopt has moved the operands behind the options. */
    int operands = argc - optind;
    memmove(argv + 1, argv + optind, (size_t)operands * sizeof(*argv));
    return operands;
}

void options_help(const struct option_spec *specs, FILE *out)
{
    enum { COLUMN = 28 };

    for (const struct option_spec *o = specs; o->name; o++) {
        char words[256];
        int used = o->letter ? fprintf(out, "  -%c, --%s", o->letter, o->name) : fprintf(out, "      --%s", o->name);

        if (o->value)
            used += fprintf(out, " %s", o->value);
        if (used >= COLUMN)
            used = fputc('\n', out) == EOF ? COLUMN : 0;
        fprintf(out, "%*s%s\n", COLUMN - used, "", o->help);
        if (o->words) {
            list_words(o->words, words, sizeof(words));
            fprintf(out, "%*s(%s)\n", COLUMN, "", words);
        }
    }
}
