/* SPDX-License-Identifier: Apache-2.0
 *
 * The gemv kernels of every SIMD tier. A tier file defines TARGET, includes the vector words of its
 * width (simd/target.h) and simd/f8.h, defines GEMV_OPS, the name of the table, then includes this
 * file once.
 *
 * How the time goes. A block is bound by its loads, two for each product; four chains of sums hide
 * the latency of the multiply-adds (4 cycles at up to 2 a cycle) well enough for that.
 */

enum { BLOCK = GEMV_CHAINS * F_LANES };

_Static_assert((int)BLOCK <= (int)GEMV_BLOCK_MAX, "the sums must hold a block");

/* Vector number `chain` of a block of W, in the order of gemv_pack(). */
INLINE fvec convert(ccmem_dtype dtype, const uint8_t *w, int chain) {
    switch (dtype) {
    case CCMEM_F16: return fload_half(w + chain * F_LANES * 2);
    case CCMEM_BF16: return fbfloats(vload(w + chain / 2 * F_LANES * 4), chain % 2);
    case CCMEM_I8: return fbytes(vload(w), chain);
    default: return fload(w + chain * F_LANES * 4);
    }
}

INLINE void dot(ccmem_dtype dtype, size_t element, gemv_sums *sums, const uint8_t *w,
                const float *x, size_t blocks) {
    fvec sum[GEMV_CHAINS];
#pragma GCC unroll 4
    for (int i = 0; i < GEMV_CHAINS; i++)
        sum[i] = fload_aligned(sums->lane + i * F_LANES);
    for (; blocks; blocks--, w += BLOCK * element, x += BLOCK)
#pragma GCC unroll 4
        for (int i = 0; i < GEMV_CHAINS; i++)
            sum[i] = ffma(convert(dtype, w, i), fload_aligned(x + i * F_LANES), sum[i]);
#pragma GCC unroll 4
    for (int i = 0; i < GEMV_CHAINS; i++)
        fstore_aligned(sums->lane + i * F_LANES, sum[i]);
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
    return f8_total(
        ffold8(fadd(fadd(fload_aligned(lane), fload_aligned(lane + 2 * F_LANES)),
                    fadd(fload_aligned(lane + F_LANES), fload_aligned(lane + 3 * F_LANES)))));
}

static TARGET CLEAR_REGISTERS float total(gemv_sums *sums) {
    float sum = add_up(sums->lane);
#pragma GCC unroll 4
    for (int i = 0; i < GEMV_CHAINS; i++)
        fstore_aligned(sums->lane + i * F_LANES, fzero());
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
