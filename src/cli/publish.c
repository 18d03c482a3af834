/* Ports of the host that lead into a virtual machine that runs: publish, unpublish. */
#include <stdio.h>
#include <string.h>

#include "base/error.h"
#include "cli/life.h"

#define MOST_PORTS 32

struct publish_arguments {
    bool json;
};

const struct option_spec publish_options[] = {
    {.name = "json",
     .kind = OPTION_FLAG,
     .offset = offsetof(struct publish_arguments, json),
     .help = "print them as JSON"},
    {0},
};
const struct option_spec unpublish_options[] = {{0}};

/* As `--publish` takes it. */
static void print_port(const json_t *p)
{
    const char *ip = json_string_value(json_object_get(p, "host_ip"));
    const char *protocol = json_string_value(json_object_get(p, "protocol"));

    printf("%s:%d:%d%s\n", ip ? ip : "?", (int)json_integer_value(json_object_get(p, "host_port")),
           (int)json_integer_value(json_object_get(p, "guest_port")),
           protocol && strcmp(protocol, "udp") == 0 ? "/udp" : "");
}

static int print_ports(const json_t *ports, bool json)
{
    json_t *p;
    size_t i;

    if (json) {
        json_dumpf(ports, stdout, JSON_INDENT(2));
        putchar('\n');
    } else {
        json_array_foreach(ports, i, p) print_port(p);
    }
    return cli_flush();
}

/* Does `action` for each of words[0..n); what comes back is put into `done`. */
static int each(const struct registry *r, const char *name, const char *action, char **words, int n, json_t *done)
{
    struct client c;
    char err[ERROR_SIZE];
    int failed = client_open(&c, r, name, err, sizeof err);

    for (int i = 0; i < n && !failed; i++) {
        json_t *result = NULL;
        failed = client_call(&c, "publish", json_pack("{s:s, s:s}", "action", action, "port", words[i]), &result, err,
                             sizeof err);
        if (!failed)
            json_array_append_new(done, result);
    }
    client_close(&c);
    return failed ? cli_failed(failed, err) : STATUS_OK;
}

static int list(const struct registry *r, const char *name, bool json)
{
    struct client c;
    char err[ERROR_SIZE];
    json_t *result = NULL;
    int failed = client_open(&c, r, name, err, sizeof err);

    if (!failed)
        failed = client_call(&c, "publish", NULL, &result, err, sizeof err);
    client_close(&c);
    int status = failed ? cli_failed(failed, err) : print_ports(json_object_get(result, "ports"), json);
    json_decref(result);
    return status;
}

int publish_main(const struct command *self, int argc, char **argv)
{
    struct publish_arguments a = {0};
    struct registry r;
    int status, operands = life_parse(self, argc, argv, &a, 1 + MOST_PORTS, &r, &status);

    if (operands < 0)
        return status;
    if (operands == 0)
        return cli_usage_error(self, "name a virtual machine");
    if (operands == 1)
        return list(&r, argv[1], a.json);
    json_t *done = json_array();
    status = each(&r, argv[1], "add", argv + 2, operands - 1, done);
    int printed = print_ports(done, a.json);
    json_decref(done);
    return status != STATUS_OK ? status : printed;
}

int unpublish_main(const struct command *self, int argc, char **argv)
{
    struct registry r;
    int status, operands = life_parse(self, argc, argv, NULL, 1 + MOST_PORTS, &r, &status);

    if (operands < 0)
        return status;
    if (operands < 2)
        return cli_usage_error(self, "name a virtual machine, and the ports: [IP:]HOST:GUEST[/udp]");
    json_t *done = json_array();
    status = each(&r, argv[1], "remove", argv + 2, operands - 1, done);
    json_decref(done);
    return status;
}
