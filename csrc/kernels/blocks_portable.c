/* SPDX-License-Identifier: Apache-2.0
 * Block-quantised products in plain C: the reference that the other tiers must match to the bit. */
#include <string.h>

#include "kernels/blocks_scale.h"
#include "memory/secret.h"
#include "quant/unpack.h"

/* a * b + c, rounded once. A product of two floats is exact as a double; the sum is rounded to odd
 * (Boldo and Melquiond 2008), so that rounding it once more, to a float, gives the nearest. */
static inline float fused(float a, float b, float c) {
#ifdef __FP_FAST_FMAF
    return __builtin_fmaf(a, b, c);
#else
    const double product = (double)a * b, sum = product + c;
    const double back = sum - product;
    const double rest = (product - (sum - back)) + (c - back);
    uint64_t bits, up, inexact;
    memcpy(&bits, &sum, sizeof bits);
    /* All ones where something was rounded away; infinities and what is no number have a rest that
     * is none, and stay. The rest's sign tells whether the number before, or behind, is odd. */
    inexact = 0 - (uint64_t)((rest < 0) | (rest > 0));
    memcpy(&up, &rest, sizeof up);
    up = 0 - ((up ^ bits) >> 63); /* 0: away from zero */
    bits += inexact & ~(0 - (bits & 1)) & (up | 1);
    double odd;
    memcpy(&odd, &bits, sizeof odd);
    return (float)odd;
#endif
}

/* ---- x --------------------------------------------------------------------------------------- */

static uint32_t highest(const float *x, size_t n) {
    uint32_t most = 0;
    for (size_t i = 0; i < n; i++) {
        const uint32_t size = bits_of(x[i]) & 0x7fffffff, more = below(most, size);
        most = (size & more) | (most & ~more);
    }
    return most;
}

/* Adding 1.5 * 2^23 rounds to the nearest whole number, of two to the even one. */
static void quantise(int8_t *q, const float *x, const blocks_scale *scale, size_t n) {
    for (size_t i = 0; i < n; i++) {
        const uint32_t whole = bits_of(x[i] * scale->per + 0x1.8p23f) - 0x4b400000;
        q[i] = (int8_t)(whole & scale->keep);
    }
}

static int32_t sum_of(const int8_t *q, size_t n) {
    int32_t sum = 0;
    for (size_t i = 0; i < n; i++)
        sum += q[i];
    return sum;
}

static CLEAR_REGISTERS void pack_runs(uint8_t *row, const blocks_layout *at, const float *x,
                                      int zero) {
    int8_t *q = (int8_t *)row;
    float *scales = (float *)(void *)(row + at->scale), *sums = (float *)(void *)(row + at->more);
    int32_t *less = (int32_t *)(void *)(row + at->sums);
    for (size_t i = 0; i < at->units; i++, q += BLOCKS_RUN, x += BLOCKS_RUN) {
        const blocks_scale scale = blocks_scale_of(highest(x, BLOCKS_RUN));
        quantise(q, x, &scale, BLOCKS_RUN);
        const int32_t sum = sum_of(q, BLOCKS_RUN);
        scales[i] = scale.scale;
        less[i] = sum * -zero;
        sums[i] = (float)sum * scale.scale;
    }
}

static CLEAR_REGISTERS void pack_supers(uint8_t *row, const blocks_layout *at, const float *x) {
    int8_t *q = (int8_t *)row;
    float *scales = (float *)(void *)(row + at->scale);
    int16_t *sums16 = (int16_t *)(void *)(row + at->sums);
    int16_t *sums32 = (int16_t *)(void *)(row + at->more);
    for (size_t i = 0; i < at->units; i++, q += BLOCK_SUPER, x += BLOCK_SUPER) {
        const blocks_scale scale = blocks_scale_of(highest(x, BLOCK_SUPER));
        quantise(q, x, &scale, BLOCK_SUPER);
        scales[i] = scale.scale;
        for (size_t j = 0; j < BLOCK_SUPER / 16; j++)
            *sums16++ = (int16_t)sum_of(q + 16 * j, 16);
        for (size_t j = 0; j < BLOCK_SUPER / 32; j++)
            *sums32++ = (int16_t)sum_of(q + 32 * j, 32);
    }
}

/* ---- products -------------------------------------------------------------------------------- */

static int32_t products(const int8_t *w, const int8_t *x, size_t n) {
    int32_t sum = 0;
    for (size_t i = 0; i < n; i++)
        sum += w[i] * x[i];
    return sum;
}

/* A run or more of a row of x, and the lane of its first. */
static void add_runs(float *sums, const block_numbers *w, int offset, const uint8_t *row,
                     const blocks_layout *at, size_t run, size_t n) {
    const float *scale = (const float *)(const void *)(row + at->scale);
    const float *sum = (const float *)(const void *)(row + at->more);
    for (size_t i = 0; i < n; i++, run++) {
        const int8_t *q = (const int8_t *)row + run * BLOCKS_RUN;
        float *lane = sums + run % BLOCKS_LANES;
        *lane =
            fused((float)products(w->q + i * BLOCKS_RUN, q, BLOCKS_RUN), w->d * scale[run], *lane);
        if (offset)
            *lane = fused(sum[run], w->m, *lane);
    }
}

static void add_super(float *sums, const block_numbers *w, ccmem_block_format format,
                      const uint8_t *row, const blocks_layout *at, size_t block) {
    const size_t group = block_formats[format].group, groups = BLOCK_SUPER / group;
    const int8_t *q = (const int8_t *)row + block * BLOCK_SUPER;
    const float scale = ((const float *)(const void *)(row + at->scale))[block];
    float *lane = sums + block % BLOCKS_LANES;
    int32_t whole = 0, least = 0;
    for (size_t j = 0; j < groups; j++)
        whole += w->step[j] * products(w->q + j * group, q + j * group, group);
    *lane = fused((float)whole, w->d * scale, *lane);
    if (!block_formats[format].offset)
        return;
    for (size_t j = 0; j < groups; j++)
        least += w->least[j] * sum_of(q + j * group, group);
    *lane = fused(-(float)least, w->m * scale, *lane);
}

static void add_block(size_t rows, float *sums, const uint8_t *w, const blocks_x *x, size_t i) {
    const block_format *format = &block_formats[x->format];
    const size_t runs = format->elements / BLOCKS_RUN;
    block_numbers numbers;
    block_unpackers[x->format](w, format, &numbers);
    for (size_t r = 0; r < rows; r++, sums += BLOCKS_LANES) {
        const uint8_t *row = x->row + r * x->at.bytes;
        if (blocks_super(x->format))
            add_super(sums, &numbers, x->format, row, &x->at, i);
        else
            add_runs(sums, &numbers, format->offset, row, &x->at, i * runs, runs);
    }
    ccmem_wipe(&numbers, sizeof numbers);
}

static void dot(size_t rows, float *sums, const blocks_w *w, const blocks_x *x) {
    const size_t bytes = block_formats[x->format].bytes;
    for (size_t i = 0; i < w->rows; i++, sums += w->apart)
        for (size_t j = 0; j < w->n; j++)
            add_block(rows, sums, w->first + i * w->bytes + j * bytes, x, w->number + j);
}

static CLEAR_REGISTERS void dot_1(float *sums, const blocks_w *w, const blocks_x *x) {
    dot(1, sums, w, x);
}

static CLEAR_REGISTERS void dot_4(float *sums, const blocks_w *w, const blocks_x *x) {
    dot(BLOCKS_ROWS, sums, w, x);
}

/* Halves on halves. */
static CLEAR_REGISTERS void total(float *to, float *sums, size_t n) {
    for (; n; n--, sums += BLOCKS_LANES) {
        for (size_t half = BLOCKS_LANES / 2; half; half /= 2)
            for (size_t i = 0; i < half; i++)
                sums[i] += sums[i + half];
        *to++ = sums[0];
        memset(sums, 0, BLOCKS_LANES * sizeof *sums);
    }
}

const blocks_ops blocks_portable = {.pack_runs = pack_runs,
                                    .pack_supers = pack_supers,
                                    .dot = {[0 ... CCMEM_INT8_ROW - 1] = {dot_1, dot_4}},
                                    .total = total};
