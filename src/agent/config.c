#include "agent/config.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"

enum kind { STRING, BOOLEAN, LIST, MODE };

#define AT(field) offsetof(struct guest_config, field)
/* Everything a configuration may hold: writing and reading walk this table. */
static const struct key {
    const char *name;
    enum kind kind;
    size_t offset;
} keys[] = {
    {"mode", MODE, AT(mode)},
    {"instance", STRING, AT(instance)},
    {"hostname", STRING, AT(hostname)},
    {"root", STRING, AT(root)},
    {"root_type", STRING, AT(root_type)},
    {"root_options", STRING, AT(root_options)},
    {"root_overlay", BOOLEAN, AT(root_overlay)},
    {"root_grow", BOOLEAN, AT(root_grow)},
    {"address", STRING, AT(address)},
    {"gateway", STRING, AT(gateway)},
    {"dns", STRING, AT(dns)},
    {"share", LIST, AT(shares)},
    {"key", LIST, AT(keys)},
    {"user", STRING, AT(user)},
    {"first_boot", BOOLEAN, AT(first_boot)},
    {"init", STRING, AT(init)},
    {"initrd_init", BOOLEAN, AT(initrd_init)},
    {"console", BOOLEAN, AT(console)},
};
#undef AT
#define N_KEYS (sizeof(keys) / sizeof(keys[0]))

static const char *const mode_names[] = {[GUEST_COMMAND] = "command", [GUEST_BOOT] = "boot"};
static const char *const boolean_names[] = {"no", "yes"};

static void put_line(FILE *to, const char *name, const char *value)
{
    fprintf(to, "%s=", name);
    for (; *value; value++)
        if (*value == '\n')
            fputs("\\n", to);
        else if (*value == '\\')
            fputs("\\\\", to);
        else
            fputc(*value, to);
    fputc('\n', to);
}

static void put_key(FILE *to, const struct key *k, const void *field)
{
    const char *const *string = field;
    const struct option_list *list = field;

    switch (k->kind) {
    case STRING:
        if (*string)
            put_line(to, k->name, *string);
        break;
    case BOOLEAN:
        put_line(to, k->name, boolean_names[*(const bool *)field]);
        break;
    case MODE:
        put_line(to, k->name, mode_names[*(const unsigned *)field == GUEST_BOOT]);
        break;
    case LIST:
        for (unsigned i = 0; i < list->n; i++)
            put_line(to, k->name, list->value[i]);
        break;
    }
}

int guest_config_format(const struct guest_config *c, char **text, size_t *len, char *err, size_t n)
{
    FILE *to = open_memstream(text, len);

    if (!to)
        return error_sys(err, n, -ENOMEM, "the guest's configuration cannot be made");
    for (size_t i = 0; i < N_KEYS; i++)
        put_key(to, &keys[i], (const char *)c + keys[i].offset);
    bool failed = ferror(to) != 0;
    if (fclose(to) || failed) {
        free(*text);
        return error_sys(err, n, -ENOMEM, "the guest's configuration cannot be made");
    }
    if (*len > GUEST_CONFIG_MAX) {
        free(*text);
        return error_set(err, n, -E2BIG,
                         "the guest's configuration has %zu bytes, more than %u: share or authorize less", *len,
                         GUEST_CONFIG_MAX);
    }
    return 0;
}

/* Index of the word among `words`, or -1. */
static int find_word(const char *const *words, int n, const char *word)
{
    for (int i = 0; i < n; i++)
        if (strcmp(words[i], word) == 0)
            return i;
    return -1;
}

/* Takes the escapes out, in place. */
static int unescape(char *value)
{
    char *to = value;

    for (const char *from = value; *from; from++) {
        if (*from != '\\') {
            *to++ = *from;
            continue;
        }
        from++;
        if (*from != 'n' && *from != '\\')
            return -EINVAL;
        *to++ = *from == 'n' ? '\n' : '\\';
    }
    *to = 0;
    return 0;
}

static const char *set_key(const struct key *k, void *field, char *value)
{
    const char **string = field;
    struct option_list *list = field;
    int word;

    switch (k->kind) {
    case STRING:
        if (*string)
            return "is given twice";
        *string = value;
        return NULL;
    case LIST:
        if (list->n == OPTION_LIST_MAX)
            return "is given too often";
        list->value[list->n++] = value;
        return NULL;
    case BOOLEAN:
        word = find_word(boolean_names, 2, value);
        *(bool *)field = word == 1;
        return word < 0 ? "is neither yes nor no" : NULL;
    case MODE:
        word = find_word(mode_names, 2, value);
        *(unsigned *)field = word == GUEST_BOOT ? GUEST_BOOT : GUEST_COMMAND;
        return word < 0 ? "is neither command nor boot" : NULL;
    }
    return "is of no kind";
}

static const char *parse_line(struct guest_config *c, char *line)
{
    char *value = strchr(line, '=');

    if (!value)
        return "has no '='";
    *value++ = 0;
    if (unescape(value))
        return "has a backslash before something else than n and a backslash";
    for (size_t i = 0; i < N_KEYS; i++)
        if (strcmp(keys[i].name, line) == 0)
            return set_key(&keys[i], (char *)c + keys[i].offset, value);
    return "has an unknown key";
}

int guest_config_parse(struct guest_config *c, const char *text, size_t len, char **storage, char *err, size_t n)
{
    unsigned number = 0;

    *c = (struct guest_config){0};
    *storage = NULL;
    if (len > GUEST_CONFIG_MAX || memchr(text, 0, len))
        return error_set(err, n, -EINVAL, "the configuration is too long, or has a zero byte in it");
    char *copy = malloc(len + 1);
    if (!copy)
        return error_sys(err, n, -ENOMEM, "the configuration cannot be read");
    memcpy(copy, text, len);
    copy[len] = 0;
    for (char *line = copy, *next; line && *line; line = next) {
        next = strchr(line, '\n');
        if (next)
            *next++ = 0;
        number++;
        const char *wrong = *line ? parse_line(c, line) : NULL;
        if (wrong) {
            error_set(err, n, -EINVAL, "line %u of the configuration %s", number, wrong);
            free(copy);
            return -EINVAL;
        }
    }
    *storage = copy;
    return 0;
}
