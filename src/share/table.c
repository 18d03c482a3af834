/* Numbers for the guest: an index that is used again, and a count of its uses, so that an old number finds nothing. */
#include <errno.h>
#include <stdlib.h>

#include "share/server_int.h"

#define NONE UINT32_MAX

static int grow(struct id_table *t)
{
    uint32_t allocated = t->allocated ? 2 * t->allocated : 64;
    struct id_slot *slots = reallocarray(t->slots, allocated, sizeof *slots);

    if (!slots)
        return -ENOMEM;
    t->slots = slots;
    t->allocated = allocated;
    return 0;
}

int id_add(struct id_table *t, void *object, uint32_t max, uint64_t *id)
{
    uint32_t i;

    if (t->n == 0)
        t->first_free = NONE;
    if (t->first_free != NONE) {
        i = t->first_free;
        t->first_free = t->slots[i].next_free;
    } else {
        if (t->n >= max)
            return -ENFILE;
        int err = t->n == t->allocated ? grow(t) : 0;
        if (err)
            return err;
        i = t->n++;
        t->slots[i].id = i + 1;
    }
    t->slots[i].object = object;
    *id = t->slots[i].id;
    return 0;
}

void *id_find(const struct id_table *t, uint64_t id)
{
    uint32_t i = (uint32_t)id - 1;

    return i < t->n && t->slots[i].id == id ? t->slots[i].object : NULL;
}

void id_remove(struct id_table *t, uint64_t id)
{
    uint32_t i = (uint32_t)id - 1;

    if (!id_find(t, id))
        return;
    t->slots[i] = (struct id_slot){.id = id + (1ull << 32), .next_free = t->first_free};
    t->first_free = i;
}

void id_free(struct id_table *t)
{
    free(t->slots);
    *t = (struct id_table){0};
}

/* --- as they were ------------------------------------------------------------------------------------------------ */

void id_cut(struct id_table *t, uint32_t n)
{
    t->n = t->n < n ? t->n : n;
    t->first_free = NONE;
}

int id_put(struct id_table *t, uint64_t id, void *object, uint32_t max)
{
    uint32_t i = (uint32_t)id - 1;

    if (i >= max)
        return -EINVAL;
    while (i >= t->allocated) {
        int err = grow(t);
        if (err)
            return err;
    }
    while (t->n <= i)
        t->slots[t->n++] = (struct id_slot){.next_free = NONE};
    if (t->slots[i].object)
        return -EEXIST;
    t->slots[i] = (struct id_slot){.object = object, .id = id};
    return 0;
}

void id_settle(struct id_table *t, uint32_t uses)
{
    t->first_free = NONE;
    for (uint32_t i = t->n; i-- > 0;)
        if (!t->slots[i].object) {
            t->slots[i] = (struct id_slot){.id = (uint64_t)uses << 32 | (i + 1), .next_free = t->first_free};
            t->first_free = i;
        }
}

uint32_t id_uses(const struct id_table *t)
{
    uint32_t uses = 0;

    for (uint32_t i = 0; i < t->n; i++)
        if (t->slots[i].id >> 32 > uses)
            uses = (uint32_t)(t->slots[i].id >> 32);
    return uses;
}
