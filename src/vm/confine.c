#include "vm/confine.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "backends/vsock_host.h"
#include "base/error.h"
#include "base/log.h"
#include "host/keeper.h"
#include "host/sandbox.h"
#include "vm/life.h"

#define DESCRIPTORS 8192u

static bool is(const struct vm *vm, const char *word)
{
    return strcmp(vm->config->sandbox ? vm->config->sandbox : "on", word) == 0;
}

bool vm_is_kvm(const struct vm *vm)
{
    return strcmp(vm->ops->name, "kvm") == 0;
}

enum sandbox_role vm_vcpu_role(const struct vm *vm)
{
    return vm_is_kvm(vm) ? SANDBOX_VCPU_KVM : SANDBOX_VCPU_SOFT;
}

/* --- the keeper -------------------------------------------------------------------------------------------- */

static void add_socket(struct keeper_config *c, const char *path)
{
    if (path && c->n_sockets < KEEPER_SOCKETS_MAX)
        c->sockets[c->n_sockets++] = path;
}

/* The sockets that this configuration makes, by the words that make them. */
static void list_sockets(const struct vm *vm, struct keeper_config *c, struct vsock_host_spec *vsock)
{
    const struct vm_config *config = vm->config;
    const struct option_list *ports = &config->ports;

    for (unsigned i = 0; i < ports->n; i++)
        if (strchr(ports->value[i], '='))
            add_socket(c, chr_socket(strchr(ports->value[i], '=') + 1));
    if (config->serial)
        add_socket(c, chr_socket(config->serial));
    if (config->life)
        add_socket(c, config->life->socket);
    if (config->life && config->incoming)
        add_socket(c, config->life->door);
    if (config->vsock_path && !vsock_host_parse(config->vsock_path, vsock, NULL, 0)) {
        add_socket(c, vsock->path);
        c->prefix = vsock->path;
    }
}

/* What a shell or a program has left open for us without our knowing is no business of a guest's.  Whoever means one
 * for us, as /dev/fd/N, takes no number beyond 1023: those can go at once. */
static void note_inherited(struct vm *vm)
{
    (void)syscall(SYS_close_range, VM_INHERITED_MAX, ~0u, 0);
    for (int fd = 3; fd < VM_INHERITED_MAX; fd++)
        if (fcntl(fd, F_GETFD) >= 0)
            vm->inherited[fd / 64] |= 1ull << fd % 64;
}

static void close_inherited(struct vm *vm)
{
    for (int fd = 3; fd < VM_INHERITED_MAX; fd++)
        if (vm->inherited[fd / 64] >> fd % 64 & 1)
            close(fd);
}

/* The usual 1024 are few: each of a guest's vsock connections is one. */
static void allow_descriptors(void)
{
    struct rlimit l;

    if (getrlimit(RLIMIT_NOFILE, &l) || l.rlim_cur >= DESCRIPTORS)
        return;
    l.rlim_cur = l.rlim_max < DESCRIPTORS ? l.rlim_max : DESCRIPTORS;
    setrlimit(RLIMIT_NOFILE, &l);
}

int vm_confine_prepare(struct vm *vm, char *error, size_t n)
{
    struct keeper_config config = {0};
    struct vsock_host_spec vsock;

    allow_descriptors();
    if (is(vm, "off"))
        return 0;
    if (!vm->config->life) /* whose process has only what it was given */
        note_inherited(vm);
    list_sockets(vm, &config, &vsock);
    return config.n_sockets ? keeper_start(&vm->keeper, &config, error, n) : 0;
}

/* --- the sandbox ---------------------------------------------------------------------------------------------- */

/* Everything, that is. */
static int check(const struct sandbox *s, char *error, size_t n)
{
    for (unsigned i = 0; i < SANDBOX_STEPS; i++)
        if (!sandbox_did(s, i) && i != SANDBOX_ROOT_DIRECTORY)
            return error_set(error, n, -EPERM, "the sandbox is not complete (%s is missing): `guise doctor` says why",
                             sandbox_step_name(i));
    return 0;
}

int vm_confine(struct vm *vm, char *error, size_t n)
{
    const struct sandbox_spec spec = {.role = vm_is_kvm(vm) ? SANDBOX_VM_KVM : SANDBOX_VM_SOFT};

    if (is(vm, "off")) {
        log_say("the sandbox is off: a guest that gets out of guise has all rights of its process");
        return 0;
    }
    int err = vm->keeper ? keeper_seal(vm->keeper) : 0;
    if (err)
        return error_sys(error, n, err, "a helper process of guise has gone");
    close_inherited(vm);
    err = sandbox_enter(&spec, &vm->sandbox, error, n);
    if (!err && is(vm, "require"))
        err = check(vm->sandbox, error, n);
    if (err)
        return err;
    loop_set_sandbox(vm->loop, vm->sandbox);
    if (sandbox_missing(vm->sandbox)[0])
        log_say("%s", sandbox_missing(vm->sandbox));
    return 0;
}
