#include "devices/generation.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/random.h>

#include "base/log.h"

struct generation_state {
    uint8_t known; /* the guest's tables tell of it */
    uint8_t pad[7];
};

struct generation {
    struct generation_state saved;
    struct device_env env;
    struct generation_config config;
};

static void write_new(struct generation *g)
{
    uint8_t id[16];

    if (getrandom(id, sizeof id, 0) != sizeof id || dma_write(g->env.bus, GENERATION_ADDRESS, id, sizeof id))
        log_say("the guest gets no new generation ID: there is no randomness");
}

void generation_begin(struct device *dev)
{
    struct generation *g = dev->state;

    g->saved.known = 1;
    write_new(g);
}

void generation_renew(struct device *dev)
{
    struct generation *g = dev->state;

    if (!g->saved.known)
        return;
    write_new(g);
    g->config.notify(g->config.opaque);
}

static int generation_create(struct device *dev, const struct device_env *env, const void *config)
{
    struct generation *g = calloc(1, sizeof *g);

    if (!g)
        return -ENOMEM;
    g->env = *env;
    g->config = *(const struct generation_config *)config;
    dev->state = g;
    return 0;
}

static void generation_reset(struct device *dev)
{
    struct generation *g = dev->state;
    g->saved.known = 0; /* until there are tables again */
}

static void generation_destroy(struct device *dev)
{
    free(dev->state);
    dev->state = NULL;
}

static void generation_restored(struct device *dev)
{
    struct generation *g = dev->state;
    g->saved.known &= 1;
}

const struct device_class generation_class = {
    .type = "generation",
    .create = generation_create,
    .reset = generation_reset,
    .destroy = generation_destroy,
    .save_offset = offsetof(struct generation, saved),
    .save_size = sizeof(struct generation_state),
    .post_restore = generation_restored,
};
