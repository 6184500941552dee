/* SPDX-License-Identifier: Apache-2.0
 * Known-answer tests: published vectors first, then pseudo-random pages against the portable tier.
 */
#ifndef CCMEM_SELFTEST_H
#define CCMEM_SELFTEST_H

#include "ccmem.h"

/* splitmix64 (Steele, Lea, Flood 2014) into n bytes: the data only has to look different
 * everywhere. */
void selftest_fill(uint8_t *p, size_t n, uint64_t seed);

/* AEGIS with the kernels of a tier that the processor supports. CCMEM_ERR_SELFTEST,
 * CCMEM_ERR_NOMEM. */
ccmem_status selftest_aegis(ccmem_tier tier);

/* The whole number v, from -8 to 7, as an element of a matrix. */
void selftest_number(ccmem_dtype dtype, uint8_t *to, int v);

/* Products of one row of x with the arithmetic that goes with a tier. CCMEM_ERR_SELFTEST,
 * CCMEM_ERR_NOMEM. */
ccmem_status selftest_matmul(ccmem_tier tier);

/* The same for several rows of x. */
ccmem_status selftest_panels(ccmem_tier tier);

/* Tests a tier that the processor supports. CCMEM_ERR_SELFTEST, CCMEM_ERR_NOMEM. */
ccmem_status selftest_run(ccmem_tier tier);

#endif
