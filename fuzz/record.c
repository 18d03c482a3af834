/* vm.json: any bytes are a file; what is taken can be written, and then says the same. */
#include <errno.h>
#include <stdio.h>

#include "base/error.h"
#include "fixture.h"
#include "vm/record.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct vm_record first, second;
    char err[ERROR_SIZE] = "";

    if (record_parse(&first, (const char *)data, size, err, sizeof err)) {
        assert_true(err[0]);
        return 0;
    }
    char *text = record_format(&first), *again;
    assert_true(text);
    assert_int_equal(record_parse(&second, text, strlen(text), err, sizeof err), 0);
    again = record_format(&second);
    assert_true(again && !strcmp(text, again));
    free(text);
    free(again);
    record_free(&first);
    record_free(&second);
    return 0;
}
