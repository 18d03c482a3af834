/* What a program gets for its mistakes: signals, codes, addresses, trap numbers and error codes. */
#define _GNU_SOURCE
#include <fenv.h>
#include <setjmp.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <ucontext.h>

static sigjmp_buf back;
static char *page;

static void on_signal(int number, siginfo_t *info, void *context)
{
    ucontext_t *u = context;
    printf("signal %d code %d %s trap %lld error %llx\n", number, info->si_code,
           number == SIGSEGV ? info->si_addr == page + 123 ? "at the page"
                               : info->si_addr             ? "elsewhere"
                                                           : "at 0"
                             : "",
           (long long)u->uc_mcontext.gregs[REG_TRAPNO], (long long)u->uc_mcontext.gregs[REG_ERR]);
    siglongjmp(back, 1);
}

#define CAUGHT(action)                                                                                                 \
    do {                                                                                                               \
        printf("%s: ", #action);                                                                                       \
        if (!sigsetjmp(back, 1)) {                                                                                     \
            action;                                                                                                    \
            puts("no signal");                                                                                         \
        }                                                                                                              \
    } while (0)

static void all(void)
{
    static const int numbers[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP};
    struct sigaction action = {.sa_sigaction = on_signal, .sa_flags = SA_SIGINFO};
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++)
        sigaction(numbers[i], &action, NULL);
    page = mmap(NULL, 4096, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    volatile int zero = 0;
    CAUGHT(page[123] = 1);
    CAUGHT(printf("%d\n", page[123]));
    CAUGHT(mprotect(page, 4096, PROT_NONE); printf("%d\n", ((volatile char *)page)[123]));
    CAUGHT(*(volatile char *)0 = 1);
    CAUGHT(*(volatile char *)0x8000000000000000 = 1);
    CAUGHT(printf("%d\n", 1 / zero));
    CAUGHT(__asm__ volatile("ud2"));
    CAUGHT(__asm__ volatile("int3"));
    CAUGHT(__asm__ volatile("hlt"));
    CAUGHT(__asm__ volatile("int $0x20"));
    CAUGHT(__asm__ volatile("movaps (%0), %%xmm0" : : "r"((char *)numbers + 1)));
    CAUGHT(__asm__ volatile("pushf; orl $0x100, (%%rsp); popf; nop; nop" : : : "cc", "memory"));
    CAUGHT(__asm__ volatile("mov %%rax, %%cr3" : : : "memory"));
    CAUGHT(((void (*)(void))page)());
    feenableexcept(FE_DIVBYZERO);
    volatile double a = 1, b = 0;
    CAUGHT(printf("%f\n", a / b));
    volatile long double c = 1, d = 0;
    CAUGHT(printf("%Lf\n", c / d));
    fedisableexcept(FE_ALL_EXCEPT);
}

int main(void)
{
    setvbuf(stdout, NULL, _IONBF, 0);
    all();
    return 0;
}
