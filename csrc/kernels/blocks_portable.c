/* SPDX-License-Identifier: Apache-2.0
 * Block-quantised products in plain C: the reference that the other tiers must match to the bit. */
#include <string.h>

#include "kernels/blocks_scale.h"
#include "memory/secret.h"
#include "quant/unpack.h"

enum { LANES = BLOCKS_RUN / 4 }; /* of a run */

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

static CLEAR_REGISTERS void pack_runs(blocks_run *to, float *scales, const float *x, size_t n,
                                      int zero, int sums) {
    for (size_t i = 0; i < n; i++, to++, x += BLOCKS_RUN) {
        const blocks_scale scale = blocks_scale_of(highest(x, BLOCKS_RUN));
        quantise(to->q, x, &scale, BLOCKS_RUN);
        scales[i] = scale.scale;
        for (size_t j = 0; j < LANES; j++) {
            const int32_t four = sum_of(to->q + 4 * j, 4);
            if (sums)
                to->sums[j] = (float)four * scale.scale;
            else
                to->less[j] = four * -zero;
        }
    }
}

static CLEAR_REGISTERS void pack_supers(blocks_super *to, float *scales, const float *x, size_t n) {
    for (size_t i = 0; i < n; i++, to++, x += BLOCK_SUPER) {
        const blocks_scale scale = blocks_scale_of(highest(x, BLOCK_SUPER));
        quantise(to->q, x, &scale, BLOCK_SUPER);
        scales[i] = scale.scale;
        for (size_t j = 0; j < BLOCK_SUPER / 16; j++)
            to->sums16[j] = (int16_t)sum_of(to->q + 16 * j, 16);
        for (size_t j = 0; j < BLOCK_SUPER / 32; j++)
            to->sums32[j] = to->sums16[2 * j] + to->sums16[2 * j + 1];
    }
}

/* ---- products -------------------------------------------------------------------------------- */

static int32_t four_products(const int8_t *w, const int8_t *x) {
    int32_t sum = 0;
    for (size_t i = 0; i < 4; i++)
        sum += w[i] * x[i];
    return sum;
}

static void add_runs(float *sums, const block_numbers *w, int offset, const blocks_run *x,
                     const float *scale, size_t run, size_t n) {
    for (size_t i = 0; i < n; i++, run++) {
        float *sum = sums + run % 2 * LANES;
        const float d = w->d * scale[run];
        for (size_t j = 0; j < LANES; j++) {
            const int8_t *q = w->q + i * BLOCKS_RUN + 4 * j;
            sum[j] = fused((float)four_products(q, x[run].q + 4 * j), d, sum[j]);
            if (offset)
                sum[j] = fused(x[run].sums[j], w->m, sum[j]);
        }
    }
}

/* What is taken away from q where it has no sign: Q3_K and Q6_K. The sums are of q without it, and
 * a lane of even runs has what it is too much for two groups of 16. */
static int32_t zero_of(ccmem_block_format format) {
    return format == CCMEM_Q6_K ? 32 : format == CCMEM_Q3_K ? 4 : 0;
}

static void add_super(float *sums, const block_numbers *w, ccmem_block_format format,
                      const blocks_super *x, float scale) {
    const size_t group = block_formats[format].group;
    const int32_t zero = zero_of(format);
    const float d = w->d * scale, m = w->m * scale;
    int32_t whole[BLOCKS_LANES] = {0};
    for (size_t i = 0; i < BLOCK_SUPER; i += 4)
        whole[i / 4 % BLOCKS_LANES] +=
            w->step[i / group] * (four_products(w->q + i, x->q + i) + zero * sum_of(x->q + i, 4));
    for (size_t j = 0; zero && j < BLOCK_SUPER / 16; j++)
        whole[j / 2] -= zero * w->step[j] * x->sums16[j];
    for (size_t j = 0; j < BLOCKS_LANES; j++)
        sums[j] = fused((float)whole[j], d, sums[j]);
    for (size_t j = 0; block_formats[format].offset && j < LANES; j++) {
        const int32_t least = group == 16 ? w->least[2 * j] * x->sums16[2 * j] +
                                                w->least[2 * j + 1] * x->sums16[2 * j + 1]
                                          : w->least[j] * x->sums32[j];
        sums[j] = fused(-(float)least, m, sums[j]);
    }
    ccmem_wipe(whole, sizeof whole);
}

static void dot(size_t rows, float *sums, const uint8_t *w, size_t n, const blocks_x *x,
                size_t first) {
    const block_format *format = &block_formats[x->format];
    const size_t runs = format->elements / BLOCKS_RUN;
    block_numbers numbers;
    for (size_t i = first; i < first + n; i++, w += format->bytes) {
        block_unpackers[x->format](w, format, &numbers);
        for (size_t r = 0; r < rows; r++) {
            float *sum = sums + r * BLOCKS_LANES;
            const uint8_t *q = x->q + r * x->stride;
            const float *scale =
                (const float *)(const void *)((const uint8_t *)x->scale + r * x->stride);
            if (format->elements == BLOCK_SUPER)
                add_super(sum, &numbers, x->format, (const blocks_super *)(const void *)q + i,
                          scale[i]);
            else
                add_runs(sum, &numbers, format->offset, (const blocks_run *)(const void *)q, scale,
                         i * runs, runs);
        }
    }
    ccmem_wipe(&numbers, sizeof numbers);
}

static CLEAR_REGISTERS void dot_1(float *sums, const uint8_t *w, size_t n, const blocks_x *x,
                                  size_t first) {
    dot(1, sums, w, n, x, first);
}

static CLEAR_REGISTERS void dot_4(float *sums, const uint8_t *w, size_t n, const blocks_x *x,
                                  size_t first) {
    dot(BLOCKS_ROWS, sums, w, n, x, first);
}

/* Halves on halves. */
static CLEAR_REGISTERS float total(float *sums) {
    for (size_t half = BLOCKS_LANES / 2; half; half /= 2)
        for (size_t i = 0; i < half; i++)
            sums[i] += sums[i + half];
    const float sum = sums[0];
    memset(sums, 0, BLOCKS_LANES * sizeof *sums);
    return sum;
}

const blocks_ops blocks_portable = {.pack_runs = pack_runs,
                                    .pack_supers = pack_supers,
                                    .dot = {[0 ... CCMEM_INT8_ROW - 1] = {dot_1, dot_4}},
                                    .total = total};
