/*
 * 16-bit code on a host in 64-bit mode.  There operands have 32 bits unless a 66h prefix says otherwise, here it is the
 * other way round; but of many instructions the prefix chooses another operation, or nothing.  So nobody keeps a list
 * of them: the decoder is asked what the host would make of either form, and the one with the guest's operands is
 * taken.
 */
#include "engine/soft/translate_int.h"

/* As it will be written by copy.c, a memory operand at [rax].  Returns the length. */
static unsigned host_form(const struct shape *s, const uint8_t *bytes, bool resized, uint8_t *out)
{
    struct shape as = *s;
    struct insn in = {.shape = &as, .d = &s->what->d, .op = s->what->op, .bytes = bytes, .length = s->length};
    struct emit e = {.p = out, .start = out};
    as.resized = resized;
    as.high8 = false;
    if (s->modrm && s->what->d.raw.modrm.mod != 3)
        copy_insn_with_address(&e, &in, RAX);
    else
        copy_insn_plain(&e, &in);
    return e_offset(&e);
}

static bool same_operand(const ZydisDecodedOperand *a, const ZydisDecodedOperand *b)
{
    if (a->type != b->type)
        return false;
    if (a->type != ZYDIS_OPERAND_TYPE_REGISTER)
        return a->size == b->size;
    switch (ZydisRegisterGetClass(a->reg.value)) {
    case ZYDIS_REGCLASS_FLAGS: /* as wide as the mode has them */
    case ZYDIS_REGCLASS_IP:
        return true;
    default:
        return a->reg.value == b->reg.value;
    }
}

static bool host_means_it(const struct translator *t, const struct shape *s, const uint8_t *bytes, bool resized)
{
    struct decoded host;
    const ZydisDecodedInstruction *d = &s->what->d;
    uint8_t form[48] = {0};
    unsigned n = host_form(s, bytes, resized, form);
    if (ZYAN_FAILED(ZydisDecoderDecodeFull(&t->decoder64, form, n, &host.d, host.op)) || host.d.length != n ||
        host.d.mnemonic != d->mnemonic || host.d.operand_count != d->operand_count)
        return false;
    for (unsigned i = 0; i < d->operand_count; i++)
        if (!same_operand(&s->what->op[i], &host.op[i]))
            return false;
    return true;
}

bool wants_other_size(const struct translator *t, const struct shape *s, const uint8_t *bytes)
{
    return s->legacy && !host_means_it(t, s, bytes, false) && host_means_it(t, s, bytes, true);
}
