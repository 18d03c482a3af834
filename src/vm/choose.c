/* Which engine runs a VM. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>

#include "base/error.h"
#include "base/file.h"
#include "base/log.h"
#include "base/path.h"
#include "memory/faults.h"
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

static const struct engine_ops *find_engine(const char *words)
{
    for (size_t i = 0; i < ENGINES; i++)
        if (is_engine(words, engines[i]->name))
            return engines[i];
    return NULL;
}

const char *vm_engine_again(const char *configured, const char *last)
{
    if (configured && strcmp(configured, "auto"))
        return configured;
    for (size_t i = 0; last && i < ENGINES; i++)
        if (strcmp(last, engines[i]->name) == 0)
            return engines[i]->name;
    return engine_soft.name; /* what an older guise could save */
}

bool vm_guest_can_wait(const char *engine)
{
    return strcmp(engine, engine_kvm.name) != 0 || memory_faults_are_possible(true);
}

int vm_engine_check(const char *words, unsigned n_cpus, const uint8_t *shown, size_t size, const char *where, char *err,
                    size_t n)
{
    const struct engine_ops *engine = find_engine(words);
    struct cpuid_table *ours;
    char why[256];

    if (!engine || !engine->probe(why, sizeof why))
        return error_set(err, n, -ENOTSUP, "the %s engine, which it runs on, does not work on %s: %s", words, where,
                         engine ? why : "there is no such engine");
    if (engine->show(&ours, n_cpus))
        return 0; /* the machine will look again */
    bool fits = cpuid_check(ours, shown, size, why, sizeof why);
    cpuid_table_destroy(ours);
    return fits ? 0 : error_set(err, n, -ENOTSUP, "%s's CPU %s, unlike the one that its guest was shown", where, why);
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

/* --- a /dev/kvm that is of no use ---------------------------------------------------------------------------
 *
 * To find that out takes 20 ms each time: so it is written down, in the runtime directory, which does not outlive the
 * host's boot, with the time of the device's inode, which is made anew with KVM's module.  For an hour: a host that was
 * only too busy for the probe is to get its KVM back.
 *
 *      SECONDS.NANOSECONDS REASON
 *
 * Hidden, since it is no machine's: whoever looks what machines have left there does not find it.
 */
#define NOTE_MAX 512
#define NOTE_SECONDS 3600

static bool note_path(char *path, size_t size)
{
    char directory[128], err[ERROR_SIZE];

    return !path_runtime(directory, sizeof directory, err, sizeof err) &&
           (size_t)snprintf(path, size, "%s/.kvm-of-no-use", directory) < size;
}

static bool device_stamp(char *stamp, size_t size)
{
    struct stat st;

    if (stat("/dev/kvm", &st))
        return false;
    snprintf(stamp, size, "%lld.%09ld ", (long long)st.st_ctim.tv_sec, st.st_ctim.tv_nsec);
    return true;
}

static bool is_fresh(const char *path)
{
    struct stat st;
    time_t now = time(NULL);

    return stat(path, &st) == 0 && st.st_mtime <= now && now - st.st_mtime < NOTE_SECONDS;
}

static bool known_as_useless(char *why, size_t size)
{
    char path[256], stamp[64], err[ERROR_SIZE], *note = NULL;
    size_t length;

    if (!device_stamp(stamp, sizeof stamp) || !note_path(path, sizeof path) || !is_fresh(path) ||
        file_read(path, NOTE_MAX, &note, &length, err, sizeof err))
        return false;
    bool same = length > strlen(stamp) && strncmp(note, stamp, strlen(stamp)) == 0;
    if (same)
        snprintf(why, size, "%.*s", (int)(length - strlen(stamp)), note + strlen(stamp));
    free(note);
    return same;
}

static void note_as_useless(const char *why)
{
    char path[256], note[NOTE_MAX], err[ERROR_SIZE];

    if (!device_stamp(note, sizeof note) || !note_path(path, sizeof path))
        return;
    strncat(note, why, sizeof note - strlen(note) - 1);
    (void)file_write(path, note, strlen(note), 0600, err, sizeof err);
}

static bool works(const struct engine_ops *engine, char *why, size_t size)
{
    if (engine != &engine_kvm)
        return engine->probe(why, size);
    if (known_as_useless(why, size))
        return false;
    if (engine->probe(why, size))
        return true;
    note_as_useless(why);
    return false;
}

static const struct engine_ops *choose_auto(char *why, size_t size)
{
    char first[256] = "", reason[256];

    for (size_t i = 0; i < ENGINES; i++) {
        if (works(engines[i], reason, sizeof reason)) {
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
    const struct engine_ops *engine = find_engine(config->engine);
    if (!engine)
        snprintf(why, size, "there is no engine \"%s\"", config->engine);
    else if (engine->probe(reason, sizeof reason))
        return engine;
    else
        snprintf(why, size, "the %s engine does not work on this host: %s", config->engine, reason);
    return NULL;
}
