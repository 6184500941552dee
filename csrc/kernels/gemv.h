/* SPDX-License-Identifier: Apache-2.0
 * Products of encrypted rows with one plain vector: the arithmetic of each tier behind one table.
 * And the way into products with any number. See ccmem_store_linear() in ccmem.h. */
#ifndef CCMEM_MATMUL_H
#define CCMEM_MATMUL_H

#include <string.h>

#include "ccmem.h"
#include "kernels/gemm.h"

enum {
    MATMUL_DTYPES = CCMEM_I8 + 1,
    MATMUL_BLOCK_MAX = 64, /* of elements, in every tier */
    MATMUL_CHAINS = 4      /* partial sums a lane */
};

/* The partial sums of a row of x with a row of W: element i of a row belongs to the sum i modulo
 * the block, so that what is added to what, and in which order, depends on nothing but the row's
 * length. */
typedef struct matmul_sums {
    _Alignas(64) float lane[MATMUL_BLOCK_MAX];
} matmul_sums;

/* Adds the products of `blocks` whole blocks of W with those of x to *sums. */
typedef void (*matmul_dot)(matmul_sums *sums, const uint8_t *w, const float *x, size_t blocks);

typedef struct matmul_ops {
    uint32_t block; /* elements: MATMUL_CHAINS vectors of floats */
    /* Packed x: of each group of `stride[dtype]` vectors, every stride-th element first, so that
     * W's elements need not be put in order after their conversion. 1: as it is. */
    uint32_t stride[MATMUL_DTYPES];
    matmul_dot dot[MATMUL_DTYPES];
    /* The sum of the partial sums, always added in the same order; they are zero then. */
    float (*total)(matmul_sums *sums);
    /* The same, and the partial sums stay as they are; 64-byte aligned. */
    float (*sum)(const float *lane);
} matmul_ops;

extern const matmul_ops matmul_portable, matmul_avx2, matmul_avx512;

/* What goes with the ciphers' tier on this processor. */
const matmul_ops *matmul_tier(ccmem_tier tier);

/* ccmem_store_linear(); with `halves`, W and x of bfloat16 multiplied as such where panel_tier()
 * has what it takes. */
ccmem_status matmul_product(const panel_product *product, int halves);

/* Bytes of one element; 0 outside the enumeration. */
size_t matmul_element(ccmem_dtype dtype);

/* Copies n floats in the order that W's elements of this type are converted in, and adds zeros up
 * to a whole block: packed holds matmul_padded(ops, n). */
void matmul_pack(const matmul_ops *ops, ccmem_dtype dtype, float *packed, const float *x, size_t n);

/* The float32 of these bits; and of a bfloat16, its upper half. */
static inline float matmul_float(uint32_t bits) {
    float f;
    memcpy(&f, &bits, sizeof f);
    return f;
}

static inline float matmul_bf16(uint16_t half) { return matmul_float((uint32_t)half << 16); }

static inline size_t matmul_padded(const matmul_ops *ops, size_t n) {
    return (n + ops->block - 1) / ops->block * ops->block;
}

#endif
