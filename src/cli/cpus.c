/* CPUs of a virtual machine that runs: how many there are, and are to be. */
#include <stdio.h>

#include "base/error.h"
#include "base/parse.h"
#include "cli/life.h"

#define ANSWER_MS 1500000 /* the VM process itself waits for the guest, for each CPU that goes */

struct cpus_arguments {
    bool json;
};

const struct option_spec cpus_options[] = {
    {.name = "json", .kind = OPTION_FLAG, .offset = offsetof(struct cpus_arguments, json), .help = "print JSON"},
    {0},
};

static int print(const json_t *result, bool json)
{
    json_int_t present = json_integer_value(json_object_get(result, "present"));
    json_int_t possible = json_integer_value(json_object_get(result, "possible"));

    if (json) {
        json_dumpf(result, stdout, JSON_INDENT(2));
        putchar('\n');
    } else {
        printf("%lld of %lld\n", (long long)present, (long long)possible);
    }
    return cli_flush();
}

int cpus_main(const struct command *self, int argc, char **argv)
{
    struct cpus_arguments a = {0};
    struct registry r;
    struct client c;
    char err[ERROR_SIZE];
    json_t *result = NULL;
    uint64_t count = 0;
    int status, operands = life_parse(self, argc, argv, &a, 2, &r, &status);

    if (operands < 0)
        return status;
    if (operands == 0)
        return cli_usage_error(self, "name a virtual machine");
    if (operands == 2 && parse_number(argv[2], 1, UINT32_MAX, &count, err, sizeof err))
        return cli_usage_error(self, err);
    int failed = client_open(&c, &r, argv[1], err, sizeof err);
    c.patience_ms = ANSWER_MS;
    if (!failed)
        failed = client_call(&c, "cpus", count ? json_pack("{s:I}", "count", (json_int_t)count) : NULL, &result, err,
                             sizeof err);
    client_close(&c);
    status = failed ? cli_failed(failed, err) : print(result, a.json);
    json_decref(result);
    return status;
}
