/* --port NAME=WHERE: the ports of a virtio console. */
#include <ctype.h>
#include <errno.h>
#include <string.h>

#include "backends/chr.h"
#include "base/error.h"
#include "devices/virtio/console.h"
#include "vm/attach.h"

#define CONSOLE_NAME "hvc0"

int ports_check(const char *spec, char *err, size_t n)
{
    size_t len = strcspn(spec, "=");

    if (!spec[len])
        return error_set(err, n, -EINVAL, "'%s' is not a port: write NAME=WHERE, as in log=file:guest.log", spec);
    if (!len || len >= CONSOLE_NAME_MAX)
        return error_set(err, n, -EINVAL, "a port's name has 1 to %u characters", CONSOLE_NAME_MAX - 1);
    for (size_t i = 0; i < len; i++)
        if (!isalnum((unsigned char)spec[i]) && !strchr("._-", spec[i]))
            return error_set(err, n, -EINVAL, "a port's name has letters, digits, '.', '_' and '-', not '%c'", spec[i]);
    return chr_check(spec + len + 1, err, n);
}

static bool is_stdio(const char *where)
{
    return strcmp(where, "stdio") == 0;
}

static int open_port(struct vm *vm, struct console_config *config, char *name, const char *spec, char *error, size_t n)
{
    struct console_port_config *port = &config->ports[config->n_ports];
    size_t len = strcspn(spec, "=");
    const char *where = spec + len + 1;

    memcpy(name, spec, len);
    name[len] = 0;
    *port = (struct console_port_config){.name = name, .console = strcmp(name, CONSOLE_NAME) == 0};
    if (port->console && config->n_ports)
        return error_set(error, n, -EINVAL, "the port " CONSOLE_NAME " must be the first one");
    for (unsigned i = 0; i < config->n_ports; i++)
        if (strcmp(config->ports[i].name, name) == 0)
            return error_set(error, n, -EINVAL, "there are two ports with the name %s", name);
    if (is_stdio(where) && (vm->terminal || (vm->config->serial && is_stdio(vm->config->serial))))
        return error_set(error, n, -EINVAL,
                         "only one of the ports and the serial line can be stdio: for the port %s "
                         "add --serial null",
                         name);
    int err = chr_open(&port->chr, where, vm->loop, error, n);
    if (err)
        return err;
    if (is_stdio(where))
        vm->terminal = port->chr;
    config->n_ports++;
    return 0;
}

int ports_attach(struct vm *vm, char *error, size_t n)
{
    const struct option_list *list = &vm->config->ports;
    char names[CONSOLE_PORTS_MAX][CONSOLE_NAME_MAX];
    struct console_config config = {0};
    int err = 0;

    if (!list->n)
        return 0;
    for (unsigned i = 0; i < list->n && !err; i++)
        err = i == CONSOLE_PORTS_MAX - (strncmp(list->value[0], CONSOLE_NAME "=", 5) != 0)
                  ? error_set(error, n, -E2BIG, "a machine has at most %u ports beside " CONSOLE_NAME,
                              CONSOLE_PORTS_MAX - 1)
                  : open_port(vm, &config, names[i], list->value[i], error, n);
    if (!err)
        err = machine_add(vm->machine, "ports", &virtio_console_class, &config, error, n);
    if (!err)
        return 0;
    while (config.n_ports)
        chr_close(config.ports[--config.n_ports].chr);
    vm->terminal = NULL;
    return err;
}
