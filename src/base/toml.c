#include "base/toml.h"

#include <ctype.h>
#include <errno.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "base/utf8.h"

#define KEY_MOST 64u
#define KEYS_MOST 1024u

struct name {
    char text[KEY_MOST];
};

struct parser {
    const char *at, *end;
    unsigned line;
    int (*take)(void *opaque, const struct toml_value *value, char *err, size_t n);
    void *opaque;
    char table[KEY_MOST], key[KEY_MOST];
    struct name *seen; /* keys of this table, then all tables: each once */
    unsigned n_seen, n_tables;
    struct name *tables;
    char *buffer; /* as large as the text: room for any string in it */
    char *err;
    size_t n;
};

__attribute__((format(printf, 2, 3))) static int fail(struct parser *p, const char *format, ...)
{
    char sentence[ERROR_SIZE];
    va_list args;

    va_start(args, format);
    vsnprintf(sentence, sizeof sentence, format, args);
    va_end(args);
    return error_set(p->err, p->n, -EINVAL, "line %u: %s", p->line, sentence);
}

/* --- characters ----------------------------------------------------------------------------------------- */

static bool more(const struct parser *p)
{
    return p->at < p->end;
}

static bool next_is(struct parser *p, const char *word)
{
    size_t len = strlen(word);

    return (size_t)(p->end - p->at) >= len && memcmp(p->at, word, len) == 0;
}

static void skip_blanks(struct parser *p)
{
    while (more(p) && (*p->at == ' ' || *p->at == '\t'))
        p->at++;
}

static bool take_newline(struct parser *p)
{
    if (next_is(p, "\r\n"))
        p->at++;
    if (!next_is(p, "\n"))
        return false;
    p->at++;
    p->line++;
    return true;
}

/* Blanks and a comment, up to the end of the line, which must be there. */
static int skip_rest(struct parser *p)
{
    skip_blanks(p);
    if (more(p) && *p->at == '#')
        while (more(p) && *p->at != '\n' && !next_is(p, "\r\n"))
            p->at++;
    if (!more(p) || take_newline(p))
        return 0;
    return fail(p, "'%c' is one thing too many on this line", isprint((unsigned char)*p->at) ? *p->at : '?');
}

/* Blanks, comments and line ends: between the items of an array. */
static int skip_space(struct parser *p)
{
    for (;;) {
        skip_blanks(p);
        if (!more(p) || (*p->at != '#' && *p->at != '\n' && !next_is(p, "\r\n")))
            return 0;
        int failed = skip_rest(p);
        if (failed)
            return failed;
    }
}

static int check_text(struct parser *p)
{
    unsigned line = p->line;

    for (const char *s = p->at; s < p->end;) {
        unsigned char c = (unsigned char)*s;
        unsigned length = utf8_length((const unsigned char *)s, (size_t)(p->end - s));
        bool control = (c < ' ' && c != '\t' && c != '\n' && !(c == '\r' && s + 1 < p->end && s[1] == '\n')) ||
                       c == 0x7f;
        p->line = line;
        if (control)
            return fail(p, "there is a control character");
        if (!length)
            return fail(p, "this is not UTF-8");
        line += c == '\n';
        s += length;
    }
    p->line = 1;
    return 0;
}

/* --- strings ----------------------------------------------------------------------------------------------- */

static size_t put_utf8(char *out, uint32_t c)
{
    if (c < 0x80) {
        out[0] = (char)c;
        return 1;
    }
    unsigned length = c < 0x800 ? 2 : c < 0x10000 ? 3 : 4;
    for (unsigned i = length - 1; i > 0; i--, c >>= 6)
        out[i] = (char)(0x80 | (c & 0x3f));
    out[0] = (char)((0xf00 >> length & 0xff) | c);
    return length;
}

/* The digits after \u or \U. */
static int take_code(struct parser *p, unsigned digits, char *out, size_t *used)
{
    uint32_t c = 0;

    for (unsigned i = 0; i < digits; i++, p->at++) {
        if (!more(p) || !isxdigit((unsigned char)*p->at))
            return fail(p, "\\%c wants %u hexadecimal digits", digits == 4 ? 'u' : 'U', digits);
        c = c << 4 | (uint32_t)(isdigit((unsigned char)*p->at) ? *p->at - '0' : (*p->at | 0x20) - 'a' + 10);
    }
    if (c == 0 || c > 0x10ffff || (c >= 0xd800 && c < 0xe000))
        return fail(p, "there is no such character");
    *used += put_utf8(out + *used, c);
    return 0;
}

static int take_escape(struct parser *p, char *out, size_t *used)
{
    static const char from[] = "btnfre\"\\", to[] = "\b\t\n\f\r\033\"\\";

    if (!more(p))
        return fail(p, "a text is not closed");
    char c = *p->at++;
    const char *known = c ? strchr(from, c) : NULL;
    if (known) {
        out[(*used)++] = to[known - from];
        return 0;
    }
    if (c == 'u' || c == 'U')
        return take_code(p, c == 'u' ? 4 : 8, out, used);
    return fail(p, "\\%c means nothing; a backslash itself is \\\\, or write the text in '...'", c);
}

/* No escape makes a text longer than it is written, so the buffer is large enough. */
static int take_string(struct parser *p)
{
    char quote = *p->at;
    size_t used = 0;

    if (next_is(p, "\"\"\"") || next_is(p, "'''"))
        return fail(p, "texts over several lines are not taken");
    for (p->at++; more(p) && *p->at != quote;) {
        if (*p->at == '\n' || next_is(p, "\r\n"))
            return fail(p, "a text is not closed");
        if (*p->at == '\\' && quote == '"') {
            p->at++;
            int failed = take_escape(p, p->buffer, &used);
            if (failed)
                return failed;
            continue;
        }
        p->buffer[used++] = *p->at++;
    }
    if (!more(p))
        return fail(p, "a text is not closed");
    p->at++;
    p->buffer[used] = 0;
    return 0;
}

/* --- values -------------------------------------------------------------------------------------------------- */

static int take_integer(struct parser *p)
{
    size_t used = 0;
    bool digit = false;

    if (*p->at == '+' || *p->at == '-') {
        if (*p->at == '-')
            p->buffer[used++] = '-';
        p->at++;
    }
    const char *first = p->at;
    for (; more(p) && (isdigit((unsigned char)*p->at) || (*p->at == '_' && digit)); p->at++) {
        digit = *p->at != '_';
        if (digit)
            p->buffer[used++] = *p->at;
    }
    bool zero_first = p->at - first > 1 && *first == '0';
    if (!digit || zero_first || (more(p) && (isalnum((unsigned char)*p->at) || strchr("._:-", *p->at))))
        return fail(p, "numbers are whole and decimal; put anything else into quotes");
    p->buffer[used] = 0;
    return 0;
}

static int take_boolean(struct parser *p)
{
    const char *word = next_is(p, "true") ? "true" : next_is(p, "false") ? "false" : NULL;

    if (word) {
        const char *behind = p->at + strlen(word);
        if (behind == p->end || !(isalnum((unsigned char)*behind) || *behind == '_' || *behind == '-')) {
            memcpy(p->buffer, word, strlen(word) + 1); /* the text itself has room for it */
            p->at = behind;
            return 0;
        }
    }
    return fail(p, "a value is \"a text\", a number, true, false or [a list]; texts have quotes");
}

static int take_scalar(struct parser *p, bool in_array)
{
    struct toml_value v = {.table = p->table, .key = p->key, .in_array = in_array, .line = p->line};
    char sentence[ERROR_SIZE];
    int failed;

    if (!more(p))
        return fail(p, "a value is missing");
    if (*p->at == '"' || *p->at == '\'') {
        v.kind = TOML_STRING;
        failed = take_string(p);
    } else if (isdigit((unsigned char)*p->at) || *p->at == '+' || *p->at == '-') {
        v.kind = TOML_INTEGER;
        failed = take_integer(p);
    } else if (*p->at == '[' || *p->at == '{') {
        return fail(p, *p->at == '{' ? "inline tables are not taken" : "lists of lists are not taken");
    } else {
        v.kind = TOML_BOOLEAN;
        failed = take_boolean(p);
    }
    if (failed)
        return failed;
    v.text = p->buffer;
    return p->take(p->opaque, &v, sentence, sizeof sentence) ? fail(p, "%s", sentence) : 0;
}

static int take_array(struct parser *p)
{
    int failed;

    p->at++;
    for (;;) {
        if ((failed = skip_space(p)))
            return failed;
        if (more(p) && *p->at == ']')
            break;
        if ((failed = take_scalar(p, true)) || (failed = skip_space(p)))
            return failed;
        if (more(p) && *p->at == ',')
            p->at++;
        else if (!more(p) || *p->at != ']')
            return fail(p, "in a list a comma or ] is missing");
    }
    p->at++;
    return 0;
}

/* --- keys and tables ------------------------------------------------------------------------------------------ */

static int take_name(struct parser *p, char *out)
{
    size_t len = 0;

    while (more(p) && (isalnum((unsigned char)*p->at) || *p->at == '-' || *p->at == '_')) {
        if (len == KEY_MOST - 1)
            return fail(p, "a name is longer than %u characters", KEY_MOST - 1);
        out[len++] = *p->at++;
    }
    out[len] = 0;
    if (!len)
        return fail(p, "a name has letters, digits, '-' and '_', without quotes");
    skip_blanks(p);
    if (more(p) && *p->at == '.')
        return fail(p, "dotted names are not taken; write [%s] and the rest below it", out);
    return 0;
}

/* Each name once. */
static int note(struct parser *p, struct name *names, unsigned *n, const char *name, const char *what)
{
    for (unsigned i = 0; i < *n; i++)
        if (strcmp(names[i].text, name) == 0)
            return fail(p, "the %s %s is given twice", what, name);
    if (*n == KEYS_MOST)
        return fail(p, "there are more than %u", KEYS_MOST);
    memcpy(names[(*n)++].text, name, strlen(name) + 1); /* take_name has measured it */
    return 0;
}

static int take_table(struct parser *p)
{
    int failed;

    p->at++;
    if (more(p) && *p->at == '[')
        return fail(p, "arrays of tables are not taken");
    skip_blanks(p);
    if ((failed = take_name(p, p->table)))
        return failed;
    if (!more(p) || *p->at != ']')
        return fail(p, "a ] is missing");
    p->at++;
    p->n_seen = 0;
    failed = note(p, p->tables, &p->n_tables, p->table, "table");
    return failed ? failed : skip_rest(p);
}

static int take_pair(struct parser *p)
{
    int failed = take_name(p, p->key);

    if (!failed)
        failed = note(p, p->seen, &p->n_seen, p->key, "key");
    if (failed)
        return failed;
    if (!more(p) || *p->at != '=')
        return fail(p, "behind %s a = is missing", p->key);
    p->at++;
    skip_blanks(p);
    failed = more(p) && *p->at == '[' ? take_array(p) : take_scalar(p, false);
    return failed ? failed : skip_rest(p);
}

static int parse(struct parser *p)
{
    int failed = check_text(p);

    while (!failed) {
        failed = skip_space(p);
        if (failed || !more(p))
            break;
        failed = *p->at == '[' ? take_table(p) : take_pair(p);
    }
    return failed;
}

int toml_parse(const char *text, size_t len,
               int (*take)(void *opaque, const struct toml_value *value, char *err, size_t n), void *opaque, char *err,
               size_t n)
{
    struct parser p = {.at = text, .end = text + len, .line = 1, .take = take, .opaque = opaque, .err = err, .n = n};
    int failed = -ENOMEM;

    p.buffer = malloc(len + 8);
    p.seen = malloc(KEYS_MOST * sizeof *p.seen);
    p.tables = malloc(KEYS_MOST * sizeof *p.tables);
    if (p.buffer && p.seen && p.tables)
        failed = parse(&p);
    else
        error_sys(err, n, failed, "the configuration cannot be read");
    free(p.buffer);
    free(p.seen);
    free(p.tables);
    return failed;
}
