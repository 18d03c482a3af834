/*
 * Code that is not 64-bit, on a host in 64-bit mode.  There operands have 32 bits unless a 66h prefix says otherwise;
 * in 16-bit code it is the other way round, and of many instructions the prefix chooses another operation, or nothing.
 * In the vector prefixes is a W bit that makes 64 bits of the 32 of some operands, which other code has no use for.  So
 * nobody keeps a list: the decoder is asked what the host would make of either form, and the one with the guest's
 * operands is taken.  None, if there is none: the host must not reach further than was checked.
 */
#include "engine/soft/translate_int.h"

/* As generic_insn will write it, a memory operand at [rax].  Returns the length. */
static unsigned host_form(const struct shape *s, const uint8_t *bytes, unsigned host, uint8_t *out)
{
    struct shape as = *s;
    struct insn in = {
        .shape = &as, .d = &shape_what(s)->d, .op = shape_what(s)->op, .bytes = bytes, .length = s->length};
    struct emit e = {.p = out, .start = out};
    as.host = host & 3;
    as.high8 = false;
    if (s->memory >= 0 && s->modrm)
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

static bool host_means_it(const struct translator *t, const struct shape *s, const uint8_t *bytes, unsigned how)
{
    struct decoded host;
    const ZydisDecodedInstruction *d = &shape_what(s)->d;
    uint8_t form[48] = {0};
    unsigned n = host_form(s, bytes, how, form);
    if (ZYAN_FAILED(ZydisDecoderDecodeFull(&t->decoder64, form, n, &host.d, host.op)) || host.d.length != n ||
        host.d.mnemonic != d->mnemonic || host.d.operand_count != d->operand_count)
        return false;
    for (unsigned i = 0; i < d->operand_count; i++)
        if (!same_operand(&shape_what(s)->op[i], &host.op[i]))
            return false;
    return true;
}

uint8_t host_form_of(const struct translator *t, const struct shape *s, const uint8_t *bytes)
{
    return host_means_it(t, s, bytes, HOST_AS_IT_IS)  ? HOST_AS_IT_IS
           : host_means_it(t, s, bytes, HOST_RESIZED) ? HOST_RESIZED
                                                      : HOST_NEVER;
}
