/*
 * All of a small guest's user space, for tests/guest/kvm-save.sh: says on the console that it goes on, and what is
 * wrong with it if anything is.
 *
 *      tick N PASSES           five times a second
 *      WRONG ...               a store was lost, a register was, or time went back
 *
 * Each thread writes pages in the order of a fixed walk, each with its pass and place; before it does it looks whether
 * there still is what it wrote last.  So a page that was saved or sent as it was too early, or never, is found in the
 * pass after.
 */
#include <fcntl.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

enum { PAGE = 4096, PAGES = 512, THREADS = 2, STEP = 389 /* no factor of PAGES */, WORDS = PAGE / 8 };

static _Atomic uint64_t passes;

static void say(const char *format, ...)
{
    char line[200];
    va_list args;
    va_start(args, format);
    int n = vsnprintf(line, sizeof(line), format, args);
    va_end(args);
    (void)!write(1, line, (size_t)n);
}

static uint64_t word(uint64_t pass, uint64_t page, uint64_t at)
{
    return pass * 0x9e3779b97f4a7c15ull + page * 4096 + at;
}

/* Of each page the first word, the last, and one that moves. */
static void visit(volatile uint64_t *page, uint64_t pass, uint64_t i, uint64_t thread)
{
    const uint64_t at[] = {0, WORDS - 1, 1 + (i + thread) % (WORDS - 2)};
    for (unsigned k = 0; k < 3; k++) {
        if (pass && page[at[k]] != word(pass - 1, i, at[k]))
            say("WRONG thread %lu pass %lu page %lu: %lx\n", thread, pass, i, page[at[k]]);
        page[at[k]] = word(pass, i, at[k]);
    }
}

static void *writer(void *opaque)
{
    const uint64_t thread = (uintptr_t)opaque;
    volatile uint64_t *pages = mmap(NULL, PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    for (uint64_t pass = 0;; pass++) {
        for (uint64_t k = 0, i = 0; k < PAGES; k++, i = (i + STEP) % PAGES)
            visit(pages + i * WORDS, pass, i, thread);
        passes++;
        if (thread)
            usleep(1000); /* this one sleeps now and then, the other never does */
    }
    return NULL;
}

/* In SSE and x87 registers for a while, which have to survive being saved in the middle. */
static double compute(void)
{
    double x = 1;
    long double y = 1;
    for (int i = 1; i < 20000; i++) {
        x = x * 0.75 + i / 7.0;
        y = y * 0.5L + 1.0L / i;
    }
    return x + (double)y;
}

static void *computer(void *opaque)
{
    double right = compute();
    for (;;) {
        double now = compute();
        if (now != right)
            say("WRONG registers: %.9f, not %.9f\n", now, right);
        usleep(500);
    }
    return NULL;
}

static double seconds(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

int main(void)
{
    pthread_t t;
    int console = open("/dev/console", O_RDWR);
    if (console >= 0 && dup2(console, 1) != 1)
        return 1;
    for (uintptr_t i = 0; i < THREADS; i++)
        pthread_create(&t, NULL, writer, (void *)i);
    pthread_create(&t, NULL, computer, NULL);
    double before = seconds();
    for (unsigned n = 1;; n++) {
        say("tick %u %lu\n", n, passes);
        usleep(200000);
        double now = seconds();
        if (now < before || now > before + 60)
            say("WRONG time: from %.3f to %.3f\n", before, now);
        before = now;
    }
}
