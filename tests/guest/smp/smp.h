/* What the checks of tests/guest/smp share. */
#pragma once
#include <errno.h>
#include <limits.h>
#include <pthread.h>
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <ucontext.h>
#include <unistd.h>

#define CPUS_MAX 64
#define PAGE 4096ul

extern unsigned n_cpus; /* of this guest */
extern bool in_guest;   /* else the checks themselves are looked at, on a host */

double now(void);
uint64_t tsc(void);
uint64_t next_random(uint64_t *state);

/* Is there time left of so many seconds since then?  Long runs have a multiple of that. */
bool time_left(double since, double seconds);

/* The first thing that is wrong is what the check reports; complaint() is NULL when nothing was. */
void complain(const char *format, ...) __attribute__((format(printf, 1, 2)));
const char *complaint(void);

/* Threads 0 to n - 1, each pinned to the CPU of that number (modulo n_cpus). */
void pin(unsigned cpu);
void together(unsigned n, void (*f)(unsigned me));

/* All n threads get here before one goes on.  Spins a while, for CPUs that come back at the same moment; then sleeps,
 * for the host may have fewer. */
struct meeting {
    unsigned n, there;
    int round;
};
void meet(struct meeting *m);

/* Accesses that may fault: false when they did. */
void catch_faults(void);
extern __thread sigjmp_buf fault_back;
extern __thread volatile bool fault_expected;
bool try_load(const volatile uint64_t *p, uint64_t *value);
bool try_store(volatile uint64_t *p, uint64_t value);
bool try_call(const void *code, uint32_t *value);

/* Code: mov $value, %eax; ret. */
enum { FUNCTION_SIZE = 6 };
void write_function(uint8_t *at, uint32_t value);
uint32_t call(const void *code);
void *map(size_t size, int protection);

struct check {
    const char *name;
    const char *(*check)(void);
    unsigned cpus; /* needs so many */
};
extern const struct check litmus_checks[], locked_checks[], code_checks[], shootdown_checks[], pages_checks[],
    clock_checks[], talk_checks[], hotplug_checks[];
