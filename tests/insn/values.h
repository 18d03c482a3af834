/* Values that are likely to matter, shared by memory (values.c) and registers (state.c). */
#pragma once
#include "insn.h"

#define N_EDGES 24
#define N_EDGES_F80 22
extern const uint64_t edges[N_EDGES];
extern const struct f80 {
    uint64_t mantissa;
    uint16_t exponent;
} edges_f80[N_EDGES_F80];

enum value_kind { V_RANDOM, V_EDGE8, V_EDGE16, V_EDGE32, V_EDGE64, V_F32, V_F64, V_SMALL, V_BYTE, V_KINDS };
void fill(struct rng *r, uint8_t *p, size_t len, enum value_kind kind);
