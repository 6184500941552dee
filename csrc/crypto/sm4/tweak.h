/* SPDX-License-Identifier: Apache-2.0
 * XTS tweaks in the bit order of GB/T 17964-2021, which is that of GCM: bit 7 - i of byte j is
 * x^(8j + i). So the block is a number, its first byte the most significant, and times x is a shift
 * to the right. Constant time in the tweak; the distance of a jump is public. */
#ifndef CCMEM_SM4_TWEAK_H
#define CCMEM_SM4_TWEAK_H

#include "ccmem.h"

typedef struct gb_tweak {
    uint64_t hi, lo; /* the coefficients of x^0 .. x^63, highest bit first, and x^64 .. x^127 */
} gb_tweak;

static inline gb_tweak gb_load(const uint8_t p[16]) {
    gb_tweak t = {0, 0};
    for (int i = 0; i < 8; i++) {
        t.hi = t.hi << 8 | p[i];
        t.lo = t.lo << 8 | p[i + 8];
    }
    return t;
}

static inline void gb_store(uint8_t p[16], gb_tweak t) {
    for (int i = 0; i < 8; i++) {
        p[i] = (uint8_t)(t.hi >> (56 - 8 * i));
        p[i + 8] = (uint8_t)(t.lo >> (56 - 8 * i));
    }
}

/* t times x; x^128 = x^7 + x^2 + x + 1 are the bits 0xe1 of the first byte. */
static inline gb_tweak gb_double(gb_tweak t) {
    uint64_t carry = 0 - (t.lo & 1);
    return (gb_tweak){t.hi >> 1 ^ (carry & UINT64_C(0xe1) << 56), t.lo >> 1 | t.hi << 63};
}

/* t times x^n for n from 1 to 57: what is shifted out comes back at the top, times the remainder,
 * which is less than 64 bits long. */
static inline gb_tweak gb_shift(gb_tweak t, unsigned n) {
    uint64_t out = t.lo << (64 - n);
    return (gb_tweak){t.hi >> n ^ out ^ out >> 1 ^ out >> 2 ^ out >> 7,
                      t.lo >> n | t.hi << (64 - n)};
}

/* t times x^n. */
static inline gb_tweak gb_jump(gb_tweak t, size_t n) {
    for (; n > 32; n -= 32)
        t = gb_shift(t, 32);
    return n ? gb_shift(t, (unsigned)n) : t;
}

#endif
