#include "cli/table.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

int table_init(struct table *t, const char *headings)
{
    char words[256], *save = NULL;
    const char *cells[TABLE_COLUMNS] = {NULL};

    *t = (struct table){0};
    snprintf(words, sizeof words, "%s", headings);
    for (char *w = strtok_r(words, " ", &save); w && t->n_columns < TABLE_COLUMNS; w = strtok_r(NULL, " ", &save))
        cells[t->n_columns++] = w;
    return table_add(t, cells);
}

int table_add(struct table *t, const char *const *cells)
{
    void *larger = realloc(t->rows, (t->n_rows + 1) * sizeof *t->rows);

    if (!larger)
        return -ENOMEM;
    t->rows = larger;
    memset(t->rows[t->n_rows], 0, sizeof *t->rows);
    for (size_t i = 0; i < t->n_columns; i++)
        t->rows[t->n_rows][i] = strdup(cells[i] && *cells[i] ? cells[i] : "-");
    t->n_rows++;
    return 0;
}

static int width(const struct table *t, size_t column)
{
    size_t widest = 0;

    for (size_t i = 0; i < t->n_rows; i++)
        if (t->rows[i][column] && strlen(t->rows[i][column]) > widest)
            widest = strlen(t->rows[i][column]);
    return (int)widest;
}

void table_print(const struct table *t, FILE *out)
{
    int widths[TABLE_COLUMNS] = {0};

    for (size_t c = 0; c + 1 < t->n_columns; c++) /* nothing behind the last column */
        widths[c] = width(t, c);
    for (size_t i = 0; i < t->n_rows; i++)
        for (size_t c = 0; c < t->n_columns; c++)
            fprintf(out, "%-*s%s", widths[c], t->rows[i][c] ? t->rows[i][c] : "?", c + 1 < t->n_columns ? "  " : "\n");
}

void table_free(struct table *t)
{
    for (size_t i = 0; i < t->n_rows; i++)
        for (size_t c = 0; c < t->n_columns; c++)
            free(t->rows[i][c]);
    free(t->rows);
    *t = (struct table){0};
}

const char *table_size(unsigned long long bytes, char *buf, size_t n)
{
    static const char units[] = "BKMGT";
    double value = (double)bytes;
    unsigned i = 0;

    while (value >= 1024 && i < 4) {
        value /= 1024;
        i++;
    }
    snprintf(buf, n, value < 10 && value != (double)(int)value ? "%.1f%c" : "%.0f%c", value, units[i]);
    return buf;
}
