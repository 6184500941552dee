/* SPDX-License-Identifier: Apache-2.0
 * Quantisers: finite floats become what is to be in one block. */
#ifndef CCMEM_QUANT_QUANTIZE_H
#define CCMEM_QUANT_QUANTIZE_H

#include "quant/fit.h"
#include "quant/pack.h"

/* The multiples of a block's scale, and offset, that its groups take. */
typedef struct quant_multiples {
    float scale[BLOCK_GROUPS_MAX], minus[BLOCK_GROUPS_MAX];
} quant_multiples;

/* Floats that have been multiplied by unit.to, and what quantize_super() works with: here, so that
 * it is wiped with them, and no frame is larger than what burn_stack() overwrites. */
typedef struct quant_floats {
    float x[BLOCK_ELEMENTS_MAX];
    fit_unit unit;
    fit_floats floats[BLOCK_GROUPS_MAX];
    fit_line wanted[BLOCK_GROUPS_MAX];
    quant_multiples trial, chosen;
} quant_floats;

/* The bits of the float16 nearest to a number in units, at most the largest one there is; in
 * `back`, its value in units. */
static inline uint32_t quant_half(float v, fit_unit unit, float *back) {
    const float most = 65504;
    const uint32_t bits = float16_of(at_least(at_most(v * unit.from, most), -most));
    *back = float_of_half(bits) * unit.to;
    return bits;
}

/* One scale, and offset, for the whole block. */
void quantize_simple(ccmem_block_format number, const quant_floats *in, block_parts *out);

/* Groups with scales, and offsets, that are whole multiples of the block's. */
void quantize_super(ccmem_block_format number, quant_floats *in, block_parts *out);

#endif
