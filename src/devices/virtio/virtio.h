/*
 * Virtio 1.2: split virtqueues and the modern PCI transport.  Section numbers are OASIS virtio-v1.2.
 *
 * A device embeds a struct virtio_device, keeps a struct virtio_state in what it saves, and supplies a
 * const struct virtio_ops.  rng.c is the template.  Guest memory is read once: a descriptor is copied,
 * then checked, then used.  A driver that breaks the rules gets DEVICE_NEEDS_RESET and silence
 * until it resets the device (2.1.1); the first reason is kept in virtio_device.error.
 * All functions: bus lock held.
 */
#pragma once
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "devices/pci/pci.h"

#define VIRTIO_QUEUES_MAX 16u
#define VIRTIO_QUEUE_SIZE_MAX 1024u
#define VIRTIO_CHAIN_MAX 256u /* buffers of one chain; queue sizes may be larger */
#define VIRTIO_NO_VECTOR 0xffffu

enum {
    VIRTIO_F_INDIRECT_DESC = 28,
    VIRTIO_F_EVENT_IDX = 29,
    VIRTIO_F_VERSION_1 = 32,
};
enum {
    VIRTIO_ACKNOWLEDGE = 1,
    VIRTIO_DRIVER = 2,
    VIRTIO_DRIVER_OK = 4,
    VIRTIO_FEATURES_OK = 8,
    VIRTIO_NEEDS_RESET = 64,
    VIRTIO_FAILED = 128,
};

struct virtio_queue_state {
    uint64_t desc, driver, device; /* gpa of the table, the available ring, the used ring */
    uint16_t size, vector, enabled;
    uint16_t last_avail, used; /* free-running indices: next to take, next to give */
    uint16_t signalled;        /* used index at the last interrupt, when signalled_valid */
    uint16_t signalled_valid;
};

/* What is saved of a virtio device: plain bytes. */
struct virtio_state {
    struct pci_state pci;
    uint64_t driver_features;
    uint32_t device_feature_select, driver_feature_select;
    uint16_t config_vector, queue_select;
    uint8_t status, config_generation, isr;
    struct virtio_queue_state queues[VIRTIO_QUEUES_MAX];
};

struct virtio_device;

struct virtio_ops {
    const char *name;
    uint16_t device_id;
    uint32_t class_code;
    uint16_t n_queues, queue_size; /* queue_size: a power of two */
    uint64_t features;             /* the device's own; the ring features are added */
    uint32_t config_size;          /* bytes of device-specific configuration, 0: none */
    void (*config_read)(struct virtio_device *v, uint32_t offset, void *buf, unsigned size);
    void (*config_write)(struct virtio_device *v, uint32_t offset, const void *buf, unsigned size);
    /* The driver says queue q has buffers.  Called only while the device is live. */
    void (*notify)(struct virtio_device *v, unsigned q);
    void (*started)(struct virtio_device *v); /* may be NULL: the driver has set DRIVER_OK */
    void (*reset)(struct virtio_device *v);   /* may be NULL: forget what was in flight */
    /* May be NULL.  true: what was begun before a reset still reaches the guest's memory; until it is false the driver
     * does not see the reset as done (4.1.4.3.2). */
    bool (*busy)(struct virtio_device *v);
};

struct virtio_device {
    struct pci_function pci;
    struct virtio_state *state;
    const struct virtio_ops *ops;
    struct bus *bus;
    uint64_t features;
    uint32_t generation; /* counts resets: a chain taken before one is not returned after it */
    unsigned cfg_window; /* offset of the PCI_CFG capability */
    const char *error;   /* first rule that the driver broke, or NULL */
};

/* --- transport (transport.c) --------------------------------------------------------------------- */
int virtio_init(struct virtio_device *v, struct virtio_state *state, const struct virtio_ops *ops,
                const struct device_env *env);
void virtio_reset(struct virtio_device *v); /* of the whole function, as at power-on */
void virtio_restored(struct virtio_device *v);
void virtio_destroy(struct virtio_device *v);
bool virtio_has(const struct virtio_device *v, unsigned feature);
void virtio_config_changed(struct virtio_device *v);
/* Stops the device until the driver resets it; why: a sentence with static lifetime. */
void virtio_fail(struct virtio_device *v, const char *why);
/* DRIVER_OK, not failed, may reach memory. */
bool virtio_live(const struct virtio_device *v);
void virtio_queue_interrupt(struct virtio_device *v, unsigned q);

/* --- queues (queue.c) ------------------------------------------------------------------------------ */
struct virtio_buffer {
    uint64_t gpa; /* all of [gpa, gpa+len) is RAM, len > 0 */
    uint32_t len;
};

struct virtio_chain {
    uint16_t queue, head;
    uint32_t generation;
    unsigned n_out, n_in; /* device-readable buffers come first in buf, then device-writable */
    uint32_t out_bytes, in_bytes;
    struct virtio_buffer buf[VIRTIO_CHAIN_MAX];
};

/* NULL if the queue's description is right, or the sentence that says what is not (2.7, 2.7.4). */
const char *virtio_queue_check(const struct virtio_device *v, const struct virtio_queue_state *q);

/* Takes the next chain.  1: *chain is it; 0: none; -EINVAL: the driver broke a rule (virtio_fail done). */
int virtio_pop(struct virtio_device *v, unsigned q, struct virtio_chain *chain);
/* Undoes the last virtio_pop of that queue: the chain will come again. */
void virtio_unpop(struct virtio_device *v, const struct virtio_chain *chain);
/* Gives the chain back with `written` bytes in its writable buffers; no effect if reset meanwhile. */
void virtio_push(struct virtio_device *v, const struct virtio_chain *chain, uint32_t written);
/* The same in two steps, for a request answered by several chains that the driver must see at once: each is filled in,
 * `ahead` of the next to give, then all n are given. */
void virtio_fill(struct virtio_device *v, const struct virtio_chain *chain, unsigned ahead, uint32_t written);
void virtio_publish(struct virtio_device *v, unsigned q, unsigned n);
/* Interrupts the driver if it wants to know of what was pushed since the last call. */
void virtio_signal(struct virtio_device *v, unsigned q);
/* Asks to be notified of the next buffer.  true: there is one already, pop again. */
bool virtio_rearm(struct virtio_device *v, unsigned q);

/* Copy between a chain's readable (writable) bytes at `offset` and buf; returns bytes copied. */
size_t virtio_chain_read(struct virtio_device *v, const struct virtio_chain *c, size_t offset, void *buf, size_t len);
size_t virtio_chain_write(struct virtio_device *v, const struct virtio_chain *c, size_t offset, const void *buf,
                          size_t len);

extern const struct device_class virtio_rng_class; /* rng.c; config NULL */
