/*
 * KVM's paravirtual clock, as a guest with the CLOCKSOURCE features reads it:
 *
 *      time page:  u32 version, u32 pad, u64 tsc_timestamp, u64 system_time,
 *                  u32 tsc_to_system_mul, s8 tsc_shift, u8 flags, u8 pad[2]
 *      ns = system_time + ((guest_tsc - tsc_timestamp) << shift) * mul >> 32
 *
 * version is odd while the page is being written.  All vCPUs are given the same line through one
 * origin (the table's tsc_base), which is what the STABLE flag promises: no vCPU's clock is ever
 * behind another's.  A guest that moves its TSC moves tsc_timestamp with it, and the time goes on.
 */
#include <sys/syscall.h>
#include <time.h>

#include "cpu/cpu_int.h"

enum { PVCLOCK_TSC_STABLE = 1 };

struct pv_time {
    uint32_t version, pad;
    uint64_t tsc_timestamp, system_time;
    uint32_t mul;
    int8_t shift;
    uint8_t flags, pad2[2];
};

struct pv_wall {
    uint32_t version, sec, nsec;
};

static uint64_t host_tsc(void)
{
    uint32_t low, high;
    __asm__ volatile("lfence; rdtsc" : "=a"(low), "=d"(high));
    return (uint64_t)high << 32 | low;
}

uint64_t cpu_guest_tsc(const struct cpu *cpu)
{
    uint32_t low, high;
    __asm__ volatile("rdtsc" : "=a"(low), "=d"(high));
    return ((uint64_t)high << 32 | low) + (uint64_t)cpu->tsc_offset;
}

/* Not libc's: this room may run while SIMD state that is not ours is live. */
static int64_t wall_clock_ns(void)
{
    struct timespec now = {0};
    long result;
    __asm__ volatile("syscall"
                     : "=a"(result)
                     : "0"((long)SYS_clock_gettime), "D"((long)CLOCK_REALTIME), "S"(&now)
                     : "rcx", "r11", "memory");
    return result ? 0 : now.tv_sec * 1000000000ll + now.tv_nsec;
}

static uint64_t scale(const struct cpuid_table *t, uint64_t tsc)
{
    tsc = t->pv_shift >= 0 ? tsc << t->pv_shift : tsc >> -t->pv_shift;
    return (unsigned __int128)tsc * t->pv_mul >> 32;
}

static void write_time(struct cpu *cpu, const struct cpuid_table *t)
{
    volatile struct pv_time *page = cpu_hva_for_write(cpu, cpu->kvmclock_system_time & ~1ull, sizeof(struct pv_time));
    if (!page)
        return;
    uint32_t version = page->version | 1;
    page->version = version; /* x86 keeps stores in order; the compiler does by volatile */
    page->tsc_timestamp = t->tsc_base + (uint64_t)cpu->tsc_offset;
    page->system_time = 0;
    page->mul = t->pv_mul;
    page->shift = t->pv_shift;
    page->flags = PVCLOCK_TSC_STABLE;
    page->version = version + 1;
}

/* Once for each write of the MSR: the guest may use the memory for something else afterwards. */
void pvclock_write_wall(struct cpu *cpu, uint64_t gpa)
{
    const struct cpuid_table *t = cpu->cpuid;
    volatile struct pv_wall *page = t && gpa ? cpu_hva_for_write(cpu, gpa, sizeof(struct pv_wall)) : NULL;
    if (!page)
        return;
    uint64_t start = wall_clock_ns() - (int64_t)scale(t, host_tsc() - t->tsc_base);
    uint32_t version = page->version | 1;
    page->version = version;
    page->sec = start / 1000000000;
    page->nsec = start % 1000000000;
    page->version = version + 1;
}

void cpu_pvclock_update(struct cpu *cpu)
{
    if (cpu->cpuid && (cpu->kvmclock_system_time & 1))
        write_time(cpu, cpu->cpuid);
}
