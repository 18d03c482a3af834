/*
 * Backend: the real CPU.
 *
 * Runs in a child process.  A test is loaded by returning from a signal handler whose frame was
 * rewritten to the test's state, and unloaded by the signal that ends it: one delivery and one
 * sigreturn per test, no trampoline, every register under control.  File-scope state: a signal
 * handler has no other way to find its context; the process runs one thread.
 */
#include <asm/hwcap2.h>
#include <asm/prctl.h>
#include <errno.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <signal.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <ucontext.h>
#include <unistd.h>

#include "insn.h"

static struct native {
    const struct xstate_layout *layout;
    struct arena_view view;
    const struct batch *batch;
    struct result *results;
    volatile uint32_t *progress;
    uint32_t index, seen; /* seen: what the clock saw at its last tick */
    unsigned ticks;
    bool running;
    ucontext_t home;
    uint8_t home_xstate[XSTATE_MAX];
    unsigned long fs_base, gs_base;
    uint16_t fs, gs; /* selectors */
} native;

/* ucontext gregs in the order of enum gpr. */
static const uint8_t greg_of[16] = {REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP, REG_RSI, REG_RDI,
                                    REG_R8,  REG_R9,  REG_R10, REG_R11, REG_R12, REG_R13, REG_R14, REG_R15};

/* No stack protector and no SIMD before the FS base is ours again: it holds the canary. */
#define BARE __attribute__((optimize("no-stack-protector"), noinline))

/* ---- the bases of FS and GS ------------------------------------------------------------------------------------ */
/* Without it the kernel keeps bases of its own, which it loads again at each context switch: there the instructions may
 * well execute, but what they write is lost. */
bool fsgsbase_offered(void)
{
    return getauxval(AT_HWCAP2) & HWCAP2_FSGSBASE;
}

static bool bases_by_call;

/* arch_prctl(what, where or value).  The one place from which the sandbox lets it through. */
long native_base_call(int what, unsigned long value);
extern const char native_base_called[];
__asm__(".pushsection .text\n"
        ".hidden native_base_call, native_base_called\n"
        ".globl native_base_call, native_base_called\n"
        "native_base_call: mov $158, %eax\n" /* __NR_arch_prctl */
        "syscall\n"
        "native_base_called: ret\n"
        ".popsection");

BARE static unsigned long fs_base(void)
{
    unsigned long base;
    if (bases_by_call)
        native_base_call(ARCH_GET_FS, (unsigned long)&base);
    else
        __asm__ volatile("rdfsbase %0" : "=r"(base));
    return base;
}

BARE static unsigned long gs_base(void)
{
    unsigned long base;
    if (bases_by_call)
        native_base_call(ARCH_GET_GS, (unsigned long)&base);
    else
        __asm__ volatile("rdgsbase %0" : "=r"(base));
    return base;
}

BARE static void set_fs_base(unsigned long base)
{
    if (bases_by_call)
        native_base_call(ARCH_SET_FS, base);
    else
        __asm__ volatile("wrfsbase %0" ::"r"(base));
}

BARE static void set_gs_base(unsigned long base)
{
    if (bases_by_call)
        native_base_call(ARCH_SET_GS, base);
    else
        __asm__ volatile("wrgsbase %0" ::"r"(base));
}

/* The frame's area keeps bytes 464-511 (the kernel's own words), everything else is exchanged. */
static void xstate_load(uint8_t *frame, const uint8_t *from, uint32_t size)
{
    memcpy(frame, from, 416);
    memcpy(frame + 512, from + 512, size - 512);
}

static void xstate_store(uint8_t *to, const uint8_t *frame, uint32_t size)
{
    memcpy(to, frame, 416);
    memset(to + 416, 0, 96);
    memcpy(to + 512, frame + 512, size - 512);
}

static void code_write(const struct test *t, bool back)
{
    for (unsigned n = 0; n < t->len; n++) {
        int64_t off = arena_offset(t->addr + n, NULL);
        if (off >= 0)
            native.view.live[off] = back ? 0xcc : t->code[n];
    }
}

static void load(ucontext_t *uc)
{
    const struct test *t = &native.batch->test[native.index];
    *native.progress = native.index;
    arena_prepare(&native.view, t);
    code_write(t, false);
    for (unsigned n = 0; n < 16; n++)
        uc->uc_mcontext.gregs[greg_of[n]] = (greg_t)t->in.gpr[n];
    uc->uc_mcontext.gregs[REG_RIP] = (greg_t)t->in.rip;
    uc->uc_mcontext.gregs[REG_EFL] = (greg_t)t->in.rflags;
    /* CS selects the mode; 32-bit code needs DS and ES, which the frame does not hold, and may have an SS of its own.
     */
    uint64_t selectors = (uint64_t)uc->uc_mcontext.gregs[REG_CSGSFS] & (t->compat ? 0xffffffff0000 : ~0xffffull);
    uc->uc_mcontext.gregs[REG_CSGSFS] = (greg_t)(selectors |
                                                 (t->compat ? t->seg[IN_CS] | (uint64_t)t->seg[IN_SS] << 48 : 0x33));
    __asm__ volatile("mov %0, %%ds; mov %1, %%es" ::"r"(t->compat ? t->seg[IN_DS] : 0),
                     "r"(t->compat ? t->seg[IN_ES] : 0));
    xstate_load((uint8_t *)uc->uc_mcontext.fpregs, t->in.xstate, native.layout->size);
    native.fs_base = t->in.fs_base;
    native.gs_base = t->in.gs_base;
    native.fs = t->compat ? t->seg[IN_FS] : 0;
    native.gs = t->compat ? t->seg[IN_GS] : 0;
}

static void unload(ucontext_t *uc, int sig, unsigned long fs, unsigned long gs)
{
    const struct test *t = &native.batch->test[native.index];
    struct result *r = &native.results[native.index];
    for (unsigned n = 0; n < 16; n++)
        r->out.gpr[n] = (uint64_t)uc->uc_mcontext.gregs[greg_of[n]];
    r->out.rip = (uint64_t)uc->uc_mcontext.gregs[REG_RIP];
    r->out.rflags = (uint64_t)uc->uc_mcontext.gregs[REG_EFL];
    r->out.fs_base = fs, r->out.gs_base = gs;
    xstate_store(r->out.xstate, (uint8_t *)uc->uc_mcontext.fpregs, native.layout->size);
    r->vector = (uint8_t)uc->uc_mcontext.gregs[REG_TRAPNO];
    r->error = (uint64_t)uc->uc_mcontext.gregs[REG_ERR];
    r->cr2 = r->vector == 14 ? (uint64_t)uc->uc_mcontext.gregs[REG_CR2] : 0;
    r->status = sig == SIGPROF ? RUN_TIMEOUT : sig == SIGSYS ? RUN_SYSCALL : RUN_OK;
    arena_collect(&native.view, t, r);
    code_write(t, true);
}

static void go_home(ucontext_t *uc)
{
    memcpy(uc->uc_mcontext.gregs, native.home.uc_mcontext.gregs, sizeof uc->uc_mcontext.gregs);
    xstate_load((uint8_t *)uc->uc_mcontext.fpregs, native.home_xstate, native.layout->size);
    native.running = false;
}

/* false: nothing to change, go on with the test. */
static bool step(int sig, ucontext_t *uc, unsigned long fs, unsigned long gs)
{
    if (!native.running) { /* the int3 in native_run */
        if (sig != SIGTRAP)
            return sig == SIGPROF ? false : (_exit(3), false);
        memcpy(native.home.uc_mcontext.gregs, uc->uc_mcontext.gregs, sizeof uc->uc_mcontext.gregs);
        xstate_store(native.home_xstate, (uint8_t *)uc->uc_mcontext.fpregs, native.layout->size);
        native.running = true;
        load(uc);
        return true;
    }
    if (sig == SIGPROF) {
        native.ticks = native.index == native.seen ? native.ticks + 1 : 0;
        native.seen = native.index;
        if (native.ticks < 3)
            return false;
        native.ticks = 0;
    }
    unload(uc, sig, fs, gs);
    if (++native.index < native.batch->n)
        load(uc);
    else
        go_home(uc);
    return true;
}

static unsigned long home_fs, home_gs;

BARE static void handler(int sig, siginfo_t *si, void *ctx)
{
    /* The kernel leaves RFLAGS.AC as the test had it, which would make this code trap; sigreturn does not
     * load NT and ID, so what this code has is what the next test gets. */
    __asm__ volatile("pushfq; andl $~0x244000, (%%rsp); popfq" ::: "memory", "cc");
    unsigned long fs = fs_base(), gs = gs_base();
    uint16_t fs_selector, gs_selector;
    __asm__ volatile("mov %%fs, %0; mov %%gs, %1; mov %2, %%fs; mov %2, %%gs"
                     : "=&r"(fs_selector), "=&r"(gs_selector)
                     : "r"(0));
    set_fs_base(home_fs);
    if (step(sig, ctx, fs, gs)) {
        fs = native.running ? native.fs_base : home_fs;
        gs = native.running ? native.gs_base : home_gs;
        fs_selector = native.running ? native.fs : 0;
        gs_selector = native.running ? native.gs : 0;
    }
    /* A selector brings its base along; a null one leaves what there was. */
    __asm__ volatile("mov %0, %%fs; mov %1, %%gs" ::"r"(fs_selector), "r"(gs_selector));
    if (!gs_selector)
        set_gs_base(gs);
    if (!fs_selector)
        set_fs_base(fs);
}

/* What the child may still call; everything else becomes SIGSYS and ends the test as "left out":
 *      rt_sigreturn    loads the next test
 *      read, write     the command pipe, descriptors 10 and 11 only
 *      arch_prctl      the bases of FS and GS, from native_base_call only
 *      exit_group      the end */
static int sandbox(void)
{
    uint64_t from = (uint64_t)native_base_called;
    struct sock_filter code[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, arch)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, AUDIT_ARCH_X86_64, 0, 14),
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_rt_sigreturn, 13, 0),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_exit_group, 12, 0),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_read, 2, 0),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_write, 3, 0),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_arch_prctl, 4, 8),
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, args[0])),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, 10, 7, 6),
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, args[0])),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, 11, 5, 4),
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, instruction_pointer)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (uint32_t)from, 0, 2),
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, instruction_pointer) + 4),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (uint32_t)(from >> 32), 1, 0),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_TRAP),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog prog = {sizeof code / sizeof code[0], code};
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) || prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &prog))
        return -errno;
    return 0;
}

static int map_regions(int fd)
{
    for (unsigned n = 0; n < N_REGIONS; n++) {
        const struct region *g = &regions[n];
        int prot = g->access == REGION_RW   ? PROT_READ | PROT_WRITE
                   : g->access == REGION_RX ? PROT_READ | PROT_EXEC
                                            : PROT_READ;
        if (mmap((void *)g->gva, g->pages * PAGE, prot, MAP_SHARED | MAP_FIXED_NOREPLACE | MAP_POPULATE, fd,
                 (off_t)(g->arena_page * PAGE)) != (void *)g->gva)
            return -errno;
    }
    return 0;
}

static int native_open(void **ctx, const struct xstate_layout *layout)
{
    static const int signals[] = {SIGTRAP, SIGSEGV, SIGILL, SIGFPE, SIGBUS, SIGSYS, SIGPROF};
    int fd = memfd_create("arena", MFD_CLOEXEC);
    if (fd < 0 || ftruncate(fd, ARENA_PAGES * PAGE))
        return -errno;
    size_t size = ARENA_PAGES * PAGE;
    native.layout = layout;
    native.view.live = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, fd, 0);
    native.view.shadow = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    native.view.pristine = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    stack_t stack = {.ss_size = 1 << 18};
    stack.ss_sp = mmap(NULL, stack.ss_size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
    if (native.view.live == MAP_FAILED || native.view.shadow == MAP_FAILED || native.view.pristine == MAP_FAILED ||
        stack.ss_sp == MAP_FAILED || sigaltstack(&stack, NULL))
        return -ENOMEM;
    arena_fill(native.view.live);
    memcpy(native.view.shadow, native.view.live, size);
    memcpy(native.view.pristine, native.view.live, size);
    int r = map_regions(fd);
    struct sigaction sa = {.sa_sigaction = handler, .sa_flags = SA_SIGINFO | SA_ONSTACK};
    sigfillset(&sa.sa_mask);
    for (unsigned n = 0; n < sizeof signals / sizeof signals[0]; n++)
        sigaction(signals[n], &sa, NULL);
    bases_by_call = !fsgsbase_offered();
    home_fs = fs_base();
    home_gs = gs_base();
    struct itimerval tick = {{0, 20000}, {0, 20000}};
    setitimer(ITIMER_PROF, &tick, NULL);
    *ctx = &native;
    return r ? r : sandbox();
}

static void native_run(void *ctx, const struct batch *b, struct result *results, uint32_t from, unsigned cpl,
                       volatile uint32_t *progress)
{
    if (from >= b->n)
        return;
    native.batch = b, native.results = results, native.progress = progress;
    native.index = from;
    __asm__ volatile("int3" ::: "memory");
}

const struct backend backend_native = {.name = "native", .open = native_open, .run = native_run};
