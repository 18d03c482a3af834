/* A chained hash table much larger than the caches: dependent loads, hard to predict. */
/* quick: yes */
#include "bench.h"
#include <stdlib.h>

#define ENTRIES (1u << 17)
#define BUCKETS (1u << 16)
#define LOOKUPS 4000000u

struct entry {
    struct entry *next;
    uint64_t key, value;
};

static uint32_t bucket_of(uint64_t key)
{
    return (uint32_t)(key * 0x9E3779B97F4A7C15ull >> 48);
}

int main(void)
{
    struct entry *entries = malloc(ENTRIES * sizeof *entries);
    struct entry **table = calloc(BUCKETS, sizeof *table);
    uint64_t seed = 2463534242ull, sum = 0, key = 1;
    if (!entries || !table)
        return 1;
    for (uint32_t i = 0; i < ENTRIES; i++) {
        struct entry *e = &entries[next_random(&seed) % ENTRIES];
        while (e->key) /* a free slot, anywhere: neighbours in a chain are far apart in memory */
            e = e + 1 < entries + ENTRIES ? e + 1 : entries;
        struct entry **head = &table[bucket_of(i + 1)];
        *e = (struct entry){.next = *head, .key = i + 1, .value = next_random(&seed)};
        *head = e;
    }
    double start = now();
    for (uint32_t i = 0, n = LOOKUPS * (uint32_t)scale(); i < n; i++) {
        const struct entry *e = table[bucket_of(key)];
        while (e && e->key != key)
            e = e->next;
        if (!e)
            return 1;
        sum += e->value;
        key = (e->value ^ i) % ENTRIES + 1; /* the next key depends on this value */
    }
    report("hash", now() - start, sum);
    return 0;
}
