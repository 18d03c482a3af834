/* Configuration files: what is taken, and what is refused with which sentence. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/error.h"
#include "base/toml.h"

static char err[ERROR_SIZE], seen[4096];

/* Writes down what comes, one "table.key=kind:text;" each. */
static int take(void *opaque, const struct toml_value *v, char *e, size_t n)
{
    static const char kinds[] = "sib";
    size_t used = strlen(seen);

    if (strcmp(v->key, "refuse") == 0)
        return error_set(e, n, -EINVAL, "not this one");
    snprintf(seen + used, sizeof seen - used, "%s.%s%s=%c:%s;", v->table, v->key, v->in_array ? "[]" : "",
             kinds[v->kind], v->text);
    return 0;
}

static int parse_bytes(const char *text, size_t len)
{
    /* In a block of exactly its size, so that a byte too far is an error under the sanitizer. */
    char *copy = malloc(len ? len : 1);

    memcpy(copy, text, len);
    seen[0] = err[0] = 0;
    int failed = toml_parse(copy, len, take, NULL, err, sizeof err);
    free(copy);
    return failed;
}

static int parse(const char *text)
{
    return parse_bytes(text, strlen(text));
}

static void what_is_taken(void **state)
{
    static const struct {
        const char *text, *seen;
    } cases[] = {
        {"", ""},
        {"\n\r\n# only a comment", ""},
        {"a = \"x\"", ".a=s:x;"},
        {"a='x\\n'#c\nb=1\n", ".a=s:x\\n;.b=i:1;"},
        {"memory-size_2 = \"512M\"\r\nno-reboot = true\r\n", ".memory-size_2=s:512M;.no-reboot=b:true;"},
        {"a = \"\\b\\t\\n\\f\\r\\e\\\"\\\\\"", ".a=s:\b\t\n\f\r\033\"\\;"},
        {"a = \"\\u00e9\\u20ac\\U0001F600\"", ".a=s:é€😀;"},
        {"a = \"é€😀\"", ".a=s:é€😀;"},
        {"a = +1_000\nb = -0\nc = 0", ".a=i:1000;.b=i:-0;.c=i:0;"},
        {"a = false", ".a=b:false;"},
        {"a = []", ""},
        {"a = [ \"x\", 'y', 3, true, ]", ".a[]=s:x;.a[]=s:y;.a[]=i:3;.a[]=b:true;"},
        {"a = [ # one\n  \"x\", # two\n\n  \"y\"\n] # three\n", ".a[]=s:x;.a[]=s:y;"},
        {"a=1\n[t] # c\na=2\n[ u ]\na=3", ".a=i:1;t.a=i:2;u.a=i:3;"},
        {"1 = 2", ".1=i:2;"},
    };

    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        int failed = parse(cases[i].text);
        if (failed || strcmp(seen, cases[i].seen))
            fail_msg("'%s': %d %s, saw '%s'", cases[i].text, failed, err, seen);
    }
}

static void what_is_refused(void **state)
{
    static const struct {
        const char *text, *sentence;
    } cases[] = {
        {"a", "line 1: behind a a = is missing"},
        {"\n\na =", "line 3: a value is missing"},
        {"a = ", "line 1: a value is missing"},
        {"a = yes", "line 1: a value is \"a text\", a number, true, false or [a list]; texts have quotes"},
        {"a = trueish", "line 1: a value is \"a text\""},
        {"a = 512M", "line 1: numbers are whole and decimal; put anything else into quotes"},
        {"a = 1.5", "line 1: numbers are"},
        {"a = 1_", "line 1: numbers are"},
        {"a = _1", "line 1: a value is"},
        {"a = 01", "line 1: numbers are"},
        {"a = 0x10", "line 1: numbers are"},
        {"a = 1979-05-27", "line 1: numbers are"},
        {"a = -", "line 1: numbers are"},
        {"a = \"x", "line 1: a text is not closed"},
        {"a = 'x\nb = 1", "line 1: a text is not closed"},
        {"a = \"\\", "line 1: a text is not closed"},
        {"a = \"\\x41\"", "line 1: \\x means nothing"},
        {"a = \"\\u12\"", "line 1: \\u wants 4 hexadecimal digits"},
        {"a = \"\\ud800\"", "line 1: there is no such character"},
        {"a = \"\\u0000\"", "line 1: there is no such character"},
        {"a = \"\\U00110000\"", "line 1: there is no such character"},
        {"a = \"\"\"x\"\"\"", "line 1: texts over several lines"},
        {"a = {b = 1}", "line 1: inline tables"},
        {"a = [[1]]", "line 1: lists of lists"},
        {"a = [1 2]", "line 1: in a list a comma or ] is missing"},
        {"a = [1,\n2", "line 2: in a list a comma or ] is missing"},
        {"a = [,]", "line 1: a value is"},
        {"a = 1 b = 2", "line 1: 'b' is one thing too many"},
        {"a.b = 1", "line 1: dotted names are not taken; write [a]"},
        {"\"a\" = 1", "line 1: a name has letters"},
        {"= 1", "line 1: a name has letters"},
        {"[]", "line 1: a name has letters"},
        {"[a", "line 1: a ] is missing"},
        {"[[a]]", "line 1: arrays of tables"},
        {"[a.b]", "line 1: dotted names"},
        {"[a]]", "line 1: ']' is one thing too many"},
        {"a = 1\na = 2", "line 2: the key a is given twice"},
        {"[a]\n[b]\n[a]", "line 3: the table a is given twice"},
        {"a = 1\nb = \"\001\"", "line 2: there is a control character"},
        {"a = 1\r b = 2", "line 1: there is a control character"},
        {"a = \"\xc3\"", "line 1: this is not UTF-8"},
        {"a = \"\xc0\x80\"", "line 1: this is not UTF-8"},
        {"a = \"\xed\xa0\x80\"", "line 1: this is not UTF-8"},
        {"a = \"\xf4\x90\x80\x80\"", "line 1: this is not UTF-8"},
        {"ok = 1\nrefuse = 1", "line 2: not this one"},
        {"a23456789-123456789-123456789-123456789-123456789-123456789-1234 = 1", "line 1: a name is longer"},
    };

    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        int failed = parse(cases[i].text);
        if (failed != -EINVAL || strncmp(err, cases[i].sentence, strlen(cases[i].sentence)))
            fail_msg("'%s': %d, '%s'", cases[i].text, failed, err);
    }
    assert_int_equal(parse_bytes("a = \"\0\"", 7), -EINVAL);
    assert_int_equal(parse_bytes("a = \"\xe2\x82", 7), -EINVAL);
}

/* Every beginning of a text, and every text with one byte changed, ends without harm. */
static void nothing_does_harm(void **state)
{
    static const char text[] = "a = \"\\u00e9x\\n\" # c\r\n[t]\nb = [1, 'two', # c\n true,]\nc = -1_0\n";
    char changed[sizeof text];

    for (size_t len = 0; len < sizeof text; len++)
        parse_bytes(text, len);
    for (size_t at = 0; at < sizeof text - 1; at++) {
        for (int byte = 0; byte < 256; byte++) {
            memcpy(changed, text, sizeof text);
            changed[at] = (char)byte;
            int failed = parse_bytes(changed, sizeof text - 1);
            assert_true(failed == 0 || failed == -EINVAL);
            assert_true(!failed || strncmp(err, "line ", 5) == 0);
        }
    }
    char *many = malloc(200000);
    size_t used = 0;
    for (int i = 0; used < 190000; i++)
        used += (size_t)sprintf(many + used, "k%d = 1\n", i);
    assert_int_equal(parse_bytes(many, used), -EINVAL);
    assert_non_null(strstr(err, "more than 1024"));
    free(many);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_is_taken),
        cmocka_unit_test(what_is_refused),
        cmocka_unit_test(nothing_does_harm),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
