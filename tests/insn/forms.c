/* Enumerates every instruction form that Zydis knows for 64-bit mode by walking the opcode space. */
#include <cpuid.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "insn.h"

const char *const left_out_reason[OUT_REASONS] = {
    [OUT_PRIVILEGED] = "privileged (hand-written guest tests)",
    [OUT_KERNEL_ENTRY] = "enters the kernel or a hypervisor",
    [OUT_IO] = "port access or interrupt flag",
    [OUT_NONDETERMINISTIC] = "result differs from run to run (clock, random, CPU number)",
    [OUT_DESCRIPTOR] = "reads the descriptor tables, which differ",
    [OUT_UMIP] = "trapped by UMIP, emulated by the host's kernel",
    [OUT_SEGMENT] = "loads a segment register, the descriptor tables differ",
    [OUT_FAR] = "far transfer, the descriptor tables differ",
    [OUT_NOT_OFFERED] = "hidden from guests by CPUID",
    [OUT_OFFERED] = "shown to guests on every CPU",
    [OUT_FSGSBASE] = "not offered by this host's kernel (AT_HWCAP2)",
    [OUT_HOST_LACKS] = "this CPU has no such instruction (#UD there and here was compared)",
};

/* What a copied instruction cannot show natively at CPL3.  Everything IS_PRIVILEGED comes on top. */
static const struct {
    uint16_t mnemonic;
    uint8_t out;
} left_out[] = {
    {ZYDIS_MNEMONIC_SYSCALL, OUT_KERNEL_ENTRY},
    {ZYDIS_MNEMONIC_SYSENTER, OUT_KERNEL_ENTRY},
    {ZYDIS_MNEMONIC_SYSRET, OUT_PRIVILEGED},
    {ZYDIS_MNEMONIC_SYSEXIT, OUT_PRIVILEGED},
    {ZYDIS_MNEMONIC_INT, OUT_KERNEL_ENTRY},
    {ZYDIS_MNEMONIC_INT1, OUT_KERNEL_ENTRY},
    {ZYDIS_MNEMONIC_VMCALL, OUT_KERNEL_ENTRY},
    {ZYDIS_MNEMONIC_VMMCALL, OUT_KERNEL_ENTRY},
    {ZYDIS_MNEMONIC_VMFUNC, OUT_KERNEL_ENTRY},
    {ZYDIS_MNEMONIC_TDCALL, OUT_KERNEL_ENTRY},
    {ZYDIS_MNEMONIC_ENCLU, OUT_KERNEL_ENTRY},
    {ZYDIS_MNEMONIC_ENCLS, OUT_PRIVILEGED},
    {ZYDIS_MNEMONIC_ENCLV, OUT_PRIVILEGED},
    {ZYDIS_MNEMONIC_GETSEC, OUT_PRIVILEGED},
    {ZYDIS_MNEMONIC_SKINIT, OUT_PRIVILEGED},
    {ZYDIS_MNEMONIC_PCONFIG, OUT_PRIVILEGED},
    {ZYDIS_MNEMONIC_INVLPGB, OUT_PRIVILEGED},
    {ZYDIS_MNEMONIC_TLBSYNC, OUT_PRIVILEGED},
    {ZYDIS_MNEMONIC_PVALIDATE, OUT_PRIVILEGED},
    {ZYDIS_MNEMONIC_RMPADJUST, OUT_PRIVILEGED},
    {ZYDIS_MNEMONIC_RMPUPDATE, OUT_PRIVILEGED},
    {ZYDIS_MNEMONIC_PSMASH, OUT_PRIVILEGED},
    {ZYDIS_MNEMONIC_MONITOR, OUT_PRIVILEGED},
    {ZYDIS_MNEMONIC_MWAIT, OUT_PRIVILEGED},
    {ZYDIS_MNEMONIC_INVPCID, OUT_PRIVILEGED},
    {ZYDIS_MNEMONIC_RSM, OUT_PRIVILEGED},
    {ZYDIS_MNEMONIC_STGI, OUT_PRIVILEGED},
    {ZYDIS_MNEMONIC_CLGI, OUT_PRIVILEGED},
    {ZYDIS_MNEMONIC_VMRUN, OUT_PRIVILEGED},
    {ZYDIS_MNEMONIC_VMLOAD, OUT_PRIVILEGED},
    {ZYDIS_MNEMONIC_VMSAVE, OUT_PRIVILEGED},
    {ZYDIS_MNEMONIC_INVLPGA, OUT_PRIVILEGED},
    {ZYDIS_MNEMONIC_VMXON, OUT_PRIVILEGED},
    {ZYDIS_MNEMONIC_VMXOFF, OUT_PRIVILEGED},
    {ZYDIS_MNEMONIC_VMLAUNCH, OUT_PRIVILEGED},
    {ZYDIS_MNEMONIC_VMRESUME, OUT_PRIVILEGED},
    {ZYDIS_MNEMONIC_VMPTRLD, OUT_PRIVILEGED},
    {ZYDIS_MNEMONIC_VMPTRST, OUT_PRIVILEGED},
    {ZYDIS_MNEMONIC_VMCLEAR, OUT_PRIVILEGED},
    {ZYDIS_MNEMONIC_VMREAD, OUT_PRIVILEGED},
    {ZYDIS_MNEMONIC_VMWRITE, OUT_PRIVILEGED},
    {ZYDIS_MNEMONIC_INVEPT, OUT_PRIVILEGED},
    {ZYDIS_MNEMONIC_INVVPID, OUT_PRIVILEGED},
    {ZYDIS_MNEMONIC_CLAC, OUT_PRIVILEGED},
    {ZYDIS_MNEMONIC_STAC, OUT_PRIVILEGED},
    {ZYDIS_MNEMONIC_SWAPGS, OUT_PRIVILEGED},
    {ZYDIS_MNEMONIC_SEAMCALL, OUT_PRIVILEGED},
    {ZYDIS_MNEMONIC_SEAMOPS, OUT_PRIVILEGED},
    {ZYDIS_MNEMONIC_SEAMRET, OUT_PRIVILEGED},
    {ZYDIS_MNEMONIC_LGDT, OUT_PRIVILEGED},
    {ZYDIS_MNEMONIC_IRET, OUT_FAR},
    {ZYDIS_MNEMONIC_IRETD, OUT_FAR},
    {ZYDIS_MNEMONIC_IRETQ, OUT_FAR},
    {ZYDIS_MNEMONIC_CLI, OUT_IO},
    {ZYDIS_MNEMONIC_STI, OUT_IO},
    {ZYDIS_MNEMONIC_IN, OUT_IO},
    {ZYDIS_MNEMONIC_OUT, OUT_IO},
    {ZYDIS_MNEMONIC_INSB, OUT_IO},
    {ZYDIS_MNEMONIC_INSW, OUT_IO},
    {ZYDIS_MNEMONIC_INSD, OUT_IO},
    {ZYDIS_MNEMONIC_OUTSB, OUT_IO},
    {ZYDIS_MNEMONIC_OUTSW, OUT_IO},
    {ZYDIS_MNEMONIC_OUTSD, OUT_IO},
    {ZYDIS_MNEMONIC_RDTSC, OUT_NONDETERMINISTIC},
    {ZYDIS_MNEMONIC_RDTSCP, OUT_NONDETERMINISTIC},
    {ZYDIS_MNEMONIC_RDPMC, OUT_NONDETERMINISTIC},
    {ZYDIS_MNEMONIC_RDPRU, OUT_NONDETERMINISTIC},
    {ZYDIS_MNEMONIC_RDRAND, OUT_NONDETERMINISTIC},
    {ZYDIS_MNEMONIC_RDSEED, OUT_NONDETERMINISTIC},
    {ZYDIS_MNEMONIC_RDPID, OUT_NONDETERMINISTIC},
    {ZYDIS_MNEMONIC_CPUID, OUT_NONDETERMINISTIC},
    {ZYDIS_MNEMONIC_MWAITX, OUT_NONDETERMINISTIC},
    {ZYDIS_MNEMONIC_MONITORX, OUT_NONDETERMINISTIC},
    {ZYDIS_MNEMONIC_MCOMMIT, OUT_NONDETERMINISTIC},
    {ZYDIS_MNEMONIC_SERIALIZE, OUT_OFFERED},
    {ZYDIS_MNEMONIC_CLZERO, OUT_NOT_OFFERED},
    {ZYDIS_MNEMONIC_XBEGIN, OUT_NOT_OFFERED},
    {ZYDIS_MNEMONIC_XEND, OUT_NOT_OFFERED},
    {ZYDIS_MNEMONIC_XABORT, OUT_NOT_OFFERED},
    {ZYDIS_MNEMONIC_XTEST, OUT_NOT_OFFERED},
    {ZYDIS_MNEMONIC_RDPKRU, OUT_NOT_OFFERED},
    {ZYDIS_MNEMONIC_PTWRITE, OUT_NOT_OFFERED},
    {ZYDIS_MNEMONIC_ENQCMD, OUT_NOT_OFFERED},
    {ZYDIS_MNEMONIC_ENQCMDS, OUT_NOT_OFFERED},
    {ZYDIS_MNEMONIC_XSUSLDTRK, OUT_NOT_OFFERED},
    {ZYDIS_MNEMONIC_XRESLDTRK, OUT_NOT_OFFERED},
    {ZYDIS_MNEMONIC_LDTILECFG, OUT_NOT_OFFERED},
    {ZYDIS_MNEMONIC_STTILECFG, OUT_NOT_OFFERED},
    {ZYDIS_MNEMONIC_TILERELEASE, OUT_NOT_OFFERED},
    {ZYDIS_MNEMONIC_WRPKRU, OUT_NOT_OFFERED},
    {ZYDIS_MNEMONIC_LAR, OUT_DESCRIPTOR},
    {ZYDIS_MNEMONIC_LSL, OUT_DESCRIPTOR},
    {ZYDIS_MNEMONIC_VERR, OUT_DESCRIPTOR},
    {ZYDIS_MNEMONIC_VERW, OUT_DESCRIPTOR},
    {ZYDIS_MNEMONIC_SGDT, OUT_UMIP},
    {ZYDIS_MNEMONIC_SIDT, OUT_UMIP},
    {ZYDIS_MNEMONIC_SLDT, OUT_UMIP},
    {ZYDIS_MNEMONIC_STR, OUT_UMIP},
    {ZYDIS_MNEMONIC_SMSW, OUT_UMIP},
    {ZYDIS_MNEMONIC_LFS, OUT_SEGMENT},
    {ZYDIS_MNEMONIC_LGS, OUT_SEGMENT},
    {ZYDIS_MNEMONIC_LSS, OUT_SEGMENT},
    {ZYDIS_MNEMONIC_LDS, OUT_SEGMENT},
    {ZYDIS_MNEMONIC_LES, OUT_SEGMENT},
};

bool insn_decode(const ZydisDecoder *d, const void *bytes, size_t len, struct insn *out)
{
    return ZYAN_SUCCESS(ZydisDecoderDecodeFull(d, bytes, len, &out->i, out->op));
}

const ZydisDecodedOperand *insn_mem(const struct insn *i)
{
    for (unsigned n = 0; n < i->i.operand_count; n++)
        if (i->op[n].type == ZYDIS_OPERAND_TYPE_MEMORY)
            return &i->op[n];
    return NULL;
}

static bool writes_segment(const struct insn *i)
{
    for (unsigned n = 0; n < i->i.operand_count; n++)
        if (i->op[n].type == ZYDIS_OPERAND_TYPE_REGISTER && (i->op[n].actions & ZYDIS_OPERAND_ACTION_MASK_WRITE) &&
            ZydisRegisterGetClass(i->op[n].reg.value) == ZYDIS_REGCLASS_SEGMENT && i->i.mnemonic != ZYDIS_MNEMONIC_PUSH)
            return true;
    return false;
}

enum left_out insn_left_out(const struct insn *i)
{
    for (unsigned n = 0; n < sizeof left_out / sizeof left_out[0]; n++)
        if (left_out[n].mnemonic == i->i.mnemonic)
            return left_out[n].out;
    if (i->i.meta.category == ZYDIS_CATEGORY_RDWRFSGS && !fsgsbase_offered())
        return OUT_FSGSBASE;
    if (i->i.attributes & ZYDIS_ATTRIB_IS_PRIVILEGED)
        return OUT_PRIVILEGED;
    if (i->i.meta.branch_type == ZYDIS_BRANCH_TYPE_FAR)
        return OUT_FAR;
    if ((i->i.mnemonic == ZYDIS_MNEMONIC_MOV || i->i.mnemonic == ZYDIS_MNEMONIC_POP) && writes_segment(i))
        return OUT_SEGMENT;
    return IN_SCOPE;
}

/* CS and SS selectors hold the CPL; popf may change IF and IOPL at CPL0. */
bool insn_differs_at_cpl0(const struct insn *i)
{
    if (i->i.mnemonic == ZYDIS_MNEMONIC_POPF || i->i.mnemonic == ZYDIS_MNEMONIC_POPFD ||
        i->i.mnemonic == ZYDIS_MNEMONIC_POPFQ)
        return true;
    for (unsigned n = 0; n < i->i.operand_count_visible; n++)
        if (i->op[n].type == ZYDIS_OPERAND_TYPE_REGISTER &&
            (i->op[n].reg.value == ZYDIS_REGISTER_CS || i->op[n].reg.value == ZYDIS_REGISTER_SS))
            return true;
    return false;
}

/* Stores FIP/FDP, which differ between two places where the same x87 instruction ran. */
bool insn_saves_x87_pointers(const struct insn *i)
{
    static const uint16_t m[] = {
        ZYDIS_MNEMONIC_FNSTENV,  ZYDIS_MNEMONIC_FNSAVE,     ZYDIS_MNEMONIC_FXSAVE, ZYDIS_MNEMONIC_FXSAVE64,
        ZYDIS_MNEMONIC_XSAVE,    ZYDIS_MNEMONIC_XSAVE64,    ZYDIS_MNEMONIC_XSAVEC, ZYDIS_MNEMONIC_XSAVEC64,
        ZYDIS_MNEMONIC_XSAVEOPT, ZYDIS_MNEMONIC_XSAVEOPT64,
    };
    for (unsigned n = 0; n < sizeof m / sizeof m[0]; n++)
        if (m[n] == i->i.mnemonic)
            return true;
    return false;
}

bool insn_moves_area(const struct insn *i)
{
    static const uint16_t m[] = {
        ZYDIS_MNEMONIC_FLDENV,    ZYDIS_MNEMONIC_FRSTOR, ZYDIS_MNEMONIC_FXRSTOR,
        ZYDIS_MNEMONIC_FXRSTOR64, ZYDIS_MNEMONIC_XRSTOR, ZYDIS_MNEMONIC_XRSTOR64,
    };
    for (unsigned n = 0; n < sizeof m / sizeof m[0]; n++)
        if (m[n] == i->i.mnemonic)
            return true;
    return insn_saves_x87_pointers(i);
}

/* ---- the key that makes two encodings one form ---------------------------------------------------- */
static uint64_t mix(uint64_t h, uint64_t v)
{
    return (h ^ v) * 0x100000001b3ull ^ (h >> 29);
}

static uint64_t insn_key(const struct insn *i, const struct form *f)
{
    const ZydisInstructionAttributes attributes = ZYDIS_ATTRIB_HAS_LOCK | ZYDIS_ATTRIB_HAS_REP | ZYDIS_ATTRIB_HAS_REPE |
                                                  ZYDIS_ATTRIB_HAS_REPNE;
    uint64_t h = mix(0xcbf29ce484222325ull, i->i.mnemonic);
    h = mix(h, i->i.encoding);
    h = mix(h, i->i.opcode_map);
    h = mix(h, f->opcode_reg ? f->opcode & 0xf8 : f->opcode);
    h = mix(h, i->i.attributes & attributes);
    h = mix(h, f->has_modrm | f->is_mem << 1);
    if (f->has_modrm && !f->reg_free)
        h = mix(h, 0x100 | (f->modrm & 0x38));
    if (f->has_modrm && !f->is_mem && !f->rm_free)
        h = mix(h, 0x200 | (f->modrm & 7));
    h = mix(h, i->i.operand_width);
    h = mix(h, i->i.avx.vector_length);
    h = mix(h, (uint64_t)f->b << 8 | (uint64_t)f->z << 4 | (f->aaa != 0));
    if (f->b && !f->is_mem)
        h = mix(h, f->l); /* embedded rounding: LL is the mode */
    for (unsigned n = 0; n < i->i.operand_count; n++) {
        const ZydisDecodedOperand *o = &i->op[n];
        h = mix(h, (uint64_t)o->type << 32 | (uint64_t)o->size << 8 | o->encoding);
        h = mix(h, (uint64_t)o->visibility << 8 | o->actions);
        if (o->type == ZYDIS_OPERAND_TYPE_REGISTER) {
            h = mix(h, ZydisRegisterGetClass(o->reg.value));
            if (o->encoding == ZYDIS_OPERAND_ENCODING_NONE && o->visibility != ZYDIS_OPERAND_VISIBILITY_HIDDEN)
                h = mix(h, o->reg.value);
        }
    }
    return h;
}

static void form_describe(struct form *f, const struct insn *i, const uint8_t *bytes)
{
    f->encoding = i->i.encoding;
    f->mnemonic = i->i.mnemonic;
    f->isa_set = i->i.meta.isa_set;
    f->category = i->i.meta.category;
    f->has_modrm = i->i.attributes & ZYDIS_ATTRIB_HAS_MODRM;
    f->opcode = i->i.opcode;
    f->lock = i->i.attributes & ZYDIS_ATTRIB_HAS_LOCK;
    if (f->has_modrm) {
        f->modrm = bytes[i->i.raw.modrm.offset];
        f->is_mem = i->i.raw.modrm.mod != 3;
    } else {
        f->disp = i->i.raw.disp.size / 8;
    }
    for (unsigned n = 0; n < 2; n++)
        f->imm[n] = i->i.raw.imm[n].size / 8;
    f->x87 = i->i.meta.isa_ext == ZYDIS_ISA_EXT_X87 || i->i.meta.isa_set == ZYDIS_ISA_SET_SSE3X87;
    f->relative = i->i.raw.imm[0].is_relative;
    for (unsigned n = 0; n < i->i.operand_count; n++) {
        const ZydisDecodedOperand *o = &i->op[n];
        f->reg_free |= o->encoding == ZYDIS_OPERAND_ENCODING_MODRM_REG;
        f->rm_free |= o->encoding == ZYDIS_OPERAND_ENCODING_MODRM_RM;
        f->vvvv_free |= o->encoding == ZYDIS_OPERAND_ENCODING_NDSNDD;
        f->opcode_reg |= o->encoding == ZYDIS_OPERAND_ENCODING_OPCODE;
        if (o->type == ZYDIS_OPERAND_TYPE_MEMORY) {
            f->vsib |= o->mem.type == ZYDIS_MEMOP_TYPE_VSIB;
            f->mem_size = f->mem_size ? f->mem_size : o->size / 8;
        }
    }
    f->out = insn_left_out(i);
    f->key = insn_key(i, f);
}

static int forms_add(struct forms *f, const struct form *form)
{
    if (f->n * 2 >= f->max) {
        uint32_t max = f->max ? f->max * 2 : 32768;
        struct form *forms = realloc(f->form, max * sizeof *forms);
        uint32_t *hash = calloc(max, sizeof *hash);
        if (!forms || !hash)
            return -ENOMEM;
        free(f->hash);
        f->form = forms, f->hash = hash, f->max = max;
        for (uint32_t n = 0; n < f->n; n++) {
            uint32_t h = (uint32_t)forms[n].key & (max - 1);
            while (hash[h])
                h = (h + 1) & (max - 1);
            hash[h] = n + 1;
        }
    }
    uint32_t h = (uint32_t)form->key & (f->max - 1);
    for (; f->hash[h]; h = (h + 1) & (f->max - 1))
        if (f->form[f->hash[h] - 1].key == form->key)
            return 0;
    f->form[f->n] = *form;
    f->hash[h] = ++f->n;
    return 0;
}

/* Decodes bytes (a template) and adds its form.  1 when it decoded. */
static int try_template(struct forms *f, const struct form *t, uint8_t *bytes, unsigned len, struct insn *i)
{
    memset(bytes + len, 0, 16);
    if (!insn_decode(&f->decoder, bytes, len + 16, i) || i->i.encoding != t->encoding)
        return 0;
    struct form form = *t;
    form_describe(&form, i, bytes);
    return forms_add(f, &form) ? -ENOMEM : 1;
}

static bool is_prefix(uint8_t opcode, bool compat)
{
    if (compat && opcode == 0x62)
        return false; /* bound */
    return (opcode & 0xe7) == 0x26 || (!compat && (opcode & 0xf0) == 0x40) || (opcode >= 0x64 && opcode <= 0x67) ||
           opcode == 0xf0 || opcode == 0xf2 || opcode == 0xf3 || opcode == 0x0f || opcode == 0xc4 || opcode == 0xc5 ||
           opcode == 0x62;
}

/* Walks modrm for one opcode; `head` holds everything up to the opcode. */
static int walk_modrm(struct forms *f, const struct form *t, const uint8_t *head, unsigned len, bool all_rm)
{
    uint8_t bytes[40];
    struct insn i;
    for (unsigned mod = 0; mod < 4; mod += 3) {
        for (unsigned reg = 0; reg < 8; reg++) {
            for (unsigned rm = 0; rm < (mod && all_rm ? 8 : 1); rm++) {
                memcpy(bytes, head, len);
                bytes[len] = (uint8_t)(mod << 6 | reg << 3 | (mod ? rm : 3));
                int r = try_template(f, t, bytes, len + 1, &i);
                if (r == 0 && !mod) { /* VSIB and the like want a SIB byte */
                    bytes[len] = (uint8_t)(reg << 3 | 4);
                    bytes[len + 1] = 0x33; /* [rbx + rsi] */
                    r = try_template(f, t, bytes, len + 2, &i);
                    if (r == 0 && f->narrow) { /* which 16-bit addresses have not */
                        memmove(bytes + 1, bytes, len + 2);
                        bytes[0] = 0x67;
                        r = try_template(f, t, bytes, len + 3, &i);
                    }
                }
                if (r < 0)
                    return r;
                if (r && !(i.i.attributes & ZYDIS_ATTRIB_HAS_MODRM))
                    return 0;
            }
        }
    }
    return 0;
}

static int walk_legacy(struct forms *f)
{
    static const uint8_t maps[4][3] = {{0}, {0x0f}, {0x0f, 0x38}, {0x0f, 0x3a}};
    static const uint8_t map_len[4] = {0, 1, 2, 2}, reps[3] = {0, 0xf2, 0xf3};
    for (unsigned n = 0; n < 4 * 3 * 2 * 2 * 2 * 256; n++) {
        struct form t = {.encoding = ZYDIS_INSTRUCTION_ENCODING_LEGACY};
        t.opcode = n & 255;
        t.map = n >> 8 & 3;
        t.p66 = n >> 10 & 1;
        t.w = n >> 11 & 1;
        t.lock = n >> 12 & 1;
        t.rep = reps[n >> 13];
        bool escape = t.map == 1 && (t.opcode == 0x38 || t.opcode == 0x3a || t.opcode == 0x0f);
        if ((t.map == 0 && is_prefix(t.opcode, f->compat)) || escape || (t.lock && t.map > 1) || (t.w && f->compat))
            continue; /* 0F 0F is 3DNow!, which no CPU that guise runs on has */
        uint8_t head[12];
        unsigned len = 0;
        if (t.lock)
            head[len++] = 0xf0;
        if (t.p66)
            head[len++] = 0x66;
        if (t.rep)
            head[len++] = t.rep;
        if (t.w)
            head[len++] = 0x48;
        memcpy(head + len, maps[t.map], map_len[t.map]);
        len += map_len[t.map];
        head[len++] = t.opcode;
        int r = walk_modrm(f, &t, head, len, true);
        if (r)
            return r;
    }
    return 0;
}

static int walk_vex(struct forms *f)
{
    for (unsigned n = 0; n < 3 * 4 * 2 * 2 * 256; n++) {
        struct form t = {.opcode = n & 255,
                         .w = n >> 8 & 1,
                         .l = n >> 9 & 1,
                         .pp = n >> 10 & 3,
                         .map = (uint8_t)(1 + (n >> 12)),
                         .encoding = ZYDIS_INSTRUCTION_ENCODING_VEX};
        uint8_t head[4] = {0xc4, 0xe0 | t.map, (uint8_t)(t.w << 7 | 0x78 | t.l << 2 | t.pp), t.opcode};
        int r = walk_modrm(f, &t, head, 4, true);
        if (r)
            return r;
    }
    return 0;
}

static int walk_evex(struct forms *f)
{
    static const uint8_t maps[] = {1, 2, 3, 5, 6};
    for (unsigned n = 0; n < 5 * 4 * 2 * 4 * 256; n++) {
        struct form t = {.opcode = n & 255,
                         .w = n >> 8 & 1,
                         .l = n >> 9 & 3,
                         .pp = n >> 11 & 3,
                         .map = maps[n >> 13],
                         .encoding = ZYDIS_INSTRUCTION_ENCODING_EVEX};
        for (unsigned x = 0; x < 8; x++) {
            t.b = x & 1, t.z = x >> 1 & 1, t.aaa = x >> 2;
            if (t.z && !t.aaa)
                continue; /* reserved: an invalid encoding, tested as such */
            uint8_t head[6] = {0x62, 0xf0 | t.map, (uint8_t)(t.w << 7 | 0x7c | t.pp),
                               (uint8_t)(t.z << 7 | t.l << 5 | t.b << 4 | 8 | t.aaa), t.opcode};
            int r = walk_modrm(f, &t, head, 5, false);
            if (r)
                return r;
        }
    }
    return 0;
}

/* Encodings whose meaning depends on the CPU: Zydis is told what this one has. */
static void decoder_init(ZydisDecoder *d)
{
    unsigned max, vendor, a, b, c, d7, c7, b7, c81 = 0, x;
    __cpuid(0, max, vendor, a, b);
    __cpuid_count(7, 0, a, b7, c7, d7);
    __cpuid(0x80000001, a, b, c81, x);
    c = max < 7 ? 0 : c7;
    /* AMD gives 66h a meaning on near branches, Intel ignores it: Auth(enticAMD), Hygo(nGenuine). */
    ZydisDecoderEnableMode(d, ZYDIS_DECODER_MODE_AMD_BRANCHES, vendor == 0x68747541 || vendor == 0x6f677948);
    ZydisDecoderEnableMode(d, ZYDIS_DECODER_MODE_KNC, ZYAN_FALSE);   /* collides with EVEX */
    ZydisDecoderEnableMode(d, ZYDIS_DECODER_MODE_MPX, b7 >> 14 & 1); /* these are no-ops elsewhere */
    ZydisDecoderEnableMode(d, ZYDIS_DECODER_MODE_CET, (c >> 7 | d7 >> 20) & 1);
    ZydisDecoderEnableMode(d, ZYDIS_DECODER_MODE_CLDEMOTE, c >> 25 & 1);
    ZydisDecoderEnableMode(d, ZYDIS_DECODER_MODE_LZCNT, c81 >> 5 & 1);
    ZydisDecoderEnableMode(d, ZYDIS_DECODER_MODE_TZCNT, b7 >> 3 & 1);
}

int forms_enumerate(struct forms *f, bool compat, bool narrow)
{
    memset(f, 0, sizeof *f);
    f->compat = compat;
    f->narrow = narrow;
    if (ZYAN_FAILED(ZydisDecoderInit(&f->decoder,
                                     narrow   ? ZYDIS_MACHINE_MODE_LONG_COMPAT_16
                                     : compat ? ZYDIS_MACHINE_MODE_LONG_COMPAT_32
                                              : ZYDIS_MACHINE_MODE_LONG_64,
                                     narrow   ? ZYDIS_STACK_WIDTH_16
                                     : compat ? ZYDIS_STACK_WIDTH_32
                                              : ZYDIS_STACK_WIDTH_64)))
        return -EINVAL;
    decoder_init(&f->decoder);
    int r = walk_legacy(f);
    r = r ? r : walk_vex(f);
    return r ? r : walk_evex(f);
}

void forms_free(struct forms *f)
{
    free(f->form);
    free(f->hash);
}
