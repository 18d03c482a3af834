/*
 * Locked instructions of several CPUs on the same memory: what each has done is in the result, wherever it lies: in a
 * line, across lines, across pages, and in pages with code that all of them run and write.
 */
#include "smp.h"

typedef void chunk(uint8_t *p, unsigned me);
enum { CHUNK = 64 }; /* what a function does before it returns */

/* Each does CHUNK times `code` to the counter at %[p]; a, b: registers for it. */
#define OPERATION(name, code)                                                                                          \
    static void name(uint8_t *p, unsigned me)                                                                          \
    {                                                                                                                  \
        unsigned n = CHUNK;                                                                                            \
        (void)me;                                                                                                      \
        __asm__ volatile("1:\n" code "\n decl %[n]\n jnz 1b"                                                           \
                         : [n] "+r"(n)                                                                                 \
                         : [p] "r"(p)                                                                                  \
                         : "rax", "rbx", "rcx", "rdx", "memory", "cc");                                                \
    }
#define SIZES(name, b, w, l, q)                                                                                        \
    OPERATION(name##_1, b) OPERATION(name##_2, w) OPERATION(name##_4, l) OPERATION(name##_8, q)
#define P "(%[p])"

SIZES(add, "lock addb $1, " P, "lock addw $1, " P, "lock addl $1, " P, "lock addq $1, " P)
SIZES(inc, "lock incb " P, "lock incw " P, "lock incl " P, "lock incq " P)
SIZES(sub, "lock subb $-1, " P, "lock subw $-1, " P, "lock subl $-1, " P, "lock subq $-1, " P)
SIZES(adc, "stc\n lock adcb $0, " P, "stc\n lock adcw $0, " P, "stc\n lock adcl $0, " P, "stc\n lock adcq $0, " P)
SIZES(xadd, "mov $1, %%al\n lock xaddb %%al, " P, "mov $1, %%ax\n lock xaddw %%ax, " P,
      "mov $1, %%eax\n lock xaddl %%eax, " P, "mov $1, %%rax\n lock xaddq %%rax, " P)
#define COMPARE(size, a, d)                                                                                            \
    "mov " P ", %%" a "\n 2: mov %%" a ", %%" d "\n inc %%" d "\n lock cmpxchg" size " %%" d ", " P "\n jne 2b"
SIZES(cmpxchg, COMPARE("b", "al", "dl"), COMPARE("w", "ax", "dx"), COMPARE("l", "eax", "edx"),
      COMPARE("q", "rax", "rdx"))
OPERATION(cmpxchg8b, "mov " P ", %%eax\n mov 4(%[p]), %%edx\n"
                     "2: mov %%eax, %%ebx\n mov %%edx, %%ecx\n add $1, %%ebx\n adc $0, %%ecx\n"
                     "lock cmpxchg8b " P "\n jne 2b")
/* Both halves count. */
OPERATION(cmpxchg16b, "mov " P ", %%rax\n mov 8(%[p]), %%rdx\n"
                      "2: lea 1(%%rax), %%rbx\n lea 1(%%rdx), %%rcx\n lock cmpxchg16b " P "\n jne 2b")
/* Locks, and a counter that they guard 16 bytes on. */
#define GUARDED "mov 16(%[p]), %%rbx\n inc %%rbx\n mov %%rbx, 16(%[p])\n"
OPERATION(bts, "2: lock btsl $5, " P "\n jnc 3f\n pause\n jmp 2b\n 3:" GUARDED "lock btrl $5, " P)
OPERATION(xchg, "2: mov $1, %%eax\n xchgl %%eax, " P "\n test %%eax, %%eax\n jz 3f\n pause\n jmp 2b\n 3:" GUARDED
                "movl $0, " P)
OPERATION(xchg_1,
          "2: mov $1, %%al\n xchgb %%al, " P "\n test %%al, %%al\n jz 3f\n pause\n jmp 2b\n 3:" GUARDED "movb $0, " P)

/* Each has a bit of its own, which nobody else may change. */
static void or_and(uint8_t *p, unsigned me)
{
    const uint8_t bit = (uint8_t)(1u << me % 8);
    for (unsigned i = 0; i < CHUNK; i++) {
        __asm__ volatile("lock orb %1, %0" : "+m"(*p) : "r"(bit) : "memory", "cc");
        if (!(*(volatile uint8_t *)p & bit))
            complain("lock or: a bit is lost");
        __asm__ volatile("lock andb %1, %0" : "+m"(*p) : "r"((uint8_t)~bit) : "memory", "cc");
        if (*(volatile uint8_t *)p & bit)
            complain("lock and: a bit comes back");
    }
}

static void xor_not(uint8_t *p, unsigned me)
{
    for (unsigned i = 0; i < CHUNK; i++) {
        __asm__ volatile("lock xorq %1, %0" : "+m"(*(uint64_t *)p) : "r"(1ull << me) : "memory", "cc");
        __asm__ volatile("lock notq %0" : "+m"(*(uint64_t *)p) : : "memory", "cc");
    }
}

/* The bit's number says where it is, too. */
static void btc(uint8_t *p, unsigned me)
{
    for (unsigned i = 0; i < CHUNK; i++) {
        bool was, is = i & 1;
        const uint64_t number = me % 8 + 64;
        __asm__ volatile("lock btcq %2, %0" : "+m"(*(uint64_t(*)[2])(p - 8)), "=@ccc"(was) : "r"(number) : "memory");
        if (was != is)
            complain("lock btc: a bit of its own changes");
    }
}

enum kind { COUNTER, BOTH, GUARD, OWN };
static const struct operation {
    const char *name;
    chunk *run;
    enum kind kind;
    unsigned size;
} operations[] = {
#define COUNTERS(name)                                                                                                 \
    {"lock " #name "b", name##_1, COUNTER, 1}, {"lock " #name "w", name##_2, COUNTER, 2},                              \
        {"lock " #name "l", name##_4, COUNTER, 4},                                                                     \
    {                                                                                                                  \
        "lock " #name "q", name##_8, COUNTER, 8                                                                        \
    }
    COUNTERS(add),
    COUNTERS(inc),
    COUNTERS(sub),
    COUNTERS(adc),
    COUNTERS(xadd),
    COUNTERS(cmpxchg),
    {"lock cmpxchg8b", cmpxchg8b, COUNTER, 8},
    {"lock cmpxchg16b", cmpxchg16b, BOTH, 16},
    {"lock bts and btr", bts, GUARD, 4},
    {"xchgl", xchg, GUARD, 4},
    {"xchgb", xchg_1, GUARD, 1},
    {"lock or and and", or_and, OWN, 1},
    {"lock xor and not", xor_not, OWN, 8},
    {"lock btc", btc, OWN, 8},
};
enum { OPERATIONS = sizeof operations / sizeof *operations };

/* --- running them ------------------------------------------------------------------------------------------------ */

enum { THREADS_MAX = 8, LINE = 64, FIRST_LINE = 1024 }; /* of functions, one for each CPU, behind what is counted in */

static uint8_t *pages;
static const struct operation *op;
static uint8_t *counter;
static struct meeting meeting;
static uint64_t done[THREADS_MAX][16];
static double since;
static bool over, code, same_line;

static void code_around(unsigned me, uint32_t k)
{
    uint8_t *mine = pages + PAGE + FIRST_LINE + me * LINE;
    if (k % 16 == 0) /* as a JIT adds and replaces functions */
        write_function(mine, k);
    if (call(mine) != k / 16 * 16)
        complain("%s: old code runs beside it", op->name);
    if (same_line && call(counter + 40) != 77)
        complain("%s: the code beside it has changed", op->name);
}

static void run_thread(unsigned me)
{
    uint64_t n = 0;
    meet(&meeting);
    for (uint32_t k = 0; !__atomic_load_n(&over, __ATOMIC_RELAXED); k++) {
        if (code)
            code_around(me, k);
        op->run(counter, me);
        n += CHUNK;
        if (me == 0 && !time_left(since, code ? 0.02 : 0.01))
            __atomic_store_n(&over, true, __ATOMIC_RELAXED);
    }
    *done[me] = n;
}

static void wrong(const char *where, uint64_t got, uint64_t wanted)
{
    complain("%s %s: %lu instead of %lu", op->name, where, got, wanted);
}

static void try(const struct operation *o, const char *where)
{
    uint64_t sum = 0, got[3];
    op = o, over = false;
    memset(counter - 8, 0, 40);
    const unsigned n = n_cpus < THREADS_MAX ? n_cpus : THREADS_MAX;
    meeting = (struct meeting){.n = n};
    since = now();
    together(n, run_thread);
    for (unsigned i = 0; i < n; i++)
        sum += *done[i];
    memcpy(got, counter, sizeof got);
    const uint64_t mask = o->size >= 8 ? ~0ull : (1ull << o->size * 8) - 1;
    switch (o->kind) {
    case COUNTER:
        if (got[0] != (sum & mask))
            wrong(where, got[0], sum & mask);
        break;
    case BOTH:
        if (got[0] != sum || got[1] != sum)
            wrong(where, got[got[0] == sum], sum);
        break;
    case GUARD:
        if (got[2] != sum)
            wrong(where, got[2], sum);
        break;
    case OWN: /* all have been there an even number of times */
        if (got[0])
            wrong(where, got[0], 0);
        break;
    }
}

enum place { ALIGNED, ACROSS }; /* what is before the boundary, half of it or nothing */

static const char *run_all(const char *where, unsigned boundary, enum place place, bool with_code)
{
    pages = map(4 * PAGE, PROT_READ | PROT_WRITE | PROT_EXEC);
    code = with_code;
    if (same_line)
        write_function(pages + PAGE + boundary + 40, 77);
    for (unsigned i = 0; i < OPERATIONS; i++) {
        const struct operation *o = &operations[i];
        if (place == ACROSS && (o->kind == BOTH || o->size == 1)) /* must be aligned; has but one line */
            continue;
        if (same_line && o->kind == GUARD)
            continue;
        counter = pages + PAGE + boundary - (place == ACROSS ? o->size / 2 : 0);
        try(o, where);
    }
    return complaint();
}

static const char *aligned(void)
{
    return run_all("in a line", 128, ALIGNED, false);
}
static const char *across_lines(void)
{
    return run_all("across two lines", 128, ACROSS, false);
}
/* Indivisible among their like, in translated code: not for a program that runs directly beside it. */
static const char *across_pages(void)
{
    if (getenv("direct"))
        return NULL;
    return run_all("across two pages", PAGE, ACROSS, false);
}
static const char *beside_code(void)
{
    return run_all("beside code", 128, ALIGNED, true);
}
static const char *across_lines_by_code(void)
{
    return run_all("across two lines beside code", 128, ACROSS, true);
}
static const char *across_pages_by_code(void)
{
    if (getenv("direct"))
        return NULL;
    return run_all("across two pages beside code", PAGE, ACROSS, true);
}
static const char *in_line_of_code(void)
{
    same_line = true;
    return run_all("in a line of code", 128, ALIGNED, true);
}

const struct check locked_checks[] = {
    {"locked instructions", aligned, 2},
    {"locked instructions across lines", across_lines, 2},
    {"locked instructions across pages", across_pages, 2},
    {"locked instructions beside code", beside_code, 2},
    {"locked instructions across lines beside code", across_lines_by_code, 2},
    {"locked instructions across pages beside code", across_pages_by_code, 2},
    {"locked instructions in a line of code", in_line_of_code, 2},
    {0},
};
