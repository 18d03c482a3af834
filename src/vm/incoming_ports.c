/*
 * The ports of the host that lead to a machine which has moved: as they were at the source when it left.  On the same
 * host the source's process has them until it ends, so that each is tried until it is free.
 */
#include <errno.h>
#include <stdlib.h>

#include "base/log.h"
#include "vm/migration_int.h"

#define AGAIN_NS 50000000ull
#define FOR_NS 30000000000ull

struct incoming_ports {
    struct vm *vm;
    struct loop_timer again;
    uint64_t until_ns;
    unsigned n, next;
    struct net_publish ports[];
};

static void try_next(void *opaque);

static void tried(void *opaque, int failed, const struct net_publish *p, const char *why)
{
    struct incoming_ports *all = opaque;

    if (all->vm->ended)
        return;
    if (all->vm->incoming && all->vm->incoming->arriving) /* the source ends when all of the memory is here */
        all->until_ns = clock_ns() + FOR_NS;
    if (failed == -EADDRINUSE && clock_ns() < all->until_ns) {
        loop_timer_set(all->vm->loop, &all->again, clock_ns() + AGAIN_NS);
        return;
    }
    if (failed)
        log_say("port %u of the host does not lead to the guest any more: %s", all->ports[all->next].host_port, why);
    all->next++;
    try_next(all);
}

static void try_next(void *opaque)
{
    struct incoming_ports *all = opaque;
    char err[256];

    while (all->next < all->n &&
           net_publish_ask(all->vm->publisher, &all->ports[all->next], true, tried, all, err, sizeof err)) {
        log_say("port %u of the host does not lead to the guest any more: %s", all->ports[all->next].host_port, err);
        all->next++;
    }
}

void incoming_ports_begin(struct vm *vm, const json_t *words)
{
    struct incoming_ports *all = calloc(1, sizeof *all + json_array_size(words) * sizeof *all->ports);

    if (!all || !vm->publisher) {
        free(all);
        return;
    }
    all->vm = vm;
    all->until_ns = clock_ns() + FOR_NS;
    loop_timer_init(&all->again, try_next, all);
    for (size_t i = 0; i < json_array_size(words); i++) {
        const char *word = json_string_value(json_array_get(words, i));
        if (word && net_publish_parse(word, &all->ports[all->n], NULL, 0) == 0 && all->ports[all->n].host_port)
            all->n++;
    }
    vm->incoming_ports = all;
    try_next(all);
}

json_t *moving_ports(const struct vm *vm)
{
    json_t *words = json_array();
    const struct net_publish *p;

    for (unsigned i = 0; vm->publisher && (p = net_published(vm->publisher, i)); i++)
        json_array_append_new(words, json_sprintf("%u.%u.%u.%u:%u:%u/%s", p->ip[0], p->ip[1], p->ip[2], p->ip[3],
                                                  p->host_port, p->guest_port, p->udp ? "udp" : "tcp"));
    return words;
}
