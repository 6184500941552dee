/* SPDX-License-Identifier: Apache-2.0
 * A product's bias as floats. */
#ifndef CCMEM_PRODUCT_BIAS_H
#define CCMEM_PRODUCT_BIAS_H

#include "ccmem.h"

/* Returns 1 for what ccmem.h allows: one of the types, and not both places. */
int bias_valid(const ccmem_bias *bias);

/* Bytes of scratch, aligned to 64, that bias_floats() needs for n elements; UINT64_MAX for more
 * than that can count. */
uint64_t bias_scratch(const ccmem_bias *bias, uint64_t n);

/* *out is n floats, the caller's or in `scratch`, or NULL for no bias. The errors of
 * ccmem_store_read(). */
ccmem_status bias_floats(const ccmem_bias *bias, uint64_t n, uint8_t *scratch, const float **out);

#endif
