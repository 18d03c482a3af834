/*
 * The functional probe.
 *
 * A /dev/kvm says little: some hosts offer one that emulates every privileged guest instruction by
 * instruction.  So a small virtual machine runs a piece of 64-bit kernel code with paging, whose
 * result depends on page-table changes, invlpg and CR3 writes having their effect, and the time is
 * compared with the same loop run directly on this CPU.
 *
 * Guest-physical layout of the probe's machine (all of it PROBE_RAM bytes):
 *
 *   0x1000 0x2000  two PML4s          0x3000 0x4000  their PDPTs
 *   0x5000 0x6000  their PDs          0x7000 0x8000  their page tables, mapping the first 2 MiB
 *   0x9000         the code           0xf000         top of the stack
 *   0x10000 0x11000  data pages, mapped in turn at WINDOW
 *   0x12000 0x13000  one of them, by root, is mapped at WINDOW + 0x1000
 */
#include "engine/kvm/probe.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "cpu/cpu.h"
#include "engine/kvm/kvm_int.h"

#define PROBE_RAM 0x20000ul
#define PROBE_CODE 0x9000ul
#define PROBE_STACK 0xf000ul
#define PROBE_DATA 0x10000ul
#define PROBE_ROOT_DATA 0x12000ul
#define PROBE_PORT 0xf4
#define PROBE_ROUNDS 64
#define PROBE_STEPS 16384        /* loop iterations a round: 2^20 in all */
#define PROBE_SLOWDOWN 20        /* the most that a usable KVM may lose to the bare CPU */
#define PROBE_MIN_NS 20000000ull /* below this, start-up costs would decide */
#define PROBE_ATTEMPTS 3
#define PROBE_MAX_NS 1000000000ull /* and nobody waits longer than this */

/* probe_loop(page, steps, sum): rotates, adds and stores over a page; position independent, and
 * nothing in it is privileged, so the host runs the very same bytes.  probe_kernel is the guest's
 * entry: the rounds around it.  Constants as in the layout above. */
__asm__(".pushsection .rodata\n"
        ".globl kvm_probe_kernel, kvm_probe_loop, kvm_probe_end\n" /* or link-time optimization loses them */
        ".hidden kvm_probe_kernel, kvm_probe_loop, kvm_probe_end\n"
        ".balign 64\n"
        "kvm_probe_kernel:\n"
        "    xor %eax, %eax\n"
        "    xor %ebx, %ebx\n"
        "1:  mov %ebx, %r8d\n"
        "    and $1, %r8d\n"
        "    shl $12, %r8d\n"
        "    lea 0x1000(%r8), %r9\n"
        "    mov %r9, %cr3\n" /* the other root: WINDOW + 0x1000 changes with it */
        "    add 0x101000, %rax\n"
        "    xor 0x100000, %rax\n" /* caches the old translation of WINDOW */
        "    mov %ebx, %r8d\n"
        "    shr $1, %r8d\n"
        "    and $1, %r8d\n"
        "    shl $12, %r8d\n"
        "    lea 0x10003(%r8), %r9\n"
        "    mov %r9, 0x7800\n" /* WINDOW's entry in both page tables */
        "    mov %r9, 0x8800\n"
        "    invlpg 0x100000\n"
        "    mov $0x100000, %edi\n"
        "    mov $16384, %esi\n"
        "    mov %rax, %rdx\n"
        "    call kvm_probe_loop\n"
        "    inc %ebx\n"
        "    cmp $64, %ebx\n"
        "    jne 1b\n"
        "    out %al, $0xf4\n"
        "2:  hlt\n"
        "    jmp 2b\n"
        ".balign 64\n"
        "kvm_probe_loop:\n"
        "    mov %rdx, %rax\n"
        "1:  mov %esi, %ecx\n"
        "    and $0x1ff, %ecx\n"
        "    add (%rdi,%rcx,8), %rax\n"
        "    rol $7, %rax\n"
        "    xor %rsi, %rax\n"
        "    mov %rax, (%rdi,%rcx,8)\n"
        "    dec %esi\n"
        "    jnz 1b\n"
        "    ret\n"
        "kvm_probe_end:\n"
        ".popsection\n");
extern const uint8_t kvm_probe_kernel[], kvm_probe_loop[], kvm_probe_end[];

struct probe {
    int kvm, vm, vcpu;
    uint8_t *ram;
    struct kvm_run *run;
    size_t run_size;
    char *why;
    size_t why_size;
};

#define refuse(p, ...) (snprintf((p)->why, (p)->why_size, __VA_ARGS__), false)

static uint64_t now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000ull + (uint64_t)t.tv_nsec;
}

/* What the guest must compute, by the same loop on the host, without the page tables. */
static uint64_t probe_native(uint64_t (*loop)(void *, uint32_t, uint64_t), uint8_t *data)
{
    uint64_t sum = 0;
    unsigned mapped = 0;
    for (unsigned round = 0; round < PROBE_ROUNDS; round++) {
        uint64_t by_root, old;
        memcpy(&by_root, data + 0x2000 + (round & 1) * 0x1000, 8);
        memcpy(&old, data + mapped * 0x1000, 8);
        mapped = round >> 1 & 1;
        sum = loop(data + mapped * 0x1000, PROBE_STEPS, (sum + by_root) ^ old);
    }
    return sum;
}

static bool probe_run_native(struct probe *p, uint64_t *sum, uint64_t *ns)
{
    size_t len = (size_t)((uintptr_t)kvm_probe_end - (uintptr_t)kvm_probe_loop);
    uint8_t *data = calloc(4, 4096);
    uint8_t *code = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    bool ok = data && code != MAP_FAILED;
    if (ok) {
        memcpy(code, kvm_probe_loop, len);
        ok = mprotect(code, 4096, PROT_READ | PROT_EXEC) == 0;
    }
    if (ok) {
        memset(data, 0x5a, 4 * 4096);
        data[0x2000] = 1;
        data[0x3000] = 2;
        uint64_t start = now_ns();
        *sum = probe_native((uint64_t(*)(void *, uint32_t, uint64_t))(uintptr_t)code, data);
        *ns = now_ns() - start;
    }
    if (code != MAP_FAILED)
        munmap(code, 4096);
    free(data);
    return ok ? true : refuse(p, "no memory to measure KVM with");
}

static void probe_fill_ram(uint8_t *ram)
{
    for (unsigned root = 0; root < 2; root++) {
        uint64_t off = root * 0x1000;
        uint64_t *pml4 = (uint64_t *)(ram + 0x1000 + off), *pdpt = (uint64_t *)(ram + 0x3000 + off);
        uint64_t *pd = (uint64_t *)(ram + 0x5000 + off), *pt = (uint64_t *)(ram + 0x7000 + off);
        pml4[0] = (0x3000 + off) | 3;
        pdpt[0] = (0x5000 + off) | 3;
        pd[0] = (0x7000 + off) | 3;
        for (unsigned i = 0; i < PROBE_RAM >> 12; i++)
            pt[i] = (uint64_t)i << 12 | 3;
        pt[0x100] = PROBE_DATA | 3;
        pt[0x101] = (PROBE_ROOT_DATA + off) | 3;
    }
    memset(ram + PROBE_DATA, 0x5a, 4 * 4096);
    ram[PROBE_ROOT_DATA] = 1;
    ram[PROBE_ROOT_DATA + 0x1000] = 2;
    memcpy(ram + PROBE_CODE, kvm_probe_kernel, (size_t)((uintptr_t)kvm_probe_end - (uintptr_t)kvm_probe_kernel));
}

static bool probe_open(struct probe *p)
{
    p->kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
    if (p->kvm < 0 && errno == ENOENT)
        return refuse(p, "this host has no /dev/kvm");
    if (p->kvm < 0)
        return refuse(p, "/dev/kvm may not be opened: %s", strerror(errno));
    if (ioctl(p->kvm, KVM_GET_API_VERSION, 0) != KVM_API_VERSION)
        return refuse(p, "/dev/kvm speaks another version of its interface");
    return true;
}

static bool probe_create(struct probe *p)
{
    p->vm = ioctl(p->kvm, KVM_CREATE_VM, 0);
    if (p->vm < 0)
        return refuse(p, "/dev/kvm cannot create a virtual machine: %s", strerror(errno));
    const char *missing = kvm_missing_capability(p->vm);
    if (missing)
        return refuse(p, "the KVM of this host lacks %s", missing);
    p->ram = mmap(NULL, PROBE_RAM, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p->ram == MAP_FAILED) {
        p->ram = NULL;
        return refuse(p, "no memory to measure KVM with");
    }
    probe_fill_ram(p->ram);
    struct kvm_userspace_memory_region slot = {
        .memory_size = PROBE_RAM,
        .userspace_addr = (uintptr_t)p->ram,
    };
    if (kvm_set_tss(p->vm) || ioctl(p->vm, KVM_SET_USER_MEMORY_REGION, &slot))
        return refuse(p, "KVM takes no guest memory: %s", strerror(errno));
    p->vcpu = ioctl(p->vm, KVM_CREATE_VCPU, 0ul);
    int size = ioctl(p->kvm, KVM_GET_VCPU_MMAP_SIZE, 0);
    if (p->vcpu < 0 || size < (int)sizeof(struct kvm_run))
        return refuse(p, "KVM cannot create a virtual CPU: %s", strerror(errno));
    p->run_size = (size_t)size;
    p->run = mmap(NULL, p->run_size, PROT_READ | PROT_WRITE, MAP_SHARED, p->vcpu, 0);
    if (p->run == MAP_FAILED) {
        p->run = NULL;
        return refuse(p, "KVM's run page cannot be mapped: %s", strerror(errno));
    }
    return true;
}

static bool probe_set_state(struct probe *p)
{
    struct kvm_sregs s;
    struct kvm_regs r = {.rip = PROBE_CODE, .rsp = PROBE_STACK, .rflags = FL_ONE};
    if (ioctl(p->vcpu, KVM_GET_SREGS, &s))
        return refuse(p, "KVM does not give its registers: %s", strerror(errno));
    s.cs = (struct kvm_segment){.limit = ~0u, .selector = 8, .type = 11, .present = 1, .s = 1, .l = 1, .g = 1};
    s.ss = (struct kvm_segment){.limit = ~0u, .selector = 16, .type = 3, .present = 1, .s = 1, .db = 1, .g = 1};
    s.ds = s.es = s.fs = s.gs = s.ss;
    s.cr0 = CR0_PE | CR0_ET | CR0_NE | CR0_WP | CR0_PG;
    s.cr3 = 0x1000;
    s.cr4 = CR4_PAE;
    s.efer = EFER_LME | EFER_LMA;
    if (ioctl(p->vcpu, KVM_SET_SREGS, &s) || ioctl(p->vcpu, KVM_SET_REGS, &r))
        return refuse(p, "KVM does not take 64-bit state: %s", strerror(errno));
    return true;
}

/* The watchdog's signal may come at any moment before or in KVM_RUN; immediate_exit covers both. */
static void probe_alarm(int signal, siginfo_t *info, void *context)
{
    struct kvm_run *run = info->si_value.sival_ptr;
    if (info->si_code == SI_TIMER && run)
        run->immediate_exit = 1;
}

/* KVM_RUN until the guest is done or `budget` ns have passed; 0, -EINTR or -errno. */
static int probe_run(struct probe *p, uint64_t budget, uint64_t *ns)
{
    struct sigaction action = {.sa_sigaction = probe_alarm, .sa_flags = SA_SIGINFO}, old_action;
    struct sigevent event = {.sigev_notify = SIGEV_THREAD_ID, .sigev_signo = KVM_KICK_SIGNAL};
    struct itimerspec when = {.it_value = {(time_t)(budget / 1000000000), (long)(budget % 1000000000)}};
    sigset_t set, old_set;
    timer_t timer;

    event.sigev_value.sival_ptr = p->run;
    event._sigev_un._tid = gettid();
    if (timer_create(CLOCK_MONOTONIC, &event, &timer))
        return -errno;
    sigaction(KVM_KICK_SIGNAL, &action, &old_action);
    sigemptyset(&set);
    sigaddset(&set, KVM_KICK_SIGNAL);
    pthread_sigmask(SIG_UNBLOCK, &set, &old_set);
    timer_settime(timer, 0, &when, NULL);

    uint64_t start = now_ns();
    int err;
    do
        err = ioctl(p->vcpu, KVM_RUN, 0) ? -errno : 0;
    while ((err == -EINTR && !p->run->immediate_exit) || err == -EAGAIN);
    *ns = now_ns() - start;

    timer_delete(timer);
    pthread_sigmask(SIG_SETMASK, &old_set, NULL);
    sigaction(KVM_KICK_SIGNAL, &old_action, NULL);
    return err;
}

static bool probe_judge(struct probe *p, int err, uint64_t sum, const struct kvm_probe_result *r)
{
    struct kvm_regs regs = {0};
    if (err == -EINTR)
        return refuse(p, "this /dev/kvm only emulates: kernel code of %.1f ms had not ended after %.0f ms",
                      (double)r->native_ns / 1e6, (double)r->guest_ns / 1e6);
    if (err)
        return refuse(p, "KVM does not run 64-bit kernel code: %s", strerror(-err));
    if (p->run->exit_reason != KVM_EXIT_IO || p->run->io.port != PROBE_PORT)
        return refuse(p, "KVM stopped in 64-bit kernel code with exit reason %u (%s)", p->run->exit_reason,
                      kvm_exit_name(p->run->exit_reason));
    if (ioctl(p->vcpu, KVM_GET_REGS, &regs) || regs.rax != sum)
        return refuse(p, "KVM runs 64-bit kernel code with paging wrongly");
    if (r->guest_ns > PROBE_MIN_NS && r->guest_ns > PROBE_SLOWDOWN * r->native_ns)
        return refuse(p, "this /dev/kvm only emulates: kernel code of %.1f ms took %.0f ms", (double)r->native_ns / 1e6,
                      (double)r->guest_ns / 1e6);
    return true;
}

static bool probe_all(struct probe *p, struct kvm_probe_result *r)
{
    uint64_t start = now_ns(), sum = 0;
    if (!probe_open(p) || !probe_create(p) || !probe_set_state(p))
        return false;
    r->setup_ns = now_ns() - start;
    if (!probe_run_native(p, &sum, &r->native_ns))
        return false;
    uint64_t budget = r->native_ns * PROBE_SLOWDOWN;
    budget = budget < PROBE_MIN_NS ? PROBE_MIN_NS : budget > PROBE_MAX_NS ? PROBE_MAX_NS : budget;
    int err = probe_run(p, budget, &r->guest_ns);
    r->measured = true;
    r->interrupted = err == -EINTR;
    return probe_judge(p, err, sum, r);
}

static bool probe_once(char *why, size_t size, struct kvm_probe_result *result)
{
    struct probe p = {.kvm = -1, .vm = -1, .vcpu = -1, .why = why, .why_size = size};
    *result = (struct kvm_probe_result){0};
    bool ok = probe_all(&p, result);
    if (p.run)
        munmap(p.run, p.run_size);
    if (p.vcpu >= 0)
        close(p.vcpu);
    if (p.vm >= 0)
        close(p.vm);
    if (p.kvm >= 0)
        close(p.kvm);
    if (p.ram)
        munmap(p.ram, PROBE_RAM);
    return ok;
}

/* Time tells what it is: a host that was busy at the wrong moment gets another chance. */
bool kvm_probe(char *why, size_t size, struct kvm_probe_result *result)
{
    struct kvm_probe_result local;
    bool ok = false;
    for (unsigned i = 0; i < PROBE_ATTEMPTS && !ok; i++) {
        ok = probe_once(why, size, &local);
        if (!local.measured)
            break;
    }
    if (result)
        *result = local;
    return ok;
}
