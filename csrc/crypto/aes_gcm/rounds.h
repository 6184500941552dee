/* SPDX-License-Identifier: Apache-2.0
 * AES between the steps of GHASH: what crypto/gcm/template.h asks for of a cipher, in the words of
 * simd/target.h. */
#include "crypto/aes_gcm/aes_gcm.h"

#define GCM_KEY aes_gcm_key

typedef struct hasher hasher;
INLINE void gcm_step(hasher *h, int i);
enum { AES_GCM_STEPS = GCM_GROUP + 1, AES_256_ROUNDS = 14 };

INLINE void aes_rounds(unsigned rounds, const aes_key *key, VEC *x, int n, hasher *h) {
    /* Makes the compiler fetch round keys anew: see crypto/xts/template.h. */
    __asm__ volatile("" : "+r"(key));
    VEC k = vkey(key->rk[0]);
#pragma GCC unroll 8
    for (int i = 0; i < n; i++)
        x[i] = vxor(x[i], k);
#pragma GCC unroll 14
    for (unsigned r = 1; r < rounds; r++) {
        k = vkey(key->rk[r]);
#pragma GCC unroll 8
        for (int i = 0; i < n; i++)
            x[i] = vaesenc(x[i], k);
        if (h && r <= AES_GCM_STEPS)
            gcm_step(h, (int)r - 1);
    }
    k = vkey(key->rk[rounds]);
#pragma GCC unroll 8
    for (int i = 0; i < n; i++)
        x[i] = vaesenclast(x[i], k);
}

/* Groups are of pages, and those of AES-256. */
INLINE void gcm_encrypt(const aes_gcm_key *key, VEC *x, int n, hasher *h) {
    if (n > 1 || key->enc.rounds == AES_256_ROUNDS)
        aes_rounds(AES_256_ROUNDS, &key->enc, x, n, h);
    else if (key->enc.rounds == 10)
        aes_rounds(10, &key->enc, x, n, h);
    else
        aes_rounds(12, &key->enc, x, n, h);
}
