/*
 * virtio-net (virtio 1.2, 5.1): a network card with one pair of queues and a control queue, in front of a backend of
 * backends/net.h.
 *
 * The guest's header is copied once and checked; its payload goes to the backend from where it is, once.
 */
#pragma once
#include "backends/net.h"
#include "devices/device.h"

struct virtio_net_config_words {
    struct net *net; /* the device's from create on; destroy closes it */
    uint8_t mac[6];  /* a card's own, not a group's */
};

extern const struct device_class virtio_net_class; /* config: struct virtio_net_config_words */
