/*
 * What two hosts have in common may be at one path on the one and at another on the other: `guise receive --map
 * FROM=TO`.  Each word of a machine that comes, and begins with the path FROM, begins with TO here.
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "base/error.h"
#include "cli/receive_int.h"

/* A path, without what ends one in the words of an option; its length, or 0. */
static size_t path_length(const char *text, const char *end)
{
    size_t length = (size_t)(end - text);

    if (text[0] != '/' || memchr(text, ',', length) || memchr(text, ':', length))
        return 0;
    while (length > 1 && text[length - 1] == '/')
        length--;
    return length;
}

int receive_map_check(const char *map, char *err, size_t n)
{
    const char *equals = strchr(map, '=');

    if (!equals || !path_length(map, equals) || !path_length(equals + 1, equals + strlen(equals)) ||
        strchr(equals + 1, '='))
        return error_set(err, n, -EINVAL,
                         "FROM=TO is two full paths, without commas, colons and equals signs, not '%s'", map);
    return 0;
}

/* A new string, or NULL: it does not begin with that path. */
static json_t *map_text(const char *text, const char *map)
{
    const char *equals = strchr(map, '='), *to = equals + 1;
    size_t from = path_length(map, equals), length = path_length(to, to + strlen(to));

    if (strncmp(text, map, from) != 0 || (text[from] && !strchr("/,:", text[from]) && from > 1))
        return NULL;
    const char *rest = text + from - (from == 1); /* below the root each path goes on with the slash that FROM is */
    return json_sprintf("%.*s%s", (int)(length > 1 || !rest[0] ? length : 0), to, rest);
}

static json_t *map_word(const struct option_list *maps, const json_t *word)
{
    json_t *mapped = NULL;

    for (unsigned i = 0; i < maps->n && !mapped && json_is_string(word); i++)
        mapped = map_text(json_string_value(word), maps->value[i]);
    return mapped;
}

static void map_member(const struct option_list *maps, json_t *object, const char *key)
{
    json_t *mapped = map_word(maps, json_object_get(object, key));

    if (mapped)
        json_object_set_new(object, key, mapped);
}

void receive_map(const struct option_list *maps, json_t *hello)
{
    json_t *machine = json_object_get(hello, "machine"), *options = json_object_get(machine, "options"), *value,
           *mapped;
    const char *key;
    void *next;
    size_t i;

    map_member(maps, machine, "directory");
    map_member(maps, json_object_get(hello, "storage"), "own");
    json_object_foreach_safe(options, next, key, value)
    {
        if (json_is_string(value)) {
            map_member(maps, options, key);
            continue;
        }
        json_array_foreach(value, i, mapped)
        {
            mapped = map_word(maps, mapped);
            if (mapped)
                json_array_set_new(value, i, mapped);
        }
    }
}
