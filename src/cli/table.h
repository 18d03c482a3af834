/* Tables for people: columns as wide as what is in them, two spaces between. */
#pragma once
#include <stddef.h>
#include <stdio.h>

#define TABLE_COLUMNS 10

struct table {
    char *(*rows)[TABLE_COLUMNS];
    size_t n_rows, n_columns;
};

/* `headings`: one word a column, separated by spaces. */
int table_init(struct table *t, const char *headings);
/* Adds a row, of texts that are copied; as many as there are columns.  0 or -ENOMEM. */
int table_add(struct table *t, const char *const *cells);
void table_print(const struct table *t, FILE *out);
void table_free(struct table *t);

/* "512M", "1.5G": a size as short as it goes. */
const char *table_size(unsigned long long bytes, char *buf, size_t n);
