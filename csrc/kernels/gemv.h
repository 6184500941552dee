/* SPDX-License-Identifier: Apache-2.0
 * Products of encrypted rows with one plain vector: the arithmetic of each tier behind one table.
 * See ccmem_store_linear() in ccmem.h. */
#ifndef CCMEM_GEMV_H
#define CCMEM_GEMV_H

#include "platform/dtype.h"

enum {
    GEMV_BLOCK_MAX = 64, /* of elements, in every tier */
    GEMV_CHAINS = 4      /* partial sums a lane */
};

/* The partial sums of a row of x with a row of W: element i of a row belongs to the sum i modulo
 * the block, so that what is added to what, and in which order, depends on nothing but the row's
 * length. */
typedef struct gemv_sums {
    _Alignas(64) float lane[GEMV_BLOCK_MAX];
} gemv_sums;

/* Adds the products of `blocks` whole blocks of W with those of x to *sums. */
typedef void (*gemv_dot)(gemv_sums *sums, const uint8_t *w, const float *x, size_t blocks);

typedef struct gemv_ops {
    uint32_t block; /* elements: GEMV_CHAINS vectors of floats */
    /* Packed x: of each group of `stride[dtype]` vectors, every stride-th element first, so that
     * W's elements need not be put in order after their conversion. 1: as it is. */
    uint32_t stride[DTYPES];
    gemv_dot dot[DTYPES];
    /* The sum of the partial sums, always added in the same order; they are zero then. */
    float (*total)(gemv_sums *sums);
    /* The same for the sums of loops that multiply pages in the registers they open them in: these
     * stay as they are; 64-byte aligned. NULL: no such loop goes with this table. */
    float (*sum)(const float *lane);
} gemv_ops;

extern const gemv_ops gemv_portable, gemv_avx2, gemv_avx512;

/* Copies n floats in the order that W's elements of this type are converted in, and adds zeros up
 * to a whole block: packed holds gemv_padded(ops, n). */
void gemv_pack(const gemv_ops *ops, ccmem_dtype dtype, float *packed, const float *x, size_t n);

static inline size_t gemv_padded(const gemv_ops *ops, size_t n) {
    return (n + ops->block - 1) / ops->block * ops->block;
}

#endif
