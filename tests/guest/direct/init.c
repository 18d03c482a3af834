/*
 * PID 1 of tests/guest/direct.sh: programs that run directly for a while and do there what must not be noticed, and
 * programs that know what else is in their process, and try to make something of it.
 *
 * Each line "ok NAME" or "not ok NAME REASON" is a check.
 */
#include <cpuid.h>
#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/ucontext.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

/* As in src/engine/direct/layout.h. */
#define CODE 0x6ffff0000000ul
#define ORDERS (CODE + 0x1000)
#define STATE (ORDERS + 0x10000)
#define STACK (STATE + 0x1000)
#define END (STACK + 0x8000)

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static uint64_t mix(uint64_t x)
{
    x ^= x >> 33;
    x *= 0xff51afd7ed558ccdull;
    return x ^ x >> 29;
}

/* Long enough to be found in user mode by some ticks. */
static uint64_t compute(unsigned rounds)
{
    uint64_t x = 1;
    for (unsigned i = 0; i < rounds * 1000000u; i++)
        x = mix(x + i);
    return x;
}

/* --- what must not be noticed ------------------------------------------------------------------------------------ */

static const char *same_results(void)
{
    uint64_t first = compute(20);
    for (unsigned i = 0; i < 5; i++)
        if (compute(20) != first)
            return "other results";
    return NULL;
}

static const char *clocks(void)
{
    compute(30);
    uint64_t last = __builtin_ia32_rdtsc();
    for (unsigned i = 0; i < 20000; i++) {
        uint64_t t = __builtin_ia32_rdtsc();
        if (t < last || t - last > 1ull << 38)
            return "the time-stamp counter jumps";
        last = t;
        if (i % 5000 == 0)
            compute(5);
    }
    return NULL;
}

/* Threads of one program take turns, each with its own bases of FS and GS. */
static __thread uint64_t mine;

static uint64_t gs_word(void)
{
    uint64_t value;
    __asm__ volatile("movq %%gs:0, %0" : "=r"(value));
    return value;
}

static bool set_gs(const void *to, bool by_instruction)
{
    if (!by_instruction)
        return syscall(SYS_arch_prctl, 0x1001 /* ARCH_SET_GS */, to) == 0;
    __asm__ volatile("wrgsbase %0" ::"r"(to));
    return true;
}

static void *a_thread(void *number)
{
    const uint64_t values[2] = {(uint64_t)(uintptr_t)number, ~(uint64_t)(uintptr_t)number};
    const bool by_instruction = getauxval(AT_HWCAP2) & 2;
    mine = values[0];
    for (unsigned i = 0; i < 40; i++) {
        if (!set_gs(&values[i % 2], by_instruction && i % 4 < 2))
            return "its base of GS cannot be set";
        for (unsigned k = 0; k < 20; k++) {
            compute(1);
            if (mine != values[0])
                return "another base of FS";
            if (gs_word() != values[i % 2])
                return "another base of GS";
            if (k % 4 == 0)
                sched_yield();
        }
    }
    return NULL;
}

/* Interrupts that come when one of the others is about to go on. */
static void *often(void *until)
{
    const struct timespec a_bit = {0, 30000};
    while (!__atomic_load_n((bool *)until, __ATOMIC_RELAXED))
        nanosleep(&a_bit, NULL);
    return NULL;
}

static const char *threads(void)
{
    pthread_t thread[4], clock;
    void *wrong = NULL, *why;
    bool done = false;
    compute(30);
    if (pthread_create(&clock, NULL, often, &done))
        return "a thread cannot be made";
    for (uintptr_t i = 0; i < 4; i++)
        if (pthread_create(&thread[i], NULL, a_thread, (void *)(i + 1)))
            return "a thread cannot be made";
    for (unsigned i = 0; i < 4; i++) {
        pthread_join(thread[i], &why);
        wrong = why ? why : wrong;
    }
    __atomic_store_n(&done, true, __ATOMIC_RELAXED);
    pthread_join(clock, NULL);
    return wrong;
}

static void features(unsigned *to)
{
    static const unsigned leaves[][2] = {{1, 0}, {7, 0}, {7, 1}, {0xd, 1}, {0x80000001, 0}, {0x80000008, 0}};
    for (unsigned i = 0; i < 6; i++)
        __cpuid_count(leaves[i][0], leaves[i][1], to[4 * i], to[4 * i + 1], to[4 * i + 2], to[4 * i + 3]);
    to[1] &= 0xffff00; /* the number of the processor */
}

static const char *more(unsigned k, unsigned first, unsigned again)
{
    static char why[64];
    snprintf(why, sizeof why, "register %u shows %x, before %x", k, again, first);
    return why;
}

static const char *processor(void)
{
    unsigned first[24], again[24], cpu;
    features(first);
    compute(30);
    for (unsigned i = 0; i < 50; i++) {
        features(again);
        /* instructions for programs are told of in ECX, EDX and leaf 7's EBX; SERIALIZE works whoever tells of it */
        for (unsigned k = 2; k < 24; k++)
            if ((k % 4 > 1 || k == 5) && (again[k] & ~first[k] & (k == 6 ? 0x3ac05f7bu : k == 7 ? 0x03c1013cu : 0)))
                return more(k, first[k], again[k]);
        if (syscall(SYS_getcpu, &cpu, NULL, NULL) || cpu != 0 || sched_getcpu() != 0)
            return "another number";
        compute(1);
    }
    return NULL;
}

/* A function of the vDSO; NULL: it has none of that name. */
static void *vdso_function(const char *name)
{
    const uint8_t *base = (const uint8_t *)getauxval(AT_SYSINFO_EHDR);
    const Elf64_Ehdr *file = (const void *)base;
    const Elf64_Sym *symbols = NULL;
    const char *names = NULL;
    const uint32_t *hash = NULL;
    for (unsigned i = 0; base && i < file->e_phnum; i++) {
        const Elf64_Phdr *part = (const void *)(base + file->e_phoff + i * file->e_phentsize);
        if (part->p_type != PT_DYNAMIC)
            continue;
        for (const Elf64_Dyn *d = (const void *)(base + part->p_offset); d->d_tag != DT_NULL; d++) {
            symbols = d->d_tag == DT_SYMTAB ? (const void *)(base + d->d_un.d_ptr) : symbols;
            names = d->d_tag == DT_STRTAB ? (const char *)base + d->d_un.d_ptr : names;
            hash = d->d_tag == DT_HASH ? (const void *)(base + d->d_un.d_ptr) : hash;
        }
    }
    for (uint32_t i = 0; symbols && names && hash && i < hash[1]; i++)
        if (strcmp(names + symbols[i].st_name, name) == 0)
            return (void *)(base + symbols[i].st_value);
    return NULL;
}

/* The C library knows the number from elsewhere; others ask the vDSO. */
static const char *number_by_vdso(void)
{
    int (*ask)(unsigned *, unsigned *, void *) = vdso_function("__vdso_getcpu");
    if (!ask)
        return "the vDSO has no getcpu";
    for (unsigned i = 0; i < 3000; i++) {
        unsigned cpu = 77, node = 77;
        if (i % 100 == 0)
            compute(1);
        if (ask(&cpu, &node, NULL) || cpu || node)
            return "the host's number";
        now(); /* in the same page */
    }
    return NULL;
}

static volatile sig_atomic_t ticks;
static void on_tick(int sig)
{
    ticks = ticks + 1;
}

static const char *timers(void)
{
    struct itimerval every = {{0, 3000}, {0, 3000}}, never = {0};
    uint64_t want = compute(10);
    signal(SIGALRM, on_tick);
    setitimer(ITIMER_REAL, &every, NULL);
    double end = now() + 2;
    while (now() < end)
        if (compute(10) != want)
            return "other results";
    setitimer(ITIMER_REAL, &never, NULL);
    return ticks > 10 ? NULL : "signals do not arrive";
}

static sigjmp_buf back;
static volatile int caught;
static volatile uintptr_t caught_at;
static void on_fault(int sig, siginfo_t *info, void *context)
{
    caught = sig;
    caught_at = (uintptr_t)info->si_addr;
    siglongjmp(back, 1);
}

static void catch_faults(void)
{
    static const int signals[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP, SIGSYS};
    static char stack[65536];
    struct sigaction sa = {.sa_sigaction = on_fault, .sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER};
    stack_t ss = {.ss_sp = stack, .ss_size = sizeof stack};
    sigaltstack(&ss, NULL);
    for (unsigned i = 0; i < 6; i++)
        sigaction(signals[i], &sa, NULL);
}

static void divide(void)
{
    __asm__ volatile("xor %%edx, %%edx\n xor %%ecx, %%ecx\n div %%ecx" ::: "rax", "rcx", "rdx", "cc");
}
static void undefined(void)
{
    __asm__ volatile("ud2");
}
static void breakpoint(void)
{
    __asm__ volatile("int3");
}
static void halt(void)
{
    __asm__ volatile("hlt");
}
static void far_away(void)
{
    *(volatile char *)0x8000000000000000ul;
}
static volatile uintptr_t eight = 8;
static void null(void)
{
    *(volatile char *)eight = 1;
}
static void kernel(void)
{
    *(volatile char *)0xffffffff81000000ul;
}
static void step(void)
{
    __asm__ volatile("pushf\n orq $0x100, (%%rsp)\n popf\n nop\n nop" ::: "memory", "cc");
}
static void aligned(void)
{
    __asm__ volatile(
        "pushf\n orq $0x40000, (%%rsp)\n popf\n mov %0, %%rax\n mov 1(%%rax), %%rcx" ::"r"((uint64_t[4]){0})
        : "rax", "rcx", "memory", "cc");
}

static const char *faults(void)
{
    static const struct {
        void (*what)(void);
        int signal;
        uintptr_t at;
    } tries[] = {{divide, SIGFPE, 0},
                 {undefined, SIGILL, 0},
                 {breakpoint, SIGTRAP, 0},
                 {halt, SIGSEGV, 0},
                 {far_away, SIGSEGV, 0},
                 {null, SIGSEGV, 8},
                 {kernel, SIGSEGV, 0xffffffff81000000ul},
                 {step, SIGTRAP, 0},
                 {aligned, SIGBUS, 0}};
    static char why[64];
    catch_faults();
    for (volatile unsigned round = 0; round < 5; round++)
        for (volatile unsigned i = 0; i < sizeof tries / sizeof *tries; i++) {
            compute(8);
            caught = 0;
            if (sigsetjmp(back, 1) == 0)
                tries[i].what();
            __asm__ volatile("pushf\n andq $~0x40100, (%%rsp)\n popf" ::: "memory", "cc");
            if (caught != tries[i].signal || (tries[i].at && caught_at != tries[i].at)) {
                snprintf(why, sizeof why, "the %u. gives signal %d at %lx", i, caught, (unsigned long)caught_at);
                return why;
            }
        }
    return NULL;
}

/* Pages come, go, change their rights and owners while others compute on them. */
static const char *mappings(void)
{
    enum { PAGES = 300 };
    const size_t size = PAGES * 4096ul;
    catch_faults();
    for (unsigned round = 0; round < 30; round++) {
        uint8_t *p = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        for (size_t i = 0; i < size; i += 64)
            p[i] = (uint8_t)(mix(i + round));
        compute(2);
        pid_t pid = fork();
        for (size_t i = 0; i < size; i += 4096)
            p[i + 8] = pid ? 1 : 2; /* copied on write, in both */
        compute(2);
        for (size_t i = 0; i < size; i += 64)
            if (p[i] != (uint8_t)mix(i + round) || (i % 4096 == 0 && p[i + 8] != (pid ? 1 : 2)))
                return pid ? "the parent's memory changes" : (_exit(1), NULL);
        if (!pid)
            _exit(0);
        int status;
        if (waitpid(pid, &status, 0) != pid || status)
            return "the child's memory changes";
        mprotect(p, size / 2, PROT_READ);
        caught = 0;
        if (sigsetjmp(back, 1) == 0)
            p[4096 * (round % 100)] = 0;
        if (caught != SIGSEGV)
            return "a page that can be read only is written";
        munmap(p + size / 2, size / 2);
        caught = 0;
        if (sigsetjmp(back, 1) == 0)
            caught_at = p[size / 2 + 4096 * (round % 100)];
        if (caught != SIGSEGV)
            return "a page that is unmapped is read";
        munmap(p, size / 2);
    }
    return NULL;
}

/* Code that is written, run, and written again. */
/* Every second of them is used, so that each needs a mapping of its own in the process that runs this; all of them are
 * more than a process may have. */
static const char *many_pages(void)
{
    enum { USED = 62000, STEP = 8192 };
    char *at = mmap(NULL, (size_t)USED * STEP, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1,
                    0);
    if (at == MAP_FAILED || (madvise(at, (size_t)USED * STEP, MADV_NOHUGEPAGE) && errno != EINVAL))
        return "no memory";
    for (unsigned round = 0; round < 2; round++)
        for (unsigned i = 0; i < USED; i++) {
            uint64_t *page = (uint64_t *)(at + (size_t)i * STEP);
            if (*page != (round ? mix(i) : 0))
                return "another page is there";
            *page = mix(i + round);
        }
    for (unsigned i = 0; i < USED; i += 7)
        if (*(uint64_t *)(at + (size_t)i * STEP) != mix(i + 1))
            return "another page is there afterwards";
    return NULL;
}

static const char *written_code(void)
{
    uint8_t *p = mmap(NULL, 8192, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    for (uint32_t i = 0; i < 3000; i++) {
        p[100] = 0xb8; /* mov $i, %eax; ret */
        memcpy(p + 101, &i, 4);
        p[105] = 0xc3;
        if (((uint32_t(*)(void))(uintptr_t)(p + 100))() != i)
            return "old code runs";
        if (i % 300 == 0)
            compute(4);
    }
    return NULL;
}

static const char *vectors(void)
{
    double a[64];
    long double x = 1.25L;
    for (unsigned i = 0; i < 64; i++)
        a[i] = i;
    for (unsigned round = 0; round < 200; round++) {
        for (unsigned i = 0; i < 64; i++)
            a[i] = a[i] * 1.0000001 + 0.5;
        x = x * 1.0000001L + 0.5L;
        compute(1);
    }
    double b[64];
    long double y = 1.25L;
    for (unsigned i = 0; i < 64; i++)
        b[i] = i;
    for (unsigned round = 0; round < 200; round++) {
        for (unsigned i = 0; i < 64; i++)
            b[i] = b[i] * 1.0000001 + 0.5;
        y = y * 1.0000001L + 0.5L;
    }
    return x == y && memcmp(a, b, sizeof a) == 0 ? NULL : "other results";
}

/* --- what a hostile program tries -------------------------------------------------------------------------------- */

/* Is the stub there, for that program runs directly?  Its pages are nobody's in translated code. */
static volatile int tries_left;
static int reach(void)
{
    catch_faults();
    for (tries_left = 200; tries_left > 0; tries_left = tries_left - 1) {
        if (sigsetjmp(back, 1) == 0) {
            compute(3);
            (void)*(volatile uint32_t *)STATE;
            return 1;
        }
    }
    return 0;
}

static uint64_t seed = 88172645463325252ull;
static uint64_t random_number(void)
{
    seed ^= seed << 13, seed ^= seed >> 7;
    return seed ^= seed << 17;
}

/* Jumps to an instruction of the stub, with registers that are likely to be of use there. */
static void jump(uint64_t to, const uint64_t *r)
{
    __asm__ volatile(
        "mov %0, %%r11\n mov %1, %%r10\n"
        "mov (%%r10), %%rax\n mov 8(%%r10), %%rdi\n mov 16(%%r10), %%rsi\n mov 24(%%r10), %%rdx\n"
        "mov 32(%%r10), %%rcx\n mov 40(%%r10), %%r8\n mov 48(%%r10), %%r12\n mov 56(%%r10), %%r13\n"
        "mov 64(%%r10), %%r14\n mov 72(%%r10), %%r15\n mov 80(%%r10), %%rsp\n mov 88(%%r10), %%r10\n jmp *%%r11" ::"r"(
            to),
        "r"(r)
        : "memory");
}

static void attack_jumps(void)
{
    uint64_t good[] = {202,         15,          317,   231, 9, 11, 234, 0, 1, ORDERS, STATE, STACK, STACK + 0x7000,
                       ORDERS + 16, ORDERS + 20, STATE, CODE};
    for (volatile unsigned i = 0; i < 400; i++) {
        uint64_t r[12];
        for (unsigned k = 0; k < 12; k++)
            r[k] = random_number() % 3 ? good[random_number() % (sizeof good / 8)] : random_number();
        if (!reach())
            continue;
        alarm(1);
        if (sigsetjmp(back, 1) == 0)
            jump(CODE + random_number() % 0x280, r);
    }
}

/* Every place that it can write to. */
static void attack_scribble(void)
{
    for (volatile unsigned i = 0; i < 60; i++) {
        if (!reach())
            continue;
        if (sigsetjmp(back, 1) == 0) {
            for (uint64_t at = STATE; at < END; at += 8)
                *(volatile uint64_t *)at = random_number();
            getppid();
            for (uint64_t at = STATE; at < END; at += 8)
                *(volatile uint64_t *)at = ~0ull;
            compute(3);
        }
        if (sigsetjmp(back, 1) == 0)
            *(volatile uint64_t *)ORDERS = 1;
        if (sigsetjmp(back, 1) == 0)
            *(volatile uint64_t *)CODE = 1;
    }
}

/* Says that it stands still, and goes on. */
static void attack_lie(void)
{
    for (volatile unsigned i = 0; i < 20; i++) {
        if (!reach())
            continue;
        if (sigsetjmp(back, 1) == 0)
            for (unsigned k = 0; k < 2000000; k++)
                __atomic_fetch_add((uint32_t *)STATE, 1, __ATOMIC_SEQ_CST);
    }
}

/* Returns from a signal that there never was, with all others blocked: nothing may interrupt it then. */
static void attack_mask(void)
{
    if (!reach())
        return;
    static uint64_t frame[512];
    memset(frame, 0, sizeof frame);
    uint64_t *context = frame + 5;
    context[16] = (uint64_t)(uintptr_t)compute, context[15] = (uint64_t)(uintptr_t)&frame[500], context[8] = 100000;
    context[17] = 0x202, context[18] = 0x002b000000000033ull;
    frame[37] = ~0ull;
    uint64_t r[12] = {15};
    r[10] = (uint64_t)(uintptr_t)frame;
    /* the return is the stub's only "mov $15, %eax; syscall" */
    static const uint8_t bytes[] = {0xb8, 15, 0, 0, 0, 0x0f, 0x05};
    for (uint64_t at = CODE; at < CODE + 0x400; at++)
        if (memcmp((void *)(uintptr_t)at, bytes, sizeof bytes) == 0)
            jump(at, r);
}

/* Each of its processes ends somehow; others must not be disturbed. */
#define LONGEST_PAUSE 3 /* seconds, of another program: a hundredth of it is what a quiet host takes */
static const char *hostile(void (*attack)(void), unsigned seconds)
{
    pid_t pid = fork(), other;
    if (pid == 0) {
        seed += (uint64_t)getpid() << 20;
        attack();
        _exit(0);
    }
    other = fork();
    if (other == 0) {
        uint64_t want = compute(5);
        double last = now(), pause = 0;
        for (double end = last + seconds; last < end;) {
            if (compute(5) != want)
                _exit(1);
            double t = now();
            pause = t - last > pause ? t - last : pause;
            last = t;
        }
        _exit(pause > LONGEST_PAUSE ? 2 : 0);
    }
    int status;
    const char *wrong = waitpid(other, &status, 0) != other || (status && status != 2 << 8)
                            ? "another program is disturbed"
                        : status ? "another program has to wait"
                                 : NULL;
    kill(pid, SIGKILL);
    waitpid(pid, &status, 0);
    return wrong;
}

static const char *jumps(void)
{
    return hostile(attack_jumps, 8);
}
static const char *scribble(void)
{
    return hostile(attack_scribble, 5);
}
static const char *lie(void)
{
    return hostile(attack_lie, 5);
}
static const char *mask(void)
{
    return hostile(attack_mask, 8);
}

static const struct {
    const char *name;
    const char *(*check)(void);
} checks[] = {
    {"same results", same_results},
    {"clocks", clocks},
    {"threads", threads},
    {"processor", processor},
    {"number of the processor by the vDSO", number_by_vdso},
    {"timers", timers},
    {"faults", faults},
    {"mappings", mappings},
    {"more pages than mappings", many_pages},
    {"code that is written", written_code},
    {"vectors", vectors},
    {"jumps into the stub", jumps},
    {"scribbles over its pages", scribble},
    {"lies about standing still", lie},
    {"blocks signals", mask},
    {"same results afterwards", same_results},
};

static void run(unsigned i)
{
    int status;
    pid_t pid = fork();
    if (pid == 0) {
        const char *wrong = checks[i].check();
        printf(wrong ? "not ok %s: %s\n" : "ok %s\n", checks[i].name, wrong);
        fflush(stdout);
        _exit(0);
    }
    if (waitpid(pid, &status, 0) != pid || status)
        printf("not ok %s: wait status %x\n", checks[i].name, (unsigned)status);
    fflush(stdout);
}

int main(void)
{
    const char *only = getenv("only");
    for (unsigned i = 0; i < sizeof checks / sizeof *checks; i++)
        if (!only || strcmp(only, checks[i].name) == 0)
            run(i);
    puts("DONE");
    fflush(stdout);
    if (getpid() == 1)
        reboot(RB_POWER_OFF);
    return 0;
}
