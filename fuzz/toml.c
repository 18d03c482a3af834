/* Configuration files: any bytes are a file; what is taken is text, with names that the grammar allows. */
#include <ctype.h>
#include <errno.h>
#include <stdio.h>

#include "base/error.h"
#include "base/toml.h"
#include "fixture.h"

static void check_name(const char *name)
{
    for (; *name; name++)
        assert_true(isalnum((unsigned char)*name) || *name == '-' || *name == '_');
}

static int take(void *opaque, const struct toml_value *v, char *err, size_t n)
{
    unsigned *left = opaque;

    check_name(v->table);
    check_name(v->key);
    assert_true(v->key[0] && v->line > 0);
    if (v->kind == TOML_BOOLEAN)
        assert_true(!strcmp(v->text, "true") || !strcmp(v->text, "false"));
    if (v->kind == TOML_INTEGER)
        assert_true(v->text[strspn(v->text, "-0123456789")] == 0 && v->text[0]);
    return --*left ? 0 : error_set(err, n, -EINVAL, "enough");
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    char err[ERROR_SIZE] = "";
    unsigned left = 1000;
    int failed = toml_parse((const char *)data, size, take, &left, err, sizeof err);

    assert_true(failed == 0 || failed == -EINVAL);
    assert_true(!failed || !strncmp(err, "line ", 5));
    return 0;
}
