/* The software engine's decoder keeps what it has found out about an instruction's shape: what it says of the next
 * instruction of that shape must be what Zydis says. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <cmocka.h>

#include "engine/soft/translate_int.h"

#define ROUNDS 300000
#define VARIANTS 4 /* of the numbers, for each head */

static uint64_t random_next(uint64_t *state)
{
    *state = *state * 6364136223846793005ull + 1442695040888963407ull;
    return *state >> 16;
}

static struct translator *decoder(uint32_t mode)
{
    struct translator *t = calloc(1, sizeof(*t));
    assert_non_null(t);
    ZydisDecoderInit(&t->decoder64, ZYDIS_MACHINE_MODE_LONG_64, ZYDIS_STACK_WIDTH_64);
    ZydisDecoderInit(&t->decoder32, ZYDIS_MACHINE_MODE_LONG_COMPAT_32, ZYDIS_STACK_WIDTH_32);
    for (unsigned i = 0; i <= ZYDIS_ISA_SET_MAX_VALUE; i++)
        t->isa[i] = true;
    t->amd = true;
    t->mode = mode;
    t->shapes = shapes_create();
    assert_non_null(t->shapes);
    return t;
}

/* Bytes that are often an instruction: prefixes, then any opcode of any map. */
static void head(uint64_t *state, uint8_t *b)
{
    static const uint8_t prefixes[] = {0x66, 0x67, 0xf2, 0xf3, 0xf0, 0x2e, 0x36, 0x3e, 0x26, 0x64, 0x65};
    unsigned n = 0;
    for (unsigned i = 0; i < 16; i++)
        b[i] = (uint8_t)random_next(state);
    while (n < 3 && random_next(state) % 4 == 0)
        b[n++] = prefixes[random_next(state) % sizeof(prefixes)];
    if (random_next(state) % 2)
        b[n++] = (uint8_t)(0x40 | random_next(state) % 16);
    switch (random_next(state) % 8) {
    case 0:
    case 1:
        b[n++] = 0x0f;
        break;
    case 2:
        b[n++] = 0x0f;
        b[n++] = random_next(state) % 2 ? 0x38 : 0x3a;
        break;
    case 3:
        b[n++] = random_next(state) % 2 ? 0xc5 : 0xc4;
        break;
    case 4:
        b[n++] = 0x62;
        break;
    default:
        break;
    }
}

static bool same_numbers(const struct insn *in, const struct decoded *what)
{
    unsigned n = 0;
    for (unsigned i = 0; i < what->d.operand_count; i++) {
        const ZydisDecodedOperand *op = &what->op[i];
        if (op->type != in->op[i].type || op->size != in->op[i].size || op->actions != in->op[i].actions)
            return false;
        if (op->type == ZYDIS_OPERAND_TYPE_REGISTER && op->reg.value != in->op[i].reg.value)
            return false;
        if (op->type == ZYDIS_OPERAND_TYPE_MEMORY && op->mem.disp.has_displacement && op->mem.disp.value != in->disp)
            return false;
        if (op->type == ZYDIS_OPERAND_TYPE_MEMORY &&
            (op->mem.index != in->op[i].mem.index || op->mem.segment != in->op[i].mem.segment))
            return false;
        if (op->type == ZYDIS_OPERAND_TYPE_IMMEDIATE && n < 2 && op->imm.value.s != in->imm[n++])
            return false;
    }
    return true;
}

static void compare(struct translator *t, const uint8_t *bytes, unsigned available, unsigned *decoded)
{
    struct decoded what;
    struct insn in;
    uint8_t ours[32] = {0};
    bool code64 = t->mode & MODE_64;
    memcpy(ours, bytes, 16);
    ZyanStatus want = ZydisDecoderDecodeFull(code64 ? &t->decoder64 : &t->decoder32, bytes, available, &what.d,
                                             what.op);
    if (ZYAN_SUCCESS(want) && !isa_has(t, &what.d))
        want = ZYDIS_STATUS_DECODING_ERROR;
    ZyanStatus got = decode_insn(t, &in, ours, available);
    assert_int_equal(got, want);
    if (ZYAN_FAILED(want))
        return;
    ++*decoded;
    assert_int_equal(in.length, what.d.length);
    assert_int_equal(in.d->mnemonic, what.d.mnemonic);
    assert_int_equal(in.d->attributes, what.d.attributes);
    assert_true(same_numbers(&in, &what));
}

static void agrees(uint32_t mode)
{
    struct translator *t = decoder(mode);
    uint64_t state = 1;
    unsigned decoded = 0;
    for (unsigned i = 0; i < ROUNDS; i++) {
        uint8_t bytes[16];
        head(&state, bytes);
        decode_begin(t);
        for (unsigned k = 0; k < VARIANTS; k++) {
            compare(t, bytes, random_next(&state) % 8 ? 15 : 1 + (unsigned)random_next(&state) % 15, &decoded);
            for (unsigned j = 1 + (unsigned)random_next(&state) % 8; j < 16; j++)
                bytes[j] = (uint8_t)random_next(&state);
        }
    }
    assert_true(decoded > ROUNDS);
    shapes_destroy(t->shapes);
    free(t);
}

static void code_of_64_bits_is_decoded_as_zydis_does(void **state)
{
    agrees(MODE_64);
}

static void code_of_32_bits_is_decoded_as_zydis_does(void **state)
{
    agrees(0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(code_of_64_bits_is_decoded_as_zydis_does),
        cmocka_unit_test(code_of_32_bits_is_decoded_as_zydis_does),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
