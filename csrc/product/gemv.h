/* SPDX-License-Identifier: Apache-2.0
 * Products with one row of x. */
#ifndef CCMEM_PRODUCT_GEMV_H
#define CCMEM_PRODUCT_GEMV_H

#include "product/linear.h"
#include "tiers/tiers.h"

/* Multiplies one row of x by n <= LINEAR_PARTS matrices of one type and width; x and y are of
 * float32, and the same x is in all. The arguments were checked, and there is at least one column.
 * No y is zeroed on failure. The errors of store_open_pages(), and CCMEM_ERR_NOMEM. */
ccmem_status gemv_multiply(const gemv_ops *ops, const linear_product *products, size_t n);

#endif
