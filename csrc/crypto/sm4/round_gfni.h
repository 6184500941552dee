/* SPDX-License-Identifier: Apache-2.0
 *
 * SM4's round by GFNI: an affine map into the field of AES, then inversion there with an affine map
 * of its result, twice, for the terms of L; see crypto/sm4/round_aes.h. */
#include "crypto/sm4/maps.h"
#include "crypto/sm4/sm4.h"

typedef struct rounds {
    const uint8_t *key;
    ptrdiff_t step;
} rounds;

static inline rounds rounds_of(const sm4_key *key, int decrypt) {
    return decrypt ? (rounds){key->rk[SM4_ROUNDS - 1], -4} : (rounds){key->rk[0], 4};
}

INLINE void enter(VEC x[4], const rounds *r) { (void)x, (void)r; }

INLINE void leave(VEC x[4], const rounds *r) {
    VEC y[4] = {x[3], x[2], x[1], x[0]};
    (void)r;
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++)
        x[i] = y[i];
}

INLINE VEC one_round(VEC x0, VEC x1, VEC pair, VEC key) {
    VEC t = vaffine(vxor3(x1, pair, key), SM4_GFNI_IN, SM4_IN_ADDED);
    VEC a = vinverse(t, SM4_GFNI_A, SM4_GFNI_A_ADDED),
        b = vinverse(t, SM4_GFNI_B, SM4_GFNI_B_ADDED);
    VEC near = vxor(a, vshuffle(b, vkey(sm4_tables.byte_turn_2[0])));
    return vxor3(x0, near, vshuffle(vxor(near, b), vkey(sm4_tables.byte_turn_3[0])));
}
