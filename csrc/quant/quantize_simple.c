/* SPDX-License-Identifier: Apache-2.0
 * Blocks with one scale: Q4_0 to Q8_0, IQ4_NL, and groups. */
#include "quant/quantize.h"

static const fit_grid grids[CCMEM_BLOCK_FORMATS] = {
    [CCMEM_Q4_0] = {-8, 7, 0},
    [CCMEM_Q4_1] = {0, 15, 0},
    [CCMEM_Q5_0] = {-16, 15, 0},
    [CCMEM_Q5_1] = {0, 31, 0},
    [CCMEM_Q8_0] = {-127, 127, 0},
    [CCMEM_IQ4_NL] = {-127, 113, 1},
    [CCMEM_INT4_G32] = {-8, 7, 0},
    [CCMEM_INT4_G64] = {-8, 7, 0},
    [CCMEM_INT4_G128] = {-8, 7, 0},
    [CCMEM_INT4_G32_ZP] = {0, 15, 0},
    [CCMEM_INT4_G64_ZP] = {0, 15, 0},
    [CCMEM_INT4_G128_ZP] = {0, 15, 0},
    /* -128 has no opposite, which kernels may need. */
    [CCMEM_INT8_G32] = {-127, 127, 0},
    [CCMEM_INT8_G64] = {-127, 127, 0},
    [CCMEM_INT8_G128] = {-127, 127, 0},
    [CCMEM_INT8_G32_ZP] = {-127, 127, 0},
    [CCMEM_INT8_G64_ZP] = {-127, 127, 0},
    [CCMEM_INT8_G128_ZP] = {-127, 127, 0},
};

/* Bits that can be kept, of float16 or of float32, and their value in units. */
typedef struct kept {
    uint32_t bits;
    float value;
} kept;

static kept keep(float v, int halves, fit_unit unit) {
    kept k;
    if (halves)
        k.bits = quant_half(v, unit, &k.value);
    else {
        k.bits = bits_of(v * unit.from);
        k.value = float_of_bits(k.bits) * unit.to;
    }
    return k;
}

/* The neighbour `away` bits away, as far as it is finite. */
static kept beside(kept k, int away, int halves, fit_unit unit) {
    const uint32_t bits = k.bits + (uint32_t)away, zero = below(k.bits & 0x7fff, 1);
    if (!halves)
        return k;
    const uint32_t stay = zero | below(0x7bff, bits & 0x7fff);
    k.bits = (k.bits & stay) | (bits & ~stay);
    k.value = float_of_half(k.bits) * unit.to;
    return k;
}

void quantize_simple(ccmem_block_format number, const quant_floats *in, block_parts *out) {
    enum { REFINE = 2 };
    const block_format *format = &block_formats[number];
    const fit_grid *grid = &grids[number];
    const fit_floats floats = fit_look(in->x, format->elements);
    const int halves = number < CCMEM_INT4_G32, offsets = format->offset;
    const float endless = __builtin_inff();
    const fit_line found = fit_search(&floats, grid, offsets, endless);
    kept d[FIT_LANES], m[FIT_LANES], best_d = {0, 0}, best_m = {0, 0};
    float error = endless;

    /* First what a quantiser without a search takes, so that none is better on any block; then what
     * was found, with the scale's neighbours; then regressions of these. */
    const float spread = (floats.high - floats.low) / (grid->high - grid->low);
    const float largest = fit_largest(floats.low, floats.high);
    d[0] = keep(offsets ? spread : largest / grid->low, halves, in->unit);
    m[0] = keep(offsets ? floats.low - spread * grid->low : 0, halves, in->unit);
    d[1] = keep(found.scale, halves, in->unit);
    m[1] = m[2] = m[3] = keep(found.offset, halves, in->unit);
    d[2] = beside(d[1], 1, halves, in->unit);
    d[3] = beside(d[1], -1, halves, in->unit);
    for (int round = 0;; round++) {
        const fit_lines lines = {{d[0].value, d[1].value, d[2].value, d[3].value},
                                 {m[0].value, m[1].value, m[2].value, m[3].value}};
        const fit_sums sums = fit_measure(in->x, floats.n, &lines, grid);
        for (int i = 0; i < FIT_LANES; i++) {
            const uint32_t better = less(sums.error[i], error);
            error = pick(better, sums.error[i], error);
            best_d.bits = (d[i].bits & better) | (best_d.bits & ~better);
            best_m.bits = (m[i].bits & better) | (best_m.bits & ~better);
            best_d.value = pick(better, d[i].value, best_d.value);
            best_m.value = pick(better, m[i].value, best_m.value);
        }
        if (round == REFINE)
            break;
        const fit_lines next = fit_regression(&floats, &sums, offsets, endless);
        for (int i = 0; i < FIT_LANES; i++) {
            d[i] = keep(next.scale[i], halves, in->unit);
            m[i] = keep(next.offset[i], halves, in->unit);
        }
    }
    out->d = best_d.bits;
    out->m = best_m.bits;
    fit_numbers(in->x, floats.n, best_d.value, best_m.value, grid, out->q);
}
