/*
 * What the CPU checks of an operand besides its page: alignment, masks, and the x87 exception that comes first.
 */
#include "engine/soft/translate_int.h"

static bool packs_elements(ZydisMnemonic m)
{
    switch (m) {
    case ZYDIS_MNEMONIC_VCOMPRESSPD:
    case ZYDIS_MNEMONIC_VCOMPRESSPS:
    case ZYDIS_MNEMONIC_VPCOMPRESSB:
    case ZYDIS_MNEMONIC_VPCOMPRESSW:
    case ZYDIS_MNEMONIC_VPCOMPRESSD:
    case ZYDIS_MNEMONIC_VPCOMPRESSQ:
    case ZYDIS_MNEMONIC_VEXPANDPD:
    case ZYDIS_MNEMONIC_VEXPANDPS:
    case ZYDIS_MNEMONIC_VPEXPANDB:
    case ZYDIS_MNEMONIC_VPEXPANDW:
    case ZYDIS_MNEMONIC_VPEXPANDD:
    case ZYDIS_MNEMONIC_VPEXPANDQ:
        return true;
    default:
        return false;
    }
}

/* Accessed by element under a mask register; compressing stores of Zen 4 are without one, too. */
static bool is_masked(const struct translator *t, const struct decoded *in)
{
    if (t->amd && !t->zen5 && packs_elements(in->d.mnemonic) && in->op[0].type == ZYDIS_OPERAND_TYPE_MEMORY)
        return true;
    return in->d.encoding == ZYDIS_INSTRUCTION_ENCODING_EVEX && in->d.avx.mask.reg != ZYDIS_REGISTER_NONE &&
           in->d.avx.mask.reg != ZYDIS_REGISTER_K0;
}

/* AVX-512 exception types "NF": the memory operand is accessed whole, whatever the mask says. */
static bool no_fault_suppression(const struct decoded *in)
{
    switch (in->d.mnemonic) { /* where the table has another type than the manual */
    case ZYDIS_MNEMONIC_VGF2P8AFFINEQB:
    case ZYDIS_MNEMONIC_VGF2P8AFFINEINVQB:
    case ZYDIS_MNEMONIC_VCVTNE2PS2BF16:
    case ZYDIS_MNEMONIC_VDBPSADBW:
        return true;
    default:
        break;
    }
    switch (in->d.meta.exception_class) {
    case ZYDIS_EXCEPTION_CLASS_E1NF:
    case ZYDIS_EXCEPTION_CLASS_E2NF:
    case ZYDIS_EXCEPTION_CLASS_E3NF:
    case ZYDIS_EXCEPTION_CLASS_E4NF:
    case ZYDIS_EXCEPTION_CLASS_E5NF:
    case ZYDIS_EXCEPTION_CLASS_E6NF:
    case ZYDIS_EXCEPTION_CLASS_E9NF:
    case ZYDIS_EXCEPTION_CLASS_E10NF:
    case ZYDIS_EXCEPTION_CLASS_E11NF:
        return true;
    default:
        return false;
    }
}

/* Address bits that must be clear or #GP is raised, before anything else about the address is looked at
 * (SDM vol. 2, 2.4: types 1, 2 and 4).  On a TLB hit the host's own instruction raises it. */
static unsigned gp_alignment(const struct translator *t, const struct decoded *in, unsigned size)
{
    switch (in->d.mnemonic) {
    case ZYDIS_MNEMONIC_MOVUPS:
    case ZYDIS_MNEMONIC_MOVUPD:
    case ZYDIS_MNEMONIC_MOVDQU:
    case ZYDIS_MNEMONIC_LDDQU:
    case ZYDIS_MNEMONIC_PCMPESTRI:
    case ZYDIS_MNEMONIC_PCMPESTRM:
    case ZYDIS_MNEMONIC_PCMPISTRI:
    case ZYDIS_MNEMONIC_PCMPISTRM:
    case ZYDIS_MNEMONIC_MASKMOVDQU:
        return 0;
    case ZYDIS_MNEMONIC_CMPXCHG16B:
    case ZYDIS_MNEMONIC_CVTPD2PI:
    case ZYDIS_MNEMONIC_CVTTPD2PI:
        return 15;
    case ZYDIS_MNEMONIC_SHA1MSG1:
    case ZYDIS_MNEMONIC_SHA1MSG2:
    case ZYDIS_MNEMONIC_SHA1NEXTE:
    case ZYDIS_MNEMONIC_SHA1RNDS4:
    case ZYDIS_MNEMONIC_SHA256MSG1:
    case ZYDIS_MNEMONIC_SHA256MSG2:
    case ZYDIS_MNEMONIC_SHA256RNDS2:
        return t->amd ? 0 : 15;
    default:
        break;
    }
    switch (in->d.meta.exception_class) {
    case ZYDIS_EXCEPTION_CLASS_SSE1:
    case ZYDIS_EXCEPTION_CLASS_SSE2:
    case ZYDIS_EXCEPTION_CLASS_SSE4:
        return size == 16 ? 15 : 0;
    case ZYDIS_EXCEPTION_CLASS_AVX1:
    case ZYDIS_EXCEPTION_CLASS_E1:
    case ZYDIS_EXCEPTION_CLASS_E1NF:
        return size - 1;
    default:
        return 0;
    }
}

/* Address bits that must be clear with RFLAGS.AC, as CPUs are seen to check.  AMD: up to 16 bytes, by element
 * where a mask selects.  Intel: up to 8 bytes, whatever the mask.  Both: never for the instructions that mask by a
 * vector register. */
unsigned ac_alignment(const struct translator *t, const struct insn *in, unsigned size)
{
    switch (in->d->mnemonic) {
    case ZYDIS_MNEMONIC_VMASKMOVPS:
    case ZYDIS_MNEMONIC_VMASKMOVPD:
    case ZYDIS_MNEMONIC_VPMASKMOVD:
    case ZYDIS_MNEMONIC_VPMASKMOVQ:
    case ZYDIS_MNEMONIC_CLFLUSH:
    case ZYDIS_MNEMONIC_CLFLUSHOPT:
    case ZYDIS_MNEMONIC_CLWB:
        return 0;
    default:
        break;
    }
    if (size == 14 || size == 94) /* x87 environment */
        return 1;
    if (size == 28 || size == 108)
        return 3;
    if (in->d->mnemonic == ZYDIS_MNEMONIC_MASKMOVDQU || in->d->mnemonic == ZYDIS_MNEMONIC_VMASKMOVDQU)
        return 7;
    if (!t->amd &&
        (size >= 16 || in->d->mnemonic == ZYDIS_MNEMONIC_VCVTPS2PH || in->d->mnemonic == ZYDIS_MNEMONIC_VCVTPH2PS))
        return 0;
    if (t->amd && is_masked(t, shape_what(in->shape)) && !no_fault_suppression(shape_what(in->shape)))
        for (unsigned i = 0; i < in->d->operand_count; i++)
            if (in->op[i].type == ZYDIS_OPERAND_TYPE_MEMORY && in->op[i].element_size >= 8 &&
                in->op[i].element_size / 8u < size)
                size = in->op[i].element_size / 8u;
    return size >= 16 ? 15 : size >= 8 ? 7 : size >= 4 ? 3 : size - 1;
}

static bool is_x87(const struct decoded *in)
{
    return in->d.encoding == ZYDIS_INSTRUCTION_ENCODING_LEGACY && in->d.opcode_map == ZYDIS_OPCODE_MAP_DEFAULT &&
           (in->d.opcode & 0xf8) == 0xd8;
}

/* x87 and MMX instructions that report a pending x87 exception before they touch memory. */
static bool waits_for_x87(const struct decoded *in)
{
    switch (in->d.mnemonic) {
    case ZYDIS_MNEMONIC_FNSTCW:
    case ZYDIS_MNEMONIC_FNSTSW:
    case ZYDIS_MNEMONIC_FNSTENV:
    case ZYDIS_MNEMONIC_FNSAVE:
        return false;
    default:
        break;
    }
    if (is_x87(in))
        return true;
    for (unsigned i = 0; i < in->d.operand_count_visible; i++)
        if (in->op[i].type == ZYDIS_OPERAND_TYPE_REGISTER &&
            ZydisRegisterGetClass(in->op[i].reg.value) == ZYDIS_REGCLASS_MMX)
            return true;
    return false;
}

static bool masks_by_vector(ZydisMnemonic m)
{
    return m == ZYDIS_MNEMONIC_VMASKMOVPS || m == ZYDIS_MNEMONIC_VMASKMOVPD || m == ZYDIS_MNEMONIC_VPMASKMOVD ||
           m == ZYDIS_MNEMONIC_VPMASKMOVQ;
}

static bool is_simd(const struct decoded *in)
{
    for (unsigned i = 0; i < in->d.operand_count; i++) {
        if (in->op[i].type != ZYDIS_OPERAND_TYPE_REGISTER)
            continue;
        switch (ZydisRegisterGetClass(in->op[i].reg.value)) {
        case ZYDIS_REGCLASS_X87:
        case ZYDIS_REGCLASS_MMX:
        case ZYDIS_REGCLASS_XMM:
        case ZYDIS_REGCLASS_YMM:
        case ZYDIS_REGCLASS_ZMM:
        case ZYDIS_REGCLASS_MASK:
            return true;
        default:
            break;
        }
    }
    return in->d.meta.isa_set == ZYDIS_ISA_SET_X87 || in->d.mnemonic == ZYDIS_MNEMONIC_LDMXCSR ||
           in->d.mnemonic == ZYDIS_MNEMONIC_STMXCSR || in->d.mnemonic == ZYDIS_MNEMONIC_EMMS;
}

void operand_rules(const struct translator *t, struct shape *s)
{
    const struct decoded *in = shape_what(s);
    s->simd = is_simd(in);
    s->x87 = waits_for_x87(in);
    s->locked = (in->d.attributes & ZYDIS_ATTRIB_HAS_LOCK) || in->d.mnemonic == ZYDIS_MNEMONIC_XCHG;
    s->masked = is_masked(t, in) || masks_by_vector(in->d.mnemonic);
    if (s->memory < 0)
        return;
    const ZydisDecodedOperand *mem = &in->op[s->memory];
    s->access = (uint8_t)((mem->actions & ZYDIS_OPERAND_ACTION_MASK_READ ? SITE_READ : 0) |
                          (mem->actions & ZYDIS_OPERAND_ACTION_MASK_WRITE ? SITE_WRITE : 0));
    s->size = (uint16_t)(mem->size / 8);
    switch (in->d.mnemonic) {
    case ZYDIS_MNEMONIC_CLFLUSH: /* of a line, but checked as a byte read */
    case ZYDIS_MNEMONIC_CLFLUSHOPT:
    case ZYDIS_MNEMONIC_CLWB:
        s->access = SITE_READ;
        s->size = 1;
        break;
    default:
        if (s->access == SITE_WRITE && is_x87(in)) /* stores nothing when it meets an unmasked exception */
            s->access |= SITE_READ;
    }
    s->clears_top = !t->amd && (s->access & SITE_WRITE) && s->x87 && !is_x87(in);
    s->access = s->access ? s->access : SITE_READ;
    s->size = s->size ? s->size : 1;
    s->gp_align = (uint8_t)gp_alignment(t, in, s->size);
}

/* Result elements that one broadcast memory operand feeds. */
static unsigned broadcast_elements(ZydisBroadcastMode mode)
{
    switch (mode) {
    case ZYDIS_BROADCAST_MODE_1_TO_2:
        return 2;
    case ZYDIS_BROADCAST_MODE_1_TO_4:
    case ZYDIS_BROADCAST_MODE_2_TO_4:
        return 4;
    case ZYDIS_BROADCAST_MODE_1_TO_8:
    case ZYDIS_BROADCAST_MODE_2_TO_8:
    case ZYDIS_BROADCAST_MODE_4_TO_8:
        return 8;
    case ZYDIS_BROADCAST_MODE_1_TO_32:
        return 32;
    case ZYDIS_BROADCAST_MODE_1_TO_64:
        return 64;
    default:
        return 16;
    }
}

void masked_access(const struct translator *t, struct site *s, const struct insn *in, const ZydisDecodedOperand *mem)
{
    if (!in->shape->masked)
        return;
    if (is_masked(t, shape_what(in->shape))) {
        const struct ZydisDecodedInstructionAvx_ *avx = &in->d->avx;
        if (no_fault_suppression(shape_what(in->shape))) {
            if (s->access & SITE_WRITE)
                s->access |= SITE_READ; /* a bounce buffer keeps what the mask spares */
            return;
        }
        s->mask_kind = MASK_K;
        s->mask_reg = (uint8_t)(in->d->avx.mask.reg - ZYDIS_REGISTER_K0);
        s->element = (uint8_t)(mem->element_size / 8);
        if (avx->broadcast.mode != ZYDIS_BROADCAST_MODE_INVALID) {
            s->arg = 1;
            s->arg2 = broadcast_elements(avx->broadcast.mode);
        } else if (packs_elements(in->d->mnemonic)) {
            s->arg = 2;
        }
        return;
    }
    switch (in->d->mnemonic) {
    case ZYDIS_MNEMONIC_VMASKMOVPS:
    case ZYDIS_MNEMONIC_VMASKMOVPD:
    case ZYDIS_MNEMONIC_VPMASKMOVD:
    case ZYDIS_MNEMONIC_VPMASKMOVQ: {
        ZydisRegister r = in->op[1].reg.value;
        s->mask_kind = MASK_VEC_SIGN;
        s->mask_reg = (uint8_t)ZydisRegisterGetId(r);
        bool quad = in->d->mnemonic == ZYDIS_MNEMONIC_VMASKMOVPD || in->d->mnemonic == ZYDIS_MNEMONIC_VPMASKMOVQ;
        s->element = quad ? 8 : 4;
        return;
    }
    default:
        return;
    }
}
