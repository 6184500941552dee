/* SPDX-License-Identifier: Apache-2.0
 *
 * SM4's round by AES instructions. Both S-boxes are an inversion in GF(2^8) between affine maps, in
 * fields that differ in their polynomials alone, so SM4's is that of AES between two linear maps.
 * (The idea is public: Saarinen, github.com/mjosaarinen/sm4ni, 2018; Kivilinna's kernels in
 * Libgcrypt use it too. The matrices here were searched for anew: tests/crypto/test_sm4_maps.py.)
 *
 * Words are kept in the field of AES all along: the map out of it, L and the map back into it are
 * one linear map of the four bytes that AESENCLAST makes, by two tables of 16 nibbles each for `a`
 * and `b` (docs/design/sm4.md), and byte shuffles that also undo ShiftRows. Round keys are added by
 * AESENCLAST itself: see make_rounds() in crypto/sm4/sm4.c. */
#include "crypto/sm4/maps.h"
#include "crypto/sm4/sm4.h"

typedef struct rounds {
    const uint8_t *key;
    ptrdiff_t step;
    const sm4_rounds *of;
} rounds;

static inline rounds rounds_of(const sm4_key *key, int decrypt) {
    const sm4_rounds *of = decrypt ? &key->dec : &key->enc;
    return (rounds){of->key[0], 4, of};
}

#define TABLE(name, i) vkey(sm4_tables.name[i])

#define by_nibbles(low, high, name)                                                                \
    vxor(vshuffle(TABLE(name, 0), low), vshuffle(TABLE(name, 1), high))

INLINE VEC map_bytes_in(VEC x) {
    VEC mask = TABLE(nibble, 0), low = vand128(x, mask), high = vand128(vshr32(x, 4), mask);
    return by_nibbles(low, high, in);
}

INLINE VEC map_bytes_out(VEC x) {
    VEC mask = TABLE(nibble, 0), low = vand128(x, mask), high = vand128(vshr32(x, 4), mask);
    return by_nibbles(low, high, out);
}

INLINE void enter(VEC x[4], const rounds *r) {
    x[3] = vxor(x[3], vword(r->of->first));
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++)
        x[i] = map_bytes_in(x[i]);
}

INLINE void leave(VEC x[4], const rounds *r) {
    VEC y[4];
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++)
        y[i] = map_bytes_out(x[i]);
    x[0] = y[3];
#pragma GCC unroll 3
    for (int i = 0; i < 3; i++)
        x[3 - i] = vxor(y[i], vword(r->of->last[i]));
}

/* What one_round() turns bytes with. */
INLINE void make_turns(VEC turn[3]) {
    turn[0] = TABLE(inner_turn_2, 0);
    turn[1] = TABLE(turn_0, 0);
    turn[2] = TABLE(turn_3, 0);
}

INLINE VEC one_round(VEC x0, VEC sum, VEC key, const VEC turn[3]) {
    VEC s = vaesenclast(sum, key);
    VEC mask = TABLE(nibble, 0), low = vand128(s, mask), high = vand128(vshr32(s, 4), mask);
    VEC a = by_nibbles(low, high, a), b = by_nibbles(low, high, b);
    VEC near = vxor(a, vshuffle(b, turn[0]));
    x0 = vxor(x0, vshuffle(near, turn[1]));
    return vxor(x0, vshuffle(vxor(near, b), turn[2]));
}
