/* Threads, floating point, ptrace and code made at run time: compiled and run by gcc.sh. */
#define _GNU_SOURCE
#include <fenv.h>
#include <math.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/ptrace.h>
#include <sys/wait.h>
#include <unistd.h>

static atomic_long counter;
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static long guarded;

static void *work(void *arg)
{
    for (int i = 0; i < 20000; i++) {
        counter++;
        if (i % 10 == 0) {
            pthread_mutex_lock(&mutex);
            guarded += (long)arg;
            pthread_mutex_unlock(&mutex);
        }
    }
    return NULL;
}

static void threads(void)
{
    pthread_t t[8];
    for (long i = 0; i < 8; i++)
        pthread_create(&t[i], NULL, work, (void *)i);
    for (int i = 0; i < 8; i++)
        pthread_join(t[i], NULL);
    printf("threads %ld %ld\n", (long)counter, guarded);
}

/* x87: extended precision, rounding modes, transcendentals. */
static void floating(void)
{
    static const int modes[] = {FE_TONEAREST, FE_UPWARD, FE_DOWNWARD, FE_TOWARDZERO};
    for (int i = 0; i < 4; i++) {
        fesetround(modes[i]);
        volatile double x = 1, y = 3;
        volatile long double lx = 1, ly = 3;
        printf("%a %La %ld\n", x / y, lx / ly, lrint(x / y * 7.5));
    }
    fesetround(FE_TONEAREST);
    long double s = 0;
    for (int i = 1; i < 100; i++)
        s += sinl(i) * logl(i) + atanl(1.0L / i) + powl(1.01L, i);
    printf("%.15Lg %d\n", s, fetestexcept(FE_INEXACT) != 0);
    char image[8];
    double v = 0x1.fffffep-1022 / 3;
    memcpy(image, &v, 8);
    for (int i = 0; i < 8; i++)
        printf("%02x", (unsigned char)image[i]);
    puts("");
}

/* A parent single-steps its child and changes its memory. */
static void trace(void)
{
    static volatile long variable = 5;
    pid_t pid = fork();
    if (!pid) {
        ptrace(PTRACE_TRACEME, 0, 0, 0);
        raise(SIGSTOP);
        _exit(variable == 77 ? 11 : 12);
    }
    int status, steps = 0;
    waitpid(pid, &status, 0);
    ptrace(PTRACE_POKEDATA, pid, &variable, 77);
    while (steps < 50 && !ptrace(PTRACE_SINGLESTEP, pid, 0, 0) && waitpid(pid, &status, 0) == pid &&
           WIFSTOPPED(status) && WSTOPSIG(status) == SIGTRAP)
        steps++;
    ptrace(PTRACE_CONT, pid, 0, 0);
    waitpid(pid, &status, 0);
    printf("traced %d steps, exit %d\n", steps, WEXITSTATUS(status));
}

/* Code written at run time, again and again. */
static void generated(void)
{
    uint8_t *code = mmap(NULL, 4096, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    long sum = 0;
    for (int i = 0; i < 3000; i++) {
        uint8_t bytes[] = {0xb8, (uint8_t)i, (uint8_t)(i >> 8), 0, 0, 0xc3}; /* mov $i, %eax; ret */
        memcpy(code + i % 64, bytes, sizeof bytes);
        sum += ((int (*)(void))(code + i % 64))();
    }
    printf("generated %ld\n", sum);
}

int main(void)
{
    setvbuf(stdout, NULL, _IONBF, 0);
    threads();
    floating();
    trace();
    generated();
    char *line = NULL;
    size_t size = 0;
    FILE *f = fopen("program.c", "r");
    uint64_t hash = 14695981039346656037u;
    while (getline(&line, &size, f) > 0)
        for (char *p = line; *p; p++)
            hash = (hash ^ (uint8_t)*p) * 1099511628211u;
    printf("hash %016llx\n", (unsigned long long)hash);
    return 0;
}
