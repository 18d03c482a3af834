/*
 * Helpers that see the guest's SIMD state: the xsave family, gathers, scatters, byte-masked stores, and
 * the x87 environment.
 *
 * The state is edited in v->xsave, in the standard format, while parked.  x87 instruction and data
 * pointers are the host's addresses after an instruction ran in the code cache: they are never shown to
 * the guest, which reads zeros (docs/QUIRKS.md).
 */
#include "engine/soft/helpers.h"

#include <cpuid.h>

#include <string.h>

enum { C_X87 = 1, C_SSE = 2, C_AVX = 4, C_K = 0x20, C_ZMM_HI256 = 0x40, C_HI16_ZMM = 0x80 };

#define XSAVE_HEADER 512

#define XSAVE_EXTENDED 576

static const void *raise(struct soft_vcpu *v, unsigned vector)
{
    if (vector == EXC_GP || vector == EXC_SS)
        cpu_raise_error(&v->cpu, vector, 0);
    else
        cpu_raise(&v->cpu, vector);
    return soft_deliver(v);
}

static bool stack_site(const struct soft_vcpu *v)
{
    return v->engine->sites[v->site].access & SITE_STACK;
}

/* May this byte be accessed?  Large state images are probed before they are touched, in an order that the
 * fault address shows: CPUs are seen to look at the first element and at the last byte. */
static int probe(struct soft_vcpu *v, uint64_t gva, bool write)
{
    struct translation tr;
    const struct site *s = &v->engine->sites[v->site];
    if ((v->mode & MODE_64) && (!cpu_canonical(&v->cpu, gva) || soft_bad_offset(v, s, gva)))
        return cpu_raise_error(&v->cpu, stack_site(v) ? EXC_SS : EXC_GP, 0);
    return cpu_walk(&v->cpu, linear(v, gva), write ? ACCESS_WRITE : ACCESS_READ, v->cpu.cpl == 3, &tr);
}

static int access_memory(struct soft_vcpu *v, uint64_t gva, void *buf, unsigned n, bool write)
{
    bool user = v->cpu.cpl == 3;
    gva = linear(v, gva);
    if ((v->mode & MODE_64) && !(cpu_canonical(&v->cpu, gva) && cpu_canonical(&v->cpu, gva + n - 1)))
        return cpu_raise_error(&v->cpu, stack_site(v) ? EXC_SS : EXC_GP, 0);
    if (v->n_watch)
        v->debug_hits |= soft_watch_hits(v, gva, n, write);
    return write ? cpu_write(&v->cpu, gva, buf, n, user) : cpu_read(&v->cpu, gva, buf, n, user);
}

/* Byte `at` of the area at helper_ea.  An offset of 32 bits is seen to wrap. */
static uint64_t area_gva(const struct soft_vcpu *v, const struct site *s, unsigned at)
{
    uint64_t offset = soft_offset(v, s, v->helper_ea);
    return s->addr32 ? v->helper_ea - offset + (uint32_t)(offset + at) : v->helper_ea + at;
}

static int access_area(struct soft_vcpu *v, const struct site *s, uint8_t *buf, unsigned at, unsigned n, bool write)
{
    uint64_t first = area_gva(v, s, at);
    unsigned room = 0;
    if (area_gva(v, s, at + n - 1) - first == n - 1)
        return access_memory(v, first, buf, n, write);
    while (area_gva(v, s, at + room) - first == room)
        room++;
    return access_memory(v, first, buf, room, write) ||
           access_memory(v, area_gva(v, s, at + room), buf + room, n - room, write);
}

/* --- xsave and fxsave --------------------------------------------------------------------------------------- */

struct component {
    uint32_t offset, size;
    bool aligned; /* to 64 in the compacted format */
};

static struct component component(unsigned i)
{
    uint32_t a, b, c, d;
    __cpuid_count(0xd, i, a, b, c, d);
    return (struct component){.offset = b, .size = a, .aligned = c & 2};
}

void soft_xsave_layout(struct engine *e)
{
    for (unsigned i = 2; i < 8; i++)
        if (e->xcr0 >> i & 1) {
            struct component c = component(i);
            e->xs_offset[i] = c.offset;
            e->xs_size[i] = c.size;
            e->xs_aligned[i] = c.aligned;
        }
}

static unsigned standard_extent(const struct engine *e, uint64_t mask)
{
    unsigned end = XSAVE_EXTENDED;
    for (unsigned i = 2; i < 8; i++)
        if (mask >> i & 1 && e->xs_offset[i] + e->xs_size[i] > end)
            end = e->xs_offset[i] + e->xs_size[i];
    return end;
}

static unsigned compact_extent(const struct engine *e, uint64_t mask)
{
    unsigned end = XSAVE_EXTENDED;
    for (unsigned i = 2; i < 8; i++)
        if (mask >> i & 1) {
            if (e->xs_aligned[i])
                end = (end + 63) & ~63u;
            end += e->xs_size[i];
        }
    return end;
}

static void hide_pointers(uint8_t *area)
{
    memset(area + 8, 0, 16); /* FIP and FDP, with their selectors */
}

#define XINSN(name, insn)                                                                                              \
    static void name(void *area, uint64_t mask)                                                                        \
    {                                                                                                                  \
        __asm__ volatile(insn " (%0)" ::"r"(area), "a"((uint32_t)mask), "d"((uint32_t)(mask >> 32)) : "memory");       \
    }

XINSN(do_xsave, "xsave")
XINSN(do_xsave64, "xsave64")
XINSN(do_xsavec, "xsavec")
XINSN(do_xsavec64, "xsavec64")
XINSN(do_xrstor, "xrstor")
XINSN(do_xrstor64, "xrstor64")
XINSN(do_fxsave, "fxsave")
XINSN(do_fxsave64, "fxsave64")
XINSN(do_fxrstor, "fxrstor")
XINSN(do_fxrstor64, "fxrstor64")

static uint32_t mxcsr_mask(void)
{
    return 0x2ffff;
}

static bool bad_mxcsr(const uint8_t *area)
{
    uint32_t mxcsr;
    memcpy(&mxcsr, area + 24, 4);
    return mxcsr & ~mxcsr_mask();
}

static bool nonzero(const uint8_t *p, unsigned n)
{
    for (unsigned i = 0; i < n; i++)
        if (p[i])
            return true;
    return false;
}

/* The #GP conditions of XRSTOR (SDM 13.8.1, 13.12). */
static bool bad_header(const struct soft_vcpu *v, const uint8_t *area, uint64_t rfbm)
{
    uint64_t bv, comp;
    memcpy(&bv, area + XSAVE_HEADER, 8);
    memcpy(&comp, area + XSAVE_HEADER + 8, 8);
    if (comp >> 63) {
        uint64_t format = comp & ~(1ull << 63);
        return (format & ~v->cpu.xcr0) || (bv & ~format) || nonzero(area + XSAVE_HEADER + 16, 48);
    }
    return (bv & ~v->cpu.xcr0) || nonzero(area + XSAVE_HEADER + 8, 16);
}

static bool bad_mxcsr_in(const struct soft_vcpu *v, const uint8_t *area, uint64_t rfbm)
{
    uint64_t bv, comp;
    memcpy(&bv, area + XSAVE_HEADER, 8);
    memcpy(&comp, area + XSAVE_HEADER + 8, 8);
    return (rfbm & (comp >> 63 ? bv : ~0ull) & (C_SSE | C_AVX)) && bad_mxcsr(area);
}

static bool keeps_high(const struct soft_vcpu *v);

static void read_high(struct soft_vcpu *v, uint8_t (*high)[64]);

static void restore_high(struct soft_vcpu *v, uint8_t (*high)[64]);

/* In the image that the host's 64-bit mode has written over `old`, the parts of registers 8 and up: not written
 * in 32-bit code. */
static void put_back(const struct soft_vcpu *v, uint8_t *area, const uint8_t *old, uint64_t rfbm, bool compact)
{
    const struct engine *e = v->engine;
    unsigned at[8], end = XSAVE_EXTENDED;
    for (unsigned i = 2; i < 8; i++) {
        if (rfbm >> i & 1 && e->xs_aligned[i])
            end = compact ? (end + 63) & ~63u : end;
        at[i] = compact ? end : e->xs_offset[i];
        end += rfbm >> i & 1 ? e->xs_size[i] : 0;
    }
    if (rfbm & C_SSE)
        memcpy(area + 288, old + 288, 128);
    if (rfbm & C_AVX)
        memcpy(area + at[2] + 128, old + at[2] + 128, 128);
    if (rfbm & C_ZMM_HI256)
        memcpy(area + at[6] + 256, old + at[6] + 256, 256);
    if (rfbm & C_HI16_ZMM)
        memcpy(area + at[7], old + at[7], e->xs_size[7]);
    if ((rfbm & C_HI16_ZMM) && !e->amd) /* where they are, they are never in use */
        area[XSAVE_HEADER] &= (uint8_t)~C_HI16_ZMM;
}

/* The first of its checks: an element of 4 bytes at the beginning. */
static bool fx_bad_address(const struct soft_vcpu *v, const struct site *s)
{
    uint64_t offset = soft_offset(v, s, v->helper_ea);
    if (v->mode & MODE_64)
        return !cpu_canonical(&v->cpu, v->helper_ea) || !cpu_canonical(&v->cpu, area_gva(v, s, 3)) ||
               soft_bad_offset(v, s, v->helper_ea);
    return wraps(v, s->segment, offset, 4);
}

static const void *fx(struct soft_vcpu *v, const struct site *s, unsigned kind, bool wide)
{
    uint8_t *area = v->bounce_buffer;
    if (fx_bad_address(v, s))
        return raise(v, stack_site(v) ? EXC_SS : EXC_GP);
    if ((v->helper_ea & 3) && (v->mode & MODE_ALIGN)) {
        cpu_raise_error(&v->cpu, EXC_AC, 0);
        return soft_deliver(v);
    }
    if (s->null_segment)
        return raise(v, EXC_GP);
    if (v->helper_ea & 15)
        return raise(v, EXC_GP);
    if (probe(v, area_gva(v, s, 511), kind == XS_FXSAVE) || probe(v, v->helper_ea, kind == XS_FXSAVE) ||
        access_area(v, s, area, 0, 512, false))
        return soft_deliver(v);
    if (kind == XS_FXSAVE) {
        memcpy(v->bounce_buffer + 4096, area, 512);
        if (wide)
            do_fxsave64(area, 0);
        else
            do_fxsave(area, 0);
        hide_pointers(area);
        if (keeps_high(v))
            put_back(v, area, v->bounce_buffer + 4096, C_SSE, false);
        return access_area(v, s, area, 0, 512, true) ? soft_deliver(v) : finish(v, s);
    }
    if (bad_mxcsr(area))
        return raise(v, EXC_GP);
    uint8_t high[24][64];
    if (keeps_high(v))
        read_high(v, high);
    if (wide)
        do_fxrstor64(area, 0);
    else
        do_fxrstor(area, 0);
    if (keeps_high(v))
        restore_high(v, high);
    return finish(v, s);
}

/* The first byte of the area that components `mask` have.  Intel's CPUs touch nothing in front of it. */
static unsigned area_begin(const struct soft_vcpu *v, uint64_t mask, bool compact)
{
    uint64_t mxcsr = compact ? C_SSE : C_SSE | C_AVX;
    return (mask & C_X87) || v->engine->amd ? 0 : mask & mxcsr ? 24 : XSAVE_HEADER;
}

static const void *save(struct soft_vcpu *v, const struct site *s, unsigned kind, bool wide, uint64_t rfbm)
{
    uint8_t *area = v->bounce_buffer;
    bool compact = kind == XS_XSAVEC;
    unsigned size = compact ? compact_extent(v->engine, rfbm) : standard_extent(v->engine, rfbm);
    unsigned begin = area_begin(v, rfbm, compact);
    /* AMD's CPUs look at the first element and at the last byte, Intel's the other way round */
    unsigned first = v->engine->amd ? begin : size - 1, second = v->engine->amd ? size - 1 : begin;
    if (probe(v, area_gva(v, s, first), true) || probe(v, area_gva(v, s, second), true) ||
        access_area(v, s, area + begin, begin, size - begin, false))
        return soft_deliver(v);
    /* xsaveopt may write everything, and must: what it would leave out is judged by our address */
    void (*insn)(void *, uint64_t) = compact ? (wide ? do_xsavec64 : do_xsavec) : (wide ? do_xsave64 : do_xsave);
    memcpy(v->bounce_buffer + 4096, area, size);
    insn(area, rfbm);
    if (rfbm & C_X87)
        hide_pointers(area);
    if (keeps_high(v))
        put_back(v, area, v->bounce_buffer + 4096, rfbm, compact);
    return access_area(v, s, area + begin, begin, size - begin, true) ? soft_deliver(v) : finish(v, s);
}

static const void *restore(struct soft_vcpu *v, const struct site *s, bool wide, uint64_t rfbm)
{
    uint8_t *area = v->bounce_buffer;
    uint64_t comp, bv;
    if ((v->engine->amd && probe(v, v->helper_ea, false)) ||
        access_area(v, s, area + XSAVE_HEADER, XSAVE_HEADER, 64, false))
        return soft_deliver(v);
    memcpy(&bv, area + XSAVE_HEADER, 8);
    memcpy(&comp, area + XSAVE_HEADER + 8, 8);
    if (bad_header(v, area, rfbm))
        return raise(v, EXC_GP);
    unsigned size = comp >> 63 ? compact_extent(v->engine, comp & v->engine->xcr0) : standard_extent(v->engine, rfbm);
    unsigned begin = area_begin(v, rfbm & (bv | C_SSE | C_AVX), false);
    if (probe(v, area_gva(v, s, size - 1), false) || access_area(v, s, area + begin, begin, size - begin, false))
        return soft_deliver(v);
    if (bad_mxcsr_in(v, area, rfbm))
        return raise(v, EXC_GP);
    uint8_t high[24][64];
    if (keeps_high(v))
        read_high(v, high);
    if (wide)
        do_xrstor64(area, rfbm);
    else
        do_xrstor(area, rfbm);
    if (keeps_high(v))
        restore_high(v, high);
    return finish(v, s);
}

const void *helper_xstate(struct soft_vcpu *v, const struct site *s)
{
    struct cpu *c = &v->cpu;
    unsigned kind = s->arg & XS_KIND;
    bool wide = s->arg & XS_64;
    if (!v->fpu_live)
        soft_fpu_unpark(v);
    if (kind == XS_FXSAVE || kind == XS_FXRSTOR)
        return c->cr0 & (CR0_EM | CR0_TS) ? raise(v, EXC_NM) : fx(v, s, kind, wide);
    if (!(c->cr4 & CR4_OSXSAVE))
        return raise(v, EXC_UD);
    if (c->cr0 & CR0_TS)
        return raise(v, EXC_NM);
    if (!v->engine->amd && address_fault(v, s->segment, stack_site(v) ? EXC_SS : EXC_GP, v->helper_ea, 4))
        return soft_deliver(v);
    if (v->helper_ea & 63)
        return raise(v, EXC_GP);
    uint64_t rfbm = ((uint32_t)c->gpr[RAX] | c->gpr[RDX] << 32) & c->xcr0;
    return kind == XS_XRSTOR ? restore(v, s, wide, rfbm) : save(v, s, kind, wide, rfbm);
}

/* fnstenv (28 or 14 bytes) and fnsave (108 or 94): pointers hidden */
const void *helper_x87_env(struct soft_vcpu *v, const struct site *s)
{
    uint8_t *buf = v->bounce_buffer;
    bool small = s->arg2 == 2, whole = (s->arg & 0xff) == 1;
    if (v->cpu.cr0 & (CR0_EM | CR0_TS))
        return raise(v, EXC_NM);
    if (!v->fpu_live)
        soft_fpu_unpark(v);
    unsigned size = (small ? 14 : 28) + (whole ? 80 : 0);
    unsigned element = small ? 2 : 4;
    if ((v->mode & MODE_64) &&
        !(cpu_canonical(&v->cpu, v->helper_ea) && cpu_canonical(&v->cpu, v->helper_ea + element - 1)))
        return raise(v, stack_site(v) ? EXC_SS : EXC_GP);
    if (wraps(v, s->segment, soft_offset(v, s, v->helper_ea), element))
        return raise(v, stack_site(v) ? EXC_SS : EXC_GP);
    if ((v->helper_ea & (element - 1)) && (v->mode & MODE_ALIGN)) {
        cpu_raise_error(&v->cpu, EXC_AC, 0);
        return soft_deliver(v);
    }
    if (probe(v, v->helper_ea, true) ||
        (element > 4096 - (v->helper_ea & 4095) && probe(v, (v->helper_ea | 4095) + 1, true)) ||
        probe(v, v->helper_ea + size - 1, true))
        return soft_deliver(v);
    if (whole && small)
        __asm__ volatile("data16 fnsave (%0)" ::"r"(buf) : "memory");
    else if (whole)
        __asm__ volatile("fnsave (%0)" ::"r"(buf) : "memory");
    else if (small)
        __asm__ volatile("data16 fnstenv (%0)" ::"r"(buf) : "memory");
    else
        __asm__ volatile("fnstenv (%0)" ::"r"(buf) : "memory");
    if (small)
        memset(buf + 6, 0, 8);
    else
        memset(buf + 12, 0, 14); /* the last two bytes are reserved: ones */
    access_memory(v, v->helper_ea, buf, size, true);
    return finish(v, s);
}

static uint8_t *part(struct soft_vcpu *v, unsigned bit, unsigned offset, unsigned size)
{
    uint64_t bv;
    memcpy(&bv, v->xsave + XSAVE_HEADER, 8);
    if (!(bv >> bit & 1)) {
        memset(v->xsave + offset, 0, size);
        bv |= 1ull << bit;
        memcpy(v->xsave + XSAVE_HEADER, &bv, 8);
    }
    return v->xsave + offset;
}

/* Copies up to 64 bytes of vector register n out of (or into) the parked state. */
static void vector_copy(struct soft_vcpu *v, unsigned n, uint8_t *buf, unsigned bytes, bool set)
{
    const struct engine *e = v->engine;
    for (unsigned at = 0; at < bytes; at += 16) {
        uint8_t *p;
        if (n >= 16)
            p = part(v, 7, e->xs_offset[7], e->xs_size[7]) + (n - 16) * 64 + at;
        else if (at == 0)
            p = part(v, 1, 160, 256) + n * 16;
        else if (at == 16)
            p = part(v, 2, e->xs_offset[2], e->xs_size[2]) + n * 16;
        else
            p = part(v, 6, e->xs_offset[6], e->xs_size[6]) + n * 32 + at - 32;
        if (set)
            memcpy(p, buf + at, 16);
        else
            memcpy(buf + at, p, 16);
    }
}

static uint64_t *mask_register(struct soft_vcpu *v, unsigned k)
{
    const struct engine *e = v->engine;
    return (uint64_t *)(void *)(part(v, 5, e->xs_offset[5], e->xs_size[5]) + 8 * k);
}

const void *helper_vzero(struct soft_vcpu *v, const struct site *s)
{
    uint8_t zero[64] = {0}, low[64] = {0};
    bool all = s->arg & 1;
    soft_fpu_park(v);
    for (unsigned n = 0; n < 8; n++) {
        if (!all)
            vector_copy(v, n, low, 16, false);
        vector_copy(v, n, all ? zero : low, v->engine->xcr0 & C_ZMM_HI256 ? 64 : 32, true);
    }
    return finish(v, s);
}

static bool keeps_high(const struct soft_vcpu *v)
{
    return !(v->mode & MODE_64);
}

/* After the host restored all registers from a 32-bit guest's image: 8 and up get back what they held. */
static void restore_high(struct soft_vcpu *v, uint8_t (*high)[64])
{
    soft_fpu_park(v);
    for (unsigned n = 8; n < (v->engine->xcr0 & C_HI16_ZMM ? 32 : 16); n++)
        vector_copy(v, n, high[n - 8], v->engine->xcr0 & C_ZMM_HI256 ? 64 : v->engine->xcr0 & C_AVX ? 32 : 16, true);
}

static void read_high(struct soft_vcpu *v, uint8_t (*high)[64])
{
    soft_fpu_park(v);
    for (unsigned n = 8; n < (v->engine->xcr0 & C_HI16_ZMM ? 32 : 16); n++)
        vector_copy(v, n, high[n - 8], v->engine->xcr0 & C_ZMM_HI256 ? 64 : v->engine->xcr0 & C_AVX ? 32 : 16, false);
    soft_fpu_unpark(v);
}

/* --- gathers and scatters ---------------------------------------------------------------------------------------
 * site: arg  data register | mask register << 8 | index register << 16
 *       arg2 element bytes | index bytes << 8 | scale << 16 | 32-bit address << 24 | segment << 28
 *       imm  displacement; helper_ea: base register
 *       size elements; mask_kind MASK_K (AVX-512) or MASK_VEC_SIGN (AVX2); access SITE_WRITE: scatter */

static bool element_active(struct soft_vcpu *v, const struct site *s, unsigned i, const uint8_t *mask, unsigned element)
{
    if (s->mask_kind == MASK_K)
        return *mask_register(v, s->arg >> 8 & 0xff) >> i & 1;
    return mask[(i + 1) * element - 1] >> 7;
}

static void element_done(struct soft_vcpu *v, const struct site *s, unsigned i, uint8_t *mask, unsigned element)
{
    if (s->mask_kind == MASK_K)
        *mask_register(v, s->arg >> 8 & 0xff) &= ~(1ull << i);
    else
        memset(mask + i * element, 0, element);
}

/* AVX2's mask after a fault on Intel's CPUs: of whole elements, in `bytes` bytes, and nothing above them. */
static void widen_mask(uint8_t mask[64], unsigned element, unsigned bytes)
{
    for (unsigned at = 0; at < bytes; at += element)
        memset(mask + at, mask[at + element - 1] & 0x80 ? 0xff : 0, element);
    memset(mask + bytes, 0, 64 - bytes);
}

const void *helper_gather(struct soft_vcpu *v, const struct site *s)
{
    unsigned data_reg = s->arg & 0xff, mask_reg = s->arg >> 8 & 0xff, index_reg = s->arg >> 16 & 0xff;
    unsigned element = s->arg2 & 0xff, index_bytes = s->arg2 >> 8 & 0xff, scale = s->arg2 >> 16 & 0xff;
    unsigned width = s->element; /* vector bytes that the destination is defined for */
    unsigned segment = s->arg2 >> 28, vector = s->size * (element > index_bytes ? element : index_bytes);
    bool scatter = s->access & SITE_WRITE, avx2 = s->mask_kind == MASK_VEC_SIGN;
    uint8_t data[64] = {0}, mask[64] = {0}, index[64] = {0};
    soft_fpu_park(v);
    vector_copy(v, data_reg, data, 64, false);
    vector_copy(v, index_reg, index, 64, false);
    if (avx2)
        vector_copy(v, mask_reg, mask, 32, false);
    int rc = 0;
    bool any = false;
    for (unsigned i = 0; i < s->size; i++) {
        if (!element_active(v, s, i, mask, element)) {
            if (avx2)
                element_done(v, s, i, mask, element);
            continue;
        }
        int64_t offset = 0;
        if (index_bytes == 4) {
            int32_t narrow;
            memcpy(&narrow, index + 4 * i, 4);
            offset = narrow;
        } else {
            memcpy(&offset, index + 8 * i, 8);
        }
        uint64_t gva = v->helper_ea + (uint64_t)offset * scale + s->imm;
        if (s->arg2 >> 24 & 1)
            gva = (uint32_t)gva;
        if (segment == FS || segment == GS || !(v->mode & MODE_64)) {
            if (v->engine->amd && (v->mode & MODE_64) && !cpu_canonical(&v->cpu, gva)) /* the sum will be found so */
                gva = (uint64_t)1 << 63;
            else
                gva += v->cpu.seg[segment].base;
        }
        uint64_t base = segment == FS || segment == GS || !(v->mode & MODE_64) ? v->cpu.seg[segment].base : 0;
        if (!(v->mode & (MODE_64 | MODE_SEGMENTED)) && (s->null_segment || wraps(v, segment, gva - base, element))) {
            rc = cpu_raise_error(&v->cpu, stack_site(v) ? EXC_SS : EXC_GP, 0); /* nothing there, or a wrap */
            break;
        }
        rc = segment_fault(v, segment, gva - v->cpu.seg[segment].base, element, scatter);
        rc = rc ? rc : access_memory(v, gva, data + i * element, element, scatter);
        if (rc)
            break;
        element_done(v, s, i, mask, element);
        any = true;
    }
    if (!scatter) {
        if (!rc) /* the part above the destination's width is zeroed */
            memset(data + width, 0, sizeof(data) - width);
        else if (any && (!avx2 || !v->engine->amd))
            memset(data + vector, 0, sizeof(data) - vector);
        vector_copy(v, data_reg, data, v->engine->xcr0 & C_ZMM_HI256 ? 64 : 32, true);
    }
    if (avx2) {
        if (!rc)
            memset(mask, 0, sizeof(mask));
        else if (!v->engine->amd)
            widen_mask(mask, element, vector);
        vector_copy(v, mask_reg, mask, (!rc || !v->engine->amd) && (v->engine->xcr0 & C_ZMM_HI256) ? 64 : 32, true);
    } else if (!rc) {
        *mask_register(v, mask_reg) = 0;
    }
    return rc ? soft_deliver(v) : finish(v, s);
}

/* 32-bit code: an operand in an empty segment, or a store to the code segment. */
const void *helper_no_segment(struct soft_vcpu *v, const struct site *s)
{
    if (s->mask_kind) {
        if (!v->fpu_live)
            soft_fpu_unpark(v);
        if (!soft_active_bytes(s))
            return soft_code(v->engine, s->next);
    }
    bool pending = s->x87 && soft_x87_pending(v);
    if (s->clears_top && !pending)
        soft_clear_x87_top(v);
    if (pending)
        cpu_raise(&v->cpu, EXC_MF);
    else
        cpu_raise_error(&v->cpu, EXC_GP, 0);
    return soft_deliver(v);
}
