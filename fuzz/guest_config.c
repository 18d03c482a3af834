/* The configuration that a guest is given: any text is one or an error, and what is one survives being written again.
 */
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "agent/config.h"
#include "base/error.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct guest_config first, second;
    char err[ERROR_SIZE], *storage, *storage2, *text, *text2;
    size_t len, len2;

    if (guest_config_parse(&first, (const char *)data, size, &storage, err, sizeof(err)))
        return 0;
    if (guest_config_format(&first, &text, &len, err, sizeof(err)) == 0) {
        if (guest_config_parse(&second, text, len, &storage2, err, sizeof(err)) ||
            guest_config_format(&second, &text2, &len2, err, sizeof(err)) || len != len2 ||
            memcmp(text, text2, len) != 0)
            abort();
        free(text);
        free(text2);
        free(storage2);
    }
    free(storage);
    return 0;
}
