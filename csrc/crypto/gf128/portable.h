/* SPDX-License-Identifier: Apache-2.0
 * XTS tweaks (IEEE 1619-2018, 5.2) in two integer registers, for any processor. Constant time in
 * the tweak; the distance of a jump is public. */
#ifndef CCMEM_GF128_PORTABLE_H
#define CCMEM_GF128_PORTABLE_H

#include "crypto/gf128/gf128.h"

typedef struct gf128 {
    uint64_t lo, hi; /* the coefficients of x^0 .. x^63 and x^64 .. x^127 */
} gf128;

static inline gf128 gf128_load(const uint8_t p[16]) {
    gf128 t = {0, 0};
    for (int i = 0; i < 8; i++) {
        t.lo |= (uint64_t)p[i] << 8 * i;
        t.hi |= (uint64_t)p[i + 8] << 8 * i;
    }
    return t;
}

static inline void gf128_store(uint8_t p[16], gf128 t) {
    for (int i = 0; i < 8; i++) {
        p[i] = (uint8_t)(t.lo >> 8 * i);
        p[i + 8] = (uint8_t)(t.hi >> 8 * i);
    }
}

/* t times x. */
static inline gf128 gf128_double(gf128 t) {
    uint64_t carry = 0 - (t.hi >> 63);
    return (gf128){t.lo << 1 ^ (carry & GF_REMAINDER), t.hi << 1 | t.lo >> 63};
}

/* t times x^n: 64 steps at a time, the half that leaves at the top folded back in at the bottom as
 * its product with x^7 + x^2 + x + 1, which is up to 71 bits long. */
static inline gf128 gf128_jump(gf128 t, size_t n) {
    for (; n >= 64; n -= 64) {
        uint64_t top = t.hi;
        t.hi = t.lo ^ top >> 63 ^ top >> 62 ^ top >> 57;
        t.lo = top ^ top << 1 ^ top << 2 ^ top << 7;
    }
    for (; n; n--)
        t = gf128_double(t);
    return t;
}

#endif
