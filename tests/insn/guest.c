/*
 * Backend: a bare machine of 16 MiB run by an engine.
 *
 * No devices and no firmware: page tables, GDT, IDT and TSS are written into RAM here, the vCPU is
 * put straight into 64-bit mode, and every vector's handler is one HLT on its own stack (IST 1):
 * what the handler's frame and the vCPU's registers say afterwards is the result.
 *
 *      gpa 0x001000  page tables
 *          0x080000  GDT        0x081000  IDT      0x082000  TSS
 *          0x083000  handlers   0x084000  their stack
 *          0x100000  the arena (regions of insn.h): user pages at CPL3, supervisor pages at CPL0
 */
#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "../no_irq.h"
#include "bus/bus.h"
#include "engine/engine.h"
#include "engine/soft/soft.h"
#include "insn.h"
#include "memory/memory.h"

#define SYSTEM_GVA 0xffffffff80000000ull /* + gpa, for the system pages */
#define TABLES_GPA 0x1000u
#define GDT_GPA 0x80000u
#define IDT_GPA 0x81000u
#define TSS_GPA 0x82000u
#define STUB_GPA 0x83000u
#define STACK_GPA 0x84000u
#define ARENA_GPA 0x100000u
#define RAM_SIZE (16u << 20)
#define STUB_SPACING 16

struct guest {
    const struct engine_ops *ops;
    struct engine *engine;
    struct memory *memory;
    struct bus *bus;
    struct cpu *cpu;
    uint8_t *fpu;
    const struct xstate_layout *layout;
    struct arena_view view;
    uint64_t next_table;
    uint64_t cr3[2]; /* for CPL0, CPL3 */
    unsigned cpl;
    const struct test *loaded; /* whose code is in the code pages */
    uint64_t runs;
    _Atomic uint64_t serial; /* of the test that runs; the watchdog compares it with what it saw before */
};

/* ---- the machine's tables ------------------------------------------------------------------------------ */
static uint64_t *ram64(struct guest *g, uint64_t gpa)
{
    return (uint64_t *)(g->memory->base + gpa);
}

static void map_page(struct guest *g, uint64_t cr3, uint64_t gva, uint64_t gpa, uint64_t bits)
{
    uint64_t table = cr3;
    for (unsigned shift = 39; shift > 12; shift -= 9) {
        uint64_t *e = ram64(g, table) + (gva >> shift & 511);
        if (!(*e & PTE_P)) {
            *e = g->next_table | PTE_P | PTE_W | PTE_U | PTE_A;
            g->next_table += PAGE;
        }
        table = *e & ~0xfffull;
    }
    ram64(g, table)[gva >> 12 & 511] = gpa | bits | PTE_P | PTE_A | PTE_D;
}

static void build_paging(struct guest *g, unsigned user)
{
    uint64_t cr3 = g->cr3[user] = g->next_table;
    g->next_table += PAGE;
    for (uint64_t gpa = GDT_GPA; gpa <= STACK_GPA; gpa += PAGE)
        map_page(g, cr3, SYSTEM_GVA + gpa, gpa, PTE_W);
    for (unsigned n = 0; n < N_REGIONS; n++)
        for (unsigned k = 0; k < regions[n].pages; k++)
            map_page(g, cr3, regions[n].gva + k * PAGE, ARENA_GPA + (regions[n].arena_page + k) * PAGE,
                     (user ? PTE_U : 0) | (regions[n].access == REGION_RW ? PTE_W : 0) |
                         (regions[n].access == REGION_RX ? 0 : PTE_NX));
}

static void build_tables(struct guest *g)
{
    /* The selectors that Linux gives user programs, 0x33, 0x23 and 0x2b, and a kernel's. */
    uint64_t *gdt = ram64(g, GDT_GPA), tss = SYSTEM_GVA + TSS_GPA;
    gdt[4] = 0x00cffb000000ffff; /* 32-bit user code */
    gdt[2] = 0x00af9b000000ffff, gdt[3] = 0x00cf93000000ffff;
    gdt[5] = 0x00cff3000000ffff, gdt[6] = 0x00affb000000ffff;
    gdt[8] = 0x67 | (tss & 0xffffff) << 16 | 0x8bull << 40 | (tss >> 24 & 0xff) << 56;
    gdt[9] = tss >> 32;
    uint64_t stack = SYSTEM_GVA + STACK_GPA + PAGE;
    memcpy(g->memory->base + TSS_GPA + 4, &stack, 8);  /* RSP0 */
    memcpy(g->memory->base + TSS_GPA + 36, &stack, 8); /* IST1 */
    for (unsigned v = 0; v < 256; v++) {
        uint64_t to = SYSTEM_GVA + STUB_GPA + v * STUB_SPACING;
        uint64_t *gate = ram64(g, IDT_GPA + v * 16);
        gate[0] = (to & 0xffff) | 0x10u << 16 | 1ull << 32 | (v == 3 || v == 4 ? 0xeeull : 0x8eull) << 40 |
                  (to >> 16 & 0xffff) << 48;
        gate[1] = to >> 32;
        g->memory->base[STUB_GPA + v * STUB_SPACING] = 0xf4; /* hlt */
    }
}

static uint16_t code_selector(const struct guest *g, const struct test *t)
{
    return t && t->compat ? t->seg[IN_CS] : g->cpl == 3 ? 0x33 : 0x10;
}

static uint16_t stack_selector(const struct guest *g, const struct test *t)
{
    return t && t->compat ? t->seg[IN_SS] : g->cpl == 3 ? 0x2b : 0x18;
}

static struct segment hidden_part(uint16_t selector)
{
    struct segment_in s = segment_in(selector);
    return (struct segment){selector, s.attr, s.limit, s.base};
}

/* t NULL: 64-bit code. */
static void set_cpl(struct guest *g, unsigned cpl, const struct test *t)
{
    struct cpu *c = g->cpu;
    bool user = cpl == 3, compat = t && t->compat;
    g->cpl = cpl;
    c->seg[CS] = (struct segment){code_selector(g, t), user ? 0xafb : 0xa9b, 0xffffffff, 0};
    c->seg[DS] = c->seg[ES] = (struct segment){0};
    c->seg[SS] = (struct segment){stack_selector(g, t), user ? 0xcf3 : 0xc93, 0xffffffff, 0};
    for (unsigned n = 0; n < 6 && compat; n++)
        c->seg[n] = hidden_part(t->seg[n]);
    c->cpl = (uint8_t)cpl;
}

static void init_cpu(struct guest *g)
{
    struct cpu *c = g->cpu;
    c->cr0 = CR0_PE | CR0_MP | CR0_ET | CR0_NE | CR0_WP | CR0_AM | CR0_PG;
    c->cr4 = CR4_PAE | CR4_OSFXSR | CR4_OSXMMEXCPT | CR4_FSGSBASE | CR4_OSXSAVE | CR4_UMIP | CR4_SMEP | CR4_SMAP;
    c->efer = EFER_SCE | EFER_LME | EFER_LMA | EFER_NXE;
    c->xcr0 = g->layout->bits;
    c->gdtr = (struct descriptor_table){SYSTEM_GVA + GDT_GPA, 0x4f};
    c->idtr = (struct descriptor_table){SYSTEM_GVA + IDT_GPA, 0xfff};
    c->tr = (struct segment){0x40, 0x8b, 0x67, SYSTEM_GVA + TSS_GPA};
    for (unsigned n = 0; n < 6; n++)
        if (n != CS && n != SS)
            c->seg[n] = (struct segment){0};
    c->irq = &no_irq;
    c->halted = c->wait_sipi = 0;
}

/* Called once before the tests of a privilege level: the paging state was changed behind the engine. */
static void enter_level(struct guest *g, unsigned cpl)
{
    struct cpu *c = g->cpu;
    c->cr3 = g->cr3[cpl == 3];
    set_cpl(g, cpl, NULL);
    if (c->ops && c->ops->tlb_flush_all)
        c->ops->tlb_flush_all(c, true);
    if (c->ops && c->ops->mode_changed)
        c->ops->mode_changed(c);
}

static uint64_t cpu_time_ms(void)
{
    struct timespec t;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return (uint64_t)t.tv_sec * 1000 + (uint64_t)t.tv_nsec / 1000000;
}

/* Ends what does not end by itself: asks the engine to leave a test that takes more than 200 ms of CPU. */
static void *watchdog(void *arg)
{
    struct guest *g = arg;
    uint64_t seen = 0, since = 0;
    for (;;) {
        usleep(100000);
        uint64_t now = atomic_load(&g->serial);
        if (now != seen) {
            seen = now;
            since = cpu_time_ms();
        } else if (now && cpu_time_ms() - since > 200) {
            atomic_fetch_or(&g->cpu->request, REQ_EXIT);
            g->ops->kick(g->engine, 0);
        }
    }
    return NULL;
}

static int open_with(void **ctx, const struct xstate_layout *layout, bool hot)
{
    struct guest *g = calloc(1, sizeof *g);
    if (!g)
        return -ENOMEM;
    g->ops = &engine_soft;
    g->layout = layout;
    int r = memory_create(&g->memory, RAM_SIZE);
    r = r ? r : bus_create(&g->bus, g->memory);
    struct engine_config config = {
        .memory = g->memory, .bus = g->bus, .n_cpus = 1, .precise_flags = !hot, .always_hot = hot};
    r = r ? r : g->ops->create(&g->engine, &config);
    if (r)
        return r;
    g->cpu = g->ops->vcpu(g->engine, 0);
    g->fpu = engine_soft_fpu(g->engine, 0);
    g->next_table = TABLES_GPA;
    build_paging(g, 0);
    build_paging(g, 1);
    build_tables(g);
    init_cpu(g);
    g->view.live = g->memory->base + ARENA_GPA;
    g->view.shadow = malloc(ARENA_PAGES * PAGE);
    g->view.pristine = malloc(ARENA_PAGES * PAGE);
    if (!g->view.shadow || !g->view.pristine)
        return -ENOMEM;
    arena_fill(g->view.live);
    memcpy(g->view.shadow, g->view.live, ARENA_PAGES * PAGE);
    memcpy(g->view.pristine, g->view.live, ARENA_PAGES * PAGE);
    g->cpl = 99;
    *ctx = g;
    pthread_t thread;
    return -pthread_create(&thread, NULL, watchdog, g);
}

static int guest_open(void **ctx, const struct xstate_layout *layout)
{
    return open_with(ctx, layout, false);
}

static int guest_open_hot(void **ctx, const struct xstate_layout *layout)
{
    return open_with(ctx, layout, true);
}

/* ---- one test --------------------------------------------------------------------------------------------- */
static void code_write(struct guest *g, const struct test *t, bool back)
{
    uint8_t fill[CODE_MAX];
    uint64_t left, done = 0;
    memset(fill, 0xcc, sizeof fill);
    while (done < t->len) {
        int64_t off = arena_offset(t->addr + done, &left);
        uint64_t page_left = PAGE - ((t->addr + done) & (PAGE - 1)), n = t->len - done;
        n = n < page_left ? n : page_left;
        if (off >= 0)
            dma_write(g->bus, ARENA_GPA + (uint64_t)off, (back ? fill : t->code) + done, n);
        done += n;
    }
}

static bool has_error_code(unsigned vector)
{
    return 1u << (vector & 31) & 0x227d00;
}

static void collect(struct guest *g, const struct test *t, struct result *r)
{
    struct cpu *c = g->cpu;
    uint64_t stub = c->rip - (SYSTEM_GVA + STUB_GPA);
    if (stub >= 256 * STUB_SPACING || stub % STUB_SPACING > 1) {
        r->status = RUN_ODD;
        snprintf(r->note, sizeof r->note, "halted at %#llx, not in a handler", (unsigned long long)c->rip);
        return;
    }
    r->vector = (uint8_t)(stub / STUB_SPACING);
    bool error = has_error_code(r->vector);
    const uint64_t *frame = ram64(g, STACK_GPA + PAGE - (error ? 48 : 40));
    r->error = error ? *frame++ : 0;
    memcpy(r->out.gpr, c->gpr, sizeof r->out.gpr);
    r->out.rip = frame[0];
    r->out.rflags = frame[2];
    r->out.gpr[RSP] = frame[3];
    r->out.fs_base = c->seg[FS].base, r->out.gs_base = c->seg[GS].base;
    r->cr2 = r->vector == EXC_PF ? c->cr2 : 0;
    memcpy(r->out.xstate, g->fpu, g->layout->size);
    r->status = RUN_OK;
    if (frame[1] != code_selector(g, t) || frame[4] != stack_selector(g, t)) {
        r->status = RUN_ODD;
        snprintf(r->note, sizeof r->note, "frame holds cs %#llx ss %#llx", (unsigned long long)frame[1],
                 (unsigned long long)frame[4]);
    }
}

/* The same bytes as before stay, so that a translation is run again with another state. */
static void load_code(struct guest *g, const struct test *t)
{
    const struct test *old = g->loaded;
    if (old && old->addr == t->addr && old->len == t->len && !memcmp(old->code, t->code, t->len)) {
        g->loaded = t;
        return;
    }
    if (old)
        code_write(g, old, true);
    code_write(g, t, false);
    g->loaded = t;
}

static void run_test(struct guest *g, const struct test *t, struct result *r)
{
    static const char *const ends[] = {"request", "halt", "shutdown", "error"};
    struct cpu *c = g->cpu;
    char error[256] = "";
    arena_prepare(&g->view, t);
    load_code(g, t);
    if (t->seed % 8 == 0 && c->ops && c->ops->tlb_flush_all) /* misses take another way than hits */
        c->ops->tlb_flush_all(c, true);
    memcpy(c->gpr, t->in.gpr, sizeof c->gpr);
    c->rip = t->in.rip;
    c->rflags = (uint32_t)t->in.rflags;
    c->cr2 = 0, c->halted = 0, c->irq_shadow = 0, c->nmi_blocked = 0, c->delivering = 0;
    set_cpl(g, g->cpl, t);
    if (!t->compat) {
        c->seg[FS] = (struct segment){.base = t->in.fs_base};
        c->seg[GS] = (struct segment){.base = t->in.gs_base};
    }
    memcpy(g->fpu, t->in.xstate, 464); /* not the words beyond, which are the engine's or reserved */
    memcpy(g->fpu + 512, t->in.xstate + 512, g->layout->size - 512);
    memset(r, 0, offsetof(struct result, diff));
    r->note[0] = 0;
    uint64_t serial = ++g->runs;
    atomic_store(&g->serial, serial);
    enum engine_exit exit = g->ops->run(g->engine, 0, error);
    atomic_store(&g->serial, 0);
    atomic_fetch_and(&c->request, ~(uint32_t)REQ_EXIT);
    if (exit == ENGINE_EXIT_HALT) {
        collect(g, t, r);
    } else {
        r->status = exit == ENGINE_EXIT_REQUEST ? RUN_TIMEOUT : RUN_ODD;
        snprintf(r->note, sizeof r->note, "exit %s at rip %#llx%s%.40s", ends[exit], (unsigned long long)c->rip,
                 *error ? ": " : "", error);
        init_cpu(g); /* the next test begins from known ground */
        build_tables(g);
        enter_level(g, g->cpl);
    }
    arena_collect(&g->view, t, r);
}

static void guest_run(void *ctx, const struct batch *b, struct result *results, uint32_t from, unsigned cpl,
                      volatile uint32_t *progress)
{
    struct guest *g = ctx;
    if (cpl != g->cpl)
        enter_level(g, cpl);
    for (uint32_t n = from; n < b->n; n++) {
        *progress = n;
        if (cpl == 3 || !b->test[n].cpl3_only)
            run_test(g, &b->test[n], &results[n]);
    }
    if (g->loaded) /* the batch is about to change under it */
        code_write(g, g->loaded, true);
    g->loaded = NULL;
}

const struct backend backend_soft_hot = {
    .name = "soft, hot", .has_cpl0 = true, .fast = true, .open = guest_open_hot, .run = guest_run};
const struct backend backend_soft = {
    .name = "soft", .has_cpl0 = true, .hot = &backend_soft_hot, .open = guest_open, .run = guest_run};
