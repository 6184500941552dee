/* SPDX-License-Identifier: Apache-2.0
 * Attention in plain C: the reference for the other tiers. */
#include "kernels/attention.h"
#include "kernels/exponential.h"
#include "memory/secret.h"
#include "simd/scalar.h"

enum { CHUNK = 32 }; /* elements that are converted at a time */

_Static_assert((int)CHUNK % (int)ATTENTION_PAD == 0, "a row of bytes is whole chunks");

/* ---- q --------------------------------------------------------------------------------------- */

static CLEAR_REGISTERS void pack(float *packed, const float *q, size_t d, float scale) {
    size_t i = 0;
    for (; i < d; i++)
        packed[i] = q[i] * scale;
    for (; i % ATTENTION_FLOATS; i++)
        packed[i] = 0;
}

/* ---- scores and sums ------------------------------------------------------------------------- */

/* What is wiped in the end. */
typedef struct scratch {
    float row[CHUNK], products[CHUNK];
} scratch;

/* Products of up to CHUNK numbers, added halves on halves. */
static inline float dot(float *t, const float *a, const float *b, size_t n) {
    for (size_t i = 0; i < CHUNK; i++)
        t[i] = i < n ? a[i] * b[i] : 0;
    for (size_t half = CHUNK / 2; half; half /= 2)
        for (size_t i = 0; i < half; i++)
            t[i] += t[i + half];
    return t[0];
}

static inline void convert(float *to, const uint8_t *from, size_t n, size_t element,
                           float (*conversion)(const uint8_t *)) {
    for (size_t i = 0; i < n; i++)
        to[i] = conversion(from + i * element);
}

static inline size_t least(size_t a, size_t b) { return a < b ? a : b; }

/* Elements [at, at + n) of row t of a matrix that lies in a block: for each of `pair` rows, or
 * elements, those of `across` others. */
static inline void gather(float *to, const uint8_t *block, size_t across, size_t t, size_t at,
                          size_t n, size_t pair, size_t element,
                          float (*conversion)(const uint8_t *)) {
    for (size_t i = at; i < at + n; i++)
        to[i - at] = conversion(block + ((i / pair * across + t) * pair + i % pair) * element);
}

/* Each row of K or V is converted once for all rows of q, a chunk at a time. */
#define PRODUCTS(type, element, conversion, pair)                                                  \
    static CLEAR_REGISTERS void scores_##type(float *scores, size_t lds, const uint8_t *k,         \
                                              size_t stride, const float *scales, size_t tokens,   \
                                              size_t n, const float *q, size_t ldq, size_t rows) { \
        scratch own;                                                                               \
        for (size_t t = 0; t < tokens; t++, k += stride) {                                         \
            for (size_t r = 0; r < rows; r++)                                                      \
                scores[r * lds + t] = 0;                                                           \
            for (size_t at = 0; at < n; at += CHUNK) {                                             \
                const size_t part = least(n - at, CHUNK);                                          \
                convert(own.row, k + at * (element), part, element, conversion);                   \
                for (size_t r = 0; r < rows; r++)                                                  \
                    scores[r * lds + t] += dot(own.products, own.row, q + r * ldq + at, part);     \
            }                                                                                      \
            for (size_t r = 0; r < rows && scales; r++)                                            \
                scores[r * lds + t] *= scales[t];                                                  \
        }                                                                                          \
        ccmem_wipe(&own, sizeof own);                                                              \
    }                                                                                              \
                                                                                                   \
    static CLEAR_REGISTERS void sums_##type(float *sums, size_t ldo, const float *p, size_t ldp,   \
                                            const uint8_t *v, size_t stride, const float *scales,  \
                                            size_t tokens, size_t n, size_t rows) {                \
        float u[CHUNK];                                                                            \
        for (size_t t = 0; t < tokens; t++, v += stride)                                           \
            for (size_t at = 0; at < n; at += CHUNK) {                                             \
                const size_t part = least(n - at, CHUNK);                                          \
                convert(u, v + at * (element), part, element, conversion);                         \
                for (size_t r = 0; r < rows; r++) {                                                \
                    const float f = p[r * ldp + t] * (scales ? scales[t] : 1.0f);                  \
                    for (size_t i = 0; i < part; i++)                                              \
                        sums[r * ldo + at + i] += f * u[i];                                        \
                }                                                                                  \
            }                                                                                      \
        ccmem_wipe(u, sizeof u);                                                                   \
    }                                                                                              \
                                                                                                   \
    static CLEAR_REGISTERS void block_scores_##type(float *scores, size_t lds, const uint8_t *k,   \
                                                    const uint8_t *next, const float *scales,      \
                                                    size_t tokens, size_t n, const float *q,       \
                                                    size_t ldq, size_t rows) {                     \
        (void)next;                                                                                \
        scratch own;                                                                               \
        for (size_t t = 0; t < tokens; t++) {                                                      \
            for (size_t r = 0; r < rows; r++)                                                      \
                scores[r * lds + t] = 0;                                                           \
            for (size_t at = 0; at < n; at += CHUNK) {                                             \
                const size_t part = least(n - at, CHUNK);                                          \
                gather(own.row, k, tokens, t, at, part, pair, element, conversion);                \
                for (size_t r = 0; r < rows; r++)                                                  \
                    scores[r * lds + t] += dot(own.products, own.row, q + r * ldq + at, part);     \
            }                                                                                      \
            for (size_t r = 0; r < rows && scales; r++)                                            \
                scores[r * lds + t] *= scales[t];                                                  \
        }                                                                                          \
        ccmem_wipe(&own, sizeof own);                                                              \
    }                                                                                              \
                                                                                                   \
    static CLEAR_REGISTERS void columns_##type(float *to, size_t ld, const uint8_t *from,          \
                                               const float *scales, size_t inner, size_t count,    \
                                               size_t outer) {                                     \
        for (size_t r = 0; r < outer; r++)                                                         \
            for (size_t c = 0; c < count; c++)                                                     \
                to[r * ld + c] =                                                                   \
                    conversion(from + ((r / pair * inner + c) * pair + r % pair) * element) *      \
                    (scales ? scales[c] : 1.0f);                                                   \
    }
PRODUCTS(f32, 4, element_from_f32, 1)
PRODUCTS(f16, 2, element_from_f16, 1)
PRODUCTS(bf16, 2, element_from_bf16, 2)
PRODUCTS(i8, 1, element_from_i8, 2)

#define BLOCK_SUMS(type, element, conversion, pair)                                                \
    static CLEAR_REGISTERS void block_sums_##type(float *sums, size_t ldo, const float *p,         \
                                                  size_t ldp, const uint8_t *v,                    \
                                                  const uint8_t *next, const float *scales,        \
                                                  size_t tokens, size_t n, size_t rows) {          \
        (void)next;                                                                                \
        for (size_t t = 0; t < tokens; t++)                                                        \
            for (size_t r = 0; r < rows; r++) {                                                    \
                const float f = p[r * ldp + t] * (scales ? scales[t] : 1.0f);                      \
                for (size_t i = 0; i < n; i++)                                                     \
                    sums[r * ldo + i] +=                                                           \
                        f * conversion(v + ((t / pair * n + i) * pair + t % pair) * element);      \
            }                                                                                      \
    }
BLOCK_SUMS(f32, 4, element_from_f32, 1)
BLOCK_SUMS(f16, 2, element_from_f16, 1)
BLOCK_SUMS(bf16, 2, element_from_bf16, 2)
BLOCK_SUMS(i8, 1, element_from_i8, 2)

/* ---- softmax --------------------------------------------------------------------------------- */

static CLEAR_REGISTERS float highest(const float *scores, size_t n) {
    float most = float_of_bits(0xff800000);
    for (size_t i = 0; i < n; i++)
        most = pick(less(most, scores[i]), scores[i], most);
    return most;
}

/* exp(r) - 1; *power is 2^t. */
static inline float exp_rest(float y, float *power) {
    const float shifted = y * EXP_PER_LN2 + EXP_ROUND, t = shifted - EXP_ROUND;
    const float r = y - t * EXP_LN2_HIGH - t * EXP_LN2_LOW;
    const float c = EXP_C2 + r * (EXP_C3 + r * (EXP_C4 + r * (EXP_C5 + r * EXP_C6)));
    *power = float_of_bits(bits_of(shifted) << 23);
    return r + r * r * c;
}

static CLEAR_REGISTERS float exponentials(float *scores, size_t n, float most) {
    /* -infinity less itself would not be a number. */
    const float lowest = float_of_bits(0xff7fffff), from = pick(less(lowest, most), most, lowest);
    float sum = 0;
    for (size_t i = 0; i < n; i++) {
        const float y = scores[i] - from;
        float power;
        const float rest = exp_rest(y, &power);
        scores[i] = pick(less(y, EXP_LOWEST), 0, power + power * rest);
        sum += scores[i];
    }
    return sum;
}

/* tanh |x| = -m / (2 + m), m = exp(-2 |x|) - 1. */
static CLEAR_REGISTERS void soften(float *scores, size_t n, float cap) {
    const float per_cap = 1.0f / cap;
    for (size_t i = 0; i < n; i++) {
        const uint32_t sign = bits_of(scores[i]) & 0x80000000;
        const float x = scores[i] * per_cap, twice = -2.0f * float_of_bits(bits_of(x) & 0x7fffffff);
        const float y = pick(less(twice, EXP_LOWEST), EXP_LOWEST, twice);
        float power;
        const float rest = exp_rest(y, &power), m = power * rest + (power - 1.0f);
        scores[i] = float_of_bits(bits_of(cap * ((0.0f - m) / (2.0f + m))) | sign);
    }
}

static CLEAR_REGISTERS void scale(float *values, size_t n, float f) {
    for (size_t i = 0; i < n; i++)
        values[i] *= f;
}

/* ---- rows to be sealed ----------------------------------------------------------------------- */

static CLEAR_REGISTERS void store_f32(void *to, const float *from, size_t d) {
    copy_secret(to, from, d * sizeof *from);
}

static CLEAR_REGISTERS void store_f16(void *to, const float *from, size_t d) {
    for (size_t i = 0; i < d; i++)
        ((uint16_t *)to)[i] = float16_of(from[i]);
}

static CLEAR_REGISTERS void store_bf16(void *to, const float *from, size_t d) {
    for (size_t i = 0; i < d; i++)
        ((uint16_t *)to)[i] = bfloat16_of(from[i]);
}

static CLEAR_REGISTERS void quantise(int8_t *to, float *scale, const float *from, size_t d) {
    uint32_t bits = 0;
    for (size_t i = 0; i < d; i++) {
        const uint32_t size = bits_of(from[i]) & 0x7fffffff, more = below(bits, size);
        bits = (size & more) | (bits & ~more);
    }
    const byte_scale s = byte_scale_of(float_of_bits(bits));
    for (size_t i = 0; i < d; i++) /* the sum's low bits are the nearest whole number */
        to[i] = (int8_t)(uint8_t)bits_of(from[i] * s.enlarge * s.per_step + 0x1.8p23f);
    *scale = s.scale;
}

const attention_ops attention_portable = {.pack = {pack, pack, pack, pack},
                                          .scores = {[CCMEM_F32] = scores_f32,
                                                     [CCMEM_F16] = scores_f16,
                                                     [CCMEM_BF16] = scores_bf16,
                                                     [CCMEM_I8] = scores_i8},
                                          .sums = {[CCMEM_F32] = sums_f32,
                                                   [CCMEM_F16] = sums_f16,
                                                   [CCMEM_BF16] = sums_bf16,
                                                   [CCMEM_I8] = sums_i8},
                                          .block_scores = {[CCMEM_F32] = block_scores_f32,
                                                           [CCMEM_F16] = block_scores_f16,
                                                           [CCMEM_BF16] = block_scores_bf16,
                                                           [CCMEM_I8] = block_scores_i8},
                                          .block_sums = {[CCMEM_F32] = block_sums_f32,
                                                         [CCMEM_F16] = block_sums_f16,
                                                         [CCMEM_BF16] = block_sums_bf16,
                                                         [CCMEM_I8] = block_sums_i8},
                                          .columns = {[CCMEM_F32] = columns_f32,
                                                      [CCMEM_F16] = columns_f16,
                                                      [CCMEM_BF16] = columns_bf16,
                                                      [CCMEM_I8] = columns_i8},
                                          .highest = highest,
                                          .exponentials = exponentials,
                                          .soften = soften,
                                          .scale = scale,
                                          .store = {[CCMEM_F32] = store_f32,
                                                    [CCMEM_F16] = store_f16,
                                                    [CCMEM_BF16] = store_bf16},
                                          .quantise = quantise};
