/* SPDX-License-Identifier: Apache-2.0
 * SM4 between the steps of GHASH: what crypto/gcm/template.h asks for of a cipher. Included after
 * the words of a width and crypto/sm4/round_aes.h or round_gfni.h.
 *
 * What is encrypted goes by way of memory: the words of a group do not fit into the registers of
 * any processor but those with AVX-512, and so the code of a group is there once, not once for each
 * loop over pages. */
#include "crypto/sm4/sets.h"
#include "crypto/sm4_gcm/sm4_gcm.h"

#define GCM_KEY sm4_gcm_key
#define GCM_GROUP (4 * SM4_SETS)
#define GCM_LEAST 4

typedef struct hasher hasher;
INLINE void gcm_vector(hasher *h, int i);

enum { SM4_LOOPS = SM4_ROUNDS / 4, SHARE = GCM_GROUP / SM4_LOOPS };
_Static_assert(SHARE *SM4_LOOPS == GCM_GROUP, "equal shares of a group's hash between rounds");

static TARGET __attribute__((noinline)) void gcm_set(const rounds *r, VEC (*x)[4]) {
    crypt_sets(1, r, x);
}

static TARGET __attribute__((noinline)) void gcm_sets(const rounds *r, VEC (*x)[4]) {
    crypt_sets(SM4_SETS, r, x);
}

static TARGET __attribute__((noinline)) void gcm_sets_hashing(const rounds *r, VEC (*x)[4],
                                                              hasher *h) {
    VEC turns[3];
    begin_sets(SM4_SETS, r, x, turns);
#pragma GCC unroll 1
    for (int i = 0; i < SM4_LOOPS; i++) {
        four_rounds(SM4_SETS, r, i, x, turns);
#pragma GCC unroll 2
        for (int j = 0; j < SHARE; j++)
            gcm_vector(h, SHARE * i + j);
    }
    end_sets(SM4_SETS, r, x);
}

INLINE void gcm_encrypt(const sm4_gcm_key *key, VEC *x, int n, hasher *h) {
    const rounds r = rounds_of(&key->enc, 0);
    if (n == 1) { /* the others are of no use */
        VEC set[1][4] = {{x[0], x[0], x[0], x[0]}};
        gcm_set(&r, set);
        x[0] = set[0][0];
    } else if (n == GCM_LEAST) {
        gcm_set(&r, (VEC(*)[4])x);
    } else if (h) {
        gcm_sets_hashing(&r, (VEC(*)[4])x, h);
    } else {
        gcm_sets(&r, (VEC(*)[4])x);
    }
}
