/*
 * The software engine's life cycle: what it needs of the host, its vCPUs, the table that engine.h asks for.
 */
#include "engine/soft/soft_int.h"

#include <cpuid.h>
#include <errno.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>

static void dma_dirty(void *opaque, uint64_t gpa, uint64_t len)
{
    struct engine *e = opaque;
    bool any = false;
    for (uint64_t page = gpa >> 12; page <= (gpa + len - 1) >> 12 && page < e->n_pages; page++) {
        if (!e->code_granules[page])
            continue;
        pthread_mutex_lock(&e->dma_lock);
        unsigned max = sizeof(e->dma_pages) / sizeof(e->dma_pages[0]);
        if (e->n_dma < max)
            e->dma_pages[e->n_dma] = page;
        if (e->n_dma <= max)
            e->n_dma++;
        pthread_mutex_unlock(&e->dma_lock);
        any = true;
    }
    for (unsigned i = 0; any && i < e->n_cpus; i++) {
        atomic_fetch_or(&e->vcpus[i]->cpu.request, REQ_FLUSH);
        atomic_store(&e->vcpus[i]->poll, 1);
    }
}

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

/* The host's TSC frequency: as the hypervisor below says, or measured against the clock. */
static uint64_t measure_tsc_khz(void)
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
    while (now.ns - began.ns < 20000000);
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

#define HUGE_PAGE (2ull << 20)

/* All of it is in use all the time, here and there: in huge pages, where the host has some. */
static struct soft_vcpu *vcpu_alloc(void)
{
    uint64_t size = (sizeof(struct soft_vcpu) + HUGE_PAGE - 1) & ~(HUGE_PAGE - 1), want = size + HUGE_PAGE;
    uint8_t *p = mmap(NULL, want, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED)
        return NULL;
    uint64_t head = -(uintptr_t)p & (HUGE_PAGE - 1);
    if (head)
        munmap(p, head);
    if (want - head - size)
        munmap(p + head + size, want - head - size);
    (void)madvise(p + head, size, MADV_HUGEPAGE);
    return (struct soft_vcpu *)(p + head);
}

static void vcpu_free(struct soft_vcpu *v)
{
    munmap(v, (sizeof(*v) + HUGE_PAGE - 1) & ~(HUGE_PAGE - 1));
}

static int vcpu_create(struct engine *e, unsigned i)
{
    struct soft_vcpu *v = vcpu_alloc();
    if (!v)
        return -ENOMEM;
    e->vcpus[i] = v;
    v->engine = e;
    v->cpu.index = i;
    v->cpu.n_cpus = e->n_cpus;
    v->cpu.memory = e->config.memory;
    v->cpu.bus = e->config.bus;
    v->cpu.ops = &soft_cpu_ops;
    v->cpu.cpuid = e->cpuid;
    v->cpu.tsc_khz = e->tsc_khz;
    vcpu_glue(v);
    if (e->config.timing)
        soft_timing_install(v);
    e->amd = soft_is_amd(&v->cpu);
    e->zen5 = soft_is_zen5(&v->cpu);
    fpu_initial(v);
    soft_tlb_init(v);
    v->translator = soft_translator_create(&v->cpu);
    return v->translator ? 0 : -ENOMEM;
}

static void soft_destroy(struct engine *e)
{
    if (!e)
        return;
    for (unsigned i = 0; i < e->n_cpus; i++)
        if (e->vcpus && e->vcpus[i]) {
            soft_translator_destroy(e->vcpus[i]->translator);
            vcpu_free(e->vcpus[i]);
        }
    soft_direct_destroy(e);
    soft_cache_destroy(e);
    cpuid_table_destroy(e->cpuid);
    free(e->vcpus);
    free(e);
}

static int soft_create(struct engine **out, const struct engine_config *config)
{
    struct engine *e = calloc(1, sizeof(*e));
    if (!e)
        return -ENOMEM;
    e->config = *config;
    e->n_cpus = config->n_cpus;
    e->random = config->stress;
    e->xcr0 = host_xcr0();
    soft_xsave_layout(e);
    pthread_mutex_init(&e->dma_lock, NULL);
    e->tsc_khz = measure_tsc_khz();
    e->vcpus = calloc(e->n_cpus, sizeof(*e->vcpus));
    int rc = e->vcpus ? cpuid_table_create(&e->cpuid, e->n_cpus, e->tsc_khz) : -ENOMEM;
    rc = rc ? rc : soft_cache_create(e);
    for (unsigned i = 0; !rc && i < e->n_cpus; i++)
        rc = vcpu_create(e, i);
    if (!rc)
        rc = soft_signals_install();
    if (!rc)
        rc = soft_direct_create(e);
    if (rc) {
        soft_destroy(e);
        return rc;
    }
    config->bus->dma_dirty = dma_dirty;
    config->bus->dma_dirty_opaque = e;
    *out = e;
    return 0;
}

static struct cpu *soft_vcpu_cpu(struct engine *e, unsigned i)
{
    return &e->vcpus[i]->cpu;
}

static void soft_kick(struct engine *e, unsigned i)
{
    atomic_store(&e->vcpus[i]->poll, 1);
    soft_direct_kick(e);
}

void *engine_soft_fpu(struct engine *e, unsigned i)
{
    return e->vcpus[i]->xsave;
}

const struct engine_ops engine_soft = {
    .name = "soft",
    .probe = soft_probe,
    .create = soft_create,
    .destroy = soft_destroy,
    .vcpu = soft_vcpu_cpu,
    .run = soft_run,
    .kick = soft_kick,
    .stats = soft_stats,
};
