/* SPDX-License-Identifier: Apache-2.0
 * AES key wrap: RFC 3394. */
#include "crypto/aes/keywrap.h"

#include "memory/secret.h"

#include <string.h>

enum { STEPS = 6 }; /* passes over the key: s of SP 800-38F, 6.1, is six times its semiblocks */

/* SP 800-38F, 6.2: ICV1. */
static const uint8_t icv[KEYWRAP_UNIT] = {0xa6, 0xa6, 0xa6, 0xa6, 0xa6, 0xa6, 0xa6, 0xa6};

/* The first semiblock is mixed with the step's number, big-endian. */
static void add_step(uint8_t a[KEYWRAP_UNIT], uint64_t t) {
    for (int i = 0; i < KEYWRAP_UNIT; i++)
        a[i] ^= (uint8_t)(t >> (56 - 8 * i));
}

void keywrap_expand(keywrap_key *out, const uint8_t *kek, size_t kek_len) {
    aes_expand(&out->enc, kek, kek_len);
    aes_invert(&out->dec, &out->enc);
}

/* RFC 3394, 2.2.1, the second form. The key wanders through `out` behind its first semiblock. */
void keywrap_wrap(const aes_ops *ops, const keywrap_key *key, const uint8_t *in, size_t n,
                  uint8_t *out) {
    uint8_t block[AES_BLOCK]; /* A | R[i] */
    uint64_t t = 0;

    copy_secret(out + KEYWRAP_UNIT, in, n);
    memcpy(block, icv, sizeof icv);
    for (int j = 0; j < STEPS; j++)
        for (size_t i = KEYWRAP_UNIT; i <= n; i += KEYWRAP_UNIT) {
            copy_secret(block + KEYWRAP_UNIT, out + i, KEYWRAP_UNIT);
            ops->encrypt(&key->enc, block, block, 1);
            add_step(block, ++t);
            copy_secret(out + i, block + KEYWRAP_UNIT, KEYWRAP_UNIT);
        }
    copy_secret(out, block, KEYWRAP_UNIT);
    ccmem_wipe(block, sizeof block);
}

/* RFC 3394, 2.2.2, the second form. */
int keywrap_unwrap(const aes_ops *ops, const keywrap_key *key, const uint8_t *in, size_t n,
                   uint8_t *out) {
    uint8_t block[AES_BLOCK];
    uint64_t t = STEPS * (uint64_t)(n / KEYWRAP_UNIT - 1);
    int good;

    n -= KEYWRAP_UNIT;
    copy_secret(block, in, KEYWRAP_UNIT);
    copy_secret(out, in + KEYWRAP_UNIT, n);
    for (int j = 0; j < STEPS; j++)
        for (size_t i = n; i; i -= KEYWRAP_UNIT) {
            uint8_t *r = out + i - KEYWRAP_UNIT;
            add_step(block, t--);
            copy_secret(block + KEYWRAP_UNIT, r, KEYWRAP_UNIT);
            ops->decrypt_block(&key->enc, &key->dec, block);
            copy_secret(r, block + KEYWRAP_UNIT, KEYWRAP_UNIT);
        }
    good = ccmem_equal(block, icv, sizeof icv);
    if (!good)
        ccmem_wipe(out, n);
    ccmem_wipe(block, sizeof block);
    return good;
}
