/*
 * The C library's memory and string functions, which use whatever vectors the processor has, against
 * loops over bytes: all small sizes and alignments, at the ends of pages, on memory never touched
 * before and on memory shared with a child.
 */
#define _GNU_SOURCE
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#define PAGE 4096l

static uint64_t sum = 14695981039346656037u;
static int wrong;

static void check(int good, const char *what, long a, long b)
{
    sum = (sum ^ (uint64_t)(good + a * 7 + b)) * 1099511628211u;
    if (!good && wrong++ < 20)
        printf("wrong: %s %ld %ld\n", what, a, b);
}

/* Pages never touched, the one behind them not accessible. */
static unsigned char *fresh(long pages)
{
    unsigned char *p = mmap(NULL, (size_t)((pages + 1) * PAGE), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1,
                            0);
    if (p == MAP_FAILED || mprotect(p + pages * PAGE, PAGE, PROT_NONE))
        exit(1);
    return p;
}

static void drop(unsigned char *p, long pages)
{
    munmap(p, (size_t)((pages + 1) * PAGE));
}

static int same(const unsigned char *p, long n, int first)
{
    for (long i = 0; i < n; i++)
        if (p[i] != (unsigned char)(first + i * 7))
            return 0;
    return 1;
}

static void fill(unsigned char *p, long n, int first)
{
    for (long i = 0; i < n; i++)
        p[i] = (unsigned char)(first + i * 7);
}

static int all(const unsigned char *p, long n, int value)
{
    for (long i = 0; i < n; i++)
        if (p[i] != value)
            return 0;
    return 1;
}

static void copies(void)
{
    static unsigned char source[3 * 4096];
    fill(source, sizeof source, 3);
    for (long n = 0; n < 600; n++)
        for (long from = -40; from <= 40; from += 13) {
            unsigned char *p = fresh(2), *to = p + PAGE - n / 2 + from;
            memcpy(to, source + n % 7, (size_t)n);
            check(same(to, n, 3 + (int)(n % 7) * 7) && !to[-1] && !to[n], "memcpy to fresh pages", n, from);
            memmove(to + 9, to, (size_t)n);
            check(same(to + 9, n, 3 + (int)(n % 7) * 7), "memmove up", n, from);
            memmove(to, to + 9, (size_t)n);
            check(same(to, n, 3 + (int)(n % 7) * 7), "memmove down", n, from);
            drop(p, 2);
        }
    for (long n = 1; n < 9000; n += 37) {
        unsigned char *p = fresh(3), *to = p + 3 * PAGE - n;
        memcpy(to, source, (size_t)n);
        check(same(to, n, 3) && !to[-1], "memcpy to the end", n, 0);
        unsigned char *q = fresh(3);
        check(mempcpy(q, to, (size_t)n) == q + n && same(q, n, 3), "mempcpy from the end", n, 0);
        check(!memcmp(q, to, (size_t)n), "memcmp", n, 0);
        q[n / 2]++;
        check(memcmp(q, to, (size_t)n) > 0 || q[n / 2] == 0, "memcmp differs", n, 0);
        drop(p, 3);
        drop(q, 3);
    }
}

static void sets(void)
{
    for (long n = 0; n < 9000; n += n < 600 ? 1 : 41) {
        unsigned char *p = fresh(4), *to = p + PAGE - (n < PAGE ? n / 2 : 5);
        memset(to, 0xa5, (size_t)n);
        check(all(to, n, 0xa5) && !to[-1] && !to[n], "memset", n, 0);
        drop(p, 4);
        p = calloc(1, (size_t)n + 1);
        check(p && all(p, n + 1, 0), "calloc", n, 0);
        free(p);
    }
}

static void strings(void)
{
    for (long n = 0; n < 300; n++)
        for (long end = 0; end < 70; end += 3) {
            unsigned char *p = fresh(1);
            char *s = (char *)p + PAGE - n - 1 - end, *t;
            memset(s, 'a', (size_t)n);
            check((long)strlen(s) == n && (long)strnlen(s, (size_t)n + end + 1) == n, "strlen", n, end);
            check(strchr(s, 'b') == NULL && strchr(s, 0) == s + n && memchr(s, 'b', (size_t)n) == NULL, "strchr", n,
                  end);
            unsigned char *q = fresh(1);
            t = (char *)q + PAGE - n - 1;
            check(stpcpy(t, s) == t + n, "stpcpy", n, end);
            check(!strcmp(s, t) && !strncmp(s, t, 1000) && !strcasecmp(s, t), "strcmp", n, end);
            if (n) {
                t[n - 1] = 'b';
                check(strcmp(s, t) < 0 && strcmp(t, s) > 0 && strchr(t, 'b') == t + n - 1 &&
                          strrchr(t, 'b') == t + n - 1,
                      "strcmp differs", n, end);
                check(strspn(t, "a") == (size_t)n - 1 && strcspn(t, "xb") == (size_t)n - 1, "strspn", n, end);
                check((n < 3) == !strstr(t, "aab"), "strstr", n, end);
                t[n / 2] = 0;
                check((long)strlen(t) == n / 2, "strlen shorter", n, end);
            }
            drop(p, 1);
            drop(q, 1);
        }
}

/* The child writes to what it shares with its parent, in vectors over the edges of pages. */
static void shared(void)
{
    unsigned char *p = fresh(64);
    fill(p, 64 * PAGE, 1);
    for (int round = 0; round < 20; round++) {
        pid_t pid = fork();
        if (!pid) {
            for (long i = 0; i < 62; i++)
                memset(p + (i + 1) * PAGE - 17 - round, round, 100);
            int good = 1;
            for (long i = 0; i < 62; i++)
                good &= all(p + (i + 1) * PAGE - 17 - round, 100, round);
            _exit(!good);
        }
        int status = 1;
        waitpid(pid, &status, 0);
        check(!status && same(p, 64 * PAGE, 1), "a child's writes", round, status);
    }
    drop(p, 64);
}

static int by_value(const void *a, const void *b)
{
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return x < y ? -1 : x > y;
}

static void heap(void)
{
    enum { N = 20000 };
    uint32_t *numbers = NULL, seed = 1;
    char *blocks[512] = {0};
    for (int i = 0; i < N; i++) {
        numbers = realloc(numbers, (size_t)(i + 1) * sizeof *numbers);
        numbers[i] = seed = seed * 1664525 + 1013904223;
        char **b = &blocks[seed >> 23];
        size_t size = seed % 5000 + 20;
        if (*b)
            check(!strncmp(*b, "block ", 6) && (*b)[strlen(*b) - 1] == '!', "a block of the heap", i, 0);
        free(*b);
        *b = malloc(size);
        snprintf(*b, size, "block %d %u!", i, seed % 1000);
    }
    qsort(numbers, N, sizeof *numbers, by_value);
    for (int i = 1; i < N; i++)
        check(numbers[i - 1] <= numbers[i], "order", i, 0);
}

int main(void)
{
    copies();
    sets();
    strings();
    shared();
    heap();
    printf("%d wrong, %016llx\n", wrong, (unsigned long long)sum);
    return wrong != 0;
}
