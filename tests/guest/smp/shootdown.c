/*
 * Mappings that one thread changes while others, on other CPUs, use them: when the call has returned, nobody uses the
 * old one.
 *
 * `state` is odd while a page is closed.  A thread that finds the same odd number before and after an access that
 * should have failed has used what was not there any more.
 */
#include "smp.h"

#include <sys/prctl.h>

enum { THREADS = 8, WORDS = PAGE / 8 };
#define AT ((uint8_t *)0x200000000000ul) /* where nobody else maps anything */
#define ELSEWHERE (AT + (1ul << 30))
#define SECRET 0x5ec2e75ec2e75ec2ull

static struct meeting meeting;
static volatile uint64_t *page;
static uint64_t state;
static double since, allowed;
static bool over;
static unsigned threads;

static uint64_t state_now(void)
{
    return __atomic_load_n(&state, __ATOMIC_SEQ_CST);
}

static void next_state(void)
{
    __atomic_fetch_add(&state, 1, __ATOMIC_SEQ_CST);
}

static bool is_over(void)
{
    return __atomic_load_n(&over, __ATOMIC_RELAXED);
}

static bool goes_on(void)
{
    if (time_left(since, allowed) && !complaint())
        return true;
    __atomic_store_n(&over, true, __ATOMIC_RELAXED);
    return false;
}

static void a_while(void)
{
    static uint64_t random = 88172645463325252ull;
    for (volatile unsigned i = 0, n = next_random(&random) % 4000; i < n; i++)
        ;
}

static const char *change_and_use(double seconds, void (*f)(unsigned me))
{
    threads = n_cpus < THREADS ? n_cpus : THREADS;
    meeting = (struct meeting){.n = threads};
    over = false, state = 0, allowed = seconds, since = now();
    catch_faults();
    together(threads, f);
    return complaint();
}

static uint8_t *map_at(uint8_t *at, size_t size, int protection)
{
    uint8_t *p = mmap(at, size, protection, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
    if (p != at)
        complain("mmap: %s", strerror(errno));
    return p;
}

/* Nobody writes there meanwhile. */
static void stays(const volatile uint64_t *p, const char *what)
{
    uint64_t before[THREADS];
    for (unsigned i = 0; i < THREADS; i++)
        before[i] = p[i * 8];
    a_while();
    for (unsigned i = 0; i < THREADS; i++)
        if (p[i * 8] != before[i])
            complain("%s: word %u becomes %lx, was %lx", what, i * 8, p[i * 8], before[i]);
}

/* Users, each of a line of its own: what is seen there while the page is closed. */
static const char *what;
static bool users_read, users_write;
static uint64_t readable_when_closed; /* a value that may be read then; ~0: it cannot be read */

static void use(unsigned me)
{
    for (uint64_t k = 1; !is_over(); k++) {
        const uint64_t before = state_now();
        uint64_t got = 0;
        const bool stored = users_write && try_store(page + me * 8, k << 8 | me);
        if (stored && before % 2 && state_now() == before)
            complain("%s: a store works", what);
        const uint64_t between = state_now();
        if (!users_read || !try_load(page + me * 8, &got))
            continue;
        if (got == SECRET)
            complain("%s: another page is read", what);
        if (between % 2 && state_now() == between && got != readable_when_closed)
            complain("%s: a load gives %lx", what, got);
    }
}

/* --- mprotect ---------------------------------------------------------------------------------------------------- */

static void protect_thread(unsigned me)
{
    meet(&meeting);
    if (me)
        return use(me);
    while (goes_on()) {
        a_while();
        mprotect((void *)page, PAGE, PROT_READ);
        next_state();
        stays(page, "a page that can be read only");
        next_state();
        mprotect((void *)page, PAGE, PROT_READ | PROT_WRITE);
    }
}

static const char *protect(void)
{
    page = (void *)map_at(AT, PAGE, PROT_READ | PROT_WRITE);
    what = "a page that can be read only", users_write = true;
    return change_and_use(0.25, protect_thread);
}

/* A page in the middle of a large one, if the kernel makes it such. */
static const char *protect_large(void)
{
    const size_t large = 2ul << 20;
    uint8_t *p = map_at(AT, 2 * large, PROT_READ | PROT_WRITE);
    madvise(p, 2 * large, MADV_HUGEPAGE);
    memset(p, 1, 2 * large);
    page = (void *)(p + large + 77 * PAGE);
    what = "a page of a large one", users_write = true;
    return change_and_use(0.2, protect_thread);
}

/* The large one anew each time: what splits it is the mprotect that is looked at. */
static void protect_fresh_thread(unsigned me)
{
    const size_t large = 2ul << 20;
    meet(&meeting);
    if (me)
        return use(me);
    while (goes_on()) {
        mmap((void *)(AT + large), large, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
        madvise(AT + large, large, MADV_HUGEPAGE);
        AT[large] = 1;
        a_while();
        mprotect((void *)page, PAGE, PROT_READ);
        next_state();
        stays(page, "a page of a large one");
        next_state();
    }
}

static const char *protect_fresh(void)
{
    page = (void *)(AT + (2ul << 20) + 77 * PAGE);
    what = "a page of a new large one", users_write = true;
    map_at(AT, 4ul << 20, PROT_READ | PROT_WRITE);
    return change_and_use(0.2, protect_fresh_thread);
}

static void no_access_thread(unsigned me)
{
    meet(&meeting);
    if (me)
        return use(me);
    while (goes_on()) {
        a_while();
        mprotect((void *)page, PAGE, PROT_NONE);
        next_state();
        a_while();
        next_state();
        mprotect((void *)page, PAGE, PROT_READ | PROT_WRITE);
    }
}

static const char *no_access(void)
{
    page = (void *)map_at(AT, PAGE, PROT_READ | PROT_WRITE);
    what = "a page without access", users_read = users_write = true, readable_when_closed = ~0ull;
    return change_and_use(0.2, no_access_thread);
}

/* --- munmap; what becomes of the page ---------------------------------------------------------------------------- */

/* The next page that is wanted is likely to be the one that has just become free. */
static void another_page(const char *which)
{
    volatile uint64_t *other = (void *)map_at(ELSEWHERE, PAGE, PROT_READ | PROT_WRITE);
    for (unsigned i = 0; i < WORDS; i++)
        if (other[i])
            complain("%s: a new page is not empty: %lx", which, other[i]);
        else
            other[i] = SECRET;
    a_while();
    for (unsigned i = 0; i < WORDS; i++)
        if (other[i] != SECRET)
            complain("%s: a store lands in another page", which);
    munmap((void *)other, PAGE);
}

static void unmap_thread(unsigned me)
{
    meet(&meeting);
    if (me)
        return use(me);
    while (goes_on()) {
        a_while();
        munmap((void *)page, PAGE);
        next_state();
        another_page(what);
        next_state();
        map_at((void *)page, PAGE, PROT_READ | PROT_WRITE);
    }
}

static const char *unmap(void)
{
    page = (void *)map_at(AT, PAGE, PROT_READ | PROT_WRITE);
    what = "an unmapped page", users_read = users_write = true, readable_when_closed = ~0ull;
    return change_and_use(0.25, unmap_thread);
}

static void drop_thread(unsigned me)
{
    meet(&meeting);
    if (me)
        return use(me);
    while (goes_on()) {
        for (unsigned i = 0; i < WORDS; i++)
            page[i] = 77;
        a_while();
        madvise((void *)page, PAGE, MADV_DONTNEED);
        next_state();
        another_page(what);
        next_state();
    }
}

static const char *drop(void)
{
    page = (void *)map_at(AT, PAGE, PROT_READ | PROT_WRITE);
    what = "a dropped page", users_read = true, readable_when_closed = 0;
    return change_and_use(0.25, drop_thread);
}

/* The same while others write: what they write is in the page that they get, not in the one that was dropped. */
static void drop_written_thread(unsigned me)
{
    meet(&meeting);
    if (me)
        return use(me);
    while (goes_on()) {
        a_while();
        madvise((void *)page, PAGE, MADV_DONTNEED);
        another_page(what);
    }
}

static const char *drop_written(void)
{
    page = (void *)map_at(AT, PAGE, PROT_READ | PROT_WRITE);
    what = "a dropped page", users_read = users_write = true;
    return change_and_use(0.25, drop_written_thread);
}

static void move(volatile uint64_t *from, uint8_t *to)
{
    if (mremap((void *)from, PAGE, PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, to) != to)
        complain("mremap: %s", strerror(errno));
}

static void move_thread(unsigned me)
{
    meet(&meeting);
    if (me)
        return use(me);
    while (goes_on()) {
        a_while();
        move(page, ELSEWHERE);
        next_state();
        stays((void *)ELSEWHERE, "a page that has moved");
        next_state();
        move((void *)ELSEWHERE, (uint8_t *)page);
    }
}

static const char *moved(void)
{
    page = (void *)map_at(AT, PAGE, PROT_READ | PROT_WRITE);
    what = "a page that has moved", users_read = users_write = true, readable_when_closed = ~0ull;
    return change_and_use(0.25, move_thread);
}

/* --- fork -------------------------------------------------------------------------------------------------------- */

/* Each thread's word is what it has written last, and the child's stays what it was. */
static void fork_thread(unsigned me)
{
    meet(&meeting);
    for (uint64_t k = 1; me && !is_over(); k++) {
        page[me * 8] = k;
        for (volatile unsigned i = 0; i < k % 16; i++)
            ;
        if (page[me * 8] != k)
            complain("a thread reads %lx where it wrote %lx", page[me * 8], k);
    }
    while (!me && goes_on()) {
        int status;
        const pid_t pid = fork();
        if (pid == 0) {
            stays(page, "the child's page");
            for (unsigned i = 0; i < THREADS; i++)
                page[i * 8] = SECRET;
            stays(page, "the child's page");
            _exit(complaint() != NULL);
        }
        if (pid < 0 || waitpid(pid, &status, 0) != pid)
            complain("fork: %s", strerror(errno));
        else if (status)
            complain("the child's page changes");
    }
}

static const char *copied(void)
{
    page = (void *)map_at(AT, PAGE, PROT_READ | PROT_WRITE);
    return change_and_use(0.4, fork_thread);
}

/* --- CPUs whose TLB is not told of while another program runs there ---------------------------------------------- */

/* A thread changes mappings on one CPU, and uses them on another where it has used what was there before. */
static _Noreturn void wanderer(unsigned me)
{
    uint8_t *p = map(4 * PAGE, PROT_READ | PROT_WRITE);
    catch_faults();
    for (uint64_t k = 1; time_left(since, 0.3); k++) {
        const unsigned cpu = (unsigned)(me + k);
        volatile uint64_t *word = (void *)(p + k % 4 * PAGE);
        uint64_t got;
        pin(cpu);
        *word = k;
        pin(cpu + 1);
        if (*word != k)
            _exit(1);
        switch (k % 3) {
        case 0:
            madvise((void *)word, PAGE, MADV_DONTNEED);
            break;
        case 1:
            mprotect((void *)word, PAGE, PROT_READ);
            break;
        default:
            mmap((void *)word, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
        }
        if (k % 5 == 0)
            sched_yield();
        pin(cpu);
        if (k % 3 != 1 && *word)
            _exit(2);
        if (k % 3 == 1 && try_store(word, 1))
            _exit(3);
        if (k % 3 == 1 && (!try_load(word, &got) || got != k))
            _exit(4);
        mprotect((void *)word, PAGE, PROT_READ | PROT_WRITE);
        *word = k + 1;
    }
    _exit(0);
}

static const char *wander(void)
{
    static const char *const why[] = {"", "a word is not what was written on another CPU", "what was dropped is read",
                                      "a page that can be read only is written",
                                      "a page that can be read only is lost"};
    pid_t pids[2 * THREADS];
    const unsigned n = 2 * (n_cpus < THREADS ? n_cpus : THREADS);
    since = now();
    for (unsigned i = 0; i < n; i++) {
        pids[i] = fork();
        if (pids[i] == 0)
            wanderer(i);
    }
    for (unsigned i = 0; i < n; i++) {
        int status;
        if (waitpid(pids[i], &status, 0) != pids[i] || (status && status >> 8 > 4) || status % 256)
            complain("wait status %x", (unsigned)status);
        else if (status)
            complain("%s", why[status >> 8]);
    }
    return complaint();
}

/* --- the end of a program whose threads run ---------------------------------------------------------------------- */

static void busy_thread(unsigned me)
{
    for (uint64_t k = 0;; k++) {
        page[me * 8] = k;
        if (me == 0 && k == 2000)
            _exit(7);
    }
}

static const char *end(void)
{
    since = now();
    for (unsigned n = 0; time_left(since, 0.25) && !complaint(); n++) {
        int status;
        const pid_t pid = fork();
        if (pid == 0) {
            page = map(PAGE, PROT_READ | PROT_WRITE);
            together(n_cpus < THREADS ? n_cpus : THREADS, busy_thread);
        }
        if (waitpid(pid, &status, 0) != pid || status != 7 << 8)
            complain("wait status %x", (unsigned)status);
        another_page("after the end");
    }
    return complaint();
}

const struct check shootdown_checks[] = {
    {"mprotect", protect, 2},
    {"mprotect in a large page", protect_large, 2},
    {"mprotect that splits a large page", protect_fresh, 2},
    {"mprotect without access", no_access, 2},
    {"munmap, and the page is another's", unmap, 2},
    {"madvise that drops what others read", drop, 2},
    {"madvise that drops what others write", drop_written, 2},
    {"mremap", moved, 2},
    {"fork, and copies on write", copied, 2},
    {"mappings of a thread that moves about", wander, 2},
    {"programs end while their threads run", end, 2},
    {0},
};
