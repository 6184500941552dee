/* SPDX-License-Identifier: Apache-2.0
 * Products in plain C: the reference for the other tiers. Where the processor rounds a product
 * before it is added, this adds one rounding to the bound of ccmem_store_linear(). */
#include <string.h>

#include "matmul.h"
#include "matmul_scalar.h"
#include "secret.h"

enum { BLOCK = 32 };

_Static_assert((int)BLOCK <= (int)MATMUL_BLOCK_MAX, "the sums must hold a block");

/* A block at a time, so that a compiler can keep the sums in vectors. */
#define DOT(name, rows, element, convert)                                                         \
    static void name(matmul_sums *sums, const uint8_t *w, const float *x, size_t ldx,             \
                     size_t blocks) {                                                          \
        float v[BLOCK];                                                                           \
        for (; blocks; blocks--, w += BLOCK * (element), x += BLOCK) {                            \
            for (size_t i = 0; i < BLOCK; i++)                                                    \
                v[i] = convert(w + i * (element));                                                \
            for (size_t r = 0; r < (rows); r++)                                                   \
                for (size_t i = 0; i < BLOCK; i++)                                                \
                    sums->lane[r][i] += v[i] * x[r * ldx + i];                                    \
        }                                                                                         \
        ccmem_wipe(v, sizeof v);                                                                  \
    }
#define DOTS(name, element, convert)                                                              \
    DOT(name##_1, 1, element, convert)                                                            \
    DOT(name##_2, 2, element, convert)                                                            \
    DOT(name##_3, 3, element, convert)
DOTS(dot_f32, 4, matmul_from_f32)
DOTS(dot_f16, 2, matmul_from_f16)
DOTS(dot_bf16, 2, matmul_from_bf16)
DOTS(dot_i8, 1, matmul_from_i8)

static float add_up(const float *lane) {
    float t[BLOCK];
    memcpy(t, lane, sizeof t);
    for (size_t half = BLOCK / 2; half; half /= 2)
        for (size_t i = 0; i < half; i++)
            t[i] += t[i + half];
    return t[0];
}

static void total(matmul_sums *sums, float *out, size_t rows) {
    for (size_t r = 0; r < rows; r++) {
        out[r] = add_up(sums->lane[r]);
        memset(sums->lane[r], 0, BLOCK * sizeof(float));
    }
}

const matmul_ops matmul_portable = {
    .block = BLOCK,
    .stride = {1, 1, 1, 1},
    .dot = {[CCMEM_F32] = {dot_f32_1, dot_f32_2, dot_f32_3},
            [CCMEM_F16] = {dot_f16_1, dot_f16_2, dot_f16_3},
            [CCMEM_BF16] = {dot_bf16_1, dot_bf16_2, dot_bf16_3},
            [CCMEM_I8] = {dot_i8_1, dot_i8_2, dot_i8_3}},
    .total = total,
    .sum = add_up};
