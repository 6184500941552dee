/* SPDX-License-Identifier: Apache-2.0
 * Vectors of bfloat16 that are multiplied as floats. */
#ifndef CCMEM_PRODUCT_HALVES_H
#define CCMEM_PRODUCT_HALVES_H

#include "simd/scalar.h"

static inline void widen_halves(float *to, const uint16_t *from, size_t n) {
    for (size_t i = 0; i < n; i++)
        to[i] = float_of_bfloat16(from[i]);
}

static inline void narrow_to_halves(uint16_t *to, const float *from, size_t n) {
    for (size_t i = 0; i < n; i++)
        to[i] = bfloat16_of(from[i]);
}

#endif
