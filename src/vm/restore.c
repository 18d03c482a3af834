/* Beginning with what a snapshot holds. */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/error.h"
#include "cpu/cpu.h"
#include "memory/memory.h"
#include "vm/fork.h"
#include "vm/life.h"
#include "vm/link.h"
#include "vm/restore_int.h"
#include "vm/shares.h"
#include "vm/snapshot_store.h"

/* Of what a host's time-stamp counter may do; else it is measured. */
#define TSC_KHZ_LEAST 100000
#define TSC_KHZ_MOST 20000000

int restore_open(struct restore *r, const char *path, bool to_run, char *err, size_t n)
{
    const char *slash = strrchr(path, '/');
    char set[PATH_MAX];
    int fd = open(path, O_RDONLY | O_CLOEXEC);

    *r = (struct restore){.file.fd = -1, .set_fd = -1, .code = -1};
    if (fd < 0)
        return error_sys(err, n, -errno, "cannot open the snapshot %s", path);
    snprintf(r->name, sizeof r->name, "%s", path);
    int failed = snapshot_open(&r->file, fd, path, err, n);
    if (failed) {
        restore_close(r);
        return failed;
    }
    /* Where it cannot be kept there is none. */
    if (to_run && slash && snprintf(set, sizeof set, "%.*s/working-set", (int)(slash - path), path) < (int)sizeof set)
        r->set_fd = open(set, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
    return 0;
}

int restore_open_copy(struct restore *r, const int *fds, unsigned count, char *err, size_t n)
{
    *r = (struct restore){
        .file.fd = -1, .set_fd = -1, .code = -1, .copy = true, .name = "the state of the machine that is copied"};
    int failed = snapshot_open(&r->file, fds[0], r->name, err, n);
    if (!failed && count > 1 && fork_has_code(r))
        r->code = fds[--count];
    for (unsigned i = 1; i < count && i <= MEMORY_TEMPLATES_MAX; i++)
        r->templates[r->n_templates++] = fds[i];
    json_t *about = failed ? NULL : snapshot_about(&r->file, r->name, err, n);
    json_int_t khz = json_integer_value(json_object_get(about, "tsc_khz"));
    r->tsc_khz = khz >= TSC_KHZ_LEAST && khz <= TSC_KHZ_MOST ? (uint64_t)khz : 0;
    json_decref(about);
    return failed;
}

void restore_close(struct restore *r)
{
    int fd = r->file.fd;

    while (r->n_templates)
        close(r->templates[--r->n_templates]);

    snapshot_close(&r->file);
    if (fd >= 0)
        close(fd);
    if (r->set_fd >= 0)
        close(r->set_fd);
    if (r->code >= 0)
        close(r->code);
}

/* The engine that it was on, as `about` says; free `about`, not it.  NULL: it does not say. */
static const char *engine_of(const struct restore *r, json_t **about)
{
    char none[1];

    *about = snapshot_about(&r->file, r->name, none, sizeof none);
    return json_string_value(json_object_get(*about, "engine"));
}

static int check_cpu(const struct restore *r, const struct vm_record *record, char *err, size_t n)
{
    const struct section *table = sections_find(&r->file.sections, "cpuid", "table");
    const struct vm_config *config = &record->settings.config;
    char why[ERROR_SIZE];
    json_t *about;

    if (!table)
        return 0;
    const char *engine = vm_engine_again(config->engine, engine_of(r, &about));
    json_decref(about);
    int failed = vm_engine_check(engine, vm_vcpus(config), table->bytes, table->size, "this host", why, sizeof why);
    return failed ? error_set(err, n, failed, "%s cannot be restored here: %s", r->name, why) : 0;
}

int restore_check(const struct restore *r, const struct vm_record *record, char *err, size_t n)
{
    uint64_t memory = (record->settings.config.memory_bytes + 4095) & ~4095ull;

    if (r->file.extent[SNAPSHOT_MEMORY].bytes != memory)
        return error_set(err, n, -EINVAL, "%s has %llu MiB of memory, %s has %llu", r->name,
                         (unsigned long long)r->file.extent[SNAPSHOT_MEMORY].bytes >> 20, record->name,
                         (unsigned long long)memory >> 20);
    return check_cpu(r, record, err, n);
}

void restore_choose_engine(const struct restore *r, struct vm_config *config)
{
    json_t *about;

    config->engine = vm_engine_again(config->engine, engine_of(r, &about));
    json_decref(about);
}

static int load_memory(struct vm *vm, struct restore *r, char *err, size_t n)
{
    uint64_t bytes = r->file.extent[SNAPSHOT_MEMORY].bytes, here = machine_memory(vm->machine)->size;

    if (r->copy)
        return fork_adopt(vm, r, err, n);
    if (bytes != here)
        return error_set(err, n, -EINVAL, "%s has %llu MiB of memory, this machine %llu", r->name,
                         (unsigned long long)bytes >> 20, (unsigned long long)here >> 20);
    int failed = loading_begin(vm, r);
    return failed ? error_sys(err, n, failed, "the memory of %s cannot be set up", r->name) : 0;
}

int snapshot_load_simd(struct vm *vm, const struct sections *in, unsigned *bad)
{
    char name[16];

    for (unsigned i = 0; i < vm_vcpus(vm->config); i++) {
        snprintf(name, sizeof name, "%u", i);
        const struct section *s = sections_find(in, "simd", name);
        *bad = i;
        if (!s || s->version != 1 || vm->ops->set_simd(vm->engine, i, s->bytes, s->size))
            return -EBADMSG;
    }
    return 0;
}

int restore_machine(struct vm *vm, struct restore *r, char *err, size_t n)
{
    char why[ERROR_SIZE] = "";
    unsigned bad;

    int failed = load_memory(vm, r, err, n);
    if (!failed && (failed = snapshot_load_simd(vm, &r->file.sections, &bad)))
        error_set(err, n, failed, "%s is damaged: CPU %u has no SIMD registers, or impossible ones", r->name, bad);
    if (!failed)
        failed = machine_restore(vm->machine, &r->file.sections, why, sizeof why);
    if (!failed)
        failed = shares_load(vm, &r->file.sections, why, sizeof why);
    if (failed && why[0])
        error_set(err, n, failed, "%s cannot be restored here: %s", r->name, why);
    if (!failed && r->copy)
        failed = fork_take_code(vm, r, err, n);
    return failed;
}

int restore_load(struct vm *vm, char *err, size_t n)
{
    if (!vm->loading || memory_is_announced(machine_memory(vm->machine)) || loading_serve(vm))
        return 0;
    return loading_all(vm, err, n);
}

void restore_started(struct vm *vm, const struct restore *r)
{
    char none[1];
    json_t *about = snapshot_about(&r->file, r->name, none, sizeof none);

    machine_new_generation(vm->machine);
    if (vm->loading && (memory_is_announced(machine_memory(vm->machine)) || vm->loading->serves) && loading_start(vm))
        vm_end(vm, VM_FAILED, "cannot start the thread that loads memory");
    life_event(
        vm, r->copy ? "copied" : "restored",
        json_pack("{s:O?, s:O?}", "tag", json_object_get(about, "tag"), "created", json_object_get(about, "created")));
    if (json_is_true(json_object_get(about, "agent")))
        link_restored(vm, r->copy || json_is_true(json_object_get(about, "copy")));
    json_decref(about);
}
