/* Which engine runs a VM. */
#include <string.h>

#include "base/log.h"
#include "vm/vm_int.h"

/* In the order in which "auto" tries them. */
static const struct engine_ops *const engines[] = {&engine_kvm, &engine_soft};
#define ENGINES (sizeof engines / sizeof *engines)

/* "NAME" or "NAME,direct=..." */
static bool is_engine(const char *words, const char *name)
{
    size_t n = strlen(name);
    return strncmp(words, name, n) == 0 && (words[n] == 0 || words[n] == ',');
}

enum engine_direct vm_choose_direct(const struct vm_config *config)
{
    static const struct {
        const char *word;
        enum engine_direct direct;
    } modes[] = {{",direct=off", ENGINE_DIRECT_OFF},
                 {",direct=on", ENGINE_DIRECT_ON},
                 {",direct=always", ENGINE_DIRECT_ALWAYS},
                 {",direct=random", ENGINE_DIRECT_RANDOM}};
    const char *said = config->engine ? strchr(config->engine, ',') : NULL;

    for (size_t i = 0; said && i < sizeof modes / sizeof *modes; i++)
        if (strcmp(said, modes[i].word) == 0)
            return modes[i].direct;
    return ENGINE_DIRECT_ON;
}

static const struct engine_ops *choose_auto(char *why, size_t size)
{
    char first[256] = "", reason[256];

    for (size_t i = 0; i < ENGINES; i++) {
        if (engines[i]->probe(reason, sizeof reason)) {
            if (i == 0)
                log_say("running on the %s engine", engines[i]->name);
            else
                log_say("running on the %s engine (%s: %s)", engines[i]->name, engines[0]->name, first);
            return engines[i];
        }
        if (i == 0)
            memcpy(first, reason, sizeof first);
    }
    snprintf(why, size, "no engine works on this host: %s", reason);
    return NULL;
}

const struct engine_ops *vm_choose_engine(const struct vm_config *config, char *why, size_t size)
{
    char reason[256] = "";

    if (config->engine_ops)
        return config->engine_ops;
    if (!config->engine || !strcmp(config->engine, "auto"))
        return choose_auto(why, size);
    for (size_t i = 0; i < ENGINES; i++) {
        if (!is_engine(config->engine, engines[i]->name))
            continue;
        if (engines[i]->probe(reason, sizeof reason))
            return engines[i];
        snprintf(why, size, "the %s engine does not work on this host: %s", config->engine, reason);
        return NULL;
    }
    snprintf(why, size, "there is no engine \"%s\"", config->engine);
    return NULL;
}
