/* SPDX-License-Identifier: Apache-2.0
 * Conversions of one element in plain C. */
#ifndef CCMEM_SCALAR_H
#define CCMEM_SCALAR_H

#include <string.h>

#include "platform/dtype.h"

static inline uint32_t half_bits(const uint8_t *p) {
    uint16_t h;
    memcpy(&h, p, sizeof h);
    return h;
}

/* All ones when a < b, else 0, without a comparison that could become a branch; both below 2^31. */
static inline uint32_t below(uint32_t a, uint32_t b) { return 0 - ((a - b) >> 31); }

/* IEEE 754 binary16, all values, in the same time for each: a NaN keeps its payload and becomes
 * quiet, as VCVTPH2PS does it. */
static inline float element_from_f16(const uint8_t *p) {
    const uint32_t h = half_bits(p), sign = h >> 15 << 31, rest = h & 0x7fff;
    const uint32_t small = below(rest, 0x400), special = below(0x7bff, rest);
    const uint32_t nan = 0x7f800000 | (rest & 0x3ff) << 13 | (below(0x7c00, rest) & 0x400000);
    float subnormal = (float)rest * 0x1p-24f;
    uint32_t bits;
    memcpy(&bits, &subnormal, sizeof bits);
    bits = (bits & small) | (nan & special) |
           (((rest << 13) + ((127 - 15) << 23)) & ~(small | special));
    return float_of_bits(sign | bits);
}

static inline float element_from_f32(const uint8_t *p) {
    float f;
    memcpy(&f, p, sizeof f);
    return f;
}

static inline float element_from_bf16(const uint8_t *p) {
    return float_of_bfloat16((uint16_t)half_bits(p));
}

static inline float element_from_i8(const uint8_t *p) { return (float)(int8_t)*p; }

/* The bfloat16 nearest to a float32, of two the even one; a NaN stays one. Without a branch: which
 * is taken would tell of the numbers. */
static inline uint16_t bfloat16_of(float f) {
    uint32_t u;
    memcpy(&u, &f, sizeof u);
    uint32_t nan = 0 - (uint32_t)((u & 0x7fffffff) > 0x7f800000);
    uint32_t rounded = (u + 0x7fff + (u >> 16 & 1)) >> 16;
    return (uint16_t)((rounded & ~nan) | ((u >> 16 | 0x40) & nan));
}

#endif
