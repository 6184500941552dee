/* SPDX-License-Identifier: Apache-2.0
 * Products in plain C: the reference for the other tiers. Where the processor rounds a product
 * before it is added, this adds one rounding to the bound of ccmem_store_linear(). */
#include <string.h>

#include "kernels/gemv.h"
#include "memory/secret.h"
#include "simd/scalar.h"

enum { BLOCK = 32 };

_Static_assert((int)BLOCK <= (int)GEMV_BLOCK_MAX, "the sums must hold a block");

/* A block at a time, so that a compiler can keep the sums in vectors. */
#define DOT(name, element, convert)                                                                \
    static void name(gemv_sums *sums, const uint8_t *w, const float *x, size_t blocks) {           \
        float v[BLOCK];                                                                            \
        for (; blocks; blocks--, w += BLOCK * (element), x += BLOCK) {                             \
            for (size_t i = 0; i < BLOCK; i++)                                                     \
                v[i] = convert(w + i * (element));                                                 \
            for (size_t i = 0; i < BLOCK; i++)                                                     \
                sums->lane[i] += v[i] * x[i];                                                      \
        }                                                                                          \
        ccmem_wipe(v, sizeof v);                                                                   \
    }
DOT(dot_f32, 4, element_from_f32)
DOT(dot_f16, 2, element_from_f16)
DOT(dot_bf16, 2, element_from_bf16)
DOT(dot_i8, 1, element_from_i8)

static float add_up(const float *lane) {
    float t[BLOCK];
    memcpy(t, lane, sizeof t);
    for (size_t half = BLOCK / 2; half; half /= 2)
        for (size_t i = 0; i < half; i++)
            t[i] += t[i + half];
    return t[0];
}

static float total(gemv_sums *sums) {
    float sum = add_up(sums->lane);
    memset(sums->lane, 0, BLOCK * sizeof(float));
    return sum;
}

const gemv_ops gemv_portable = {.block = BLOCK,
                                .stride = {1, 1, 1, 1},
                                .dot = {[CCMEM_F32] = dot_f32,
                                        [CCMEM_F16] = dot_f16,
                                        [CCMEM_BF16] = dot_bf16,
                                        [CCMEM_I8] = dot_i8},
                                .total = total};
