#include "base/options.h"

#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <string.h>

#include "base/error.h"
#include "base/parse.h"

#define LONG_OPTION 256 /* what getopt_long returns for the first of the table */

/* The chain of tables as one. */
struct row {
    const struct option_spec *spec;
    size_t base;
};

const struct option_spec *options_next(struct options_cursor *c)
{
    while (!c->at->name && c->at->more) {
        c->base += c->at->offset;
        c->at = c->at->more;
    }
    return c->at->name ? c->at++ : NULL;
}

/* How many rows, or -E2BIG. */
static int gather(const struct option_spec *specs, struct row *rows)
{
    struct options_cursor c = {.at = specs};
    const struct option_spec *o;
    int n = 0;

    while ((o = options_next(&c))) {
        if (n == OPTIONS_MAX)
            return -E2BIG;
        rows[n++] = (struct row){o, c.base};
    }
    return n;
}

static void list_words(const struct option_word *words, char *out, size_t n)
{
    size_t used = 0;

    out[0] = 0;
    for (const struct option_word *w = words; w->word && used < n; w++)
        used += (size_t)snprintf(out + used, n - used, "%s%s", w == words ? "" : ", ", w->word);
}

static const struct option_word *find_word(const struct option_word *words, const char *text, size_t len)
{
    for (const struct option_word *w = words; w->word; w++)
        if (strlen(w->word) == len && memcmp(w->word, text, len) == 0)
            return w;
    return NULL;
}

static int complain_word(const struct option_spec *o, const char *text, size_t len, char *err, size_t n)
{
    char all[256];

    list_words(o->words, all, sizeof(all));
    return error_set(err, n, -EINVAL, "'%.*s' is not one of %s", (int)len, text, all);
}

/* Or-s (or stores) the value of the word text[0..len). */
static int store_value(const struct option_spec *o, const char *text, size_t len, unsigned *to, char *err, size_t n)
{
    const struct option_word *w = find_word(o->words, text, len);

    if (!w)
        return complain_word(o, text, len, err, n);
    *to = o->kind == OPTION_SET ? *to | w->value : w->value;
    return 0;
}

/* The word itself, from the table: it outlives what was typed. */
static int store_word(const struct option_spec *o, const char *text, const char **to, char *err, size_t n)
{
    const struct option_word *w = find_word(o->words, text, strlen(text));

    if (!w)
        return complain_word(o, text, strlen(text), err, n);
    *to = w->word;
    return 0;
}

static int store_words(const struct option_spec *o, const char *text, unsigned *to, char *err, size_t n)
{
    int r = 0;

    while (!r) {
        size_t len = strcspn(text, ",");
        r = store_value(o, text, len, to, err, n);
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

/* N, or N,max=M where the option has one. */
static int store_number(const struct row *row, const char *text, void *out, char *err, size_t n)
{
    static const char key[] = ",max=";
    const struct option_spec *o = row->spec;
    uint64_t value, most = 0;
    const char *max = o->most ? strstr(text, key) : NULL;
    char first[32];

    if (max && (size_t)(max - text) < sizeof first) {
        snprintf(first, sizeof first, "%.*s", (int)(max - text), text);
        text = first;
    }
    int r = parse_number(text, o->min, o->max, &value, err, n);
    if (r == 0 && max)
        r = parse_number(max + sizeof key - 1, value, o->max, &most, err, n);
    if (r)
        return r;
    *(uint64_t *)((char *)out + row->base + o->offset) = value;
    if (o->most)
        *(uint64_t *)((char *)out + row->base + o->most) = most;
    return 0;
}

static int store_item(const char *text, struct option_list *to, char *err, size_t n)
{
    if (to->n == OPTION_LIST_MAX)
        return error_set(err, n, -E2BIG, "more than %d are given", OPTION_LIST_MAX);
    to->value[to->n++] = text;
    return 0;
}

static int store_unchecked(const struct row *row, const char *text, void *out, char *err, size_t n)
{
    const struct option_spec *o = row->spec;
    void *field = (char *)out + row->base + o->offset;

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
        return store_number(row, text, out, err, n);
    case OPTION_SECONDS:
        return parse_seconds(text, field, err, n);
    case OPTION_WORD:
        return store_word(o, text, field, err, n);
    case OPTION_CHOICE:
        return store_value(o, text, strlen(text), field, err, n);
    case OPTION_SET:
        return store_words(o, text, field, err, n);
    case OPTION_LIST:
        return store_item(text, field, err, n);
    }
    return -EINVAL;
}

static int store(const struct row *row, const char *text, void *out, char *err, size_t n)
{
    if (row->spec->check && row->spec->check(text, err, n))
        return -EINVAL;
    return store_unchecked(row, text, out, err, n);
}

/* getopt's own tables; the values of long options are above any letter. */
static void build_getopt(const struct row *rows, int n, struct option *longs, char *shorts)
{
    *shorts++ = ':';
    for (int i = 0; i < n; i++) {
        const struct option_spec *o = rows[i].spec;
        int value = o->kind == OPTION_FLAG ? no_argument : o->implied ? optional_argument : required_argument;

        longs[i] = (struct option){o->name, value, NULL, LONG_OPTION + i};
        if (!o->letter)
            continue;
        *shorts++ = o->letter;
        if (value != no_argument)
            *shorts++ = ':';
        if (value == optional_argument)
            *shorts++ = ':';
    }
    longs[n] = (struct option){0};
    *shorts = 0;
}

static const struct row *find(const struct row *rows, int n, int c)
{
    if (c >= LONG_OPTION && c - LONG_OPTION < n)
        return &rows[c - LONG_OPTION];
    for (int i = 0; i < n; i++)
        if (rows[i].spec->letter && rows[i].spec->letter == c)
            return &rows[i];
    return NULL;
}

/* What getopt could not take: say it in words that name what was typed. */
static int complain(const struct row *rows, int n_rows, int c, char **argv, char *err, size_t n)
{
    const struct row *row = find(rows, n_rows, optopt);
    const struct option_spec *o = row ? row->spec : NULL;

    if (c == ':')
        return error_set(err, n, -EINVAL, "--%s needs a value (%s)", o ? o->name : "?", o ? o->value : "?");
    if (optopt && o && optopt >= LONG_OPTION)
        return error_set(err, n, -EINVAL, "--%s takes no value", o->name);
    if (optopt)
        return error_set(err, n, -EINVAL, "there is no option -%c", optopt);
    return error_set(err, n, -EINVAL, "there is no option %s (or it could mean several)", argv[optind - 1]);
}

static bool may_repeat(const struct option_spec *o)
{
    return o->kind == OPTION_FLAG || o->kind == OPTION_SET || o->kind == OPTION_LIST;
}

int options_parse_by(const struct option_spec *specs, int argc, char **argv, void *out, struct options_origins *origins,
                     const char *by, char *err, size_t n)
{
    struct row rows[OPTIONS_MAX];
    struct option longs[OPTIONS_MAX + 1];
    char shorts[3 * OPTIONS_MAX + 2];
    bool seen[OPTIONS_MAX] = {false};
    char why[ERROR_SIZE];
    int n_rows = gather(specs, rows), c;

    if (n_rows < 0)
        return error_set(err, n, -EINVAL, "the options table is too long");
    build_getopt(rows, n_rows, longs, shorts);
    optind = 0; /* glibc: start afresh */
    opterr = 0;
    while ((c = getopt_long(argc, argv, shorts, longs, NULL)) != -1) {
        const struct row *row = c == '?' || c == ':' ? NULL : find(rows, n_rows, c);
        if (!row)
            return complain(rows, n_rows, c, argv, err, n);
        if (seen[row - rows] && !may_repeat(row->spec))
            return error_set(err, n, -EINVAL, "--%s is given twice", row->spec->name);
        seen[row - rows] = true;
        if (origins->by[row - rows] && origins->by[row - rows] != by)
            continue;
        origins->by[row - rows] = by;
        if (store(row, optarg ? optarg : row->spec->implied, out, why, sizeof(why)))
            return error_set(err, n, -EINVAL, "--%s: %s", row->spec->name, why);
    }
    /* getopt has moved the operands behind the options. */
    int operands = argc - optind;
    memmove(argv + 1, argv + optind, (size_t)operands * sizeof(*argv));
    return operands;
}

int options_parse(const struct option_spec *specs, int argc, char **argv, void *out, char *err, size_t n)
{
    struct options_origins nobody = {{NULL}};

    return options_parse_by(specs, argc, argv, out, &nobody, "", err, n);
}

int options_set_by(const struct option_spec *specs, const char *name, const char *text, void *out,
                   struct options_origins *origins, const char *by, char *err, size_t n)
{
    struct options_cursor c = {.at = specs};
    const struct option_spec *o;

    for (int i = 0; i < OPTIONS_MAX && (o = options_next(&c)); i++) {
        bool flag = o->kind == OPTION_FLAG;
        if (strcmp(o->name, name) != 0)
            continue;
        if (flag && text && strcmp(text, "true") && strcmp(text, "false"))
            return error_set(err, n, -EINVAL, "it is neither true nor false");
        if (!flag && !text && !o->implied)
            return error_set(err, n, -EINVAL, "it needs a value");
        if (origins->by[i] && origins->by[i] != by)
            return 0;
        origins->by[i] = by;
        if (flag && text && strcmp(text, "false") == 0)
            return 0;
        return store(&(struct row){o, c.base}, text ? text : o->implied, out, err, n);
    }
    return error_set(err, n, -ENOENT, "there is no such option");
}

int options_set(const struct option_spec *specs, const char *name, const char *text, void *out, char *err, size_t n)
{
    struct options_origins nobody = {{NULL}};

    return options_set_by(specs, name, text, out, &nobody, "", err, n);
}

int options_restore(const struct option_spec *specs, const char *name, const char *text, void *out, char *err, size_t n)
{
    struct options_cursor c = {.at = specs};
    const struct option_spec *o;

    while ((o = options_next(&c)) && strcmp(o->name, name) != 0)
        ;
    if (!o)
        return error_set(err, n, -ENOENT, "there is no such option");
    if ((o->kind == OPTION_FLAG) != !text)
        return error_set(err, n, -EINVAL, text ? "it takes no value" : "it needs a value");
    return store_unchecked(&(struct row){o, c.base}, text, out, err, n);
}

/* --- back to words -------------------------------------------------------------------------------- */

static const char *size_text(uint64_t bytes, char *buf, size_t n)
{
    static const char units[] = "TGMK";

    for (int i = 0; bytes && i < 4; i++) {
        unsigned shift = 10 * (4 - (unsigned)i);
        if (bytes >> shift << shift == bytes) {
            snprintf(buf, n, "%" PRIu64 "%c", bytes >> shift, units[i]);
            return buf;
        }
    }
    return NULL;
}

static const char *number_text(uint64_t value, uint64_t most, char *buf, size_t n)
{
    if (!value)
        return NULL;
    if (most)
        snprintf(buf, n, "%" PRIu64 ",max=%" PRIu64, value, most);
    else
        snprintf(buf, n, "%" PRIu64, value);
    return buf;
}

static const char *seconds_text(uint64_t ms, char *buf, size_t n)
{
    if (!ms)
        return NULL;
    snprintf(buf, n, "%" PRIu64 ".%03u", ms / 1000, (unsigned)(ms % 1000));
    return buf;
}

static const char *value_text(const struct option_spec *o, unsigned value, char *buf, size_t n)
{
    size_t used = 0;

    buf[0] = 0;
    for (const struct option_word *w = o->words; w->word && used < n; w++)
        if (o->kind == OPTION_SET ? (w->value & value) == w->value : w->value == value)
            used += (size_t)snprintf(buf + used, n - used, "%s%s", used ? "," : "", w->word);
    return used && used < n ? buf : NULL;
}

const char *options_text(const struct options_cursor *c, const struct option_spec *o, const void *values, unsigned i,
                         char *buf, size_t n)
{
    const void *field = (const char *)values + c->base + o->offset;
    const void *most = (const char *)values + c->base + o->most;

    if (o->kind == OPTION_LIST) {
        const struct option_list *list = field;
        return i < list->n ? list->value[i] : NULL;
    }
    if (i)
        return NULL;
    switch (o->kind) {
    case OPTION_FLAG:
        return *(const bool *)field ? "true" : NULL;
    case OPTION_STRING:
    case OPTION_FILE:
    case OPTION_WORD:
        return *(const char *const *)field;
    case OPTION_SIZE:
        return size_text(*(const uint64_t *)field, buf, n);
    case OPTION_NUMBER:
        return number_text(*(const uint64_t *)field, o->most ? *(const uint64_t *)most : 0, buf, n);
    case OPTION_SECONDS:
        return seconds_text(*(const uint64_t *)field, buf, n);
    default:
        return value_text(o, *(const unsigned *)field, buf, n);
    }
}

/* --- help ------------------------------------------------------------------------------------------- */

void options_help(const struct option_spec *specs, FILE *out)
{
    enum { COLUMN = 28 };
    struct options_cursor c = {.at = specs};
    const struct option_spec *o;

    while ((o = options_next(&c))) {
        char words[256];
        int used = o->letter ? fprintf(out, "  -%c, --%s", o->letter, o->name) : fprintf(out, "      --%s", o->name);

        if (o->value)
            used += fprintf(out, o->implied ? "[=%s]" : " %s", o->value);
        if (used >= COLUMN)
            used = fputc('\n', out) == EOF ? COLUMN : 0;
        fprintf(out, "%*s%s\n", COLUMN - used, "", o->help);
        if (o->words) {
            list_words(o->words, words, sizeof(words));
            fprintf(out, "%*s(%s)\n", COLUMN, "", words);
        }
    }
}
