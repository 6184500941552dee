/* SPDX-License-Identifier: Apache-2.0
 * Products of an encrypted matrix with plain vectors. See ccmem_store_linear() in ccmem.h. */
#ifndef CCMEM_LINEAR_H
#define CCMEM_LINEAR_H

#include "ccmem.h"

enum { LINEAR_PARTS = 8 }; /* matrices that are multiplied at once */

/* What ccmem_store_linear() takes, but x and y may be of bfloat16. */
typedef struct linear_product {
    ccmem_store *store;
    uint64_t offset;
    ccmem_dtype dtype;
    uint64_t out_features, in_features;
    const void *x; /* of float32, or of bfloat16 where it is multiplied as such */
    uint64_t nrows, ldx;
    const float *scale, *bias;
    void *y;
    uint64_t ldy;
    int halves; /* y is of bfloat16, where gemm_whole() */
} linear_product;

/* Returns CCMEM_OK when W lies in the store, which is this process's and open; else why not. */
ccmem_status linear_check_matrix(const ccmem_store *store, uint64_t offset, uint64_t element,
                                 uint64_t out_features, uint64_t in_features);

/* Checks the arguments and multiplies; y is zeros on failure. With `halves`, W and x are of
 * bfloat16 and multiplied as such, which the active tier must have kernels for. */
ccmem_status linear_multiply(const linear_product *product, int halves);

/* The same for n <= LINEAR_PARTS matrices of one type and width that have x and its number of rows
 * in common. Threads take parts of all together where there is one row. If one fails, all of y of
 * all of them is zeros. */
ccmem_status linear_multiply_parts(const linear_product *products, size_t n, int halves);

#endif
