/* SPDX-License-Identifier: Apache-2.0
 * The types of a matrix's elements: their sizes, and floats from their bits. */
#ifndef CCMEM_DTYPE_H
#define CCMEM_DTYPE_H

#include <string.h>

#include "ccmem.h"

enum { DTYPES = CCMEM_I8 + 1 };

/* Returns the bytes of one element; 0 outside the enumeration. */
static inline size_t dtype_size(ccmem_dtype dtype) {
    switch (dtype) {
    case CCMEM_F32: return 4;
    case CCMEM_F16:
    case CCMEM_BF16: return 2;
    case CCMEM_I8: return 1;
    }
    return 0;
}

static inline float float_of_bits(uint32_t bits) {
    float f;
    memcpy(&f, &bits, sizeof f);
    return f;
}

/* A bfloat16 is the upper half of a float32. */
static inline float float_of_bfloat16(uint16_t half) { return float_of_bits((uint32_t)half << 16); }

#endif
