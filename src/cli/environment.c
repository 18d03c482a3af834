#include "cli/environment.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* NAME=VALUE of our own environment, or NULL. */
static char *own(const char *name)
{
    const char *value = getenv(name);
    char *text;

    return value && asprintf(&text, "%s=%s", name, value) >= 0 ? text : NULL;
}

char **environment_make(const struct option_list *given, bool term)
{
    char **list = calloc(given->n + 2, sizeof *list);
    unsigned n = 0;

    if (!list)
        return NULL;
    if (term && (list[n] = own("TERM")))
        n++;
    for (unsigned i = 0; i < given->n; i++) {
        list[n] = strchr(given->value[i], '=') ? strdup(given->value[i]) : own(given->value[i]);
        n += list[n] != NULL;
    }
    return list;
}

void environment_free(char **environment)
{
    for (char **e = environment; e && *e; e++)
        free(*e);
    free(environment);
}
