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

/* What one_round() turns bytes with. */
INLINE void make_turns(VEC turn[3]) {
    turn[0] = vkey(sm4_tables.byte_turn_2[0]);
    turn[1] = vkey(sm4_tables.byte_turn_3[0]);
    turn[2] = turn[1]; /* not used */
}

INLINE VEC one_round(VEC x0, VEC sum, VEC key, const VEC turn[3]) {
    VEC t = vaffine(vxor(sum, key), SM4_GFNI_IN, SM4_IN_ADDED);
    VEC a = vinverse(t, SM4_GFNI_A, SM4_GFNI_A_ADDED),
        b = vinverse(t, SM4_GFNI_B, SM4_GFNI_B_ADDED);
    VEC near = vxor(a, vshuffle(b, turn[0]));
    x0 = vxor(x0, near);
    return vxor(x0, vshuffle(vxor(near, b), turn[1]));
}
