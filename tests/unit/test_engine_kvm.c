/*
 * The KVM engine with small pieces of 64-bit code: what leaves the guest and what is injected.
 * Where the probe refuses this host's KVM the tests are skipped; tests/guest/kvm-nested.sh runs them
 * in a machine that has one.
 */
#include <errno.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

#include "bus/bus.h"
#include "engine/engine.h"
#include "memory/watch.h"

#define CODE 0x9000ul
#define IDT 0x7000ul
#define GDT 0x8000ul
#define STACK 0x20000ul
#define SCRATCH 0x30000ul
#define PORT 0x500
#define MMIO 0xd0000000ul
#define REAL_MODE 0x10000ul /* SIPI vector 0x10 */

/* Each guest_* is a test's entry.  Handlers say which vector came through port 0x510. */
__asm__(".pushsection .rodata\n"
        "guest_start:\n"
        "guest_ports:\n"
        "    mov $0x500, %edx\n"
        "    mov $0x11, %al\n    out %al, %dx\n"
        "    mov $0x2222, %ax\n    out %ax, %dx\n"
        "    mov $0x33333333, %eax\n    out %eax, %dx\n"
        "    in %dx, %eax\n    mov %eax, %ebx\n"
        "    mov $0x30000, %esi\n    mov $3, %ecx\n    rep outsb\n"
        "    mov $0x30010, %edi\n    mov $3, %ecx\n    rep insw\n"
        "    hlt\n"
        "guest_memory:\n"
        "    mov $0xd0000000, %edi\n"
        "    movb $0x11, (%rdi)\n    movw $0x2222, 2(%rdi)\n    movl $0x33333333, 4(%rdi)\n"
        "    mov $0x4444444444444444, %rax\n    mov %rax, 8(%rdi)\n"
        "    mov 8(%rdi), %rbx\n    movzbl 1(%rdi), %ecx\n    mov 0xffd(%rdi), %edx\n"
        "    hlt\n"
        "guest_interrupts:\n"
        "    sti\n    hlt\n"                             /* 0x41 wakes it */
        "    cli\n    mov $1, %al\n    out %al, $0xf0\n" /* the test raises 0x42 */
        "    mov $100000, %ecx\n1:  dec %ecx\n    jnz 1b\n"
        "    mov $2, %al\n    out %al, $0xf0\n" /* still not delivered */
        "    sti\n    nop\n    nop\n    nop\n"
        "    mov $3, %al\n    out %al, $0xf0\n    cli\n    hlt\n"
        "guest_nmi:\n"
        "    mov $1, %al\n    out %al, $0xf0\n    nop\n    cli\n    hlt\n    mov $9, %ebx\n    hlt\n"
        "guest_priority:\n"
        "    mov $5, %eax\n    mov %rax, %cr8\n    mov $1, %al\n    out %al, $0xf0\n"
        "    mov $2, %eax\n    mov %rax, %cr8\n    mov %cr8, %rbx\n    hlt\n"
        "guest_msrs:\n"
        "    mov $0x1b, %ecx\n    rdmsr\n    mov %eax, %r8d\n"
        "    mov $0x6e0, %ecx\n    mov $0x1234, %eax\n    mov $0x56, %edx\n    wrmsr\n"
        "    mov $0x80b, %ecx\n    xor %eax, %eax\n    xor %edx, %edx\n    wrmsr\n"
        "    mov $0x802, %ecx\n    rdmsr\n    mov %eax, %r9d\n"
        "    mov $0x3b, %ecx\n    xor %edx, %edx\n    mov $0x1000, %eax\n    wrmsr\n    rdmsr\n    mov %eax, %r10d\n"
        "    mov $0x899, %ecx\n    rdmsr\n"      /* #GP: the handler skips it */
        "    mov $0x12345678, %ecx\n    rdmsr\n" /* nobody's: #GP */
        "    hlt\n"
        "guest_spin:\n"
        "    inc %rbx\n    jmp guest_spin\n"
        "guest_open:\n"
        "    sti\n1:  inc %rbx\n    jmp 1b\n"
        "guest_idle:\n"
        "    sti\n    hlt\n    jmp guest_idle\n"
        "guest_crash:\n"
        "    lidt guest_zero(%rip)\n    ud2\n"
        "guest_zero: .quad 0, 0\n"
        "guest_simd:\n"
        "    mov $0x5a5a5a5a, %eax\n    movd %eax, %xmm3\n    hlt\n    movd %xmm3, %ebx\n    hlt\n"
        "guest_store:\n"
        "    mov $0x5a5a5a5a, %eax\n    movd %eax, %xmm3\n    hlt\n"
        "    movd %xmm3, %ebx\n    mov %rbx, 0x40008\n    mov %rbx, 0x52ff8\n    hlt\n"
        "handler_41: push %rax\n    mov $0x41, %al\n    jmp handler_end\n"
        "handler_42: push %rax\n    mov $0x42, %al\n    jmp handler_end\n"
        "handler_nmi: push %rax\n    mov $0x02, %al\n"
        "handler_end: out %al, $0xf1\n    pop %rax\n    iretq\n"
        "handler_gp: push %rax\n    mov $0x0d, %al\n    out %al, $0xf1\n    pop %rax\n"
        "    add $8, %rsp\n    addq $2, (%rsp)\n    iretq\n" /* rdmsr is two bytes */
        ".code16\n"
        "guest_real: mov $0x77, %al\n    out %al, $0xf1\n    hlt\n"
        ".code64\n"
        "guest_end:\n"
        ".popsection\n");
extern const uint8_t guest_start[], guest_end[], guest_ports[], guest_memory[], guest_interrupts[], guest_nmi[],
    guest_priority[], guest_msrs[], guest_spin[], guest_open[], guest_idle[], guest_crash[], guest_simd[],
    guest_store[], guest_real[], handler_41[], handler_42[], handler_nmi[], handler_gp[];

struct record {
    uint64_t offset, value;
    unsigned size;
};

struct vm {
    struct memory *memory;
    struct bus *bus;
    struct engine *engine;
    struct cpu *cpu;
    struct bus_range port, mmio, marks;
    struct record log[64];
    unsigned n_log;
    uint8_t mark[16];
    unsigned n_marks;
    uint64_t port_reads;
    void (*on_mark)(struct vm *vm, uint8_t value);
    _Atomic int pending; /* a vector, or 0 */
    uint64_t tpr, deadline, eois;
    pthread_mutex_t lock; /* with `change`: guards taken, and puts a halted vCPU to sleep */
    pthread_cond_t change;
    unsigned taken;
    bool lost;
};

/* --- the fake devices ---------------------------------------------------------------------------- */

static void log_write(void *opaque, uint64_t offset, uint64_t value, unsigned size)
{
    struct vm *vm = opaque;
    if (vm->n_log < 64)
        vm->log[vm->n_log++] = (struct record){offset, value, size};
}

static uint64_t port_read(void *opaque, uint64_t offset, unsigned size)
{
    struct vm *vm = opaque;
    return size == 4 ? 0xcafe1234 : 0xa0 + vm->port_reads++;
}

static uint64_t mmio_read(void *opaque, uint64_t offset, unsigned size)
{
    uint64_t value = 0;
    for (unsigned i = 0; i < size; i++)
        value |= (uint64_t)((offset + i) & 0xff) << 8 * i;
    return value;
}

static void mark_write(void *opaque, uint64_t offset, uint64_t value, unsigned size)
{
    struct vm *vm = opaque;
    if (vm->n_marks < sizeof(vm->mark))
        vm->mark[vm->n_marks++] = (uint8_t)value;
    if (offset == 0 && vm->on_mark)
        vm->on_mark(vm, (uint8_t)value);
}

static const struct bus_ops port_ops = {port_read, log_write}, mmio_ops = {mmio_read, log_write},
                            mark_ops = {NULL, mark_write};

static bool irq_pending(void *opaque)
{
    struct vm *vm = opaque;
    return (uint64_t)vm->pending >> 4 > vm->tpr;
}

static int irq_acknowledge(void *opaque)
{
    struct vm *vm = opaque;
    int vector = vm->pending;
    vm->pending = 0;
    return vector ? vector : -1;
}

static uint64_t irq_get_tpr(void *opaque)
{
    return ((struct vm *)opaque)->tpr;
}

static void irq_set_tpr(void *opaque, uint64_t cr8)
{
    ((struct vm *)opaque)->tpr = cr8;
}

static bool irq_read_msr(void *opaque, uint32_t index, uint64_t *value)
{
    if (index == 0x1b)
        *value = 0xfee00900;
    else if (index == 0x802)
        *value = 0x1d;
    else
        return false;
    return true;
}

static bool irq_write_msr(void *opaque, uint32_t index, uint64_t value)
{
    struct vm *vm = opaque;
    if (index == 0x6e0)
        vm->deadline = value;
    else if (index == 0x80b)
        vm->eois++;
    else
        return false;
    return true;
}

static const struct cpu_irq_ops irq_ops = {irq_pending, irq_acknowledge, irq_get_tpr,
                                           irq_set_tpr, irq_read_msr,    irq_write_msr};

/* --- the guest ------------------------------------------------------------------------------------ */

static uint64_t guest_address(const uint8_t *label)
{
    return CODE + (uint64_t)(label - guest_start);
}

static void set_gate(uint8_t *ram, unsigned vector, const uint8_t *handler)
{
    uint64_t to = guest_address(handler);
    uint64_t gate[2] = {(to & 0xffff) | 8 << 16 | 0x8e00ull << 32 | (to & 0xffff0000) << 32, to >> 32};
    memcpy(ram + IDT + vector * 16, gate, 16);
}

/* Identity map of 4 GiB in 2 MiB pages, one code and one data segment, the handlers. */
static void fill_ram(uint8_t *ram)
{
    uint64_t *pml4 = (uint64_t *)(ram + 0x1000), *pdpt = (uint64_t *)(ram + 0x2000), *pd = (uint64_t *)(ram + 0x3000);
    const uint64_t gdt[3] = {0, 0x00af9b000000ffff, 0x00cf93000000ffff};
    pml4[0] = 0x2003;
    for (unsigned i = 0; i < 4; i++)
        pdpt[i] = (0x3000 + i * 0x1000) | 3;
    for (uint64_t i = 0; i < 4 * 512; i++)
        pd[i] = i << 21 | 0x83;
    memcpy(ram + GDT, gdt, sizeof(gdt));
    memcpy(ram + CODE, guest_start, (size_t)(guest_end - guest_start));
    memcpy(ram + REAL_MODE, guest_real, (size_t)(guest_end - guest_real));
    memcpy(ram + SCRATCH, "abc", 3);
    set_gate(ram, 0x41, handler_41);
    set_gate(ram, 0x42, handler_42);
    set_gate(ram, EXC_NMI, handler_nmi);
    set_gate(ram, EXC_GP, handler_gp);
}

static void set_long_mode(struct cpu *c, uint64_t rip)
{
    struct segment data = {
        .selector = 16, .limit = ~0u, .attr = SEG_P | SEG_S | SEG_WRITABLE | SEG_ACCESSED | SEG_DB | SEG_G};
    for (unsigned i = 0; i < 6; i++)
        c->seg[i] = data;
    c->seg[CS] = (struct segment){
        .selector = 8, .limit = ~0u, .attr = SEG_P | SEG_S | SEG_CODE | SEG_READABLE | SEG_ACCESSED | SEG_L | SEG_G};
    c->gdtr = (struct descriptor_table){.base = GDT, .limit = 23};
    c->idtr = (struct descriptor_table){.base = IDT, .limit = 0xfff};
    c->cr0 = CR0_PE | CR0_ET | CR0_NE | CR0_WP | CR0_PG;
    c->cr3 = 0x1000;
    c->cr4 = CR4_PAE | CR4_OSFXSR | CR4_OSXMMEXCPT;
    c->efer = EFER_LME | EFER_LMA;
    c->rip = rip;
    c->gpr[RSP] = STACK;
}

static struct vm *vm_new(unsigned n_cpus, const uint8_t *entry)
{
    struct vm *vm = calloc(1, sizeof(*vm));
    assert_non_null(vm);
    assert_int_equal(memory_create(&vm->memory, 2 << 20), 0);
    assert_int_equal(bus_create(&vm->bus, vm->memory), 0);
    vm->port = (struct bus_range){.base = PORT, .size = 8, .ops = &port_ops, .opaque = vm, .name = "port"};
    vm->marks = (struct bus_range){.base = 0xf0, .size = 2, .ops = &mark_ops, .opaque = vm, .name = "marks"};
    vm->mmio = (struct bus_range){.base = MMIO, .size = 0x2000, .ops = &mmio_ops, .opaque = vm, .name = "mmio"};
    assert_int_equal(bus_map(vm->bus, BUS_PORT, &vm->port), 0);
    assert_int_equal(bus_map(vm->bus, BUS_PORT, &vm->marks), 0);
    assert_int_equal(bus_map(vm->bus, BUS_MEM, &vm->mmio), 0);
    fill_ram(vm->memory->base);
    struct engine_config config = {.memory = vm->memory, .bus = vm->bus, .n_cpus = n_cpus};
    assert_int_equal(engine_kvm.create(&vm->engine, &config), 0);
    for (unsigned i = 0; i < n_cpus; i++) {
        struct cpu *c = engine_kvm.vcpu(vm->engine, i);
        c->irq = &irq_ops;
        c->irq_opaque = vm;
    }
    vm->cpu = engine_kvm.vcpu(vm->engine, 0);
    set_long_mode(vm->cpu, guest_address(entry));
    return vm;
}

static void vm_free(struct vm *vm)
{
    engine_kvm.destroy(vm->engine);
    bus_destroy(vm->bus);
    memory_destroy(vm->memory);
    free(vm);
}

static enum engine_exit run_cpu(struct vm *vm, unsigned i)
{
    char error[256] = "";
    enum engine_exit exit = engine_kvm.run(vm->engine, i, error);
    if (exit == ENGINE_EXIT_ERROR)
        print_message("engine: %s\n", error);
    return exit;
}

static void raise_irq(struct vm *vm, int vector)
{
    vm->pending = vector;
    atomic_fetch_or(&vm->cpu->request, REQ_IRQ);
}

/* --- tests ----------------------------------------------------------------------------------------- */

static void ports_of_every_size_and_strings(void **state)
{
    static const struct record expected[] = {
        {0, 0x11, 1}, {0, 0x2222, 2}, {0, 0x33333333, 4}, {0, 'a', 1}, {0, 'b', 1}, {0, 'c', 1},
    };
    struct vm *vm = vm_new(1, guest_ports);
    assert_int_equal(run_cpu(vm, 0), ENGINE_EXIT_HALT);
    assert_int_equal(vm->n_log, 6);
    for (unsigned i = 0; i < 6; i++) {
        assert_int_equal(vm->log[i].value, expected[i].value);
        assert_int_equal(vm->log[i].size, expected[i].size);
    }
    assert_int_equal(vm->cpu->gpr[RBX], 0xcafe1234);
    assert_int_equal(vm->cpu->gpr[RCX], 0);
    const uint16_t words[3] = {0xa0, 0xa1, 0xa2};
    assert_memory_equal(vm->memory->base + SCRATCH + 0x10, words, 6);
    vm_free(vm);
}

static void memory_outside_ram_goes_to_the_bus(void **state)
{
    static const struct record expected[] = {
        {0, 0x11, 1},
        {2, 0x2222, 2},
        {4, 0x33333333, 4},
        {8, 0x4444444444444444, 8},
    };
    struct vm *vm = vm_new(1, guest_memory);
    assert_int_equal(run_cpu(vm, 0), ENGINE_EXIT_HALT);
    assert_int_equal(vm->n_log, 4);
    for (unsigned i = 0; i < 4; i++) {
        assert_int_equal(vm->log[i].offset, expected[i].offset);
        assert_true(vm->log[i].value == expected[i].value);
        assert_int_equal(vm->log[i].size, expected[i].size);
    }
    assert_true(vm->cpu->gpr[RBX] == 0x0f0e0d0c0b0a0908);
    assert_int_equal(vm->cpu->gpr[RCX], 1);
    assert_int_equal(vm->cpu->gpr[RDX], 0x00fffefd); /* across a page: 3 bytes and 1 */
    vm_free(vm);
}

static void raise_42_at_mark_1(struct vm *vm, uint8_t value)
{
    if (value == 1)
        raise_irq(vm, 0x42);
}

static void interrupts_wait_for_if_and_end_hlt(void **state)
{
    static const uint8_t expected[] = {0x41, 1, 2, 0x42, 3};
    struct vm *vm = vm_new(1, guest_interrupts);
    vm->on_mark = raise_42_at_mark_1;
    assert_int_equal(run_cpu(vm, 0), ENGINE_EXIT_HALT);
    assert_true(vm->cpu->halted);
    assert_int_equal(run_cpu(vm, 0), ENGINE_EXIT_HALT); /* nothing has happened: still halted */
    assert_int_equal(vm->n_marks, 0);
    raise_irq(vm, 0x41);
    assert_int_equal(run_cpu(vm, 0), ENGINE_EXIT_HALT);
    assert_int_equal(vm->n_marks, sizeof(expected));
    assert_memory_equal(vm->mark, expected, sizeof(expected));
    raise_irq(vm, 0x41); /* halted with IF clear: does not wake */
    assert_int_equal(run_cpu(vm, 0), ENGINE_EXIT_HALT);
    assert_int_equal(vm->n_marks, sizeof(expected));
    vm_free(vm);
}

static void nmi_at_mark(struct vm *vm, uint8_t value)
{
    atomic_fetch_or(&vm->cpu->request, REQ_NMI);
}

static void nmi_is_taken_with_if_clear_and_ends_hlt(void **state)
{
    static const uint8_t expected[] = {1, 2, 2};
    struct vm *vm = vm_new(1, guest_nmi);
    vm->on_mark = nmi_at_mark;
    assert_int_equal(run_cpu(vm, 0), ENGINE_EXIT_HALT);
    assert_int_equal(vm->n_marks, 2);
    atomic_fetch_or(&vm->cpu->request, REQ_NMI);
    assert_int_equal(run_cpu(vm, 0), ENGINE_EXIT_HALT);
    assert_int_equal(vm->n_marks, 3);
    assert_memory_equal(vm->mark, expected, 3);
    assert_int_equal(vm->cpu->gpr[RBX], 9);
    vm_free(vm);
}

static void check_tpr(struct vm *vm, uint8_t value)
{
    assert_int_equal(vm->tpr, 5);
}

static void cr8_is_the_task_priority(void **state)
{
    struct vm *vm = vm_new(1, guest_priority);
    vm->on_mark = check_tpr;
    assert_int_equal(run_cpu(vm, 0), ENGINE_EXIT_HALT);
    assert_int_equal(vm->n_marks, 1);
    assert_int_equal(vm->tpr, 2);
    assert_int_equal(vm->cpu->gpr[RBX], 2);
    vm_free(vm);
}

static void apic_msrs_leave_and_unknown_ones_fault(void **state)
{
    static const uint8_t expected[] = {0x0d, 0x0d};
    struct vm *vm = vm_new(1, guest_msrs);
    int64_t offset = vm->cpu->tsc_offset;
    assert_int_equal(run_cpu(vm, 0), ENGINE_EXIT_HALT);
    assert_int_equal(vm->cpu->gpr[R8], 0xfee00900);
    assert_int_equal(vm->cpu->gpr[R9], 0x1d);
    assert_int_equal(vm->cpu->gpr[R10], 0x1000);
    assert_true(vm->cpu->tsc_offset == offset + 0x1000);
    assert_true(vm->deadline == 0x5600001234);
    assert_int_equal(vm->eois, 1);
    assert_int_equal(vm->n_marks, 2);
    assert_memory_equal(vm->mark, expected, 2);
    vm_free(vm);
}

static void *stop_soon(void *opaque)
{
    struct vm *vm = opaque;
    usleep(50000);
    atomic_fetch_or(&vm->cpu->request, REQ_EXIT);
    engine_kvm.kick(vm->engine, 0);
    return NULL;
}

static void a_kick_stops_a_spinning_guest_and_state_can_be_changed(void **state)
{
    struct vm *vm = vm_new(1, guest_spin);
    pthread_t thread;
    for (unsigned round = 0; round < 3; round++) {
        assert_int_equal(pthread_create(&thread, NULL, stop_soon, vm), 0);
        assert_int_equal(run_cpu(vm, 0), ENGINE_EXIT_REQUEST);
        pthread_join(thread, NULL);
        assert_true(vm->cpu->gpr[RBX] > 100);
        assert_in_range(vm->cpu->rip, guest_address(guest_spin), guest_address(guest_spin) + 8);
        vm->cpu->gpr[RBX] = 0;
    }
    vm->cpu->rip = guest_address(guest_memory);
    assert_int_equal(run_cpu(vm, 0), ENGINE_EXIT_HALT);
    assert_true(vm->cpu->gpr[RBX] == 0x0f0e0d0c0b0a0908);
    vm_free(vm);
}

static void exit_at_mark(struct vm *vm, uint8_t value)
{
    raise_irq(vm, 0x41);
    atomic_fetch_or(&vm->cpu->request, REQ_EXIT);
}

/* The exit comes in the middle of an OUT: the state that run leaves is that after it. */
static void an_access_under_way_is_finished_before_run_returns(void **state)
{
    struct vm *vm = vm_new(1, guest_nmi);
    vm->on_mark = exit_at_mark;
    assert_int_equal(run_cpu(vm, 0), ENGINE_EXIT_REQUEST);
    assert_int_equal(vm->cpu->rip, guest_address(guest_nmi) + 4);
    vm->on_mark = NULL;
    vm->cpu->rflags |= FL_IF;
    assert_int_equal(run_cpu(vm, 0), ENGINE_EXIT_HALT);
    assert_int_equal(vm->n_marks, 2);
    assert_int_equal(vm->mark[1], 0x41);
    vm_free(vm);
}

/* --- a device thread against the vCPU thread ------------------------------------------------------- */

enum { STORM_ROUNDS = 2000 };

static void count_interrupt(void *opaque, uint64_t offset, uint64_t value, unsigned size)
{
    struct vm *vm = opaque;
    pthread_mutex_lock(&vm->lock);
    vm->taken++;
    pthread_cond_broadcast(&vm->change);
    pthread_mutex_unlock(&vm->lock);
}

static const struct bus_ops count_ops = {NULL, count_interrupt};

/* Raises one interrupt after another, each when the one before has been taken. */
static void *storm(void *opaque)
{
    struct vm *vm = opaque;
    for (unsigned round = 0; round < STORM_ROUNDS && !vm->lost; round++) {
        struct timespec limit;
        clock_gettime(CLOCK_REALTIME, &limit);
        limit.tv_sec += 10;
        pthread_mutex_lock(&vm->lock);
        raise_irq(vm, 0x41);
        pthread_cond_broadcast(&vm->change);
        pthread_mutex_unlock(&vm->lock);
        engine_kvm.kick(vm->engine, 0);
        pthread_mutex_lock(&vm->lock);
        while (vm->taken == round && !vm->lost)
            vm->lost = pthread_cond_timedwait(&vm->change, &vm->lock, &limit) != 0;
        pthread_mutex_unlock(&vm->lock);
    }
    atomic_fetch_or(&vm->cpu->request, REQ_EXIT);
    pthread_mutex_lock(&vm->lock);
    pthread_cond_broadcast(&vm->change);
    pthread_mutex_unlock(&vm->lock);
    engine_kvm.kick(vm->engine, 0);
    return NULL;
}

static void run_against_storm(const uint8_t *entry)
{
    struct vm *vm = vm_new(1, entry);
    pthread_t thread;
    enum engine_exit exit;
    pthread_mutex_init(&vm->lock, NULL);
    pthread_cond_init(&vm->change, NULL);
    vm->marks.ops = &count_ops;
    assert_int_equal(pthread_create(&thread, NULL, storm, vm), 0);
    while ((exit = run_cpu(vm, 0)) == ENGINE_EXIT_HALT) {
        pthread_mutex_lock(&vm->lock);
        while (!atomic_load(&vm->cpu->request))
            pthread_cond_wait(&vm->change, &vm->lock);
        pthread_mutex_unlock(&vm->lock);
    }
    pthread_join(thread, NULL);
    assert_int_equal(exit, ENGINE_EXIT_REQUEST);
    assert_false(vm->lost);
    assert_int_equal(vm->taken, STORM_ROUNDS);
    vm_free(vm);
}

static void no_interrupt_is_lost_on_a_busy_cpu(void **state)
{
    run_against_storm(guest_open);
}

static void no_interrupt_is_lost_on_a_halting_cpu(void **state)
{
    run_against_storm(guest_idle);
}

static void triple_fault_is_shutdown(void **state)
{
    struct vm *vm = vm_new(1, guest_crash);
    assert_int_equal(run_cpu(vm, 0), ENGINE_EXIT_SHUTDOWN);
    vm_free(vm);
}

static void simd_state_survives_exits(void **state)
{
    struct vm *vm = vm_new(1, guest_simd);
    assert_int_equal(run_cpu(vm, 0), ENGINE_EXIT_HALT);
    vm->cpu->halted = 0;
    assert_int_equal(run_cpu(vm, 0), ENGINE_EXIT_HALT);
    assert_int_equal(vm->cpu->gpr[RBX], 0x5a5a5a5a);
    vm_free(vm);
}

static struct vm *move(struct vm *from, const uint8_t *entry)
{
    uint8_t bytes[CPU_SAVED_MAX], simd[ENGINE_SIMD_MAX], shown[CPUID_SAVED_MAX];
    char why[128];
    struct vm *vm = vm_new(1, entry);
    int size = engine_kvm.get_simd(from->engine, 0, simd);
    size_t n = cpu_save(from->cpu, 1000000, bytes);
    assert_int_equal(size, ENGINE_SIMD_MAX);
    assert_true(n > 0);
    assert_true(cpuid_check(vm->cpu->cpuid, shown, cpuid_save(from->cpu->cpuid, shown), why, sizeof(why)));
    assert_null(cpu_load(vm->cpu, 1000000, bytes, n)); /* no time has passed */
    assert_int_equal(engine_kvm.set_simd(vm->engine, 0, simd, (size_t)size), 0);
    memcpy(vm->memory->base, from->memory->base, from->memory->size);
    vm_free(from);
    return vm;
}

static void another_engine_goes_on_where_one_was(void **state)
{
    struct vm *vm = vm_new(1, guest_store);
    const uint64_t hour = 3600ull * 1000000000;
    cpuid_table_set_now((struct cpuid_table *)vm->cpu->cpuid, __builtin_ia32_rdtsc(), hour);
    vm->cpu->lstar = 0x123456;
    vm->cpu->dr[1] = 0x9000;
    assert_int_equal(run_cpu(vm, 0), ENGINE_EXIT_HALT);
    atomic_fetch_or(&vm->cpu->request, REQ_EXIT);
    assert_int_equal(run_cpu(vm, 0), ENGINE_EXIT_REQUEST);
    vm->cpu->halted = 0;
    vm = move(vm, guest_spin);
    vm->cpu->lstar += 1;
    assert_int_equal(run_cpu(vm, 0), ENGINE_EXIT_HALT);
    assert_int_equal(vm->cpu->gpr[RBX], 0x5a5a5a5a);
    atomic_fetch_or(&vm->cpu->request, REQ_EXIT);
    assert_int_equal(run_cpu(vm, 0), ENGINE_EXIT_REQUEST);
    assert_int_equal(vm->cpu->lstar, 0x123457);
    assert_int_equal(vm->cpu->dr[1], 0x9000);
    assert_in_range(cpuid_table_now(vm->cpu->cpuid, __builtin_ia32_rdtsc()), hour, hour + 60000000000);
    vm_free(vm);
}

static void impossible_simd_state_is_refused_or_left_out(void **state)
{
    struct vm *vm = vm_new(1, guest_store);
    uint8_t bytes[ENGINE_SIMD_MAX];
    memset(bytes, 0xff, sizeof(bytes));
    assert_int_equal(engine_kvm.set_simd(vm->engine, 0, bytes, 100), -EINVAL);
    (void)engine_kvm.set_simd(vm->engine, 0, bytes, sizeof(bytes));
    assert_int_equal(run_cpu(vm, 0), ENGINE_EXIT_HALT);
    vm_free(vm);
}

static void pages_that_the_guest_writes_to_are_told(void **state)
{
    struct vm *vm = vm_new(1, guest_store);
    uint16_t pages[32];
    assert_int_equal(run_cpu(vm, 0), ENGINE_EXIT_HALT);
    vm->cpu->halted = 0;
    assert_int_equal(memory_log_begin(vm->memory), 0);
    memory_log_take(vm->memory, pages);
    assert_int_equal(run_cpu(vm, 0), ENGINE_EXIT_HALT);
    assert_in_range(memory_log_count(vm->memory), 2, 5); /* and the page tables, which the CPU writes to */
    memory_log_take(vm->memory, pages);
    assert_int_equal(pages[4], 1);
    assert_int_equal(pages[5], 1 << 2);
    assert_int_equal(memory_log_count(vm->memory), 0);
    memory_log_end(vm->memory);
    vm_free(vm);
}

static void init_and_sipi_start_another_cpu_in_real_mode(void **state)
{
    struct vm *vm = vm_new(2, guest_ports);
    struct cpu *ap = engine_kvm.vcpu(vm->engine, 1);
    assert_int_equal(run_cpu(vm, 1), ENGINE_EXIT_HALT); /* waits for SIPI */
    assert_int_equal(vm->n_marks, 0);
    atomic_fetch_or(&ap->request, REQ_INIT);
    assert_int_equal(run_cpu(vm, 1), ENGINE_EXIT_HALT);
    ap->sipi_vector = REAL_MODE >> 12;
    atomic_fetch_or(&ap->request, REQ_SIPI);
    assert_int_equal(run_cpu(vm, 1), ENGINE_EXIT_HALT);
    assert_int_equal(vm->n_marks, 1);
    assert_int_equal(vm->mark[0], 0x77);
    assert_int_equal(ap->seg[CS].base, REAL_MODE);
    vm_free(vm);
}

int main(void)
{
    char why[256];
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(ports_of_every_size_and_strings),
        cmocka_unit_test(memory_outside_ram_goes_to_the_bus),
        cmocka_unit_test(interrupts_wait_for_if_and_end_hlt),
        cmocka_unit_test(nmi_is_taken_with_if_clear_and_ends_hlt),
        cmocka_unit_test(cr8_is_the_task_priority),
        cmocka_unit_test(apic_msrs_leave_and_unknown_ones_fault),
        cmocka_unit_test(a_kick_stops_a_spinning_guest_and_state_can_be_changed),
        cmocka_unit_test(an_access_under_way_is_finished_before_run_returns),
        cmocka_unit_test(no_interrupt_is_lost_on_a_busy_cpu),
        cmocka_unit_test(no_interrupt_is_lost_on_a_halting_cpu),
        cmocka_unit_test(triple_fault_is_shutdown),
        cmocka_unit_test(simd_state_survives_exits),
        cmocka_unit_test(another_engine_goes_on_where_one_was),
        cmocka_unit_test(impossible_simd_state_is_refused_or_left_out),
        cmocka_unit_test(pages_that_the_guest_writes_to_are_told),
        cmocka_unit_test(init_and_sipi_start_another_cpu_in_real_mode),
    };
    alarm(120); /* a guest that does not stop ends the test */
    if (!engine_kvm.probe(why, sizeof(why))) {
        printf("skipped: %s\n", why);
        return 77; /* Meson's "skipped" */
    }
    return cmocka_run_group_tests(tests, NULL, NULL);
}
