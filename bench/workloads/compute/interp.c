/* A bytecode interpreter that counts primes by trial division: an indirect jump for each operation. */
/* quick: yes */
#include "bench.h"

enum op { OP_CONST, OP_LOAD, OP_STORE, OP_ADD, OP_MUL, OP_MOD, OP_LESS, OP_JUMP, OP_JUMP_ZERO, OP_HALT };
enum local { N, D, COUNT, SUM, LOCALS };

#define LIMIT 30000
#define AT_TEST 4
#define AT_DIVIDE 15
#define AT_PRIME 44
#define AT_NEXT 58
#define AT_END 67

static const int16_t program[] = {
    OP_CONST,
    2,
    OP_STORE,
    N,
    /* AT_TEST: while n < LIMIT */
    OP_LOAD,
    N,
    OP_CONST,
    LIMIT,
    OP_LESS,
    OP_JUMP_ZERO,
    AT_END,
    OP_CONST,
    2,
    OP_STORE,
    D,
    /* AT_DIVIDE: while d * d < n + 1 */
    OP_LOAD,
    D,
    OP_LOAD,
    D,
    OP_MUL,
    OP_LOAD,
    N,
    OP_CONST,
    1,
    OP_ADD,
    OP_LESS,
    OP_JUMP_ZERO,
    AT_PRIME,
    /* if n % d == 0 it is no prime */
    OP_LOAD,
    N,
    OP_LOAD,
    D,
    OP_MOD,
    OP_JUMP_ZERO,
    AT_NEXT,
    OP_LOAD,
    D,
    OP_CONST,
    1,
    OP_ADD,
    OP_STORE,
    D,
    OP_JUMP,
    AT_DIVIDE,
    /* AT_PRIME: count++, sum += n */
    OP_LOAD,
    COUNT,
    OP_CONST,
    1,
    OP_ADD,
    OP_STORE,
    COUNT,
    OP_LOAD,
    SUM,
    OP_LOAD,
    N,
    OP_ADD,
    OP_STORE,
    SUM,
    /* AT_NEXT: n++ */
    OP_LOAD,
    N,
    OP_CONST,
    1,
    OP_ADD,
    OP_STORE,
    N,
    OP_JUMP,
    AT_TEST,
    /* AT_END */
    OP_HALT,
};

static uint64_t interpret(const int16_t *code)
{
    static const void *const handler[] = {
        [OP_CONST] = &&do_const, [OP_LOAD] = &&do_load, [OP_STORE] = &&do_store,
        [OP_ADD] = &&do_add,     [OP_MUL] = &&do_mul,   [OP_MOD] = &&do_mod,
        [OP_LESS] = &&do_less,   [OP_JUMP] = &&do_jump, [OP_JUMP_ZERO] = &&do_jump_zero,
        [OP_HALT] = &&do_halt,
    };
    int64_t local[LOCALS] = {0}, stack[16], *top = stack;
    const int16_t *pc = code;
#define NEXT goto *handler[*pc++]
    NEXT;
do_const:
    *top++ = *pc++;
    NEXT;
do_load:
    *top++ = local[*pc++];
    NEXT;
do_store:
    local[*pc++] = *--top;
    NEXT;
do_add:
    top--;
    top[-1] += *top;
    NEXT;
do_mul:
    top--;
    top[-1] *= *top;
    NEXT;
do_mod:
    top--;
    top[-1] = (int32_t)top[-1] % (int32_t)*top;
    NEXT;
do_less:
    top--;
    top[-1] = top[-1] < *top;
    NEXT;
do_jump:
    pc = code + *pc;
    NEXT;
do_jump_zero:
    pc = *--top ? pc + 1 : code + *pc;
    NEXT;
do_halt:
    return (uint64_t)local[COUNT] << 32 | (uint32_t)local[SUM];
}

int main(void)
{
    uint64_t sum = 0;
    interpret(program); /* warm-up */
    double start = now();
    for (long pass = 0; pass < 11 * scale(); pass++)
        sum = sum * 31 + interpret(program);
    report("interp", now() - start, sum);
    return 0;
}
