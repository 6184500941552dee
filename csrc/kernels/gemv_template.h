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
 *   GEMV_OPS           the name of the table to define
 *
 * How the time goes. A block is bound by its loads, two for each product; four chains of sums hide
 * the latency of the multiply-adds (4 cycles at up to 2 a cycle) well enough for that.
 */

#define INLINE static inline __attribute__((always_inline)) TARGET

enum { BLOCK = GEMV_CHAINS * LANES };

_Static_assert((int)BLOCK <= (int)GEMV_BLOCK_MAX, "the sums must hold a block");

/* Vector number `chain` of a block of W, in the order of gemv_pack(). */
INLINE VEC convert(ccmem_dtype dtype, const uint8_t *w, int chain) {
    switch (dtype) {
    case CCMEM_F16: return vf16(w + chain * LANES * 2);
    case CCMEM_BF16: return vbf16(w + chain / 2 * LANES * 4, chain % 2);
    case CCMEM_I8: return vi8(w, chain);
    default: return vf32(w + chain * LANES * 4);
    }
}

INLINE void dot(ccmem_dtype dtype, size_t element, gemv_sums *sums, const uint8_t *w,
                const float *x, size_t blocks) {
    VEC sum[GEMV_CHAINS];
#pragma GCC unroll 4
    for (int i = 0; i < GEMV_CHAINS; i++)
        sum[i] = vload(sums->lane + i * LANES);
    for (; blocks; blocks--, w += BLOCK * element, x += BLOCK)
#pragma GCC unroll 4
        for (int i = 0; i < GEMV_CHAINS; i++)
            sum[i] = vfma(convert(dtype, w, i), vload(x + i * LANES), sum[i]);
#pragma GCC unroll 4
    for (int i = 0; i < GEMV_CHAINS; i++)
        vstore(sums->lane + i * LANES, sum[i]);
}

#define DOT(name, dtype, element)                                                                  \
    static TARGET CLEAR_REGISTERS void name(gemv_sums *sums, const uint8_t *w, const float *x,     \
                                            size_t blocks) {                                       \
        dot(dtype, element, sums, w, x, blocks);                                                   \
    }
DOT(dot_f32, CCMEM_F32, 4)
DOT(dot_f16, CCMEM_F16, 2)
DOT(dot_bf16, CCMEM_BF16, 2)
DOT(dot_i8, CCMEM_I8, 1)
#undef DOT

/* Halves on halves: the chains first, then the lanes. */
INLINE float add_up(const float *lane) {
    return vtotal(vadd(vadd(vload(lane), vload(lane + 2 * LANES)),
                       vadd(vload(lane + LANES), vload(lane + 3 * LANES))));
}

static TARGET CLEAR_REGISTERS float total(gemv_sums *sums) {
    float sum = add_up(sums->lane);
#pragma GCC unroll 4
    for (int i = 0; i < GEMV_CHAINS; i++)
        vstore(sums->lane + i * LANES, vzero());
    return sum;
}

static TARGET CLEAR_REGISTERS float sum_up(const float *lane) { return add_up(lane); }

const gemv_ops GEMV_OPS = {
    .block = BLOCK,
    .stride = {[CCMEM_F32] = 1, [CCMEM_F16] = 1, [CCMEM_BF16] = 2, [CCMEM_I8] = 4},
    .dot = {[CCMEM_F32] = dot_f32,
            [CCMEM_F16] = dot_f16,
            [CCMEM_BF16] = dot_bf16,
            [CCMEM_I8] = dot_i8},
    .total = total,
    .sum = sum_up};
