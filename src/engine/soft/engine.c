/*
 * The software engine's life cycle: what it needs of the host, its vCPUs, the table that engine.h asks for.
 */
#include "engine/simd_area.h"
#include "engine/soft/soft_int.h"

#include <cpuid.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

#include "base/large_page.h"

static bool host_has(const char *what, char *why, size_t size, bool has)
{
    if (!has && why)
        snprintf(why, size, "this CPU lacks %s, which the software engine needs", what);
    return has;
}

static bool soft_probe(char *why, size_t size)
{
    return host_has("BMI2", why, size, __builtin_cpu_supports("bmi2")) &&
           host_has("SSE4.2", why, size, __builtin_cpu_supports("sse4.2")) &&
           host_has("AVX2", why, size, __builtin_cpu_supports("avx2"));
}

static uint64_t host_xcr0(void)
{
    uint32_t a, d;
    __asm__("xgetbv" : "=a"(a), "=d"(d) : "c"(0));
    return ((uint64_t)d << 32 | a) & 0xe7; /* x87, SSE, AVX, AVX-512 */
}

/* The clock and the TSC at the same moment: of several tries the one in which least time went by between reading
 * the two, for on a busy host that can be milliseconds. */
struct moment {
    uint64_t ns, tsc;
};

static struct moment read_clocks(void)
{
    struct moment m = {0, 0};
    uint64_t least = UINT64_MAX;
    for (unsigned i = 0; i < 16; i++) {
        struct timespec t;
        uint64_t before = __builtin_ia32_rdtsc();
        clock_gettime(CLOCK_MONOTONIC_RAW, &t);
        uint64_t took = __builtin_ia32_rdtsc() - before;
        if (took >= least)
            continue;
        least = took;
        m.ns = (uint64_t)t.tv_sec * 1000000000ull + (uint64_t)t.tv_nsec;
        m.tsc = before + took / 2;
    }
    return m;
}

/* The process's beginning: the time that an engine measures by has mostly gone by when it is made. */
static struct moment began;

__attribute__((constructor)) static void note_beginning(void)
{
    began = read_clocks();
}

/* The host's TSC frequency: as the hypervisor below says, or measured against the clock, for which that takes a while:
 * what is read at both ends is right to 50 ns. */
enum { MEASURED_NS = 20000000, ROUGHLY_NS = 1000000 };

static uint64_t measure_tsc_khz(uint64_t least_ns)
{
    uint32_t a, b, c, d;
    __cpuid(0x40000000, a, b, c, d);
    if (a >= 0x40000010 && a < 0x40000100) {
        __cpuid(0x40000010, a, b, c, d);
        if (a > 100000)
            return a;
    }
    struct moment now;
    do
        now = read_clocks();
    while (now.ns - began.ns < least_ns);
    return (now.tsc - began.tsc) * 1000000 / (now.ns - began.ns);
}

static void vcpu_glue(struct soft_vcpu *v)
{
    v->self = v;
    v->glue_slow = soft_glue_slow;
    v->glue_commit = soft_glue_commit;
    v->glue_helper = soft_glue_helper;
    v->glue_exit = soft_glue_exit;
    v->glue_ibtc_miss = soft_glue_ibtc_miss;
    v->glue_poll = soft_glue_poll;
    v->glue_window = soft_glue_window;
    v->glue_demote = soft_glue_demote;
    v->glue_hot = soft_glue_hot;
}

static void fpu_initial(struct soft_vcpu *v)
{
    v->xsave[0] = 0x7f; /* FCW 037F */
    v->xsave[1] = 0x03;
    v->xsave[24] = 0x80; /* MXCSR 1F80 */
    v->xsave[25] = 0x1f;
}

#define VCPU_SIZE ((sizeof(struct soft_vcpu) + LARGE_PAGE - 1) & ~(LARGE_PAGE - 1))

/* All of it is in use all the time, here and there: in huge pages, where the host has some.  They are written to at
 * once: what is read first is a page of zeroes, which some hosts replace by small ones. */
static struct soft_vcpu *vcpu_alloc(bool lean)
{
    uint8_t *p = large_page_map(VCPU_SIZE, PROT_READ | PROT_WRITE);
    if (p && !lean && madvise(p, VCPU_SIZE, MADV_HUGEPAGE) == 0)
        for (uint64_t i = 0; i < VCPU_SIZE; i += LARGE_PAGE)
            *(volatile uint8_t *)(p + i) = 0;
    return (struct soft_vcpu *)p;
}

static void vcpu_free(struct soft_vcpu *v)
{
    munmap(v, VCPU_SIZE);
}

static int vcpu_create(struct engine *e)
{
    struct soft_vcpu *v = vcpu_alloc(e->config.lean);
    if (!v)
        return -ENOMEM;
    e->vcpu = v;
    v->engine = e;
    v->cpu.index = e->index;
    v->cpu.n_cpus = e->peers->n;
    v->cpu.memory = e->config.memory;
    v->cpu.bus = e->config.bus;
    v->cpu.ops = &soft_cpu_ops;
    v->cpu.cpuid = e->peers->cpuid;
    v->cpu.tsc_khz = e->tsc_khz;
    vcpu_glue(v);
    if (e->config.timing)
        soft_timing_install(v);
    e->amd = soft_is_amd(&v->cpu);
    e->zen5 = soft_is_zen5(&v->cpu);
    fpu_initial(v);
    soft_tlb_init(v, IBTC_LEAST);
    v->translator = soft_translator_create(&v->cpu);
    return v->translator ? 0 : -ENOMEM;
}

static void engine_free(struct engine *e)
{
    if (!e)
        return;
    if (e->vcpu) {
        soft_translator_destroy(e->vcpu->translator);
        vcpu_free(e->vcpu);
    }
    soft_direct_destroy(e);
    soft_cache_destroy(e);
    free(e);
}

/* vCPU i's. */
static int engine_make(struct peers *p, unsigned i, const struct engine_config *config, uint64_t tsc_khz)
{
    struct engine *e = calloc(1, sizeof(*e));
    if (!e)
        return -ENOMEM;
    p->of[i] = e;
    e->config = *config;
    e->index = i;
    e->peers = p;
    e->random = config->stress ? config->stress + i : 0;
    e->xcr0 = host_xcr0();
    soft_xsave_layout(e);
    pthread_mutex_init(&e->asked.lock, NULL);
    e->tsc_khz = tsc_khz;
    e->program = soft_program(config);
    int rc = soft_cache_create(e);
    rc = rc ? rc : vcpu_create(e);
    return rc ? rc : soft_direct_create(e);
}

static void all_free(struct peers *p)
{
    for (unsigned i = 0; i < p->n; i++)
        engine_free(p->of[i]);
    soft_direct_helper_stop(p);
    cpuid_table_destroy(p->cpuid);
    soft_peers_destroy(p);
}

/* The machine's engine is known by that of its first vCPU. */
static void soft_destroy(struct engine *e)
{
    if (e)
        all_free(e->peers);
}

/* What guests that know KVM are offered (cpu/pvsched.c, devices/lapic_pv.c): steal time; and where there are others to
 * wait for, ends of interrupts by memory, wake-ups, TLB flushes of those that do not run, IPIs to many, yielding. */
enum { ONE = 1 << 5, SEVERAL = ONE | 1 << 6 | 1 << 7 | 1 << 9 | 1 << 11 | 1 << 13 };

static int create_table(struct cpuid_table **out, unsigned n_cpus, uint64_t tsc_khz)
{
    int rc = cpuid_table_create(out, n_cpus, tsc_khz);
    if (!rc)
        cpuid_table_show_kvm(*out, n_cpus > 1 ? SEVERAL : ONE);
    return rc;
}

static int soft_show(struct cpuid_table **out, unsigned n_cpus)
{
    return create_table(out, n_cpus, 1000000);
}

static int soft_create(struct engine **out, const struct engine_config *config)
{
    struct peers *p;
    if (config->n_cpus > SOFT_CPUS_MAX)
        return -EINVAL;
    int rc = soft_peers_create(&p, config);
    if (rc)
        return rc;
    const uint64_t tsc_khz = config->tsc_khz ? config->tsc_khz
                                             : measure_tsc_khz(config->boots ? ROUGHLY_NS : MEASURED_NS);
    rc = create_table(&p->cpuid, p->n, tsc_khz);
    for (unsigned i = 0; !rc && i < p->n; i++)
        rc = engine_make(p, i, config, tsc_khz);
    if (!rc)
        rc = soft_signals_install();
    if (rc) {
        all_free(p);
        return rc;
    }
    config->bus->dma_dirty = soft_device_wrote;
    config->bus->dma_dirty_opaque = p;
    *out = p->of[0];
    return 0;
}

/* What had to be read before the machine could be entered took the time that measuring takes. */
static void soft_ready(struct engine *e)
{
    struct peers *p = e->peers;
    const uint64_t tsc_khz = e->config.tsc_khz ? e->config.tsc_khz : measure_tsc_khz(MEASURED_NS);

    cpuid_table_set_tsc(p->cpuid, tsc_khz);
    for (unsigned i = 0; i < p->n; i++)
        p->of[i]->tsc_khz = p->of[i]->vcpu->cpu.tsc_khz = tsc_khz;
}

static struct cpu *soft_vcpu_cpu(struct engine *e, unsigned i)
{
    return &e->peers->of[i]->vcpu->cpu;
}

static void soft_kick(struct engine *e, unsigned i)
{
    e = e->peers->of[i];
    atomic_store(&e->vcpu->poll, 1);
    soft_direct_kick(e);
}

void *engine_soft_fpu(struct engine *e, unsigned i)
{
    return e->peers->of[i]->vcpu->xsave;
}

/* --- snapshots ------------------------------------------------------------------------------------------------ */

_Static_assert(ENGINE_SIMD_MAX <= sizeof((struct soft_vcpu *)0)->xsave, "the area holds it");

static int soft_get_simd(struct engine *e, unsigned i, uint8_t *out)
{
    memcpy(out, e->peers->of[i]->vcpu->xsave, ENGINE_SIMD_MAX);
    return ENGINE_SIMD_MAX;
}

static int soft_set_simd(struct engine *e, unsigned i, const uint8_t *bytes, size_t n)
{
    return simd_area_take(e->peers->of[i]->vcpu->xsave, bytes, n, e->xcr0);
}

static void soft_watch(struct engine *e)
{
    for (unsigned i = 0; i < e->peers->n; i++)
        for (unsigned mmu = 0; mmu < MMU_COUNT; mmu++)
            soft_tlb_flush(e->peers->of[i]->vcpu, mmu, true);
    soft_direct_memory(e->peers);
}

const struct engine_ops engine_soft = {
    .name = "soft",
    .probe = soft_probe,
    .create = soft_create,
    .ready = soft_ready,
    .destroy = soft_destroy,
    .vcpu = soft_vcpu_cpu,
    .run = soft_run,
    .rest = soft_rest,
    .kick = soft_kick,
    .stats = soft_stats,
    .show = soft_show,
    .get_simd = soft_get_simd,
    .set_simd = soft_set_simd,
    .watch = soft_watch,
    .get_code = soft_get_code,
    .set_code = soft_set_code,
    .set_course = soft_set_course,
    .serve_course = soft_course_serve,
};
