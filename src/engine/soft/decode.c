/*
 * Decoding.
 *
 * Zydis knows every instruction, but takes a quarter of a microsecond for one.  Now there are few *shapes* of
 * instruction, an instruction without the numbers in it, displacement and immediates: a kernel or a program has some
 * hundred.  So each shape is decoded once, and kept with what else is found out about it (struct shape); of the next
 * instruction of that shape only the numbers are read.
 *
 * A shape is known by its head, the bytes in front of the numbers: prefixes, opcode, ModRM and SIB.  How many those
 * are head_length guesses with two small tables.  A wrong guess does no harm, for only a shape is kept of which Zydis
 * has found that the numbers are all that is behind the head (is_regular).
 */
#include "engine/soft/translate_int.h"

#include <sys/mman.h>

#define HEAD_MAX 7 /* bytes; longer ones are rare */
#define INDEX_SIZE 8192
#define SHAPES_MAX 5000u
#define SHAPES_MORE 1000u /* room behind them for a copy's own, which was given as many, */
#define SHAPES_OWN 256u   /* and how many of its own it keeps at first */
#define BLOCK_SHAPES (BLOCK_MAX_INSNS + 4 + BLOCK_PEEKS * PEEK_INSNS) /* no block asks for more */
#define ARENA_SIZE (4u << 20)

struct shapes {
    uint32_t kept;
    uint32_t used;              /* bytes of the arena */
    uint16_t index[INDEX_SIZE]; /* numbers of shapes + 1; 0: none */
    struct shape shape[SHAPES_MAX + SHAPES_MORE];
    uint8_t arena[ARENA_SIZE] __attribute__((aligned(64)));
    /* those of a block that are not kept */
    struct shape spare_shape[BLOCK_SHAPES] __attribute__((aligned(4096)));
    struct decoded spare_decoded[BLOCK_SHAPES];
    unsigned spare;
    uint32_t most;              /* that are kept */
    uint32_t given, given_used; /* a copy's: they stay */
};

struct shapes *shapes_create(void)
{
    void *p = mmap(NULL, sizeof(struct shapes), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED)
        return NULL;
    ((struct shapes *)p)->most = SHAPES_MAX;
    return p;
}

static uint32_t least(uint32_t a, uint32_t b)
{
    return a < b ? a : b;
}

void shapes_given(struct shapes *s)
{
    s->given = least(s->kept, SHAPES_MAX);
    s->given_used = s->used;
    s->most = s->given + SHAPES_OWN;
}

#define BOOT_ARENA (1u << 20) /* of the arena, what a kernel needs */

void shapes_ahead(struct shapes *s)
{
    (void)madvise(s, offsetof(struct shapes, arena) / 4096 * 4096 + BOOT_ARENA, MADV_POPULATE_WRITE);
}

void shapes_destroy(struct shapes *s)
{
    if (s)
        munmap(s, sizeof(*s));
}

void shapes_extent(const struct shapes *s, size_t *size, size_t *used)
{
    *size = offsetof(struct shapes, spare_shape);
    *used = offsetof(struct shapes, arena) + s->used;
}

/* The shape's place in the index, or where it is to be. */
static uint16_t *find_shape(struct shapes *shapes, uint64_t key)
{
    unsigned i = (unsigned)(key * 0x9e3779b97f4a7c15ull >> 40) % INDEX_SIZE;
    while (shapes->index[i] && shapes->shape[shapes->index[i] - 1].key != key)
        i = (i + 1) % INDEX_SIZE;
    return &shapes->index[i];
}

/* A copy keeps what it was given, and twice as many of its own from now on: it is not one of those that do little. */
static void forget(struct shapes *s)
{
    memset(s->index, 0, sizeof(s->index));
    for (uint32_t i = 0; i < s->given; i++)
        *find_shape(s, s->shape[i].key) = (uint16_t)(i + 1);
    s->kept = s->given;
    s->used = s->given_used;
    s->most = s->given ? least(s->given + 2 * (s->most - s->given), SHAPES_MAX + SHAPES_MORE) : SHAPES_MAX;
}

/* A block's instructions point to shapes; between blocks they may go. */
void decode_begin(struct translator *t)
{
    struct shapes *s = t->shapes;
    s->spare = 0;
    if (s->kept + BLOCK_SHAPES <= s->most && s->used + BLOCK_SHAPES * sizeof(struct decoded) <= ARENA_SIZE)
        return;
    forget(s);
}

/* --- the head -------------------------------------------------------------------------------------------- */

/* Which opcodes have a ModRM byte, a bit each: in the map of one byte, and in that behind 0F. */
static const uint32_t modrm_1[8] = {0x0f0f0f0f, 0x0f0f0f0f, 0x00000000, 0x00000a0c,
                                    0x0000ffff, 0x00000000, 0xff0f00f3, 0xc0c00000};
static const uint32_t modrm_0f[8] = {0xffffa00f, 0x0000ff0f, 0xffffffff, 0xff7fffff,
                                     0xffff0000, 0xfffff8f8, 0xffff00ff, 0xffffffff};

static bool has_bit(const uint32_t *map, unsigned opcode)
{
    return map[opcode / 32] >> opcode % 32 & 1;
}

static bool is_prefix(uint8_t b)
{
    switch (b) {
    case 0x66:
    case 0x67:
    case 0xf0:
    case 0xf2:
    case 0xf3:
    case 0x26:
    case 0x2e:
    case 0x36:
    case 0x3e:
    case 0x64:
    case 0x65:
        return true;
    default:
        return false;
    }
}

/* VEX and EVEX: the opcode's offset behind the first byte; 0: neither. */
static unsigned vector_prefix(uint8_t b)
{
    return b == 0xc5 ? 2 : b == 0xc4 ? 3 : b == 0x62 ? 4 : 0;
}

/* Instructions of different kinds of code are different shapes. */
enum code_kind { CODE_32, CODE_64, CODE_16 };
static enum code_kind code_kind(const struct translator *t)
{
    return t->mode & MODE_64 ? CODE_64 : t->mode & MODE_16 ? CODE_16 : CODE_32;
}

/* 0: not one to keep. */
static unsigned head_length(const uint8_t *b, unsigned available, enum code_kind kind)
{
    unsigned i = 0, vector;
    bool modrm, code64 = kind == CODE_64, addr67 = false;
    while (i < HEAD_MAX && is_prefix(b[i]))
        addr67 |= b[i++] == 0x67;
    if (code64 && (b[i] & 0xf0) == 0x40)
        i++;
    if (code64 && (vector = vector_prefix(b[i]))) {
        i += vector;
        modrm = b[i++] != 0x77; /* vzeroupper */
    } else if (b[i++] != 0x0f) {
        modrm = has_bit(modrm_1, b[i - 1]);
    } else {
        uint8_t opcode = b[i++];
        modrm = opcode == 0x38 || opcode == 0x3a || has_bit(modrm_0f, opcode);
        i += opcode == 0x38 || opcode == 0x3a;
    }
    if (modrm) {
        uint8_t m = b[i++];
        bool addr16 = !code64 && addr67 != (kind == CODE_16);
        i += m < 0xc0 && (m & 7) == 4 && !addr16; /* SIB */
    }
    return i <= HEAD_MAX && i <= available ? i : 0;
}

/* The head, its length and the kind of code; never 0. */
static uint64_t key_of(const uint8_t *head, unsigned length, enum code_kind kind)
{
    uint64_t key;
    memcpy(&key, head, 8);
    return (key & ~(~0ull << 8 * length)) | (uint64_t)(0x40u | (unsigned)kind << 3 | length) << 56;
}

/* --- a new shape --------------------------------------------------------------------------------------------- */

/* Zydis takes [r13d + index] with mod 0 for a base register; it is a displacement without a base. */
static void correct_base(struct decoded *w)
{
    if (!w->d.raw.modrm.offset || w->d.raw.modrm.mod != 0 || w->d.raw.modrm.rm != 4 || w->d.raw.sib.base != 5)
        return;
    for (unsigned i = 0; i < w->d.operand_count; i++) {
        ZydisDecodedOperand *op = &w->op[i];
        if (op->type != ZYDIS_OPERAND_TYPE_MEMORY || op->mem.base != ZYDIS_REGISTER_R13D ||
            op->visibility == ZYDIS_OPERAND_VISIBILITY_HIDDEN) /* where MOVDIR64B stores: it is in a register */
            continue;
        op->mem.base = ZYDIS_REGISTER_NONE;
        op->mem.disp.has_displacement = true;
        op->mem.disp.value = w->d.raw.disp.value;
    }
}

/* movsxd with a 66h prefix reads 16 bits, and AMD's CPUs 32 as the decoder has it. */
static void narrow_movsxd(struct decoded *w)
{
    if (w->d.mnemonic == ZYDIS_MNEMONIC_MOVSXD && w->d.operand_width == 16)
        w->op[1].size = 16;
}

/* Do the operands have the numbers as they are behind the head, and is nothing else there? */
static bool is_regular(const struct decoded *w, unsigned head)
{
    const ZydisDecodedInstruction *d = &w->d;
    unsigned end = head, n = 0;
    if (d->raw.disp.size && d->raw.disp.offset != end)
        return false;
    end += d->raw.disp.size / 8;
    for (unsigned i = 0; i < 2 && d->raw.imm[i].size; i++) {
        if (d->raw.imm[i].offset != end)
            return false;
        end += d->raw.imm[i].size / 8;
    }
    if (!head || end != d->length)
        return false;
    if (d->encoding == ZYDIS_INSTRUCTION_ENCODING_EVEX && d->raw.disp.size == 8) /* it counts in larger units */
        return false;
    for (unsigned i = 0; i < d->operand_count; i++) {
        const ZydisDecodedOperand *op = &w->op[i];
        if (op->encoding == ZYDIS_OPERAND_ENCODING_IS4 || op->type == ZYDIS_OPERAND_TYPE_POINTER)
            return false;
        if (op->type == ZYDIS_OPERAND_TYPE_MEMORY && op->mem.disp.has_displacement &&
            op->mem.disp.value != d->raw.disp.value)
            return false;
        if (op->type != ZYDIS_OPERAND_TYPE_IMMEDIATE)
            continue;
        if (n == 2 || (n == 1 && d->raw.imm[0].is_signed != d->raw.imm[1].is_signed) ||
            (d->raw.imm[n].size ? op->imm.value.u != d->raw.imm[n].value.u : op->imm.value.u > UINT8_MAX))
            return false;
        n++;
    }
    return true;
}

/* Where an instruction of this shape has its numbers. */
static void number_facts(struct shape *s)
{
    const ZydisDecodedInstruction *d = &shape_what(s)->d;
    unsigned n = 0;
    s->disp = (struct number){.at = d->raw.disp.offset, .bits = d->raw.disp.size};
    for (unsigned i = 0; i < d->operand_count; i++) {
        const ZydisDecodedOperand *op = &shape_what(s)->op[i];
        if (op->type != ZYDIS_OPERAND_TYPE_IMMEDIATE)
            continue;
        if (d->raw.imm[n].size)
            s->imm[n] = (struct number){d->raw.imm[n].offset, d->raw.imm[n].size};
        else
            s->imm[n] = (struct number){.at = (uint8_t)op->imm.value.u};
        n++;
    }
    s->imm_signed = d->raw.imm[0].is_signed; /* of both, if there are two */
}

static unsigned opcode_length(const ZydisDecodedInstruction *d)
{
    switch (d->opcode_map) {
    case ZYDIS_OPCODE_MAP_DEFAULT:
        return 1;
    case ZYDIS_OPCODE_MAP_0F:
    case ZYDIS_OPCODE_MAP_0F0F:
        return 2;
    default:
        return 3;
    }
}

static void layout_facts(struct shape *s)
{
    const ZydisDecodedInstruction *d = &shape_what(s)->d;
    s->length = d->length;
    s->mnemonic = (uint16_t)d->mnemonic;
    s->address_width = d->address_width;
    s->legacy = d->encoding == ZYDIS_INSTRUCTION_ENCODING_LEGACY || d->encoding == ZYDIS_INSTRUCTION_ENCODING_3DNOW;
    if (!d->raw.modrm.offset)
        return;
    s->modrm = d->raw.modrm.offset;
    s->opcode = (uint8_t)(s->modrm - opcode_length(d));
    bool sib = d->address_width != 16 && d->raw.modrm.mod != 3 && d->raw.modrm.rm == 4;
    s->operand_end = (uint8_t)(s->modrm + 1 + sib + d->raw.disp.size / 8);
}

static bool accesses_memory(const ZydisDecodedOperand *op)
{
    return op->type == ZYDIS_OPERAND_TYPE_MEMORY && op->mem.type != ZYDIS_MEMOP_TYPE_AGEN;
}

static void operand_facts(struct shape *s)
{
    s->memory = -1;
    for (unsigned i = shape_what(s)->d.operand_count; i-- > 0;) {
        const ZydisDecodedOperand *op = &shape_what(s)->op[i];
        if (accesses_memory(op)) {
            s->memory = (int8_t)i;
            operand_place(op, &s->place);
        }
        if (op->type != ZYDIS_OPERAND_TYPE_REGISTER)
            continue;
        unsigned r = gpr_of(op->reg.value);
        if (r == NO_REG)
            continue;
        s->gprs |= (uint16_t)(1u << r);
        s->high8 |= is_high8(op->reg.value);
        if (op->actions & ZYDIS_OPERAND_ACTION_MASK_WRITE)
            s->written |= (uint16_t)(1u << r);
    }
}

static void shape_facts(const struct translator *t, struct shape *s)
{
    layout_facts(s);
    operand_facts(s);
    operand_rules(t, s);
    special_facts(s);
    flag_facts(s);
    window_facts(s);
    if (s->regular)
        number_facts(s);
}

/* Bytes of other code that 64-bit code, into which they are copied, reads differently: 82h is 80h, a register number in
 * an immediate has three bits, and there are none in vector prefixes that make registers of 8 and up. */
static void wide_bytes(const struct decoded *w, unsigned length, uint8_t *bytes)
{
    switch (w->d.encoding) {
    case ZYDIS_INSTRUCTION_ENCODING_LEGACY:
        if (w->d.opcode_map == ZYDIS_OPCODE_MAP_DEFAULT && w->d.opcode == 0x82)
            bytes[w->d.raw.modrm.offset - 1] = 0x80;
        return;
    case ZYDIS_INSTRUCTION_ENCODING_VEX:
        if (bytes[w->d.raw.vex.offset] == 0xc4) {
            bytes[w->d.raw.vex.offset + 1] |= 0xe0;
            bytes[w->d.raw.vex.offset + 2] |= 0x40;
        }
        break;
    case ZYDIS_INSTRUCTION_ENCODING_XOP:
        bytes[w->d.raw.xop.offset + 1] |= 0xe0;
        bytes[w->d.raw.xop.offset + 2] |= 0x40;
        break;
    case ZYDIS_INSTRUCTION_ENCODING_EVEX:
        bytes[w->d.raw.evex.offset + 1] |= 0xf0;
        bytes[w->d.raw.evex.offset + 2] |= 0x40;
        break;
    default:
        break;
    }
    for (unsigned i = 0; i < w->d.operand_count_visible; i++)
        if (w->op[i].encoding == ZYDIS_OPERAND_ENCODING_IS4)
            bytes[length - 1] &= 0x7f;
}

/* --- an instruction of a known shape ----------------------------------------------------------------------- */

static int64_t number(const uint8_t *bytes, const struct number *n, bool is_signed)
{
    uint64_t v;
    unsigned unused = 64u - n->bits;
    if (!n->bits)
        return n->at;
    memcpy(&v, bytes + n->at, 8);
    return is_signed ? (int64_t)(v << unused) >> unused : (int64_t)(v << unused >> unused);
}

/* Of an irregular shape, which is this instruction's alone. */
static void decoded_numbers(struct insn *in)
{
    unsigned n = 0;
    in->disp = in->imm[0] = in->imm[1] = 0;
    for (unsigned i = 0; i < in->d->operand_count; i++) {
        const ZydisDecodedOperand *op = &in->op[i];
        if (op->type == ZYDIS_OPERAND_TYPE_MEMORY && op->mem.disp.has_displacement && !in->disp)
            in->disp = op->mem.disp.value;
        if (op->type == ZYDIS_OPERAND_TYPE_IMMEDIATE && n < 2)
            in->imm[n++] = op->imm.value.s;
    }
}

static void instance(struct insn *in, const struct shape *s, const uint8_t *bytes)
{
    in->shape = s;
    in->d = &shape_what(s)->d;
    in->op = shape_what(s)->op;
    in->bytes = bytes;
    in->length = s->length;
    if (!s->regular) {
        decoded_numbers(in);
        return;
    }
    in->disp = number(bytes, &s->disp, true);
    in->imm[0] = number(bytes, &s->imm[0], s->imm_signed);
    in->imm[1] = number(bytes, &s->imm[1], s->imm_signed);
}

static struct shape *spare_shape(struct shapes *s, struct decoded **what)
{
    struct shape *shape = &s->spare_shape[s->spare];
    *what = &s->spare_decoded[s->spare++];
    *shape = (struct shape){.key = 0};
    shape_set_what(shape, *what);
    return shape;
}

/* A regular one goes into the index, at `to`. */
static const struct shape *keep(struct shapes *s, uint16_t *at, uint64_t key, const struct shape *shape)
{
    struct shape *to = &s->shape[s->kept];
    struct decoded *what = (struct decoded *)(s->arena + s->used);
    unsigned bytes = (unsigned)(sizeof(what->d) + shape_what(shape)->d.operand_count * sizeof(what->op[0]));
    memcpy(what, shape_what(shape), bytes);
    what->d.cpu_flags = what->d.fpu_flags = NULL; /* Zydis's addresses; flag_facts has had them */
    *to = *shape;
    to->key = key;
    shape_set_what(to, what);
    s->used += (bytes + 63) & ~63u;
    *at = (uint16_t)++s->kept;
    s->spare--;
    return to;
}

static ZyanStatus decode_shape(const struct translator *t, uint8_t *bytes, unsigned available, unsigned head,
                               struct shape **out)
{
    struct decoded *what;
    struct shape *s = spare_shape(t->shapes, &what);
    enum code_kind kind = code_kind(t);
    const ZydisDecoder *decoder = kind == CODE_64 ? &t->decoder64 : kind == CODE_16 ? &t->decoder16 : &t->decoder32;
    ZyanStatus status = ZydisDecoderDecodeFull(decoder, bytes, available, &what->d, what->op);
    if (ZYAN_FAILED(status))
        return status;
    correct_base(what);
    if (!t->amd)
        narrow_movsxd(what);
    if (!isa_has(t, &what->d))
        return ZYDIS_STATUS_DECODING_ERROR;
    s->regular = is_regular(what, head);
    shape_facts(t, s);
    if (kind != CODE_64) {
        wide_bytes(what, s->length, bytes);
        s->host = host_form_of(t, s, bytes);
    }
    *out = s;
    return status;
}

ZyanStatus decode_insn(const struct translator *t, struct insn *in, uint8_t *bytes, unsigned available)
{
    enum code_kind kind = code_kind(t);
    unsigned head = head_length(bytes, available, kind);
    uint64_t key = key_of(bytes, head, kind);
    uint16_t *place = find_shape(t->shapes, key);
    struct shape *made;
    const struct shape *s = &t->shapes->shape[*place ? *place - 1 : 0];
    if (!*place) {
        ZyanStatus status = decode_shape(t, bytes, available, head, &made);
        if (ZYAN_FAILED(status))
            return status;
        s = made->regular ? keep(t->shapes, place, key, made) : made;
    }
    if (s->length > available)
        return ZYDIS_STATUS_NO_MORE_DATA;
    instance(in, s, bytes);
    if (kind != CODE_64)
        wide_bytes(shape_what(s), s->length, bytes);
    return ZYAN_STATUS_SUCCESS;
}

/* What the CPU makes of bytes that are no instruction: #UD, or #GP(0) when longer than 15 bytes.  It is
 * decoded as one that ends the block; helper_undefined raises it. */
void undefined_insn(struct translator *t, struct insn *in, const uint8_t *bytes, ZyanStatus status)
{
    struct decoded *what;
    struct shape *s = spare_shape(t->shapes, &what);
    memset(what, 0, sizeof(*what));
    what->d.mnemonic = ZYDIS_MNEMONIC_INVALID;
    what->d.length = status == ZYDIS_STATUS_INSTRUCTION_TOO_LONG ? 16 : 1;
    shape_facts(t, s);
    instance(in, s, bytes);
}
