#include "base/sections.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

static int grow(struct sections *s)
{
    unsigned room = s->room ? 2 * s->room : 32;
    struct section *larger = s->n < s->room ? s->all : realloc(s->all, room * sizeof *larger);

    if (!larger)
        return -ENOMEM;
    if (larger != s->all || s->n == s->room)
        s->room = room;
    s->all = larger;
    return 0;
}

static int add(struct sections *s, const char *kind, const char *name, uint32_t version, const void *bytes, size_t size)
{
    if (strlen(kind) >= SECTION_KIND_SIZE || strlen(name) >= SECTION_NAME_SIZE || size > SECTION_BYTES_MAX ||
        s->n == SECTIONS_MAX)
        return -E2BIG;
    int err = grow(s);
    uint8_t *copy = err ? NULL : malloc(size ? size : 1);

    if (!copy)
        return -ENOMEM;
    if (size)
        memcpy(copy, bytes, size);
    struct section *one = &s->all[s->n++];
    *one = (struct section){.version = version, .size = (uint32_t)size, .bytes = copy};
    memcpy(one->kind, kind, strlen(kind));
    memcpy(one->name, name, strlen(name));
    return 0;
}

int sections_add(struct sections *s, const char *kind, const char *name, uint32_t version, const void *bytes,
                 size_t size)
{
    int err = add(s, kind, name, version, bytes, size);

    if (err && !s->failed)
        s->failed = err;
    return err;
}

const struct section *sections_find(const struct sections *s, const char *kind, const char *name)
{
    for (unsigned i = 0; i < s->n; i++)
        if (strcmp(s->all[i].kind, kind) == 0 && strcmp(s->all[i].name, name) == 0)
            return &s->all[i];
    return NULL;
}

void sections_free(struct sections *s)
{
    while (s->n)
        free(s->all[--s->n].bytes);
    free(s->all);
    *s = (struct sections){0};
}
