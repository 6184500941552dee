/* SPDX-License-Identifier: Apache-2.0
 * Measures, regressions, and the search: see fit.h. */
#include "quant/fit.h"

#include "platform/cpu.h"

#if CCMEM_X86
#include <immintrin.h>
static inline fit_vec lower(fit_vec a, fit_vec b) { return _mm_min_ps(a, b); }
static inline fit_vec higher(fit_vec a, fit_vec b) { return _mm_max_ps(a, b); }
#else
static inline fit_vec lower(fit_vec a, fit_vec b) { return fit_pick(a < b, a, b); }
static inline fit_vec higher(fit_vec a, fit_vec b) { return fit_pick(b < a, a, b); }
#endif

static const float values[16] = IQ4_VALUES;

/* 1 / a, or 0 for 0. */
static inline fit_vec inverses(fit_vec a) {
    const fit_mask none = a == fit_all(0);
    return fit_pick(none, fit_all(0), fit_all(1) / fit_pick(none, fit_all(1), a));
}

static inline fit_vec nearest_whole(fit_vec t, fit_vec low, fit_vec high) {
    const fit_vec up = fit_all(0x1.8p23f);
    return (lower(higher(t, low), high) + up) - up;
}

/* Adds up the steps between values, as far as t is beyond their middles. */
static inline fit_vec nearest_value(fit_vec t) {
    fit_vec v = fit_all(values[0]);
    for (size_t k = 0; k < 15; k++) {
        const fit_mask beyond = t > fit_all((values[k] + values[k + 1]) / 2);
        v += (fit_vec)((fit_mask)fit_all(values[k + 1] - values[k]) & beyond);
    }
    return v;
}

fit_floats fit_look(const float *x, size_t n) {
    fit_vec low = fit_all(x[0]), high = low, sum = fit_all(0), squares = sum;
    for (size_t i = 0; i < n; i += FIT_LANES) {
        const fit_vec v = {x[i], x[i + 1], x[i + 2], x[i + 3]};
        low = lower(v, low);
        high = higher(v, high);
        sum += v;
        squares += v * v;
    }
    return (fit_floats){
        .x = x,
        .n = n,
        .low = at_most(at_most(low[0], low[1]), at_most(low[2], low[3])),
        .high = at_least(at_least(high[0], high[1]), at_least(high[2], high[3])),
        .sum = (sum[0] + sum[2]) + (sum[1] + sum[3]),
        .squares = (squares[0] + squares[2]) + (squares[1] + squares[3]),
    };
}

static inline fit_sums measure(const float *x, size_t n, const fit_lines *lines,
                               const fit_grid *grid, int curved) {
    const fit_vec scale = lines->scale, offset = lines->offset, per = inverses(scale);
    const fit_vec low = fit_all(grid->low), high = fit_all(grid->high);
    fit_sums s = {fit_all(0), fit_all(0), fit_all(0), fit_all(0)};
    for (size_t i = 0; i < n; i++) {
        const fit_vec v = fit_all(x[i]), moved = v - offset, t = moved * per;
        const fit_vec q = curved ? nearest_value(t) : nearest_whole(t, low, high);
        const fit_vec e = moved - scale * q;
        s.q += q;
        s.qq += q * q;
        s.xq += v * q;
        s.error += e * e;
    }
    return s;
}

fit_sums fit_measure(const float *x, size_t n, const fit_lines *lines, const fit_grid *grid) {
    return grid->curved ? measure(x, n, lines, grid, 1) : measure(x, n, lines, grid, 0);
}

fit_lines fit_regression(const fit_floats *in, const fit_sums *s, int offsets, float highest) {
    const fit_vec per = inverses(s->qq);
    if (!offsets)
        return (fit_lines){s->xq * per, fit_all(0)};
    const fit_vec n = fit_all((float)in->n), x = fit_all(in->sum), most = fit_all(highest);
    const fit_vec scale = (n * s->xq - x * s->q) * inverses(n * s->qq - s->q * s->q);
    const fit_vec offset = (x - scale * s->q) / n;
    const fit_mask held = most < offset;
    /* With the offset held: the regression of x - highest. */
    return (fit_lines){fit_pick(held, (s->xq - most * s->q) * per, scale),
                       fit_pick(held, most, offset)};
}

fit_unit fit_unit_of(float size) {
    enum { LEAST = 27, MOST = 253 }; /* biased exponents: 2^-100, 2^126 */
    uint32_t exponent = bits_of(size) >> 23 & 0xff;
    const uint32_t small = below(exponent, LEAST), large = below(MOST, exponent);
    exponent = (exponent & ~(small | large)) | (LEAST & small) | (MOST & large);
    return (fit_unit){.to = float_of_bits((254 - exponent) << 23),
                      .from = float_of_bits(exponent << 23)};
}

void fit_numbers(const float *x, size_t n, float scale, float offset, const fit_grid *grid,
                 int8_t *q) {
    const float per = inverse(scale);
    for (size_t i = 0; i < n; i++) {
        const float t = (x[i] - offset) * per;
        if (!grid->curved) {
            q[i] = (int8_t)whole(within(t, grid->low, grid->high));
            continue;
        }
        int place = 0;
        for (size_t k = 0; k < 15; k++)
            place += t > (values[k] + values[k + 1]) / 2;
        q[i] = (int8_t)place;
    }
}

/* ---- search ---------------------------------------------------------------------------------- */

typedef struct best {
    fit_lines lines;
    fit_vec error;
} best;

static inline void keep(best *b, const fit_lines *lines, fit_vec error) {
    const fit_mask better = error < b->error;
    b->lines.scale = fit_pick(better, lines->scale, b->lines.scale);
    b->lines.offset = fit_pick(better, lines->offset, b->lines.offset);
    b->error = fit_pick(better, error, b->error);
}

/* Measures lines, and keeps them, or the regressions of their whole numbers by the errors that
 * these are to have at most. */
static void try_lines(const fit_floats *in, const fit_grid *grid, int offsets, float highest,
                      fit_lines lines, best *b) {
    const fit_sums s = fit_measure(in->x, in->n, &lines, grid);
    const fit_lines next = fit_regression(in, &s, offsets, highest);
    const fit_vec a = next.scale, c = next.offset, n = fit_all((float)in->n);
    fit_vec error = fit_all(in->squares) + a * (a * s.qq - 2 * s.xq);
    if (offsets)
        error += c * (n * c - 2 * fit_all(in->sum) + 2 * a * s.q);
    keep(b, &lines, s.error);
    keep(b, &next, error);
}

fit_line fit_search(const fit_floats *in, const fit_grid *grid, int offsets, float highest) {
    enum { ROUNDS = 2, POLISH = 2 };
    /* The floats' range gets as many whole numbers more than there are. */
    static const fit_vec more[ROUNDS] = {{-0.9f, -0.6f, -0.3f, 0}, {0.3f, 0.6f, 0.9f, 1.3f}};
    const float largest = fit_largest(in->low, in->high);
    const fit_vec step = fit_all(grid->curved ? 12 : 1); /* between the outer values */
    best b = {{fit_all(0), fit_all(0)}, fit_all(in->squares)};
    for (int i = 0; i < ROUNDS; i++) {
        if (offsets) {
            const float low = at_most(in->low, highest);
            const fit_lines lines = {fit_all(in->high - low) /
                                         (fit_all(grid->high - grid->low) + more[i]),
                                     fit_all(low)};
            try_lines(in, grid, 1, highest, lines, &b);
            continue;
        }
        /* The largest one at the lower end of the grid, then at the upper one. */
        const fit_vec v = fit_all(largest), ends[2] = {fit_all(grid->low) - more[i] * step,
                                                       fit_all(grid->high) + more[i] * step};
        try_lines(in, grid, 0, 0, (fit_lines){v / ends[0], fit_all(0)}, &b);
        try_lines(in, grid, 0, 0, (fit_lines){v / ends[1], fit_all(0)}, &b);
    }
    for (int i = 0; i < POLISH; i++)
        try_lines(in, grid, offsets, highest, b.lines, &b);
    fit_line found = {b.lines.scale[0], b.lines.offset[0], b.error[0]};
    for (int i = 1; i < FIT_LANES; i++) {
        const uint32_t better = less(b.error[i], found.error);
        found.scale = pick(better, b.lines.scale[i], found.scale);
        found.offset = pick(better, b.lines.offset[i], found.offset);
        found.error = pick(better, b.error[i], found.error);
    }
    return found;
}
