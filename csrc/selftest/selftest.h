/* SPDX-License-Identifier: Apache-2.0
 * Known-answer tests: published vectors first, then pseudo-random pages against the portable tier.
 * Each returns CCMEM_OK, CCMEM_ERR_SELFTEST or CCMEM_ERR_NOMEM, and is
 * given what the processor can run. */
#ifndef CCMEM_SELFTEST_H
#define CCMEM_SELFTEST_H

#include "tiers/tiers.h"

/* One test for each kind of table: selftest_aes(), which tests CMAC and key wrap as well, and so
 * on. */
#define TABLE(type, name) ccmem_status selftest_##name(const type *ops);
TIER_TABLES(TABLE)
#undef TABLE

/* Products with one row of x in the registers that pages are opened in; NULL: not by this cipher.
 */
ccmem_status selftest_fused(const gemv_ops *ops, const xts_ops *xts, const aegis_ops *aegis);

/* Blocks of quantised weights, which no tier has kernels of its own for. */
ccmem_status selftest_quant(void);

/* All tables of a tier that the processor can run. */
ccmem_status selftest_run(ccmem_tier number);

/* Fills n bytes by splitmix64 (Steele, Lea, Flood 2014): the data only has to look different
 * everywhere. */
void selftest_fill(uint8_t *p, size_t n, uint64_t seed);

/* 1 when these n bytes are the same, and when all of them are zero. */
int selftest_same(const void *a, const void *b, size_t n);
int selftest_zero(const uint8_t *p, size_t n);

/* Writes the whole number v, from -8 to 7, as an element of a matrix. */
void selftest_number(ccmem_dtype dtype, uint8_t *to, int v);

#endif
