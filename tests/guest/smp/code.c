/*
 * Code that one CPU writes and others run: never what was there before, never a mixture.
 */
#include "smp.h"

#include <cpuid.h>
#include <linux/membarrier.h>

enum { RUNNERS_MAX = 8 };
static struct meeting meeting;
static double since;
static bool over;
static unsigned threads;
static double allowed; /* seconds */

static bool is_over(void)
{
    return __atomic_load_n(&over, __ATOMIC_RELAXED);
}

/* Thread 0 writes, until time is up; the others run code. */
static const char *write_and_run(double seconds, void (*f)(unsigned me))
{
    threads = n_cpus < RUNNERS_MAX ? n_cpus : RUNNERS_MAX;
    meeting = (struct meeting){.n = threads};
    over = false, allowed = seconds, since = now();
    catch_faults();
    together(threads, f);
    return complaint();
}

static bool writer_goes_on(void)
{
    if (time_left(since, allowed) && !complaint())
        return true;
    __atomic_store_n(&over, true, __ATOMIC_RELAXED);
    return false;
}

static bool membarrier_ready(void)
{
    return syscall(SYS_membarrier, MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED_SYNC_CORE, 0, 0) == 0;
}

static void sync_cores(void)
{
    if (syscall(SYS_membarrier, MEMBARRIER_CMD_PRIVATE_EXPEDITED_SYNC_CORE, 0, 0))
        complain("membarrier: %s", strerror(errno));
}

static void serialize(void)
{
    unsigned a, b, c, d;
    __cpuid(0, a, b, c, d);
}

/* --- functions that are published by a plain store of their address ---------------------------------------------- */

/* In slots, each with the number that its function returns.  A slot is written again when all have since run a later
 * one. */
enum { SLOT = 64, CODE_IN_SLOT = 16, PAGES = 16, SLOTS = PAGES * PAGE / SLOT };
static uint8_t *slots;
static uint8_t *published;
static _Alignas(128) uint32_t finished[RUNNERS_MAX][32];
static unsigned bytes_at_once;

static void write_slot(uint8_t *slot, uint32_t number)
{
    memcpy(slot, &number, sizeof number);
    if (bytes_at_once == 8) {
        const uint64_t code = 0xb8 | (uint64_t)number << 8 | 0xc3ull << 40;
        *(volatile uint64_t *)(slot + CODE_IN_SLOT) = code;
    } else {
        write_function(slot + CODE_IN_SLOT, number);
    }
}

static uint8_t *writable; /* the same pages, perhaps by another mapping */

static void publish_thread(unsigned me)
{
    meet(&meeting);
    if (me == 0) {
        for (uint32_t number = 1; writer_goes_on(); number++) {
            for (unsigned i = 1; i < threads; i++)
                while (number > SLOTS && __atomic_load_n(finished[i], __ATOMIC_ACQUIRE) <= number - SLOTS &&
                       !complaint())
                    sched_yield();
            const size_t offset = (size_t)(number % SLOTS) * SLOT;
            write_slot(writable + offset, number);
            __atomic_store_n(&published, slots + offset, __ATOMIC_RELEASE);
            for (volatile unsigned i = 0; i < number % 512; i++)
                ;
        }
        return;
    }
    while (!is_over()) {
        uint8_t *slot = __atomic_load_n(&published, __ATOMIC_ACQUIRE);
        if (!slot)
            continue;
        uint32_t number, got = call(slot + CODE_IN_SLOT);
        memcpy(&number, slot, sizeof number);
        if (got != number)
            complain("function %u returns %u", number, got);
        __atomic_store_n(finished[me], number, __ATOMIC_RELEASE);
    }
}

static const char *publish(void)
{
    writable = slots = map(PAGES * PAGE, PROT_READ | PROT_WRITE | PROT_EXEC);
    bytes_at_once = 1;
    write_and_run(0.25, publish_thread);
    published = NULL, bytes_at_once = 8;
    memset(finished, 0, sizeof finished);
    return write_and_run(0.25, publish_thread);
}

/* By two mappings, as those do who keep W^X: one is written, the other executed. */
static const char *publish_two(void)
{
    const int fd = memfd_create("code", 0);
    if (fd < 0 || ftruncate(fd, PAGES * PAGE))
        return "no file in memory";
    writable = mmap(NULL, PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    slots = mmap(NULL, PAGES * PAGE, PROT_READ | PROT_EXEC, MAP_SHARED, fd, 0);
    bytes_at_once = 1;
    return write_and_run(0.3, publish_thread);
}

/* --- code that is changed in place ------------------------------------------------------------------------------- */

static uint8_t *function;   /* is being run all the time */
static uint32_t generation; /* what the function returns at the least */
#define VALUE(g) ((uint32_t)(g) % 251 * 0x01010101u)

/* Does it return one number of the last two?  A mixture has different bytes. */
static void judge(uint32_t before, uint32_t got, const char *how)
{
    const uint32_t after = __atomic_load_n(&generation, __ATOMIC_ACQUIRE);
    if (got != got % 256 * 0x01010101u) {
        complain("%s: a mixture, %x", how, got);
        return;
    }
    for (uint32_t g = before; g != after + 2; g++)
        if (got == VALUE(g))
            return;
    if (after - before < 240)
        complain("%s: %x instead of %x to %x", how, got, VALUE(before), VALUE(after + 1));
}

/* An aligned immediate by one store: either is run while it is changed, and after a serializing instruction nothing but
 * the new one. */
static void immediate_thread(unsigned me)
{
    meet(&meeting);
    if (me == 0) {
        for (uint32_t g = 1; writer_goes_on(); g++) {
            *(volatile uint32_t *)(function + 1) = VALUE(g);
            __atomic_store_n(&generation, g, __ATOMIC_RELEASE);
            for (volatile unsigned i = 0; i < g * 7 % 3000; i++)
                ;
        }
        return;
    }
    while (!is_over()) {
        const uint32_t before = __atomic_load_n(&generation, __ATOMIC_ACQUIRE);
        serialize();
        judge(before, call(function), "an immediate");
    }
}

static const char *immediate(void)
{
    function = (uint8_t *)map(PAGE, PROT_READ | PROT_WRITE | PROT_EXEC) + 3; /* aligns what follows the opcode */
    write_function(function, 0);
    generation = 0;
    return write_and_run(0.3, immediate_thread);
}

/* An instruction of any length the way the kernel does it: a breakpoint over its first byte, the rest, the first byte,
 * and all cores told in between. */
static void on_breakpoint(int sig, siginfo_t *info, void *context)
{
    (void)sig, (void)info;
    ((ucontext_t *)context)->uc_mcontext.gregs[REG_RIP]--; /* try again */
}

static void breakpoint_thread(unsigned me)
{
    meet(&meeting);
    if (me == 0) {
        for (uint32_t g = 1; writer_goes_on(); g++) {
            const uint32_t value = VALUE(g);
            *(volatile uint8_t *)function = 0xcc;
            sync_cores();
            memcpy(function + 1, &value, sizeof value);
            sync_cores();
            *(volatile uint8_t *)function = 0xb8;
            sync_cores();
            __atomic_store_n(&generation, g, __ATOMIC_RELEASE);
            for (volatile unsigned i = 0; i < g * 7 % 3000; i++)
                ;
        }
        return;
    }
    while (!is_over()) {
        const uint32_t before = __atomic_load_n(&generation, __ATOMIC_ACQUIRE);
        judge(before, call(function), "breakpoint and membarrier");
    }
}

static const char *by_breakpoint(void)
{
    struct sigaction sa = {.sa_sigaction = on_breakpoint, .sa_flags = SA_SIGINFO | SA_NODEFER};
    if (!membarrier_ready())
        return "membarrier does not synchronize cores";
    sigaction(SIGTRAP, &sa, NULL);
    function = (uint8_t *)map(2 * PAGE, PROT_READ | PROT_WRITE | PROT_EXEC) + PAGE - 3; /* across pages */
    write_function(function, 0);
    generation = 0;
    return write_and_run(0.4, breakpoint_thread);
}

/* Whole functions that nobody runs while they are written: others are kept out, and told by membarrier. */
static uint32_t closed;
static _Alignas(128) uint32_t inside[RUNNERS_MAX][32];
enum { LONG_FUNCTION = 600 }; /* instructions */

static void write_long(uint8_t *at, uint32_t g) /* xor %eax, %eax; lea g(%rax), %eax, again and again; ret */
{
    const uint8_t start[] = {0x31, 0xc0};
    const uint32_t add = g % 1000;
    memcpy(at, start, sizeof start);
    for (unsigned i = 0; i < LONG_FUNCTION; i++) {
        at[2 + i * 6] = 0x8d, at[3 + i * 6] = 0x80;
        memcpy(at + 4 + i * 6, &add, sizeof add);
    }
    at[2 + LONG_FUNCTION * 6] = 0xc3;
}

static void whole_thread(unsigned me)
{
    meet(&meeting);
    if (me == 0) {
        for (uint32_t g = 1; writer_goes_on(); g++) {
            __atomic_store_n(&closed, 1, __ATOMIC_SEQ_CST);
            sync_cores();
            for (unsigned i = 1; i < threads; i++)
                while (__atomic_load_n(inside[i], __ATOMIC_SEQ_CST))
                    sched_yield();
            write_long(function, g);
            sync_cores();
            __atomic_store_n(&generation, g, __ATOMIC_RELEASE);
            __atomic_store_n(&closed, 0, __ATOMIC_RELEASE);
            for (volatile unsigned i = 0; i < g * 7 % 9000; i++)
                ;
        }
        __atomic_store_n(&closed, 0, __ATOMIC_RELEASE);
        return;
    }
    while (!is_over()) {
        __atomic_store_n(inside[me], 1, __ATOMIC_SEQ_CST);
        if (__atomic_load_n(&closed, __ATOMIC_SEQ_CST)) {
            __atomic_store_n(inside[me], 0, __ATOMIC_RELEASE);
            __builtin_ia32_pause();
            continue;
        }
        const uint32_t g = __atomic_load_n(&generation, __ATOMIC_ACQUIRE), got = call(function);
        if (got != g % 1000 * LONG_FUNCTION)
            complain("a function of generation %u returns %u instead of %u", g, got, g % 1000 * LONG_FUNCTION);
        __atomic_store_n(inside[me], 0, __ATOMIC_RELEASE);
    }
}

static const char *whole(void)
{
    if (!membarrier_ready())
        return "membarrier does not synchronize cores";
    function = (uint8_t *)map(2 * PAGE, PROT_READ | PROT_WRITE | PROT_EXEC) + 100;
    generation = 0;
    write_long(function, 0);
    return write_and_run(0.3, whole_thread);
}

/* A loop that runs for ever, until another thread changes the jump at its end: no call, no computed branch on the way.
 */
static void loop_thread(unsigned me)
{
    /* 1: inc %rax; jmp 1b; nop x3; ret: the jump becomes nops */
    static const uint8_t loop[] = {0x48, 0xff, 0xc0, 0x90, 0x90, 0xeb, 0xf9, 0xc3};
    static uint32_t running;
    for (unsigned round = 0;; round++) {
        if (me == 0) {
            if (!writer_goes_on())
                over = true;
            memcpy(function, loop, sizeof loop);
            running = 0;
        }
        meet(&meeting);
        if (is_over())
            return;
        if (me == 0) {
            while (__atomic_load_n(&running, __ATOMIC_ACQUIRE) != threads - 1)
                sched_yield();
            for (volatile unsigned i = 0; i < round * 977 % 20000; i++)
                ;
            *(volatile uint16_t *)(function + 5) = 0x9090;
            sync_cores();
        } else {
            __atomic_fetch_add(&running, 1, __ATOMIC_RELEASE);
            __asm__ volatile("call *%0" ::"r"(function) : "rax", "memory", "cc");
        }
        meet(&meeting);
    }
}

static const char *loop(void)
{
    if (!membarrier_ready())
        return "membarrier does not synchronize cores";
    function = (uint8_t *)map(PAGE, PROT_READ | PROT_WRITE | PROT_EXEC) + 97;
    return write_and_run(0.3, loop_thread);
}

/* --- code whose mapping changes ---------------------------------------------------------------------------------- */

static uint8_t *place; /* its function is at AT, which aligns what follows the opcode */
enum { AT = 3 };
static int file;
static enum { MAPPED_OVER, UNMAPPED, PROTECTED, DROPPED, REMAPS } how;

/* The page at `place` becomes one whose function returns g. */
static void remap(uint32_t g)
{
    uint8_t bytes[FUNCTION_SIZE], *fresh;
    write_function(bytes, g);
    switch (how) {
    case MAPPED_OVER:
        if (pwrite(file, bytes, sizeof bytes, (off_t)(g % 2 * PAGE + AT)) != sizeof bytes ||
            mmap(place, PAGE, PROT_READ | PROT_EXEC, MAP_SHARED | MAP_FIXED, file, (off_t)(g % 2 * PAGE)) != place)
            complain("mmap: %s", strerror(errno));
        break;
    case UNMAPPED:
        munmap(place, PAGE);
        fresh = mmap(place, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
        memcpy(fresh + AT, bytes, sizeof bytes);
        mprotect(place, PAGE, PROT_READ | PROT_EXEC);
        break;
    case PROTECTED:
        mprotect(place, PAGE, PROT_READ | PROT_WRITE);
        *(volatile uint32_t *)(place + AT + 1) = g;
        mprotect(place, PAGE, PROT_READ | PROT_EXEC);
        break;
    default: /* DROPPED: a private copy goes, the file's page comes back */
        if (g % 2) {
            *(volatile uint32_t *)(place + AT + 1) = g;
        } else {
            if (pwrite(file, bytes, sizeof bytes, AT) != sizeof bytes)
                complain("pwrite: %s", strerror(errno));
            madvise(place, PAGE, MADV_DONTNEED);
        }
        break;
    }
}

static void remap_thread(unsigned me)
{
    static const char *const names[] = {"mapped over", "unmapped", "protected", "dropped"};
    meet(&meeting);
    if (me == 0) {
        for (uint32_t g = 1; writer_goes_on(); g++) {
            remap(g);
            __atomic_store_n(&generation, g, __ATOMIC_RELEASE);
            for (volatile unsigned i = 0; i < g * 997 % 20000; i++)
                ;
        }
        return;
    }
    while (!is_over()) {
        const uint32_t before = __atomic_load_n(&generation, __ATOMIC_ACQUIRE);
        uint32_t got;
        serialize();
        if (!try_call(place + AT, &got))
            continue;
        const uint32_t after = __atomic_load_n(&generation, __ATOMIC_ACQUIRE);
        if (got < before || got > after + 1)
            complain("%s: %u instead of %u to %u", names[how], got, before, after);
    }
}

static const char *remapped(void)
{
    file = memfd_create("code", 0);
    if (file < 0 || ftruncate(file, 2 * PAGE))
        return "no file in memory";
    for (how = 0; how < REMAPS && !complaint(); how++) {
        uint8_t bytes[FUNCTION_SIZE];
        write_function(bytes, 0);
        if (pwrite(file, bytes, sizeof bytes, AT) != sizeof bytes)
            return "the file cannot be written";
        place = mmap(NULL, PAGE, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE, file, 0);
        generation = 0;
        write_and_run(0.15, remap_thread);
        munmap(place, PAGE);
    }
    return complaint();
}

/* --- pages that go from one program's code to another's ---------------------------------------------------------- */

static _Noreturn void own_code(unsigned me)
{
    uint64_t random = 0x9e3779b97f4a7c15ull * (me + 1);
    pin(me);
    while (time_left(since, 0.3)) {
        enum { OWN_PAGES = 8 };
        uint8_t *p = map(OWN_PAGES * PAGE, PROT_READ | PROT_WRITE | PROT_EXEC);
        const uint32_t number = (uint32_t)next_random(&random);
        for (unsigned i = 0; i < OWN_PAGES; i++) {
            for (unsigned k = 0; k < PAGE; k += 8)
                if (*(uint64_t *)(p + i * PAGE + k))
                    _exit(2);
            write_function(p + i * PAGE + 512, number + i);
        }
        for (unsigned i = 0; i < 4 * OWN_PAGES; i++)
            if (call(p + i % OWN_PAGES * PAGE + 512) != number + i % OWN_PAGES)
                _exit(3);
        munmap(p, OWN_PAGES * PAGE);
    }
    _exit(0);
}

static const char *recycled(void)
{
    pid_t pids[2 * RUNNERS_MAX];
    const unsigned n = 2 * (n_cpus < RUNNERS_MAX ? n_cpus : RUNNERS_MAX);
    since = now();
    for (unsigned i = 0; i < n; i++) {
        pids[i] = fork();
        if (pids[i] == 0)
            own_code(i);
    }
    for (unsigned i = 0; i < n; i++) {
        int status;
        if (waitpid(pids[i], &status, 0) != pids[i] || status)
            complain(status == 2 << 8   ? "a new page is not empty"
                     : status == 3 << 8 ? "another program's code runs"
                                        : "wait status %x",
                     (unsigned)status);
    }
    return complaint();
}

const struct check code_checks[] = {
    {"code published by a store", publish, 2},
    {"code published by a store, two mappings", publish_two, 2},
    {"an immediate changed in place", immediate, 2},
    {"code changed by breakpoints and membarrier", by_breakpoint, 2},
    {"code changed while nobody runs it", whole, 2},
    {"a loop that another CPU ends", loop, 2},
    {"code whose mapping changes", remapped, 2},
    {"pages from program to program", recycled, 2},
    {0},
};
