/* Network cards: --net and --publish. */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/random.h>

#include "backends/net.h"
#include "base/error.h"
#include "base/log.h"
#include "devices/virtio/net.h"
#include "vm/attach.h"
#include "vm/life.h"
#include "vm/record.h"
#include "vm/snapshot.h"

#define CARDS_MAX 8u

/* FNV-1a, 64 bits. */
static uint64_t hash(const char *text, uint64_t h)
{
    for (; *text; text++)
        h = (h ^ (uint8_t)*text) * 0x100000001b3;
    return h;
}

/* The address of a card that was given none.  A VM with a name has one in its record, and others that are made from
 * what tells it from all others: they stay the same.  They are nobody's by law (the second lowest bit of the first
 * byte). */
static void make_mac(const struct vm_config *config, unsigned index, uint8_t mac[6])
{
    const struct vm_record *record = config->life ? config->life->record : NULL;
    uint64_t h = 0xcbf29ce484222325;

    if (record && !index && !net_mac_parse(record->mac, mac, NULL, 0))
        return;
    if (record)
        h = hash(record->uuid, h);
    else if (getrandom(&h, sizeof h, 0) != sizeof h)
        h ^= clock_ns();
    h = (h ^ index) * 0x9e3779b97f4a7c15;
    h ^= h >> 29;
    h *= 0xbf58476d1ce4e5b9;
    h ^= h >> 32;
    mac[0] = 0x52;
    mac[1] = 0x54;
    memcpy(mac + 2, &h, 4);
}

static int attach(struct vm *vm, const char *spec, unsigned index, char *error, size_t n)
{
    static const char *const names[CARDS_MAX] = {"net0", "net1", "net2", "net3", "net4", "net5", "net6", "net7"};
    struct virtio_net_config_words card;

    if (index == CARDS_MAX)
        return error_set(error, n, -E2BIG, "a machine has at most %u network cards", CARDS_MAX);
    bool late = vm->config->restore && vm->config->restore->copy; /* many copies never say a word */
    int r = net_begin(&card.net, spec, vm->loop, late, error, n);
    if (r)
        return r;
    if (!net_mac(card.net, card.mac))
        make_mac(vm->config, index, card.mac);
    r = machine_add(vm->machine, names[index], &virtio_net_class, &card, error, n);
    if (r) {
        net_close(card.net);
        return r;
    }
    memcpy(vm->macs[vm->n_nets], card.mac, sizeof card.mac);
    vm->nets[vm->n_nets++] = card.net;
    if (!vm->publisher && net_can_publish(card.net))
        vm->publisher = card.net;
    return 0;
}

static int publish(struct vm *vm, const char *word, char *error, size_t n)
{
    struct net_publish p;
    int r = net_publish_parse(word, &p, error, n);

    if (r)
        return r;
    bool chosen = !p.host_port;
    r = net_publish_add(vm->publisher, &p, error, n);
    if (!r && chosen)
        log_say("%u.%u.%u.%u:%u leads to the guest's %s port %u", p.ip[0], p.ip[1], p.ip[2], p.ip[3], p.host_port,
                p.udp ? "UDP" : "TCP", p.guest_port);
    return r;
}

int net_cards_ready(struct vm *vm, char *error, size_t n)
{
    int r = 0;

    for (unsigned i = 0; i < vm->n_nets && !r; i++)
        r = net_ready(vm->nets[i], error, n);
    return r;
}

int net_attach_cards(struct vm *vm, char *error, size_t n)
{
    const struct vm_config *c = vm->config;
    unsigned cards = 0;
    int r = 0;

    for (unsigned i = 0; i < c->nets.n && !r; i++)
        if (!net_is_none(c->nets.value[i]))
            r = attach(vm, c->nets.value[i], cards++, error, n);
        else if (c->nets.n > 1)
            r = error_set(error, n, -EINVAL, "the network \"none\" stands alone");
    if (!r && c->publish.n && !c->nets.n)
        r = attach(vm, "user", cards++, error, n); /* a published port wants a network to lead into */
    if (!r && c->publish.n && !vm->publisher)
        r = error_set(error, n, -EINVAL, "a published port needs a network of the kind \"user\"");
    if (!r && c->publish.n && !c->incoming)
        r = net_ready(vm->publisher, error, n);
    for (unsigned i = 0; i < c->publish.n && !r && !c->incoming; i++) /* of one that moves: when it runs */
        r = publish(vm, c->publish.value[i], error, n);
    return r;
}
