/* metadata.json of an image, and the configuration of a container's image. */
#include <stdint.h>
#include <stdlib.h>

#include "image/import.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct image_info info;
    struct image_process process;
    char err[512];

    /* What is taken can be written and read again. */
    if (metadata_parse((const char *)data, size, &info, err, sizeof err) == 0) {
        struct image_info again;
        char *text = metadata_format(&info, NULL);
        if (!text || metadata_parse(text, strlen(text), &again, err, sizeof err))
            abort();
        free(text);
    }
    if (metadata_process((const char *)data, size, &process, err, sizeof err) == 0)
        image_process_free(&process);
    json_t *config = json_loadb((const char *)data, size, 0, NULL);
    json_decref(config ? oci_process(config) : NULL);
    json_decref(config);
    return 0;
}
