/* Room base: what people type, and what they are told. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "base/options.h"
#include "base/parse.h"

static void sizes_need_a_unit_and_are_powers_of_1024(void **state)
{
    static const struct {
        const char *text;
        int result;
        uint64_t bytes;
    } cases[] = {
        {"512M", 0, 512ull << 20},
        {"2G", 0, 2ull << 30},
        {"64MiB", 0, 64ull << 20},
        {"1k", 0, 1024},
        {"3t", 0, 3ull << 40},
        {"1gib", 0, 1ull << 30},
        {"0M", 0, 0},
        {"512", -EINVAL, 0},
        {"", -EINVAL, 0},
        {"M", -EINVAL, 0},
        {"512MB", -EINVAL, 0},
        {"-1M", -EINVAL, 0},
        {"+1M", -EINVAL, 0},
        {" 1M", -EINVAL, 0},
        {"1M ", -EINVAL, 0},
        {"1.5G", -EINVAL, 0},
        {"0x10M", -EINVAL, 0},
        {"1MiBs", -EINVAL, 0},
        {"1Mi", -EINVAL, 0},
        {"99999999999999999999G", -ERANGE, 0},
        {"16777216T", -ERANGE, 0},
    };

    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        char err[ERROR_SIZE] = "";
        uint64_t bytes = 0;
        int r = parse_size(cases[i].text, &bytes, err, sizeof(err));
        if (r != cases[i].result || bytes != cases[i].bytes)
            fail_msg("parse_size(\"%s\") = %d, %llu (%s)", cases[i].text, r, (unsigned long long)bytes, err);
        assert_int_equal(r == 0, err[0] == 0);
    }
}

static void a_size_without_a_unit_is_told_what_to_write(void **state)
{
    char err[ERROR_SIZE];
    uint64_t bytes;

    parse_size("512", &bytes, err, sizeof(err));
    assert_string_equal(err, "the size 512 has no unit: write 512M or 512G");
}

static void seconds_have_at_most_three_decimals(void **state)
{
    char err[ERROR_SIZE];
    uint64_t ms = 0;

    assert_int_equal(parse_seconds("10", &ms, err, sizeof(err)), 0);
    assert_int_equal(ms, 10000);
    assert_int_equal(parse_seconds("0.25", &ms, err, sizeof(err)), 0);
    assert_int_equal(ms, 250);
    assert_int_equal(parse_seconds("1.005", &ms, err, sizeof(err)), 0);
    assert_int_equal(ms, 1005);
    assert_int_equal(parse_seconds("0", &ms, err, sizeof(err)), -ERANGE);
    assert_int_equal(parse_seconds("0.0001", &ms, err, sizeof(err)), -EINVAL);
    assert_int_equal(parse_seconds("ten", &ms, err, sizeof(err)), -EINVAL);
    assert_int_equal(parse_seconds("-1", &ms, err, sizeof(err)), -EINVAL);
    assert_int_equal(parse_seconds("99999999999", &ms, err, sizeof(err)), -ERANGE);
}

static void errors_are_cut_not_overrun(void **state)
{
    char small[8];

    memset(small, 'x', sizeof(small));
    assert_int_equal(error_sys(small, sizeof(small), -ENOENT, "a long %s", "sentence"), -ENOENT);
    assert_string_equal(small, "a long ");
    assert_int_equal(error_set(NULL, 0, -EIO, "nobody listens"), -EIO);
    char err[ERROR_SIZE];
    error_sys(err, sizeof(err), -ENOENT, "the file %s cannot be read", "x");
    assert_string_equal(err, "the file x cannot be read: No such file or directory");
}

/* --- options -------------------------------------------------------------------------------------- */

struct values {
    bool flag;
    const char *text, *file;
    uint64_t size, number, ms;
    unsigned choice, set;
    struct option_list list;
};
static const struct option_word colours[] = {{"red", 1}, {"green", 2}, {"blue", 4}, {0}};
static const struct option_spec specs[] = {
    {.name = "flag", .letter = 'f', .kind = OPTION_FLAG, .offset = offsetof(struct values, flag), .help = "a flag"},
    {.name = "text",
     .letter = 't',
     .kind = OPTION_STRING,
     .offset = offsetof(struct values, text),
     .value = "TEXT",
     .help = "h"},
    {.name = "file", .kind = OPTION_FILE, .offset = offsetof(struct values, file), .value = "FILE", .help = "h"},
    {.name = "size",
     .letter = 's',
     .kind = OPTION_SIZE,
     .offset = offsetof(struct values, size),
     .value = "SIZE",
     .help = "h",
     .min = 1 << 20,
     .max = 1ull << 40},
    {.name = "number",
     .kind = OPTION_NUMBER,
     .offset = offsetof(struct values, number),
     .value = "N",
     .min = 1,
     .max = 9,
     .help = "h"},
    {.name = "wait", .kind = OPTION_SECONDS, .offset = offsetof(struct values, ms), .value = "SECONDS", .help = "h"},
    {.name = "choice",
     .kind = OPTION_CHOICE,
     .offset = offsetof(struct values, choice),
     .value = "COLOUR",
     .words = colours,
     .help = "h"},
    {.name = "set",
     .kind = OPTION_SET,
     .offset = offsetof(struct values, set),
     .value = "COLOUR,...",
     .words = colours,
     .help = "h"},
    {.name = "list",
     .letter = 'L',
     .kind = OPTION_LIST,
     .offset = offsetof(struct values, list),
     .value = "ITEM",
     .help = "h"},
    {0},
};

static int parse(const char *line, struct values *v, char **operand, char *err)
{
    static char copy[512];
    char *argv[32] = {"command"}, *save;
    int argc = 1;

    snprintf(copy, sizeof(copy), "%s", line);
    for (char *w = strtok_r(copy, " ", &save); w; w = strtok_r(NULL, " ", &save))
        argv[argc++] = w;
    *v = (struct values){.number = 7};
    err[0] = 0;
    int r = options_parse(specs, argc, argv, v, err, ERROR_SIZE);
    *operand = r > 0 ? argv[1] : NULL;
    return r;
}

static void every_kind_of_option_reaches_its_field(void **state)
{
    struct values v;
    char err[ERROR_SIZE], *operand;
    int r = parse("--flag --text hello one --file=/x -s 2M --wait 1.5 --choice green --set red,blue two", &v, &operand,
                  err);

    assert_int_equal(r, 2);
    assert_string_equal(operand, "one");
    assert_true(v.flag);
    assert_string_equal(v.text, "hello");
    assert_string_equal(v.file, "/x");
    assert_int_equal(v.size, 2 << 20);
    assert_int_equal(v.number, 7);
    assert_int_equal(v.ms, 1500);
    assert_int_equal(v.choice, 2);
    assert_int_equal(v.set, 5);
    assert_int_equal(parse("-ft x --set red --set green", &v, &operand, err), 0);
    assert_int_equal(v.set, 3);
    assert_int_equal(parse("--list one -L two --list=three,four", &v, &operand, err), 0);
    assert_int_equal(v.list.n, 3);
    assert_string_equal(v.list.value[0], "one");
    assert_string_equal(v.list.value[1], "two");
    assert_string_equal(v.list.value[2], "three,four");
    assert_int_equal(parse("--text -- -- --flag", &v, &operand, err), 1);
    assert_string_equal(operand, "--flag");
    assert_false(v.flag);
}

static void wrong_options_are_named_in_the_sentence(void **state)
{
    static const struct {
        const char *line, *sentence;
    } cases[] = {
        {"--colour", "there is no option --colour (or it could mean several)"},
        {"-x", "there is no option -x"},
        {"--text", "--text needs a value (TEXT)"},
        {"-s", "--size needs a value (SIZE)"},
        {"--flag=yes", "--flag takes no value"},
        {"--size 5", "--size: the size 5 has no unit: write 5M or 5G"},
        {"--size 1K", "--size: 1K is not between 1M and 1048576M"},
        {"--number 10", "--number: 10 is not between 1 and 9"},
        {"--number one", "--number: 'one' is not a whole number"},
        {"--choice pink", "--choice: 'pink' is not one of red, green, blue"},
        {"--choice red,blue", "--choice: 'red,blue' is not one of red, green, blue"},
        {"--set red,", "--set: '' is not one of red, green, blue"},
        {"--text a --text b", "--text is given twice"},
    };

    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct values v;
        char err[ERROR_SIZE], *operand;
        assert_int_equal(parse(cases[i].line, &v, &operand, err), -EINVAL);
        assert_string_equal(err, cases[i].sentence);
    }
}

static void help_shows_every_option_once(void **state)
{
    char *text;
    size_t size;
    FILE *f = open_memstream(&text, &size);

    options_help(specs, f);
    fclose(f);
    for (const struct option_spec *o = specs; o->name; o++) {
        char dashed[32];
        snprintf(dashed, sizeof(dashed), "--%s", o->name);
        assert_non_null(strstr(text, dashed));
    }
    assert_non_null(strstr(text, "(red, green, blue)"));
    free(text);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(sizes_need_a_unit_and_are_powers_of_1024),
        cmocka_unit_test(a_size_without_a_unit_is_told_what_to_write),
        cmocka_unit_test(seconds_have_at_most_three_decimals),
        cmocka_unit_test(errors_are_cut_not_overrun),
        cmocka_unit_test(every_kind_of_option_reaches_its_field),
        cmocka_unit_test(wrong_options_are_named_in_the_sentence),
        cmocka_unit_test(help_shows_every_option_once),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
