/* SPDX-License-Identifier: Apache-2.0
 *
 * The products of every SIMD tier. A tier file defines the vector type and a few operations, then
 * includes this file once.
 *
 *   TARGET               the tier's target attribute
 *   VEC, LANES           vector of floats; how many
 *   vzero vload vstore   0; aligned load and store of floats
 *   vfma(a, b, c)        a * b + c, rounded once
 *   vf32(p) vf16(p)      LANES elements of W at p, not aligned, as floats
 *   vbf16(p, odd)        every second of 2 * LANES, from the first or (odd is 1) the second on
 *   vi8(p, i)            every fourth of 4 * LANES, from number i on
 *   MATMUL_OPS           the name of the table to define
 *
 * How the time goes. With one row of x a block is bound by its loads, two for each product; four
 * chains of sums hide the latency of the multiply-adds (4 cycles at up to 2 a cycle) well enough for
 * that, and leave registers for three rows of x. The same four chains for any number of rows make a
 * row's result independent of the rows beside it.
 */

#define INLINE static inline __attribute__((always_inline)) TARGET

enum { BLOCK = MATMUL_CHAINS * LANES };

_Static_assert((int)BLOCK <= (int)MATMUL_BLOCK_MAX, "the sums must hold a block");

/* Vector number `chain` of a block of W, in the order of matmul_pack(). */
INLINE VEC convert(ccmem_dtype dtype, const uint8_t *w, int chain) {
    switch (dtype) {
    case CCMEM_F16: return vf16(w + chain * LANES * 2);
    case CCMEM_BF16: return vbf16(w + chain / 2 * LANES * 4, chain % 2);
    case CCMEM_I8: return vi8(w, chain);
    default: return vf32(w + chain * LANES * 4);
    }
}

INLINE void dot(ccmem_dtype dtype, size_t element, size_t rows, matmul_sums *sums,
                const uint8_t *w, const float *x, size_t ldx, size_t blocks) {
    VEC sum[MATMUL_ROWS][MATMUL_CHAINS];
    const size_t step = BLOCK * element;
#pragma GCC unroll 3
    for (size_t r = 0; r < rows; r++)
#pragma GCC unroll 4
        for (int i = 0; i < MATMUL_CHAINS; i++)
            sum[r][i] = vload(sums->lane[r] + i * LANES);
    for (; blocks; blocks--) {
#pragma GCC unroll 4
        for (int i = 0; i < MATMUL_CHAINS; i++) {
            VEC v = convert(dtype, w, i);
#pragma GCC unroll 3
            for (size_t r = 0; r < rows; r++)
                sum[r][i] = vfma(v, vload(x + r * ldx + i * LANES), sum[r][i]);
        }
        w += step;
        x += BLOCK;
    }
#pragma GCC unroll 3
    for (size_t r = 0; r < rows; r++)
#pragma GCC unroll 4
        for (int i = 0; i < MATMUL_CHAINS; i++)
            vstore(sums->lane[r] + i * LANES, sum[r][i]);
}

#define DOT(name, dtype, element, rows)                                                           \
    static TARGET CLEAR_REGISTERS void name(matmul_sums *sums, const uint8_t *w, const float *x,  \
                                            size_t ldx, size_t blocks) {    \
        dot(dtype, element, rows, sums, w, x, ldx, blocks);                                \
    }
#define DOTS(name, dtype, element)                                                                \
    DOT(name##_1, dtype, element, 1)                                                              \
    DOT(name##_2, dtype, element, 2)                                                              \
    DOT(name##_3, dtype, element, 3)
DOTS(dot_f32, CCMEM_F32, 4)
DOTS(dot_f16, CCMEM_F16, 2)
DOTS(dot_bf16, CCMEM_BF16, 2)
DOTS(dot_i8, CCMEM_I8, 1)
#undef DOT
#undef DOTS

/* Halves on halves: the chains first, then the lanes. */
INLINE float add_up(const float *lane) {
    return vtotal(vadd(vadd(vload(lane), vload(lane + 2 * LANES)),
                       vadd(vload(lane + LANES), vload(lane + 3 * LANES))));
}

static TARGET CLEAR_REGISTERS void total(matmul_sums *sums, float *out, size_t rows) {
    for (size_t r = 0; r < rows; r++) {
        float *lane = sums->lane[r];
        out[r] = add_up(lane);
#pragma GCC unroll 4
        for (int i = 0; i < MATMUL_CHAINS; i++)
            vstore(lane + i * LANES, vzero());
    }
}

static TARGET CLEAR_REGISTERS float sum_up(const float *lane) { return add_up(lane); }

const matmul_ops MATMUL_OPS = {
    .block = BLOCK,
    .stride = {[CCMEM_F32] = 1, [CCMEM_F16] = 1, [CCMEM_BF16] = 2, [CCMEM_I8] = 4},
    .dot = {[CCMEM_F32] = {dot_f32_1, dot_f32_2, dot_f32_3},
            [CCMEM_F16] = {dot_f16_1, dot_f16_2, dot_f16_3},
            [CCMEM_BF16] = {dot_bf16_1, dot_bf16_2, dot_bf16_3},
            [CCMEM_I8] = {dot_i8_1, dot_i8_2, dot_i8_3}},
    .total = total,
    .sum = sum_up};
