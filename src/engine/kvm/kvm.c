/* Making and unmaking a virtual machine of KVM's, and the engine's table of functions. */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "engine/kvm/kvm_int.h"
#include "engine/kvm/probe.h"
#include "memory/memory.h"

/* What the engine cannot do without. */
static const struct {
    int number;
    const char *name;
} capabilities[] = {
    {KVM_CAP_USER_MEMORY, "user memory"},
    {KVM_CAP_SET_TSS_ADDR, "KVM_SET_TSS_ADDR"},
    {KVM_CAP_EXT_CPUID, "KVM_GET_SUPPORTED_CPUID"},
    {KVM_CAP_USER_NMI, "KVM_NMI"},
    {KVM_CAP_VCPU_EVENTS, "KVM_GET_VCPU_EVENTS"},
    {KVM_CAP_DEBUGREGS, "KVM_GET_DEBUGREGS"},
    {KVM_CAP_XCRS, "KVM_GET_XCRS"},
    {KVM_CAP_XSAVE, "KVM_GET_XSAVE"},
    {KVM_CAP_ADJUST_CLOCK, "KVM_GET_CLOCK"},
    {KVM_CAP_IMMEDIATE_EXIT, "immediate exit"},
    {KVM_CAP_X86_USER_SPACE_MSR, "user-space MSRs"},
    {KVM_CAP_X86_MSR_FILTER, "the MSR filter"},
    {KVM_CAP_VCPU_ATTRIBUTES, "vCPU attributes (TSC offset)"},
};

const char *kvm_missing_capability(int vm)
{
    for (unsigned i = 0; i < sizeof(capabilities) / sizeof(capabilities[0]); i++)
        if (ioctl(vm, KVM_CHECK_EXTENSION, capabilities[i].number) <= 0)
            return capabilities[i].name;
    return NULL;
}

/* Between the I/O APIC and local APIC's pages and the firmware: 0xfeffc000 to 0xfeffffff. */
int kvm_set_tss(int vm)
{
    uint64_t identity = 0xfeffc000;
    if (ioctl(vm, KVM_SET_IDENTITY_MAP_ADDR, &identity) || ioctl(vm, KVM_SET_TSS_ADDR, 0xfeffd000ul))
        return -errno;
    return 0;
}

/* MSRs of the local APIC, which lives outside KVM, and those that move the TSC, whose offset struct
 * cpu must know.  (x2APIC's 0x800-0x8ff cannot be filtered; with no APIC in KVM they fail there, and
 * KVM_MSR_EXIT_REASON_INVAL brings them out.) */
static int set_msr_filter(int vm)
{
    static const struct {
        uint32_t index, flags;
    } msrs[] = {
        {0x1b, KVM_MSR_FILTER_READ | KVM_MSR_FILTER_WRITE},
        {0x6e0, KVM_MSR_FILTER_READ | KVM_MSR_FILTER_WRITE},
        {0x3b, KVM_MSR_FILTER_READ | KVM_MSR_FILTER_WRITE},
        {0x10, KVM_MSR_FILTER_WRITE},
    };
    uint8_t none = 0;
    struct kvm_msr_filter filter = {.flags = KVM_MSR_FILTER_DEFAULT_ALLOW};
    struct kvm_enable_cap cap = {
        .cap = KVM_CAP_X86_USER_SPACE_MSR,
        .args[0] = KVM_MSR_EXIT_REASON_INVAL | KVM_MSR_EXIT_REASON_UNKNOWN | KVM_MSR_EXIT_REASON_FILTER,
    };
    for (unsigned i = 0; i < sizeof(msrs) / sizeof(msrs[0]); i++)
        filter.ranges[i] = (struct kvm_msr_filter_range){
            .flags = msrs[i].flags,
            .nmsrs = 1,
            .base = msrs[i].index,
            .bitmap = &none,
        };
    if (ioctl(vm, KVM_ENABLE_CAP, &cap) || ioctl(vm, KVM_X86_SET_MSR_FILTER, &filter))
        return -errno;
    return 0;
}

static int create_vm(struct kvm_engine *e)
{
    e->kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
    if (e->kvm < 0)
        return -errno;
    e->vm = ioctl(e->kvm, KVM_CREATE_VM, 0ul);
    if (e->vm < 0)
        return -errno;
    if (kvm_missing_capability(e->vm))
        return -ENOTSUP;
    int size = ioctl(e->kvm, KVM_GET_VCPU_MMAP_SIZE, 0);
    if (size < (int)sizeof(struct kvm_run))
        return -ENOTSUP;
    e->run_size = (size_t)size;
    int err = kvm_set_tss(e->vm);
    if (!err)
        err = kvm_set_slots(e, false);
    return err ? err : set_msr_filter(e->vm);
}

/* --- what cpu/ asks of an engine: KVM sees the guest's own flushes and writes --------------------- */

static void no_flush_all(struct cpu *cpu, bool globals_too) {}
static void no_flush_page(struct cpu *cpu, uint64_t gva) {}
static void no_flush_pcid(struct cpu *cpu, uint16_t pcid) {}
static void no_address_space(struct cpu *cpu, bool keep) {}
static void no_mode(struct cpu *cpu) {}
static void no_before_write(struct cpu *cpu, uint64_t gpa, uint64_t len) {}

static const struct cpu_engine_ops kvm_cpu_ops = {
    .tlb_flush_all = no_flush_all,
    .tlb_flush_page = no_flush_page,
    .tlb_flush_pcid = no_flush_pcid,
    .address_space_changed = no_address_space,
    .mode_changed = no_mode,
    .before_write = no_before_write,
};

/* --- engine_ops ----------------------------------------------------------------------------------- */

static void destroy_vcpu(struct vcpu *v)
{
    if (!v)
        return;
    if (v->run)
        munmap(v->run, v->engine->run_size);
    if (v->fd >= 0)
        close(v->fd);
    free(v);
}

static int create_vcpu(struct kvm_engine *e, unsigned i)
{
    struct vcpu *v = calloc(1, sizeof(*v));
    if (!v)
        return -ENOMEM;
    e->vcpus[i] = v;
    v->engine = e;
    v->everything = v->paused = true; /* paused: if it is a restored guest's, it was */
    v->fd = ioctl(e->vm, KVM_CREATE_VCPU, (unsigned long)i);
    if (v->fd < 0)
        return -errno;
    v->run = mmap(NULL, e->run_size, PROT_READ | PROT_WRITE, MAP_SHARED, v->fd, 0);
    if (v->run == MAP_FAILED) {
        v->run = NULL;
        return -errno;
    }
    int khz = ioctl(v->fd, KVM_GET_TSC_KHZ, 0);
    if (khz <= 0)
        return -ENOTSUP;
    struct cpu *c = &v->cpu;
    c->index = i;
    c->n_cpus = e->config.n_cpus;
    c->memory = e->config.memory;
    c->bus = e->config.bus;
    c->ops = &kvm_cpu_ops;
    c->tsc_khz = (uint64_t)khz;
    int err = e->cpuid ? 0 : kvm_cpuid_table(&e->cpuid, e->kvm, e->config.n_cpus, c->tsc_khz);
    if (err)
        return err;
    c->cpuid = e->cpuid;
    cpu_reset(c);
    vcpu_find_msrs(v);
    return vcpu_set_cpuid(v);
}

static void kvm_destroy(struct engine *engine)
{
    struct kvm_engine *e = (struct kvm_engine *)engine;
    if (!e)
        return;
    for (unsigned i = 0; e->vcpus && i < e->config.n_cpus; i++)
        destroy_vcpu(e->vcpus[i]);
    free(e->vcpus);
    if (e->config.memory)
        memory_set_writer(e->config.memory, NULL, NULL);
    if (e->cpuid)
        cpuid_table_destroy(e->cpuid);
    if (e->vm >= 0)
        close(e->vm);
    if (e->kvm >= 0)
        close(e->kvm);
    if (e->has_action)
        sigaction(KVM_KICK_SIGNAL, &e->old_action, NULL);
    pthread_mutex_destroy(&e->lock);
    free(e);
}

/* The signal has done its work when it has ended KVM_RUN; ignoring it instead would not end that. */
static void on_kick(int signal) {}

static int kvm_create(struct engine **out, const struct engine_config *config)
{
    struct sigaction action = {.sa_handler = on_kick};
    struct kvm_engine *e = calloc(1, sizeof(*e));
    if (!e)
        return -ENOMEM;
    e->config = *config;
    e->kvm = e->vm = -1;
    pthread_mutex_init(&e->lock, NULL);
    int err = -ENOMEM;
    e->vcpus = calloc(config->n_cpus, sizeof(struct vcpu *));
    if (!e->vcpus)
        goto fail;
    sigaction(KVM_KICK_SIGNAL, &action, &e->old_action);
    e->has_action = true;
    err = create_vm(e);
    for (unsigned i = 0; i < config->n_cpus && !err; i++)
        err = create_vcpu(e, i);
    if (err)
        goto fail;
    memory_set_writer(config->memory, &kvm_writer_ops, e);
    *out = (struct engine *)e;
    return 0;
fail:
    kvm_destroy((struct engine *)e);
    return err;
}

static struct vcpu *vcpu_at(struct engine *engine, unsigned i)
{
    return ((struct kvm_engine *)engine)->vcpus[i];
}

static bool kvm_engine_probe(char *why, size_t size)
{
    return kvm_probe(why, size, NULL);
}

static struct cpu *kvm_vcpu(struct engine *engine, unsigned i)
{
    return &vcpu_at(engine, i)->cpu;
}

static enum engine_exit kvm_run_vcpu(struct engine *engine, unsigned i, char *error)
{
    struct vcpu *v = vcpu_at(engine, i);
    v->error[0] = 0;
    enum engine_exit exit = vcpu_run(v);
    if (exit == ENGINE_EXIT_ERROR)
        memcpy(error, v->error, sizeof(v->error));
    return exit;
}

static void kvm_kick(struct engine *engine, unsigned i)
{
    vcpu_kick(vcpu_at(engine, i));
}

static int kvm_show(struct cpuid_table **out, unsigned n_cpus)
{
    int kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
    int err = kvm < 0 ? -errno : kvm_cpuid_table(out, kvm, n_cpus, 1000000);
    if (kvm >= 0)
        close(kvm);
    return err;
}

static int kvm_get_simd(struct engine *engine, unsigned i, uint8_t *out)
{
    return vcpu_get_simd(vcpu_at(engine, i), out);
}

static int kvm_set_simd(struct engine *engine, unsigned i, const uint8_t *bytes, size_t n)
{
    return vcpu_set_simd(vcpu_at(engine, i), bytes, n);
}

/* It keeps nothing by which it accesses memory: KVM follows the process's own mappings. */
static void kvm_watch(struct engine *engine) {}

static void kvm_stats(struct engine *engine, FILE *out)
{
    struct kvm_engine *e = (struct kvm_engine *)engine;
    for (unsigned i = 0; i < e->config.n_cpus; i++) {
        const struct vcpu *v = e->vcpus[i];
        fprintf(out, "cpu %u: %.3f s in the guest, %.3f s in exits\n", i, (double)v->guest_ns / 1e9,
                (double)v->exit_ns / 1e9);
        fprintf(out, "  %llu entries, %llu interrupts, %llu NMIs, %llu kicks\n", (unsigned long long)v->entries,
                (unsigned long long)v->interrupts, (unsigned long long)v->nmis, (unsigned long long)v->kicks);
        for (unsigned reason = 0; reason < VCPU_EXITS; reason++)
            if (v->exits[reason])
                fprintf(out, "  exit %-20s %llu\n", kvm_exit_name(reason), (unsigned long long)v->exits[reason]);
    }
}

const struct engine_ops engine_kvm = {
    .name = "kvm",
    .probe = kvm_engine_probe,
    .create = kvm_create,
    .destroy = kvm_destroy,
    .vcpu = kvm_vcpu,
    .run = kvm_run_vcpu,
    .kick = kvm_kick,
    .stats = kvm_stats,
    .show = kvm_show,
    .get_simd = kvm_get_simd,
    .set_simd = kvm_set_simd,
    .watch = kvm_watch,
};
