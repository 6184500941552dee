/* SPDX-License-Identifier: Apache-2.0
 *
 * The half of a fused loop (crypto/fused.h) that every cipher shares: products of vectors that were
 * just opened, and where their sums lie. In the words of simd/target.h; included by a cipher's
 * fused.h after
 *
 *   FUSED_TARGET   the target attribute
 *   FUSED_LANES    floats in a vector of the tier's gemv kernels: F_LANES, or a multiple of it
 */

#define FUSED_INLINE static inline __attribute__((always_inline)) FUSED_TARGET

/* A vector of the gemv kernels is so many of these here; each part of a block has its sum. */
enum {
    FUSED_PARTS = FUSED_LANES / F_LANES,
    FUSED_SUMS = 4 * FUSED_PARTS,
    FUSED_BLOCK = F_LANES * FUSED_SUMS
};

/* Adds the products with the floats of x from vector number `place` on. The sums go by the
 * element's place in its block, as in kernels/gemv_template.h. */
FUSED_INLINE void fused_add(fvec sum[FUSED_SUMS], fvec w, const float *x, size_t place) {
    fvec *to = &sum[place % FUSED_SUMS];
    *to = ffma(w, fload_aligned(x + F_LANES * place), *to);
}

/* The products of vector number `i` (a constant) of a step. x lies as gemv_pack() put it: for types
 * with a stride, the same number of each of FUSED_PARTS vectors of W, then the next. */
FUSED_INLINE void fused_vector(ccmem_dtype dtype, fvec sum[FUSED_SUMS], VEC w, const float *x,
                               size_t i) {
    const size_t group = i / FUSED_PARTS * FUSED_PARTS, part = i % FUSED_PARTS;
    switch (dtype) {
    case CCMEM_F32: fused_add(sum, ffloats(w), x, i); break;
    case CCMEM_F16:
        fused_add(sum, fhalves(w, 0), x, 2 * i);
        fused_add(sum, fhalves(w, 1), x, 2 * i + 1);
        break;
    case CCMEM_BF16:
        fused_add(sum, fbfloats(w, 0), x, 2 * group + part);
        fused_add(sum, fbfloats(w, 1), x, 2 * group + part + FUSED_PARTS);
        break;
    case CCMEM_I8:
        fused_add(sum, fbytes(w, 0), x, 4 * group + part);
        fused_add(sum, fbytes(w, 1), x, 4 * group + part + FUSED_PARTS);
        fused_add(sum, fbytes(w, 2), x, 4 * group + part + 2 * FUSED_PARTS);
        fused_add(sum, fbytes(w, 3), x, 4 * group + part + 3 * FUSED_PARTS);
        break;
    }
}

FUSED_INLINE void load_sums(fvec sum[FUSED_SUMS], const float *from) {
#pragma GCC unroll 8
    for (int j = 0; j < FUSED_SUMS; j++)
        sum[j] = fload_aligned(from + F_LANES * j);
}

FUSED_INLINE void save_sums(float *to, const fvec sum[FUSED_SUMS]) {
#pragma GCC unroll 8
    for (int j = 0; j < FUSED_SUMS; j++)
        fstore_aligned(to + F_LANES * j, sum[j]);
}

FUSED_INLINE void clear_sums(fvec sum[FUSED_SUMS]) {
#pragma GCC unroll 8
    for (int j = 0; j < FUSED_SUMS; j++)
        sum[j] = fzero();
}
