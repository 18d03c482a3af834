/*
 * Threads and programs on different CPUs that wake, signal and send to one another.
 */
#include "smp.h"

#include <cpuid.h>
#include <linux/futex.h>
#include <sys/time.h>

enum { THREADS = 8 };
static struct meeting meeting;
static double since;
static bool over;
static unsigned threads;

static unsigned at_most(unsigned n)
{
    return n_cpus < n ? n_cpus : n;
}

static bool is_over(void)
{
    return __atomic_load_n(&over, __ATOMIC_RELAXED);
}

static void begin(unsigned n)
{
    threads = n, over = false, since = now();
    meeting = (struct meeting){.n = n};
}

/* --- pipes ------------------------------------------------------------------------------------------------------- */

static int ends[THREADS][2];

/* A ring: a number goes round, each adds one. */
static void ring_thread(unsigned me)
{
    meet(&meeting);
    for (uint64_t k = me;; k += threads) {
        uint64_t token = 0;
        if (me == 0 && k == 0)
            token = 0;
        else if (read(ends[me][0], &token, sizeof token) != sizeof token)
            complain("read: %s", strerror(errno));
        if (token != ~0ull && token != k)
            complain("%lu comes instead of %lu", token, k);
        if (complaint() || (me == 0 && !time_left(since, 0.2)))
            token = ~0ull;
        const uint64_t next = token == ~0ull ? token : token + 1;
        if (write(ends[(me + 1) % threads][1], &next, sizeof next) != sizeof next)
            complain("write: %s", strerror(errno));
        if (token == ~0ull)
            return;
    }
}

static const char *pipes(void)
{
    begin(at_most(THREADS));
    for (unsigned i = 0; i < threads; i++)
        if (pipe(ends[i]))
            return "no pipe";
    together(threads, ring_thread);
    return complaint();
}

/* Many bytes from program to program. */
static const char *streams(void)
{
    enum { WORDS = 8192, TIMES = 60 };
    static uint64_t words[WORDS];
    int status;
    if (pipe(ends[0]))
        return "no pipe";
    const pid_t pid = fork();
    if (pid == 0) {
        pin(1);
        for (uint64_t k = 0; k < TIMES; k++) {
            for (uint64_t i = 0; i < WORDS; i++)
                words[i] = (k << 32 | i) * 0x9e3779b97f4a7c15ull;
            for (size_t sent = 0; sent < sizeof words;) {
                const ssize_t n = write(ends[0][1], (char *)words + sent, sizeof words - sent);
                if (n <= 0)
                    _exit(1);
                sent += (size_t)n;
            }
        }
        _exit(0);
    }
    pin(0);
    close(ends[0][1]);
    for (uint64_t k = 0; k < TIMES; k++) {
        for (size_t got = 0; got < sizeof words;) {
            const ssize_t n = read(ends[0][0], (char *)words + got, sizeof words - got);
            if (n <= 0)
                return "the stream ends";
            got += (size_t)n;
        }
        for (uint64_t i = 0; i < WORDS; i++)
            if (words[i] != (k << 32 | i) * 0x9e3779b97f4a7c15ull)
                complain("word %lu of block %lu is %lx", i, k, words[i]);
    }
    waitpid(pid, &status, 0);
    return complaint();
}

/* --- futexes, and what is made of them --------------------------------------------------------------------------- */

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t changed = PTHREAD_COND_INITIALIZER;
static uint64_t turn, guarded[2];

static void turn_thread(unsigned me)
{
    meet(&meeting);
    for (;;) {
        pthread_mutex_lock(&lock);
        while (turn % threads != me && !over)
            pthread_cond_wait(&changed, &lock);
        if (!time_left(since, 0.2))
            over = true;
        turn++;
        pthread_cond_broadcast(&changed);
        const bool last = over;
        pthread_mutex_unlock(&lock);
        if (last)
            return;
    }
}

static const char *turns(void)
{
    begin(at_most(4));
    together(threads, turn_thread);
    return turn > threads ? complaint() : "nobody's turn comes";
}

static uint64_t own[THREADS];
static void mutex_thread(unsigned me)
{
    uint64_t n = 0;
    meet(&meeting);
    while (!is_over()) {
        pthread_mutex_lock(&lock);
        guarded[0]++;
        if (guarded[0] != guarded[1] + 1)
            complain("two threads have the mutex");
        guarded[1]++;
        pthread_mutex_unlock(&lock);
        if (++n % 64 == 0 && me == 0 && !time_left(since, 0.2))
            __atomic_store_n(&over, true, __ATOMIC_RELAXED);
    }
    own[me] = n;
}

static const char *mutex(void)
{
    uint64_t sum = 0;
    begin(at_most(THREADS));
    together(threads, mutex_thread);
    for (unsigned i = 0; i < threads; i++)
        sum += own[i];
    if (guarded[0] != sum)
        complain("%lu instead of %lu", guarded[0], sum);
    return complaint();
}

/* A wake-up that is lost is a hang: nobody comes back by time. */
static int word;
static void futex_thread(unsigned me)
{
    meet(&meeting);
    for (int k = (int)me; !is_over(); k += 2) {
        while (__atomic_load_n(&word, __ATOMIC_SEQ_CST) != k && !is_over())
            syscall(SYS_futex, &word, FUTEX_WAIT_PRIVATE, k - 1, NULL);
        if (me == 0 && !time_left(since, 0.2))
            __atomic_store_n(&over, true, __ATOMIC_SEQ_CST);
        __atomic_store_n(&word, k + 1, __ATOMIC_SEQ_CST);
        syscall(SYS_futex, &word, FUTEX_WAKE_PRIVATE, 1, NULL);
    }
}

static const char *futex(void)
{
    begin(2);
    together(2, futex_thread);
    return complaint();
}

/* --- signals ----------------------------------------------------------------------------------------------------- */

static pid_t ids[THREADS];
static uint64_t taken[THREADS][16];
static __thread unsigned myself;

static void on_signal(int sig, siginfo_t *info, void *context)
{
    (void)sig, (void)context;
    if (info->si_value.sival_int != (int)*taken[myself])
        complain("signal %d arrives in place of %lu", info->si_value.sival_int, *taken[myself]);
    __atomic_fetch_add(taken[myself], 1, __ATOMIC_SEQ_CST);
}

static void handle(int sig, void (*f)(int, siginfo_t *, void *))
{
    struct sigaction sa = {.sa_sigaction = f, .sa_flags = SA_SIGINFO | SA_RESTART};
    sigaction(sig, &sa, NULL);
}

/* The first sends; the others compute, and make no system call that would let a signal in. */
static void signal_thread(unsigned me)
{
    double slowest = 0;
    myself = me;
    ids[me] = (pid_t)syscall(SYS_gettid);
    meet(&meeting);
    uint64_t x = me;
    while (me && !is_over())
        x = x * 6364136223846793005ull + 1;
    for (int k = 0; !me && !is_over(); k++) {
        for (unsigned i = 1; i < threads; i++) {
            siginfo_t info = {.si_code = SI_QUEUE, .si_signo = SIGRTMIN};
            info.si_value.sival_int = k;
            info.si_pid = getpid();
            const double sent = now();
            syscall(SYS_rt_tgsigqueueinfo, getpid(), ids[i], SIGRTMIN, &info);
            while (__atomic_load_n(taken[i], __ATOMIC_SEQ_CST) != (uint64_t)k + 1 && now() - sent < 10)
                __builtin_ia32_pause();
            const double took = now() - sent;
            slowest = took > slowest ? took : slowest;
            if (took >= 10)
                complain("a signal does not arrive");
        }
        if (complaint() || !time_left(since, 0.25))
            __atomic_store_n(&over, true, __ATOMIC_RELAXED);
    }
    if (slowest > 2)
        complain("a signal takes %.1f s", slowest);
}

static const char *signals(void)
{
    handle(SIGRTMIN, on_signal);
    begin(at_most(4));
    together(threads, signal_thread);
    return complaint();
}

/* Each to each, at once; none is lost. */
static void storm_thread(unsigned me)
{
    enum { TIMES = 300 };
    myself = me;
    ids[me] = (pid_t)syscall(SYS_gettid);
    meet(&meeting);
    for (unsigned k = 0; k < TIMES; k++)
        for (unsigned i = 0; i < threads; i++)
            while (i != me && syscall(SYS_tgkill, getpid(), ids[i], SIGRTMIN + 1) && errno == EAGAIN)
                sched_yield();
    const double start = now();
    while (__atomic_load_n(taken[me], __ATOMIC_SEQ_CST) < (uint64_t)TIMES * (threads - 1) && now() - start < 10)
        sched_yield();
    if (*taken[me] != (uint64_t)TIMES * (threads - 1))
        complain("%lu signals of %u arrive", *taken[me], TIMES * (threads - 1));
    meet(&meeting);
}

static void on_storm(int sig, siginfo_t *info, void *context)
{
    (void)sig, (void)info, (void)context;
    __atomic_fetch_add(taken[myself], 1, __ATOMIC_SEQ_CST);
}

static const char *storm(void)
{
    handle(SIGRTMIN + 1, on_storm);
    memset(taken, 0, sizeof taken);
    begin(at_most(4));
    together(threads, storm_thread);
    return complaint();
}

/* --- where one is ------------------------------------------------------------------------------------------------ */

static unsigned apic_of_cpu[CPUS_MAX];

static unsigned apic_id(void)
{
    unsigned a, b, c, d;
    __cpuid_count(0xb, 0, a, b, c, d);
    if (b)
        return d;
    __cpuid(1, a, b, c, d);
    return b >> 24;
}

static const char *affinity(void)
{
    since = now();
    for (unsigned round = 0; (round < 2 || time_left(since, 0.1)) && !complaint(); round++) {
        for (unsigned i = 0; i < n_cpus; i++) {
            unsigned cpu = 77, aux;
            pin(i);
            syscall(SYS_getcpu, &cpu, NULL, NULL);
            __builtin_ia32_rdtscp(&aux); /* run directly, it tells which of the host's CPUs it is: docs/ENGINE.md */
            if (sched_getcpu() != (int)i || cpu != i)
                complain("on CPU %u, getcpu says %d, the kernel %u", i, sched_getcpu(), cpu);
            if (aux % 4096 != i && !getenv("direct"))
                complain("on CPU %u, RDTSCP says %u", i, aux % 4096);
            if (round == 0)
                apic_of_cpu[i] = apic_id();
            else if (apic_of_cpu[i] != apic_id())
                complain("the APIC id of CPU %u is %u, and was %u", i, apic_id(), apic_of_cpu[i]);
            for (unsigned k = 0; round == 0 && k < i; k++)
                if (apic_of_cpu[k] == apic_of_cpu[i])
                    complain("CPUs %u and %u have the same APIC id, %u", k, i, apic_of_cpu[k]);
        }
    }
    return complaint();
}

/* --- timers, and CPUs that compute beside them ------------------------------------------------------------------- */

static uint64_t woken[THREADS];

/* All but the last compute, two threads a CPU; each second one sleeps often, and has to come back. */
static void sleep_thread(unsigned me)
{
    meet(&meeting);
    uint64_t x = me;
    while (!is_over()) {
        if (me % 2) {
            for (unsigned i = 0; i < 10000; i++)
                x = x * 6364136223846793005ull + 1;
        } else {
            const double start = now();
            nanosleep(&(struct timespec){0, 1000000}, NULL);
            if (now() - start < 0.001)
                complain("a millisecond is %.0f us", (now() - start) * 1e6);
            if (now() - start > 2)
                complain("a millisecond is %.1f s", now() - start);
            woken[me]++;
        }
        if (me == 0 && !time_left(since, 0.3))
            __atomic_store_n(&over, true, __ATOMIC_RELAXED);
    }
    __asm__ volatile("" ::"r"(x));
}

static const char *timers(void)
{
    begin(THREADS);
    together(threads, sleep_thread);
    for (unsigned i = 0; i < threads; i += 2)
        if (woken[i] < 5)
            complain("thread %u wakes %lu times", i, woken[i]);
    return complaint();
}

/* Programs that start on all CPUs at once. */
static const char *forks(void)
{
    pid_t pids[THREADS];
    const unsigned n = at_most(THREADS);
    since = now();
    for (unsigned i = 0; i < n; i++) {
        pids[i] = fork();
        for (unsigned k = 0; pids[i] == 0; k++) {
            int status;
            if (!time_left(since, 0.3))
                _exit(0);
            const pid_t pid = fork();
            if (pid == 0)
                _exit((int)(k % 100));
            if (waitpid(pid, &status, 0) != pid || status != (int)(k % 100) << 8)
                _exit(1);
        }
    }
    for (unsigned i = 0; i < n; i++) {
        int status;
        if (waitpid(pids[i], &status, 0) != pids[i] || status)
            complain("wait status %x", (unsigned)status);
    }
    return complaint();
}

/* --- what the kernel has counted --------------------------------------------------------------------------------- */

static void count(const char *label, uint64_t *counts)
{
    char line[4096];
    FILE *f = fopen("/proc/interrupts", "re");
    memset(counts, 0, CPUS_MAX * sizeof *counts);
    while (f && fgets(line, sizeof line, f)) {
        char *rest = strchr(line, ':');
        if (!rest || !strstr(line, label) || strstr(line, label) > rest)
            continue;
        rest++;
        for (unsigned i = 0; i < n_cpus; i++)
            counts[i] = strtoull(rest, &rest, 10);
    }
    if (f)
        fclose(f);
}

static volatile uint64_t *shot;
static void shoot_thread(unsigned me)
{
    meet(&meeting);
    while (!is_over()) {
        (void)shot[me];
        if (me == 0) {
            mprotect((void *)shot, PAGE, PROT_READ);
            mprotect((void *)shot, PAGE, PROT_READ | PROT_WRITE);
            *shot = 1;
            if (!time_left(since, 0.1))
                __atomic_store_n(&over, true, __ATOMIC_RELAXED);
        }
    }
}

/* The kernel sends those between CPUs: to flush TLBs, to call functions, to let another thread run; and each has its
 * timer. */
static const char *interrupts(void)
{
    uint64_t before[4][CPUS_MAX], after[CPUS_MAX];
    static const char *const labels[] = {"TLB", "CAL", "RES", "LOC"};
    for (unsigned i = 0; i < 4; i++)
        count(labels[i], before[i]);
    shot = map(PAGE, PROT_READ | PROT_WRITE);
    begin(at_most(THREADS));
    together(threads, shoot_thread);
    word = 0;
    begin(2);
    together(2, futex_thread);
    syscall(SYS_membarrier, 1 << 0 /* MEMBARRIER_CMD_GLOBAL */, 0, 0);
    count("TLB", after);
    for (unsigned i = 1; i < at_most(THREADS); i++)
        if (after[i] == before[0][i])
            complain("no TLB shootdown on CPU %u", i);
    for (unsigned k = 1; k < 4; k++) {
        uint64_t more = 0;
        count(labels[k], after);
        for (unsigned i = 0; i < n_cpus; i++)
            more += after[i] - before[k][i];
        if (k != 1 && !more)
            complain("no more %s interrupts", labels[k]);
        for (unsigned i = 0; k == 3 && i < n_cpus; i++)
            if (!after[i])
                complain("CPU %u has had no timer interrupt", i);
    }
    return complaint();
}

const struct check talk_checks[] = {
    {"pipes", pipes, 2},
    {"streams", streams, 2},
    {"condition variables", turns, 2},
    {"mutexes", mutex, 2},
    {"futexes", futex, 2},
    {"signals to threads that compute", signals, 2},
    {"signals from each to each", storm, 2},
    {"numbers of CPUs", affinity, 2},
    {"timers beside threads that compute", timers, 2},
    {"programs start on all CPUs", forks, 2},
    {"interrupts between CPUs", interrupts, 2},
    {0},
};
