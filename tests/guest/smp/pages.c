/*
 * Many pages, of which all threads use their own words while the kernel puts other pages behind the addresses: copies
 * after a fork, large pages that come and go, memory that is compacted or merged.  Nobody loses a store or reads an
 * older one.
 *
 * Unlike in shootdown.c nobody waits for anybody, so entries change at any moment of another CPU's fault, beside
 * pages that it has not come to yet.
 */
#include "smp.h"

#include <fcntl.h>

#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25
#endif

enum { THREADS = 8, PAGES = 1024, WORD_STEP = 64 / 8 };
static const size_t large = 2ul << 20;

static struct meeting meeting;
static uint8_t *region;
static void (*change)(uint64_t k);
static bool alike; /* words have few values and seldom change, so that pages have the same contents */
static double since;
static bool over;
/* What each has written last: in shared memory, which no fork makes a copy of. */
static uint64_t (*last)[PAGES];

static volatile uint64_t *word(unsigned n, unsigned me)
{
    return (volatile uint64_t *)(region + n * PAGE) + me * WORD_STEP;
}

static void use(unsigned me)
{
    uint64_t random = 0x9e3779b97f4a7c15ull * (me + 1);
    for (uint64_t k = 1; !__atomic_load_n(&over, __ATOMIC_RELAXED) && !complaint(); k++) {
        /* Runs of pages, as programs use them, from anywhere. */
        const unsigned from = next_random(&random) % PAGES, n = next_random(&random) % 24;
        for (unsigned i = from; i < from + n && i < PAGES; i++) {
            const uint64_t got = *word(i, me);
            if (got != last[me][i])
                complain("a thread reads %lx in page %u where it wrote %lx", got, i, last[me][i]);
            if (alike ? k % 1024 == 0 : k % 3) /* pages that are only read have other entries */
                *word(i, me) = last[me][i] = alike ? next_random(&random) % 2 : k << 8 | me;
        }
    }
}

static void thread(unsigned me)
{
    meet(&meeting);
    if (me)
        return use(me);
    for (uint64_t k = 0; time_left(since, 0.4) && !complaint(); k++)
        change(k);
    __atomic_store_n(&over, true, __ATOMIC_RELAXED);
}

static const char *use_while(void (*changes)(uint64_t k))
{
    const unsigned threads = n_cpus < THREADS ? n_cpus : THREADS;
    uint8_t *p = map(PAGES * PAGE + large, PROT_READ | PROT_WRITE);
    region = (uint8_t *)(((uintptr_t)p + large - 1) & -large);
    last = mmap(NULL, THREADS * sizeof *last, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (last == MAP_FAILED)
        return "no memory";
    change = changes;
    meeting = (struct meeting){.n = threads};
    over = false, since = now();
    together(threads, thread);
    return complaint();
}

/* Every page can be read only, and becomes a copy when it is written to, while the child is there and after it. */
static void fork_once(uint64_t k)
{
    int status = 0;
    const pid_t pid = fork();
    if (pid == 0) {
        for (unsigned i = k % 7; i < PAGES; i += 7)
            region[i * PAGE + PAGE - 1] = 1; /* pages that the others have then, or do not */
        _exit(0);
    }
    if (pid < 0 || waitpid(pid, &status, 0) != pid || status)
        complain("fork: %s, status %x", strerror(errno), (unsigned)status);
}

/* Small pages become a large one, which is divided by another protection of one of them. */
static void collapse(uint64_t k)
{
    uint8_t *at = region + k % (PAGES * PAGE / large) * large;
    madvise(at, large, MADV_COLLAPSE);
    mprotect(at + k % 512 * PAGE, PAGE, PROT_READ | PROT_WRITE | PROT_EXEC);
    mprotect(at + k % 512 * PAGE, PAGE, PROT_READ | PROT_WRITE);
}

/* The kernel moves pages to make room for large ones; holes give it something to do. */
static void compact(uint64_t k)
{
    static uint8_t *holes;
    static int fd = -1;
    enum { HOLES = 1024 };
    if (fd < 0)
        fd = open("/proc/sys/vm/compact_memory", O_WRONLY);
    if (!holes) {
        holes = map(HOLES * PAGE, PROT_READ | PROT_WRITE);
        madvise(holes, HOLES * PAGE, MADV_NOHUGEPAGE);
    }
    for (unsigned i = k % 2; i < HOLES; i += 2)
        holes[i * PAGE] = 1;
    for (unsigned i = (k + 1) % 2; i < HOLES; i += 2)
        madvise(holes + i * PAGE, PAGE, MADV_DONTNEED);
    if (fd >= 0 && write(fd, "1", 1) != 1)
        complain("compact_memory: %s", strerror(errno));
}

/* The kernel maps the same page, which can be read only, for all that have the same contents. */
static bool set_ksm(const char *file, const char *value)
{
    char path[64];
    snprintf(path, sizeof path, "/sys/kernel/mm/ksm/%s", file);
    const int fd = open(path, O_WRONLY);
    const bool good = fd >= 0 && write(fd, value, strlen(value)) > 0;
    if (fd >= 0)
        close(fd);
    return good;
}

static void merge(uint64_t k)
{
    if (k == 0)
        madvise(region, PAGES * PAGE, MADV_MERGEABLE);
    usleep(1000);
    region[k * 37 % PAGES * PAGE + PAGE - 1] ^= 1; /* one loses what it has in common */
}

static void all(uint64_t k)
{
    k % 3 == 0 ? fork_once(k) : k % 3 == 1 ? collapse(k) : compact(k);
}

static const char *forked(void)
{
    return use_while(fork_once);
}

static const char *collapsed(void)
{
    return use_while(collapse);
}

static const char *compacted(void)
{
    return use_while(compact);
}

static const char *merged(void)
{
    if (!set_ksm("pages_to_scan", "100000") || !set_ksm("sleep_millisecs", "0") || !set_ksm("run", "1"))
        return in_guest ? "the kernel does not merge pages" : NULL;
    alike = true;
    const char *wrong = use_while(merge);
    set_ksm("run", "0");
    return wrong;
}

static const char *everything(void)
{
    return use_while(all);
}

/* A large page goes by one flush of one address in it.  Where it may be executed, mirrors have it in pieces
 * (engine/soft/direct_mirror.c). */
static const char *large_gone(void)
{
    uint8_t *p = map(PAGES * PAGE + large, PROT_READ | PROT_WRITE | PROT_EXEC);
    p = (uint8_t *)(((uintptr_t)p + large - 1) & -large);
    for (unsigned k = 1; k <= 4; k++) {
        for (unsigned i = 0; i < PAGES; i++)
            p[i * PAGE] = 1;
        if (madvise(p, PAGES * PAGE, MADV_COLLAPSE))
            return in_guest ? "the kernel has no large pages" : NULL;
        for (unsigned i = 0; i < PAGES; i++)
            p[i * PAGE]++;
        for (size_t at = 0; at < PAGES * PAGE; at += large)
            madvise(p + at, large, MADV_DONTNEED);
        for (unsigned i = 0; i < PAGES; i++)
            if (*(volatile uint8_t *)(p + i * PAGE))
                complain("page %u of large pages that are gone is still there", i);
    }
    return complaint();
}

const struct check pages_checks[] = {
    {"large pages that are gone", large_gone, 1},
    {"pages that forks copy", forked, 2},
    {"pages that become large ones", collapsed, 2},
    {"pages that the kernel moves", compacted, 2},
    {"pages that the kernel merges", merged, 2},
    {"pages that change in all of these ways", everything, 2},
    {0},
};
