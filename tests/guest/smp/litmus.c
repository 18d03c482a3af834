/*
 * Litmus tests of x86-TSO (Owens, Sarkar, Sewell: "A better x86 memory model"; those of Intel's and AMD's manuals are
 * among them): few instructions on several CPUs, and the results that there must not be.
 *
 * Threads go through an array of instances of a test side by side, a little before or behind one another: on a host
 * with fewer CPUs those that run meet, and nobody waits for the others.
 */
#include "smp.h"

enum { INSTANCES = 256, LEAST = 8 * INSTANCES, ENOUGH = 100000, THREADS_MAX = 4, FUNCTION_AT = 0 };

/* Pages of instances; the first line of each has code, for tests beside code. */
enum { STRIDE = 256, IN_PAGE = PAGE / STRIDE - 1, PAGES = (INSTANCES + IN_PAGE - 1) / IN_PAGE };
static uint8_t *pages;

typedef void body(uint64_t *x, uint64_t *y, uint64_t *r);
typedef uint64_t results[THREADS_MAX][2];

static uint8_t *page_of(unsigned i)
{
    return pages + i / IN_PAGE * PAGE;
}
static uint64_t *x_of(unsigned i)
{
    return (uint64_t *)(page_of(i) + STRIDE * (1 + i % IN_PAGE));
}
static uint64_t *y_of(unsigned i)
{
    return x_of(i) + STRIDE / 2 / sizeof(uint64_t);
}

/* a and b are what it returns. */
#define BODY(name, code)                                                                                               \
    static void name(uint64_t *x, uint64_t *y, uint64_t *r)                                                            \
    {                                                                                                                  \
        uint64_t a = 0, b = 0;                                                                                         \
        __asm__ volatile(code : [a] "+&r"(a), [b] "+&r"(b) : [x] "r"(x), [y] "r"(y) : "memory", "cc");                 \
        r[0] = a, r[1] = b;                                                                                            \
    }
#define SET_X(n) "movq $" #n ", (%[x])\n"
#define SET_Y(n) "movq $" #n ", (%[y])\n"
#define A_IS_X "mov (%[x]), %[a]\n"
#define A_IS_Y "mov (%[y]), %[a]\n"
#define B_IS_X "mov (%[x]), %[b]\n"
#define B_IS_Y "mov (%[y]), %[b]\n"
#define FENCE "mfence\n"
#define LOCKED "lock addl $0, -4(%%rsp)\n"
#define SWAP_X "mov $1, %[b]\n xchg %[b], (%[x])\n"
#define SWAP_Y "mov $1, %[b]\n xchg %[b], (%[y])\n"

BODY(set_x, SET_X(1))
BODY(set_y, SET_Y(1))
BODY(set_x_read_y, SET_X(1) A_IS_Y)
BODY(set_y_read_x, SET_Y(1) A_IS_X)
BODY(set_x_fence_read_y, SET_X(1) FENCE A_IS_Y)
BODY(set_y_fence_read_x, SET_Y(1) FENCE A_IS_X)
BODY(set_x_locked_read_y, SET_X(1) LOCKED A_IS_Y)
BODY(set_y_locked_read_x, SET_Y(1) LOCKED A_IS_X)
BODY(swap_x_read_y, SWAP_X A_IS_Y)
BODY(swap_y_read_x, SWAP_Y A_IS_X)
BODY(set_x_set_y, SET_X(1) SET_Y(1))
BODY(swap_x_set_y, SWAP_X SET_Y(1))
BODY(read_y_read_x, A_IS_Y B_IS_X)
BODY(read_x_read_y, A_IS_X B_IS_Y)
BODY(read_x_set_y, A_IS_X SET_Y(1))
BODY(read_y_set_x, A_IS_Y SET_X(1))
BODY(set_x_set_y2, SET_X(1) SET_Y(2))
BODY(set_y_set_x2, SET_Y(1) SET_X(2))
BODY(set_y2_read_x, SET_Y(2) A_IS_X)
BODY(set_y2_fence_read_x, SET_Y(2) FENCE A_IS_X)
BODY(set_x_fence_set_y, SET_X(1) FENCE SET_Y(1))
BODY(set_x2_set_y, SET_X(2) SET_Y(1))
BODY(read_x_twice, A_IS_X B_IS_X)
BODY(set_x_read_back_read_y, SET_X(1) A_IS_X B_IS_Y)
BODY(set_y_read_back_read_x, SET_Y(1) A_IS_Y B_IS_X)
BODY(set_y2_set_x2, SET_Y(2) SET_X(2))
BODY(set_x_read_x, SET_X(1) A_IS_X)
BODY(set_x2_read_x, SET_X(2) A_IS_X)
BODY(read_x_set_x, A_IS_X SET_X(1))
BODY(read_x_set_x2, A_IS_X SET_X(2))
/* Data by a string instruction, then the flag; halves of eight bytes must not be seen either. */
BODY(fill_x_set_y,
     "push %%rdi\n push %%rcx\n push %%rax\n mov %[x], %%rdi\n mov $64, %%ecx\n mov $1, %%al\n rep stosb\n"
     "pop %%rax\n pop %%rcx\n pop %%rdi\n" SET_Y(1))
/* The same by the stack: call and push store, too. */
BODY(push_x_set_y, "mov %%rsp, %[a]\n lea 8(%[x]), %%rsp\n pushq $1\n mov %[a], %%rsp\n xor %k[a], %k[a]\n" SET_Y(1))

#define OUTCOME(name, is)                                                                                              \
    static bool name(uint64_t x, uint64_t y, const results r)                                                          \
    {                                                                                                                  \
        (void)x, (void)y, (void)r;                                                                                     \
        return is;                                                                                                     \
    }
OUTCOME(neither, !r[0][0] && !r[1][0])
OUTCOME(both, r[0][0] && r[1][0])
OUTCOME(flag_without_data, r[1][0] && !r[1][1])
OUTCOME(flag_without_all_data, r[1][0] && r[1][1] != 0x0101010101010101ull)
OUTCOME(both_first, x == 1 && y == 1)
OUTCOME(y2_without_x, y == 2 && !r[1][0])
OUTCOME(x2_after_flag, x == 2 && r[1][0])
OUTCOME(back_again, r[1][0] && !r[1][1])
OUTCOME(forwarded, r[0][0] && !r[0][1] && r[1][0] && !r[1][1])
OUTCOME(n6_outcome, r[0][0] == 1 && !r[0][1] && x == 1)
OUTCOME(n5_outcome, r[0][0] == 2 && r[1][0] == 1)
OUTCOME(wrc_outcome, r[1][0] && r[2][0] && !r[2][1])
OUTCOME(rwc_outcome, r[1][0] && !r[1][1] && !r[2][0])
OUTCOME(two_orders, r[2][0] && !r[2][1] && r[3][0] && !r[3][1])

struct litmus {
    const char *name;
    unsigned threads;
    enum { NEVER, PERHAPS, SEEN } wanted; /* SEEN: when threads have met, without code beside it */
    bool (*outcome)(uint64_t x, uint64_t y, const results r);
    body *bodies[THREADS_MAX];
};

static const struct litmus tests[] = {
    {"SB", 2, SEEN, neither, {set_x_read_y, set_y_read_x}},
    {"SB+mfences", 2, NEVER, neither, {set_x_fence_read_y, set_y_fence_read_x}},
    {"SB+locked", 2, NEVER, neither, {set_x_locked_read_y, set_y_locked_read_x}},
    {"SB+xchg", 2, NEVER, neither, {swap_x_read_y, swap_y_read_x}},
    {"SB+mfence+locked", 2, NEVER, neither, {set_x_fence_read_y, set_y_locked_read_x}},
    {"SB+mfence+po", 2, PERHAPS, neither, {set_x_fence_read_y, set_y_read_x}},
    {"SB+forwarding", 2, PERHAPS, forwarded, {set_x_read_back_read_y, set_y_read_back_read_x}},
    {"MP", 2, NEVER, flag_without_data, {set_x_set_y, read_y_read_x}},
    {"MP+xchg", 2, NEVER, flag_without_data, {swap_x_set_y, read_y_read_x}},
    {"MP+stos", 2, NEVER, flag_without_all_data, {fill_x_set_y, read_y_read_x}},
    {"MP+push", 2, NEVER, flag_without_data, {push_x_set_y, read_y_read_x}},
    {"LB", 2, NEVER, both, {read_x_set_y, read_y_set_x}},
    {"S", 2, NEVER, x2_after_flag, {set_x2_set_y, read_y_set_x}},
    {"R", 2, PERHAPS, y2_without_x, {set_x_set_y, set_y2_read_x}},
    {"R+mfences", 2, NEVER, y2_without_x, {set_x_fence_set_y, set_y2_fence_read_x}},
    {"2+2W", 2, NEVER, both_first, {set_x_set_y2, set_y_set_x2}},
    {"CoRR", 2, NEVER, back_again, {set_x, read_x_twice}},
    {"n4", 2, NEVER, n5_outcome, {read_x_set_x, read_x_set_x2}},
    {"n5", 2, NEVER, n5_outcome, {set_x_read_x, set_x2_read_x}},
    {"n6", 2, PERHAPS, n6_outcome, {set_x_read_back_read_y, set_y2_set_x2}},
    {"WRC", 3, NEVER, wrc_outcome, {set_x, read_x_set_y, read_y_read_x}},
    {"RWC", 3, PERHAPS, rwc_outcome, {set_x, read_x_read_y, set_y_read_x}},
    {"RWC+mfence", 3, NEVER, rwc_outcome, {set_x, read_x_read_y, set_y_fence_read_x}},
    {"IRIW", 4, NEVER, two_orders, {set_x, set_y, read_x_read_y, read_y_read_x}},
};
enum { TESTS = sizeof tests / sizeof *tests };

static const struct litmus *test;
static struct meeting meeting;
static _Alignas(128) unsigned at[THREADS_MAX][32]; /* the instance each is at, from 1 */
static uint64_t counts[TESTS], totals[TESTS];
static uint64_t met; /* how often thread 0 has seen another come while it waited: both had a CPU of the host's */
static double since;
static bool over, beside_code;
static _Alignas(128) uint64_t result[THREADS_MAX][INSTANCES][2];

static void judge(void)
{
    const unsigned n = (unsigned)(test - tests);
    for (unsigned i = 0; i < INSTANCES; i++) {
        results r = {{0}};
        for (unsigned t = 0; t < test->threads; t++)
            memcpy(r[t], result[t][i], sizeof r[t]);
        counts[n] += test->outcome(*x_of(i), *y_of(i), r);
        *x_of(i) = *y_of(i) = 0;
    }
    totals[n] += INSTANCES;
}

/* Are there more batches?  A weak result that must be seen is waited for. */
static bool go_on(void)
{
    const unsigned n = (unsigned)(test - tests);
    if (counts[n] && test->wanted == NEVER)
        return false;
    const bool missing = test->wanted == SEEN && !counts[n] && !beside_code && met < ENOUGH;
    return totals[n] < LEAST || time_left(since, missing ? 10 : 0.06);
}

/* At the same instance as the others, if they are not far: nobody waits for one whose CPU does not run. */
static void approach(unsigned me, unsigned i)
{
    __atomic_store_n(at[me], i, __ATOMIC_RELEASE);
    for (unsigned t = 0; t < test->threads; t++) {
        enum { SPINS = 500 };
        unsigned k = 0;
        while (k < SPINS && __atomic_load_n(at[t], __ATOMIC_ACQUIRE) < i)
            k++;
        met += me == 0 && k > 0 && k < SPINS;
    }
}

static void run_thread(unsigned me)
{
    uint64_t random = 88172645463325252ull + me;
    for (;;) {
        if (me == 0) {
            over = !go_on();
            memset(at, 0, sizeof at);
        }
        meet(&meeting);
        if (over)
            return;
        for (unsigned i = 0; i < INSTANCES; i++) {
            const uint64_t dice = next_random(&random);
            if (beside_code)
                call(page_of(i) + FUNCTION_AT);
            /* Who has which line differs; when all have both, stores wait and loads do not. */
            if (dice & 0x10000)
                *(volatile uint64_t *)x_of(i);
            if (dice & 0x20000)
                *(volatile uint64_t *)y_of(i);
            approach(me, i + 1);
            for (volatile unsigned k = 0; k < dice % 32; k++)
                ;
            test->bodies[me](x_of(i), y_of(i), result[me][i]);
        }
        meet(&meeting);
        if (me == 0)
            judge();
    }
}

static const char *run_all(bool code)
{
    beside_code = code;
    pages = map(PAGES * PAGE, PROT_READ | PROT_WRITE | PROT_EXEC);
    for (unsigned i = 0; i < PAGES; i++)
        write_function(pages + i * PAGE + FUNCTION_AT, i);
    for (test = tests; test < tests + TESTS; test++) {
        if (test->threads > n_cpus)
            continue;
        meeting = (struct meeting){.n = test->threads};
        since = now(), met = 0;
        together(test->threads, run_thread);
        const unsigned n = (unsigned)(test - tests);
        if (test->wanted == NEVER && counts[n])
            complain("%s: %lu of %lu have the result that must not be", test->name, counts[n], totals[n]);
        if (test->wanted == SEEN && !counts[n] && !code && met >= ENOUGH)
            complain("%s: none of %lu has the result that there should be", test->name, totals[n]);
        if (getenv("times"))
            printf("    %-18s %7lu of %8lu\n", test->name, counts[n], totals[n]);
    }
    return complaint();
}

static const char *in_memory(void)
{
    return run_all(false);
}
static const char *by_code(void)
{
    return run_all(true);
}

/* --- the same two without steps: each thread counts up, and what was seen is compared afterwards ------------------ */

enum { LONG = 200000 };
static _Alignas(128) uint64_t long_x, long_y[16];
static uint64_t seen[2][LONG][2];

/* Readers 0 and 1 of x and y in opposite orders, writers 2 and 3. */
static void iriw_thread(unsigned me)
{
    meet(&meeting);
    if (me >= 2) {
        uint64_t *p = me == 2 ? &long_x : long_y;
        for (uint64_t i = 1; !__atomic_load_n(&over, __ATOMIC_RELAXED); i++)
            __atomic_store_n(p, i, __ATOMIC_RELAXED);
        return;
    }
    for (unsigned i = 0; i < LONG; i++) {
        seen[me][i][0] = __atomic_load_n(me ? long_y : &long_x, __ATOMIC_ACQUIRE);
        seen[me][i][1] = __atomic_load_n(me ? &long_x : long_y, __ATOMIC_ACQUIRE);
    }
    __atomic_store_n(&over, true, __ATOMIC_RELAXED);
}

static const char *iriw_long(void)
{
    since = now();
    do {
        over = false, long_x = 0, *long_y = 0;
        meeting = (struct meeting){.n = 4};
        together(4, iriw_thread);
        /* reader 0: x was a when y was still b; reader 1: y was c when x was still d */
        for (unsigned i = 0, j = 0; i < LONG; i++) {
            while (j + 1 < LONG && seen[1][j + 1][1] < seen[0][i][0])
                j++;
            if (seen[1][j][1] < seen[0][i][0] && seen[0][i][1] < seen[1][j][0])
                complain("one saw x %lu before y %lu, the other y %lu before x %lu", seen[0][i][0], seen[0][i][1],
                         seen[1][j][0], seen[1][j][1]);
        }
    } while (!complaint() && time_left(since, 0.2));
    return complaint();
}

static void sb_thread(unsigned me)
{
    uint64_t *mine = me ? long_y : &long_x, *other = me ? &long_x : long_y;
    meet(&meeting);
    for (uint64_t i = 0; i < LONG; i++) {
        __atomic_store_n(mine, i + 1, __ATOMIC_RELAXED);
        __atomic_thread_fence(__ATOMIC_SEQ_CST);
        seen[me][i][0] = __atomic_load_n(other, __ATOMIC_RELAXED);
    }
}

static const char *sb_long(void)
{
    since = now();
    do {
        long_x = 0, *long_y = 0;
        meeting = (struct meeting){.n = 2};
        together(2, sb_thread);
        for (uint64_t i = 0; i < LONG; i++) { /* 0's store i + 1 saw s of 1: 1's store s + 1 must see that */
            const uint64_t s = seen[0][i][0];
            if (s < LONG && seen[1][s][0] < i + 1)
                complain("%lu missed %lu, which missed it", i + 1, s + 1);
        }
    } while (!complaint() && time_left(since, 0.2));
    return complaint();
}

/* --- stores are whole --------------------------------------------------------------------------------------------- */

static uint8_t *whole_at;
static unsigned whole_size;

static uint64_t load_of(const void *p, unsigned size)
{
    switch (size) {
    case 2:
        return *(const volatile uint16_t *)p * 0x0001000100010001ull;
    case 4:
        return *(const volatile uint32_t *)p * 0x0000000100000001ull;
    default:
        return *(const volatile uint64_t *)p;
    }
}

static void whole_thread(unsigned me)
{
    meet(&meeting);
    for (unsigned i = 0; !__atomic_load_n(&over, __ATOMIC_RELAXED); i++) {
        if (beside_code && i % 64 == 0)
            call(pages);
        if (me == 0) {
            const uint64_t value = i % 2 ? ~0ull : 0;
            if (whole_size == 2)
                *(volatile uint16_t *)whole_at = (uint16_t)value;
            else if (whole_size == 4)
                *(volatile uint32_t *)whole_at = (uint32_t)value;
            else
                *(volatile uint64_t *)whole_at = value;
            if (i % 64 == 0 && !time_left(since, 0.02))
                __atomic_store_n(&over, true, __ATOMIC_RELAXED);
        } else {
            const uint64_t got = load_of(whole_at, whole_size);
            if (got && ~got)
                complain("%u bytes at offset %lu%s: %lx", whole_size, (uintptr_t)whole_at % PAGE,
                         beside_code ? " beside code" : "", got);
        }
    }
}

static const char *whole(void)
{
    static const unsigned sizes[] = {2, 4, 8};
    pages = map(PAGE, PROT_READ | PROT_WRITE | PROT_EXEC);
    write_function(pages, 1);
    for (unsigned i = 0; i < 12; i++) { /* aligned, and unaligned in a line; without code and with it */
        whole_size = sizes[i % 3];
        whole_at = pages + 1024 + (i / 3 % 2 ? 13 : 0);
        beside_code = i >= 6;
        over = false, since = now();
        meeting = (struct meeting){.n = 2};
        together(2, whole_thread);
    }
    return complaint();
}

const struct check litmus_checks[] = {
    {"litmus tests", in_memory, 2},   {"litmus tests beside code", by_code, 2}, {"SB+mfences, counting", sb_long, 2},
    {"IRIW, counting", iriw_long, 4}, {"stores and loads are whole", whole, 2}, {0},
};
