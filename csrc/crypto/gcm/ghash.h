/* SPDX-License-Identifier: Apache-2.0
 * GHASH (NIST SP 800-38D, 6.3 and 6.4): what its key becomes, and the arithmetic in constant-time
 * C.
 *
 * GHASH counts bits from the top of each byte. With the bytes of a block reversed, its field is
 * that of POLYVAL (RFC 8452, 3), whose bits are where processors have them: a product with H there
 * is the product with H x reversed, divided by x^128 (RFC 8452, appendix A), and the division is
 * what makes the remainder two short products. All kernels work so. */
#ifndef CCMEM_GHASH_H
#define CCMEM_GHASH_H

#include <stddef.h>
#include <stdint.h>

enum { GHASH_BLOCK = 16, GHASH_POWERS = 16 };

/* power[GHASH_POWERS - n] is H^n, reversed and as products ask for it: n blocks that are hashed
 * with one remainder take the last n powers in their order. Secret. */
typedef struct ghash_key {
    _Alignas(64) uint8_t power[GHASH_POWERS][GHASH_BLOCK];
    uint8_t sum[GHASH_POWERS][GHASH_BLOCK]; /* of both halves of each, twice */
} ghash_key;

/* From H, the block of zeros encrypted, in constant time on every processor whose products of
 * integers take constant time. */
void ghash_expand(ghash_key *out, const uint8_t h[GHASH_BLOCK]);

/* Hashes nblocks blocks more into `sum`, which is zeros in the beginning. Leaves parts of secrets
 * below its frame: burn_stack(). */
void ghash_blocks(const ghash_key *key, uint8_t sum[GHASH_BLOCK], const uint8_t *data,
                  size_t nblocks);

/* The block that ends every message: the lengths of both parts in bits. */
void ghash_lengths(uint8_t out[GHASH_BLOCK], uint64_t ad_len, uint64_t text_len);

/* x^128 = x^127 + x^126 + x^121 + 1: what the lower half of a product is multiplied with. */
#define GHASH_REMAINDER UINT64_C(0xc200000000000000)

#endif
