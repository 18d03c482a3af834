/* Room base: what people type, and what they are told. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/error.h"
#include "base/log.h"
#include "base/options.h"
#include "base/parse.h"
#include "base/utf8.h"

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

/* A table that goes on in another: the inner struct lies in the outer one. */
struct outer {
    const char *name, *wait;
    struct values inner;
};
static int no_spaces(const char *text, char *err, size_t n)
{
    return strchr(text, ' ') ? error_set(err, n, -EINVAL, "'%s' has a space", text) : 0;
}
static const struct option_word wait_words[] = {{"boot", 0}, {"agent", 0}, {0}};
static const struct option_spec outer_specs[] = {
    {.name = "name",
     .letter = 'n',
     .kind = OPTION_STRING,
     .offset = offsetof(struct outer, name),
     .value = "NAME",
     .help = "h",
     .check = no_spaces},
    {.name = "await",
     .kind = OPTION_WORD,
     .offset = offsetof(struct outer, wait),
     .value = "WHAT",
     .help = "h",
     .words = wait_words,
     .implied = "agent"},
    {.more = specs, .offset = offsetof(struct outer, inner)},
};

static void a_table_goes_on_in_another(void **state)
{
    char *argv[] = {"command", "-n", "x", "--await", "--size", "2M", "--list", "a", "--await=boot", "op"};
    struct outer v = {0};
    char err[ERROR_SIZE];

    assert_int_equal(options_parse(outer_specs, 10, argv, &v, err, sizeof err), -EINVAL);
    assert_string_equal(err, "--await is given twice");
    v = (struct outer){0};
    char *good[] = {"command", "-n", "x", "--await", "--size", "2M", "--list", "a", "op"};
    assert_int_equal(options_parse(outer_specs, 9, good, &v, err, sizeof err), 1);
    assert_string_equal(good[1], "op");
    assert_string_equal(v.name, "x");
    assert_string_equal(v.wait, "agent");
    assert_int_equal(v.inner.size, 2 << 20);
    assert_string_equal(v.inner.list.value[0], "a");
    assert_int_equal(options_set(outer_specs, "name", "a b", &v, err, sizeof err), -EINVAL);
    assert_string_equal(err, "'a b' has a space");
    assert_int_equal(options_set(outer_specs, "await", "noon", &v, err, sizeof err), -EINVAL);
    assert_int_equal(options_set(outer_specs, "flag", "maybe", &v, err, sizeof err), -EINVAL);
    assert_int_equal(options_set(outer_specs, "text", NULL, &v, err, sizeof err), -EINVAL);
    assert_int_equal(options_set(outer_specs, "nonesuch", "1", &v, err, sizeof err), -ENOENT);
}

/* What options_text says, options_set takes: all values arrive again, and zeroes are left out. */
static void options_survive_as_words(void **state)
{
    const struct outer from = {.name = "n",
                               .wait = "boot",
                               .inner = {.flag = true,
                                         .text = "t t",
                                         .size = 1536ull << 10,
                                         .number = 3,
                                         .ms = 1005,
                                         .choice = 4,
                                         .set = 5,
                                         .list = {.value = {"x", "y"}, .n = 2}}};
    struct outer to = {0};
    struct options_cursor c = {.at = outer_specs};
    const struct option_spec *o;
    char buf[64], kept[16][32], err[ERROR_SIZE];
    const char *text;
    unsigned count = 0;

    while ((o = options_next(&c)))
        for (unsigned i = 0; (text = options_text(&c, o, &from, i, buf, sizeof buf)); i++, count++) {
            assert_true(count < 16);
            snprintf(kept[count], sizeof kept[count], "%s", text);
            text = o->kind == OPTION_FLAG ? NULL : kept[count];
            assert_int_equal(options_set(outer_specs, o->name, text, &to, err, sizeof err), 0);
        }
    assert_int_equal(count, 11);
    assert_string_equal(to.name, "n");
    assert_string_equal(to.wait, "boot");
    assert_true(to.inner.flag);
    assert_string_equal(to.inner.text, "t t");
    assert_null(to.inner.file);
    assert_int_equal(to.inner.size, 1536 << 10);
    assert_int_equal(to.inner.number, 3);
    assert_int_equal(to.inner.ms, 1005);
    assert_int_equal(to.inner.choice, 4);
    assert_int_equal(to.inner.set, 5);
    assert_int_equal(to.inner.list.n, 2);
    assert_string_equal(to.inner.list.value[1], "y");
}

static void who_counts_more_comes_first(void **state)
{
    char *argv[] = {"command", "--list", "a", "--size", "2M", "--flag", "--list", "b"};
    static const char line[] = "line", file[] = "file", other[] = "other";
    struct options_origins origins = {{NULL}};
    struct values v = {.number = 7};
    char err[ERROR_SIZE];

    assert_int_equal(options_parse_by(specs, 8, argv, &v, &origins, line, err, sizeof err), 0);
    assert_int_equal(options_set_by(specs, "list", "c", &v, &origins, file, err, sizeof err), 0);
    assert_int_equal(options_set_by(specs, "size", "4M", &v, &origins, file, err, sizeof err), 0);
    assert_int_equal(options_set_by(specs, "number", "3", &v, &origins, file, err, sizeof err), 0);
    assert_int_equal(options_set_by(specs, "number", "4", &v, &origins, other, err, sizeof err), 0);
    assert_int_equal(options_set_by(specs, "flag", "maybe", &v, &origins, other, err, sizeof err), -EINVAL);
    assert_int_equal(options_set_by(specs, "colour", "x", &v, &origins, other, err, sizeof err), -ENOENT);
    assert_int_equal(v.list.n, 2);
    assert_string_equal(v.list.value[1], "b");
    assert_int_equal(v.size, 2 << 20);
    assert_int_equal(v.number, 3);
    assert_ptr_equal(origins.by[4], file);
    assert_ptr_equal(origins.by[3], line);
    /* A flag that a file sets to false stays so, whatever a file that counts less says. */
    origins = (struct options_origins){{NULL}};
    v.flag = false;
    assert_int_equal(options_set_by(specs, "flag", "false", &v, &origins, file, err, sizeof err), 0);
    assert_int_equal(options_set_by(specs, "flag", "true", &v, &origins, other, err, sizeof err), 0);
    assert_false(v.flag);
}

static void what_is_not_utf8_is_replaced(void **state)
{
    static const struct {
        const char *text, *repaired;
    } cases[] = {
        {"plain", "plain"},
        {"\xc3\xa4 \xe2\x82\xac \xf0\x9f\x98\x80", "\xc3\xa4 \xe2\x82\xac \xf0\x9f\x98\x80"},
        {"cut \xe2\x82", "cut ??"},
        {"\xe4nderung", "?nderung"},
        {"\xc0\xaf \xe0\x80\x80 \xed\xa0\x80 \xf4\x90\x80\x80 \xff", "?? ??? ??? ???? ?"},
        {"\xf0\x9f\x98x\x80", "???x?"},
    };

    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        char text[32];
        strcpy(text, cases[i].text);
        utf8_repair(text);
        assert_string_equal(text, cases[i].repaired);
    }
}

static void messages_have_no_control_characters(void **state)
{
    char line[256] = "";
    int ends[2], before = dup(STDERR_FILENO);

    assert_int_equal(pipe(ends), 0);
    dup2(ends[1], STDERR_FILENO);
    log_say("cannot take %s", "a\033[2Jb\nguise: c\x7f\xc2\x9b"
                              "d \xc3\xa4\xc2\xa0");
    dup2(before, STDERR_FILENO);
    assert_true(read(ends[0], line, sizeof line - 1) > 0);
    assert_string_equal(line, "guise: cannot take a?[2Jb?guise: c???d \xc3\xa4\xc2\xa0\n");
    close(ends[0]);
    close(ends[1]);
    close(before);
}

static void a_number_may_have_a_most(void **state)
{
    struct {
        uint64_t n, most, plain;
    } v = {.n = 1};
    const struct option_spec numbers[] = {
        {.name = "cpus", .kind = OPTION_NUMBER, .offset = 0, .most = 8, .min = 1, .max = 64, .value = "N"},
        {.name = "plain", .kind = OPTION_NUMBER, .offset = 16, .min = 1, .max = 64, .value = "N"},
        {0}};
    static const char *const wrong[] = {
        "2,max=1", "0,max=4", "1,max=65", "1,max=", "1,max", "1,max=2,max=3", ",max=2", "1,2"};
    struct options_cursor c = {.at = numbers};
    char err[256], buf[64];

    assert_int_equal(options_set(numbers, "cpus", "2,max=8", &v, err, sizeof err), 0);
    assert_int_equal(v.n, 2);
    assert_int_equal(v.most, 8);
    assert_string_equal(options_text(&c, options_next(&c), &v, 0, buf, sizeof buf), "2,max=8");
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++)
        assert_int_not_equal(options_set(numbers, "cpus", wrong[i], &v, err, sizeof err), 0);
    assert_int_equal(v.most, 8);
    assert_int_not_equal(options_set(numbers, "plain", "2,max=8", &v, err, sizeof err), 0);
    assert_int_equal(options_set(numbers, "cpus", "3", &v, err, sizeof err), 0);
    assert_int_equal(v.most, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(messages_have_no_control_characters),
        cmocka_unit_test(what_is_not_utf8_is_replaced),
        cmocka_unit_test(a_table_goes_on_in_another),
        cmocka_unit_test(options_survive_as_words),
        cmocka_unit_test(who_counts_more_comes_first),
        cmocka_unit_test(a_number_may_have_a_most),
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
