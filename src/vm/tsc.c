/* The frequency of the host's time-stamp counter. */
#include <cpuid.h>
#include <x86intrin.h>

#include "vm/vm_int.h"

#define MEASURE_NS 20000000ull
#define TRIES 8

struct sample {
    uint64_t ns, tsc;
};

/* The clock between two reads of the counter; of some tries, the one least disturbed. */
static struct sample sample(void)
{
    struct sample best = {0};
    uint64_t least = UINT64_MAX;

    for (int i = 0; i < TRIES; i++) {
        uint64_t before = __rdtsc(), ns = clock_ns(), after = __rdtsc();
        if (after - before < least) {
            least = after - before;
            best = (struct sample){ns, before + (after - before) / 2};
        }
    }
    return best;
}

/* A hypervisor below us may tell (leaf 0x40000010, in kHz, as VMware and KVM have it); else measure against
 * CLOCK_MONOTONIC for 20 ms, good to some parts per million. */
uint64_t host_tsc_khz(void)
{
    uint32_t eax, ebx, ecx, edx;

    __cpuid(1, eax, ebx, ecx, edx);
    if (ecx >> 31) {
        __cpuid(0x40000000, eax, ebx, ecx, edx);
        if (eax >= 0x40000010 && eax < 0x40000100) {
            __cpuid(0x40000010, eax, ebx, ecx, edx);
            if (eax)
                return eax;
        }
    }
    struct sample a = sample();
    while (clock_ns() - a.ns < MEASURE_NS)
        __builtin_ia32_pause();
    struct sample b = sample();
    return (uint64_t)((unsigned __int128)(b.tsc - a.tsc) * 1000000 / (b.ns - a.ns));
}
