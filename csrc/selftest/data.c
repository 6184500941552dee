/* SPDX-License-Identifier: Apache-2.0
 * The data that the self-tests work on, and comparisons of it. */
#include <string.h>

#include "selftest/selftest.h"

void selftest_fill(uint8_t *p, size_t n, uint64_t seed) {
    for (size_t i = 0; i < n; i++) {
        uint64_t z = seed += UINT64_C(0x9e3779b97f4a7c15);
        z = (z ^ z >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
        z = (z ^ z >> 27) * UINT64_C(0x94d049bb133111eb);
        p[i] = (uint8_t)(z ^ z >> 31);
    }
}

int selftest_same(const void *a, const void *b, size_t n) { return !memcmp(a, b, n); }

int selftest_zero(const uint8_t *p, size_t n) {
    uint8_t all = 0;
    for (size_t i = 0; i < n; i++)
        all |= p[i];
    return !all;
}

void selftest_number(ccmem_dtype dtype, uint8_t *to, int v) {
    float f = (float)v;
    uint32_t bits;
    uint16_t half;
    memcpy(&bits, &f, sizeof bits);
    switch (dtype) {
    case CCMEM_F32: memcpy(to, &bits, 4); break;
    case CCMEM_F16: /* the exponent's bias is 15 instead of 127; three bits of fraction suffice */
        half = (uint16_t)(bits >> 16 & 0x8000);
        if (v)
            half |= (uint16_t)((bits >> 13 & 0x3ffff) - ((127 - 15) << 10));
        memcpy(to, &half, 2);
        break;
    case CCMEM_BF16:
        half = (uint16_t)(bits >> 16);
        memcpy(to, &half, 2);
        break;
    case CCMEM_I8: *to = (uint8_t)v; break;
    }
}
