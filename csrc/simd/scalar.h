/* SPDX-License-Identifier: Apache-2.0
 * Conversions of one element in plain C, without branches on what it is. */
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

/* The value of IEEE 754 binary16 bits, all of them in the same time: a NaN keeps its payload and
 * becomes quiet, as VCVTPH2PS does it. */
static inline float float_of_half(uint32_t h) {
    const uint32_t sign = h >> 15 << 31, rest = h & 0x7fff;
    const uint32_t small = below(rest, 0x400), special = below(0x7bff, rest);
    const uint32_t nan = 0x7f800000 | (rest & 0x3ff) << 13 | (below(0x7c00, rest) & 0x400000);
    float subnormal = (float)rest * 0x1p-24f;
    uint32_t bits;
    memcpy(&bits, &subnormal, sizeof bits);
    bits = (bits & small) | (nan & special) |
           (((rest << 13) + ((127 - 15) << 23)) & ~(small | special));
    return float_of_bits(sign | bits);
}

static inline float element_from_f16(const uint8_t *p) { return float_of_half(half_bits(p)); }

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

/* The same for binary16, as VCVTPS2PH does it: too large becomes infinite, a NaN becomes quiet and
 * keeps the upper bits of its payload. */
static inline uint16_t float16_of(float f) {
    uint32_t u, v;
    memcpy(&u, &f, sizeof u);
    const uint32_t sign = u >> 16 & 0x8000, size = u & 0x7fffffff;
    const uint32_t small = below(size, 0x38800000), nan = below(0x7f800000, size);
    /* Adding 2^23 rounds a number of subnormal units to a whole one. */
    float units = float_of_bits(size & small) * 0x1p24f + 0x1p23f;
    memcpy(&v, &units, sizeof v);
    uint32_t normal = ((size + 0xfff + (size >> 13 & 1)) >> 13) - ((127 - 15) << 10);
    const uint32_t large = below(0x477fefff, size);
    normal = (normal & ~large) | (0x7c00 & large);
    normal = (normal & ~nan) | ((0x7e00 | (size >> 13 & 0x3ff)) & nan);
    return (uint16_t)(sign | (v & 0x7fff & small) | (normal & ~small));
}

/* ---- selections without branches ------------------------------------------------------------- */

static inline uint32_t bits_of(float f) {
    uint32_t u;
    memcpy(&u, &f, sizeof u);
    return u;
}

/* All ones when a < b, else 0; of what is not a number, 0. */
static inline uint32_t less(float a, float b) { return 0 - (uint32_t)(a < b); }

static inline float pick(uint32_t mask, float a, float b) {
    return float_of_bits((bits_of(a) & mask) | (bits_of(b) & ~mask));
}

/* How a row whose largest size is `most` becomes bytes: round(x * enlarge * per_step), each times
 * `scale`. Rows of tiny numbers are enlarged, or their scale's inverse would be infinite. */
typedef struct byte_scale {
    float scale, enlarge, per_step;
} byte_scale;

static inline byte_scale byte_scale_of(float most) {
    const float enlarge = pick(less(most, 0x1p-100f), 0x1p100f, 1.0f);
    const float per_step = pick(less(0, most), 127.0f / (most * enlarge), 0);
    return (byte_scale){.scale = most / 127.0f, .enlarge = enlarge, .per_step = per_step};
}

/* How a row whose largest size is `most` becomes 16-bit numbers: times `enlarge`, a power of two,
 * so that small whole numbers stay exact; each then counts `size`. Rows of numbers below 2^-100 are
 * not enlarged further. */
typedef struct short_scale {
    float enlarge, size;
} short_scale;

static inline short_scale short_scale_of(float most) {
    enum { LEAST = 27 << 23, BITS = 14 }; /* 2^-100; most * enlarge is 2^14 to 2^15 */
    uint32_t exponent = bits_of(most) & 0x7f800000;
    const uint32_t small = below(exponent, LEAST);
    exponent = (exponent & ~small) | (LEAST & small);
    return (short_scale){.enlarge = float_of_bits(((127u + 127 + BITS) << 23) - exponent),
                         .size = float_of_bits(exponent - (BITS << 23))};
}

#endif
