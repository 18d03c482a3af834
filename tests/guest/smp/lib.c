#include "smp.h"

#include <linux/futex.h>
#include <stdarg.h>

double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

uint64_t tsc(void)
{
    return __builtin_ia32_rdtsc();
}

uint64_t next_random(uint64_t *state)
{
    *state ^= *state << 13, *state ^= *state >> 7;
    return *state ^= *state << 17;
}

bool time_left(double since, double seconds)
{
    static double factor;
    if (factor == 0)
        factor = getenv("long") ? atof(getenv("long")) : 1;
    return now() - since < seconds * factor;
}

/* --- complaints ------------------------------------------------------------------------------------------------- */

static char first_complaint[200];
static bool has_complaint;

void complain(const char *format, ...)
{
    static bool taken;
    va_list args;
    if (__atomic_exchange_n(&taken, true, __ATOMIC_SEQ_CST))
        return;
    va_start(args, format);
    vsnprintf(first_complaint, sizeof first_complaint, format, args);
    va_end(args);
    __atomic_store_n(&has_complaint, true, __ATOMIC_RELEASE);
}

const char *complaint(void)
{
    return __atomic_load_n(&has_complaint, __ATOMIC_ACQUIRE) ? first_complaint : NULL;
}

/* --- threads ---------------------------------------------------------------------------------------------------- */

void pin(unsigned cpu)
{
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET(cpu % n_cpus, &set);
    if (sched_setaffinity(0, sizeof set, &set))
        complain("CPU %u cannot be chosen: %s", cpu % n_cpus, strerror(errno));
}

struct a_thread {
    unsigned me;
    void (*f)(unsigned me);
};

static void *a_thread(void *opaque)
{
    struct a_thread *t = opaque;
    pin(t->me);
    t->f(t->me);
    return NULL;
}

void together(unsigned n, void (*f)(unsigned me))
{
    pthread_t thread[CPUS_MAX];
    struct a_thread argument[CPUS_MAX];
    for (unsigned i = 0; i < n; i++) {
        argument[i] = (struct a_thread){i, f};
        if (pthread_create(&thread[i], NULL, a_thread, &argument[i])) {
            printf("not ok a thread cannot be made\n");
            _exit(1);
        }
    }
    for (unsigned i = 0; i < n; i++)
        pthread_join(thread[i], NULL);
}

void meet(struct meeting *m)
{
    enum { SPINS = 3000 };
    int round = __atomic_load_n(&m->round, __ATOMIC_SEQ_CST);
    if (__atomic_add_fetch(&m->there, 1, __ATOMIC_SEQ_CST) == m->n) {
        m->there = 0;
        __atomic_store_n(&m->round, round + 1, __ATOMIC_SEQ_CST);
        syscall(SYS_futex, &m->round, FUTEX_WAKE_PRIVATE, CPUS_MAX, NULL);
        return;
    }
    for (unsigned i = 0; __atomic_load_n(&m->round, __ATOMIC_SEQ_CST) == round; i++)
        if (i < SPINS)
            __builtin_ia32_pause();
        else
            syscall(SYS_futex, &m->round, FUTEX_WAIT_PRIVATE, round, NULL);
}

/* --- faults ----------------------------------------------------------------------------------------------------- */

__thread sigjmp_buf fault_back;
__thread volatile bool fault_expected;

static void on_fault(int sig, siginfo_t *info, void *context)
{
    (void)context;
    if (fault_expected)
        siglongjmp(fault_back, 1);
    printf("not ok signal %d at %p\n", sig, info->si_addr);
    fflush(stdout);
    _exit(1);
}

void catch_faults(void)
{
    struct sigaction sa = {.sa_sigaction = on_fault, .sa_flags = SA_SIGINFO | SA_NODEFER};
    sigaction(SIGSEGV, &sa, NULL);
    sigaction(SIGBUS, &sa, NULL);
    sigaction(SIGILL, &sa, NULL);
}

bool try_load(const volatile uint64_t *p, uint64_t *value)
{
    bool done = false;
    if (!sigsetjmp(fault_back, 0)) {
        fault_expected = true;
        *value = *p;
        done = true;
    }
    fault_expected = false;
    return done;
}

bool try_store(volatile uint64_t *p, uint64_t value)
{
    volatile bool done = false;
    if (!sigsetjmp(fault_back, 0)) {
        fault_expected = true;
        *p = value;
        done = true;
    }
    fault_expected = false;
    return done;
}

bool try_call(const void *code, uint32_t *value)
{
    volatile bool done = false;
    if (!sigsetjmp(fault_back, 0)) {
        fault_expected = true;
        *value = call(code);
        done = true;
    }
    fault_expected = false;
    return done;
}

/* --- code ------------------------------------------------------------------------------------------------------- */

void write_function(uint8_t *at, uint32_t value)
{
    at[0] = 0xb8;
    memcpy(at + 1, &value, sizeof value);
    at[5] = 0xc3;
}

uint32_t call(const void *code)
{
    return ((uint32_t(*)(void))(uintptr_t)code)();
}

void *map(size_t size, int protection)
{
    void *p = mmap(NULL, size, protection, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED) {
        printf("not ok no memory\n");
        _exit(1);
    }
    return p;
}
