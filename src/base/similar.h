/* "Did you mean": the nearest of some words to one that was mistyped. */
#pragma once
#include <stddef.h>

/* Insertions, deletions, substitutions and swaps of neighbours that lead from one word to the other, at most 99. */
unsigned similar_distance(const char *a, const char *b);

struct similar {
    const char *word; /* what was typed */
    const char *best; /* the nearest so far, kept by reference; NULL: nothing is near enough */
    unsigned distance;
};

/* Looks at one more word; one is near enough when a third of its letters or less is wrong. */
void similar_try(struct similar *s, const char *word);
