/* modules.dep and its siblings of a stranger's disk: four texts, with a line that is "%" between them. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "image/modules.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    char *text = calloc(1, size + 1), *part[4], *end;
    struct modules m;

    memcpy(text, data, size);
    part[0] = text;
    for (unsigned i = 1; i < 4; i++) {
        end = strstr(part[i - 1], "\n%\n");
        part[i] = end ? end + 3 : part[i - 1] + strlen(part[i - 1]);
        if (end)
            end[1] = 0;
    }
    if (modules_parse(&m, part[0], part[1], part[2], part[3]) == 0) {
        modules_want_all(&m, "ext4");
        modules_want(&m, "a");
        if (m.n_order > m.n_entries)
            abort();
        modules_free(&m);
    }
    free(text);
    return 0;
}
