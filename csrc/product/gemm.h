/* SPDX-License-Identifier: Apache-2.0
 * Products with several rows of x. */
#ifndef CCMEM_PRODUCT_GEMM_H
#define CCMEM_PRODUCT_GEMM_H

#include "product/linear.h"
#include "tiers/tiers.h"

/* Returns 1 when each result is summed at once, and can be rounded. */
int gemm_whole(const gemm_ops *ops, const linear_product *product);

/* Multiplies by kernels that take x's type. The arguments were checked, and there is at least one
 * row and column. y is not zeroed on failure. The errors of store_open_pages(), and
 * CCMEM_ERR_NOMEM. */
ccmem_status gemm_multiply(const gemm_ops *ops, const linear_product *product);

#endif
