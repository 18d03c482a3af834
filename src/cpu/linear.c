/*
 * Access to memory by linear address: RAM, MMIO and pages that are neither, across page borders.
 * Everything is translated before the first byte is written, so a fault leaves memory as it was.
 */
#include "bus/bus.h"
#include "cpu/cpu_int.h"
#include "memory/memory.h"

typedef uint16_t __attribute__((may_alias, aligned(1))) u16_any;
typedef uint32_t __attribute__((may_alias, aligned(1))) u32_any;
typedef uint64_t __attribute__((may_alias, aligned(1))) u64_any;

/* A range of at most two pages, translated. */
struct span {
    uint64_t gpa[2];
    size_t len[2];
    unsigned n;
};

void cpu_copy(void *to, const void *from, size_t len)
{
    uint8_t *t = to;
    const uint8_t *f = from;
    if (len > 128) {
        __asm__ volatile("rep movsb" : "+D"(t), "+S"(f), "+c"(len) : : "memory");
        return;
    }
    /* One move each for the sizes of operands: a guest relies on their being indivisible.  And for
     * frames and descriptors: rep movsb takes longer to start than these take. */
    for (; len >= 8; t += 8, f += 8, len -= 8)
        *(volatile u64_any *)t = *(const volatile u64_any *)f;
    if (len & 4) {
        *(volatile u32_any *)t = *(const volatile u32_any *)f;
        t += 4;
        f += 4;
    }
    if (len & 2) {
        *(volatile u16_any *)t = *(const volatile u16_any *)f;
        t += 2;
        f += 2;
    }
    if (len & 1)
        *(volatile uint8_t *)t = *(const volatile uint8_t *)f;
}

static int translate(struct cpu *cpu, uint64_t gva, unsigned access, bool user, struct translation *out)
{
    if (access & ACCESS_IMPLICIT) {
        /* The engine's cache answers explicit accesses; the two differ only when AC opens SMAP. */
        if ((cpu->cr4 & CR4_SMAP) && (cpu->rflags & FL_AC))
            return cpu_walk(cpu, gva, access, user, out);
        access &= ~(unsigned)ACCESS_IMPLICIT;
    }
    if (cpu->ops && cpu->ops->translate)
        return cpu->ops->translate(cpu, gva, access, user, out);
    return cpu_walk(cpu, gva, access, user, out);
}

static int span_translate(struct cpu *cpu, uint64_t gva, size_t len, unsigned access, bool user, struct span *s)
{
    struct translation t;
    size_t first = 4096 - (gva & 4095);
    if (!cpu_long_mode(cpu))
        gva = (uint32_t)gva;
    s->n = 0;
    if (!len)
        return CPU_OK;
    if (translate(cpu, gva, access, user, &t))
        return CPU_FAULT;
    s->gpa[0] = t.gpa;
    s->len[0] = len < first ? len : first;
    s->n = 1;
    if (len <= first)
        return CPU_OK;
    gva += first;
    if (translate(cpu, cpu_long_mode(cpu) ? gva : (uint32_t)gva, access, user, &t))
        return CPU_FAULT;
    s->gpa[1] = t.gpa;
    s->len[1] = len - first;
    s->n = 2;
    return CPU_OK;
}

/* The largest access a device may see at this place: naturally aligned, 8 bytes at most. */
static unsigned piece(uint64_t gpa, size_t len)
{
    unsigned size = 8;
    while (size > len || (gpa & (size - 1)))
        size /= 2;
    return size;
}

static void device_read(struct cpu *cpu, uint64_t gpa, uint8_t *buf, size_t len)
{
    while (len) {
        unsigned size = piece(gpa, len);
        uint64_t value = cpu->bus ? bus_read(cpu->bus, BUS_MEM, gpa, size) : ~0ull;
        for (unsigned i = 0; i < size; i++)
            buf[i] = value >> (8 * i);
        gpa += size, buf += size, len -= size;
    }
}

static void device_write(struct cpu *cpu, uint64_t gpa, const uint8_t *buf, size_t len)
{
    while (len) {
        unsigned size = piece(gpa, len);
        uint64_t value = 0;
        for (unsigned i = 0; i < size; i++)
            value |= (uint64_t)buf[i] << (8 * i);
        if (cpu->bus)
            bus_write(cpu->bus, BUS_MEM, gpa, value, size);
        gpa += size, buf += size, len -= size;
    }
}

static void span_read(struct cpu *cpu, const struct span *s, uint8_t *buf)
{
    for (unsigned i = 0; i < s->n; buf += s->len[i++]) {
        const void *hva = memory_hva_read(cpu->memory, s->gpa[i], s->len[i]);
        if (hva)
            cpu_copy(buf, hva, s->len[i]);
        else
            device_read(cpu, s->gpa[i], buf, s->len[i]);
    }
}

static void span_write(struct cpu *cpu, const struct span *s, const uint8_t *buf)
{
    for (unsigned i = 0; i < s->n; buf += s->len[i++]) {
        void *hva = cpu_hva_for_write(cpu, s->gpa[i], s->len[i]);
        if (hva)
            cpu_copy(hva, buf, s->len[i]);
        else
            device_write(cpu, s->gpa[i], buf, s->len[i]);
    }
}

int cpu_read(struct cpu *cpu, uint64_t gva, void *buf, size_t len, bool user)
{
    struct span s;
    if (span_translate(cpu, gva, len, ACCESS_READ, user, &s))
        return CPU_FAULT;
    span_read(cpu, &s, buf);
    return CPU_OK;
}

int cpu_write(struct cpu *cpu, uint64_t gva, const void *buf, size_t len, bool user)
{
    struct span s;
    if (span_translate(cpu, gva, len, ACCESS_WRITE, user, &s))
        return CPU_FAULT;
    span_write(cpu, &s, buf);
    return CPU_OK;
}

int cpu_fetch(struct cpu *cpu, uint64_t gva, void *buf, size_t len)
{
    struct span s;
    if (span_translate(cpu, gva, len, ACCESS_EXEC, cpu->cpl == 3, &s))
        return CPU_FAULT;
    span_read(cpu, &s, buf);
    return CPU_OK;
}

int cpu_probe_write(struct cpu *cpu, uint64_t gva, size_t len, bool user)
{
    struct span s;
    return span_translate(cpu, gva, len, ACCESS_WRITE, user, &s);
}

int sys_read(struct cpu *cpu, uint64_t gva, void *buf, size_t len)
{
    struct span s;
    if (span_translate(cpu, gva, len, ACCESS_READ | ACCESS_IMPLICIT, false, &s))
        return CPU_FAULT;
    span_read(cpu, &s, buf);
    return CPU_OK;
}

int sys_write(struct cpu *cpu, uint64_t gva, const void *buf, size_t len)
{
    struct span s;
    if (span_translate(cpu, gva, len, ACCESS_WRITE | ACCESS_IMPLICIT, false, &s))
        return CPU_FAULT;
    span_write(cpu, &s, buf);
    return CPU_OK;
}

int sys_or_byte(struct cpu *cpu, uint64_t gva, uint8_t bits)
{
    struct span s;
    if (span_translate(cpu, gva, 1, ACCESS_WRITE | ACCESS_IMPLICIT, false, &s))
        return CPU_FAULT;
    uint8_t *hva = cpu_hva_for_write(cpu, s.gpa[0], 1);
    if (hva)
        __atomic_fetch_or(hva, bits, __ATOMIC_SEQ_CST);
    return CPU_OK;
}

int sys_and_byte(struct cpu *cpu, uint64_t gva, uint8_t bits)
{
    struct span s;
    if (span_translate(cpu, gva, 1, ACCESS_WRITE | ACCESS_IMPLICIT, false, &s))
        return CPU_FAULT;
    uint8_t *hva = cpu_hva_for_write(cpu, s.gpa[0], 1);
    if (hva)
        __atomic_fetch_and(hva, bits, __ATOMIC_SEQ_CST);
    return CPU_OK;
}

/* --- stacks ------------------------------------------------------------------------------------- */
void stack_set_mask(struct stack *s, bool flat)
{
    s->flat = flat;
    s->mask = flat ? ~0ull : s->ss.attr & SEG_DB ? 0xffffffff : 0xffff;
}

void stack_current(const struct cpu *cpu, struct stack *s)
{
    s->ss = cpu->seg[SS];
    s->rsp = cpu->gpr[RSP];
    s->user = cpu->cpl == 3;
    s->error = 0;
    stack_set_mask(s, cpu_64bit(cpu));
}

uint64_t stack_moved(const struct stack *s, int64_t delta)
{
    return (s->rsp & ~s->mask) | ((s->rsp + (uint64_t)delta) & s->mask);
}

/* The linear address of [rsp+delta, +len) of a stack, or #SS (SDM 6.13). */
static int stack_address(struct cpu *cpu, const struct stack *s, int64_t delta, unsigned len, uint64_t *gva)
{
    uint64_t offset = (s->rsp + (uint64_t)delta) & s->mask;
    if (s->flat) {
        *gva = offset;
        if (!cpu_canonical(cpu, offset) || !cpu_canonical(cpu, offset + len - 1))
            return cpu_raise_error(cpu, EXC_SS, s->error);
        return CPU_OK;
    }
    if (!seg_contains(&s->ss, offset, len))
        return cpu_raise_error(cpu, EXC_SS, s->error);
    *gva = (uint32_t)(s->ss.base + offset);
    return CPU_OK;
}

/* True when [rsp+delta, +len) goes round the end of a 16- or 32-bit stack. */
static bool stack_wraps(const struct stack *s, int64_t delta, unsigned len)
{
    return ((s->rsp + (uint64_t)delta) & s->mask) > s->mask - (len - 1);
}

static uint64_t load_value(const uint8_t *p, unsigned size)
{
    return size == 8 ? *(const u64_any *)p : size == 4 ? *(const u32_any *)p : *(const u16_any *)p;
}

int stack_peek(struct cpu *cpu, const struct stack *s, unsigned skip, unsigned n, unsigned size, uint64_t *out)
{
    uint8_t buf[16 * 8];
    uint64_t gva = 0;
    if (!stack_wraps(s, skip, n * size)) {
        if (stack_address(cpu, s, skip, n * size, &gva) || cpu_read(cpu, gva, buf, n * size, s->user))
            return CPU_FAULT;
    } else {
        for (unsigned i = 0; i < n; i++) {
            if (stack_address(cpu, s, skip + i * size, size, &gva) || cpu_read(cpu, gva, buf + i * size, size, s->user))
                return CPU_FAULT;
        }
    }
    for (unsigned i = 0; i < n; i++)
        out[i] = load_value(buf + i * size, size);
    return CPU_OK;
}

static int stack_push_wrapped(struct cpu *cpu, const struct stack *s, unsigned n, unsigned size, const uint64_t *value)
{
    uint64_t gva = 0;
    for (unsigned pass = 0; pass < 2; pass++) { /* nothing is written unless all of it can be */
        for (unsigned i = 0; i < n; i++) {
            if (stack_address(cpu, s, -(int64_t)((i + 1) * size), size, &gva))
                return CPU_FAULT;
            if (pass ? cpu_write(cpu, gva, &value[i], size, s->user) : cpu_probe_write(cpu, gva, size, s->user))
                return CPU_FAULT;
        }
    }
    return CPU_OK;
}

int stack_push(struct cpu *cpu, struct stack *s, unsigned n, unsigned size, const uint64_t *value)
{
    uint64_t gva = 0, frame[48];
    int64_t delta = -(int64_t)(n * size);
    if (stack_wraps(s, delta, n * size)) {
        if (stack_push_wrapped(cpu, s, n, size, value))
            return CPU_FAULT;
    } else {
        for (unsigned i = 0; i < n; i++)
            cpu_copy((uint8_t *)frame + (n - 1 - i) * size, &value[i], size);
        if (stack_address(cpu, s, delta, n * size, &gva) || cpu_write(cpu, gva, frame, n * size, s->user))
            return CPU_FAULT;
    }
    s->rsp = stack_moved(s, delta);
    return CPU_OK;
}
