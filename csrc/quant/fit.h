/* SPDX-License-Identifier: Apache-2.0
 * Fits whole numbers and a scale to floats by least squares: what all quantisers are made of.
 *
 * Of a scale and an offset, each float takes the nearest whole number of the range; of whole
 * numbers, the best scale and offset are those of a linear regression. Lloyd's iteration ("Least
 * squares quantization in PCM", 1982) goes to and fro between the two. It ends in a minimum near
 * where it began, so it begins at several scales, and the best result is kept. Four of them are
 * computed at a time, one in each lane of a vector, so that nothing is added up across lanes.
 *
 * Nothing branches on what the floats are: best ones are kept by masks. */
#ifndef CCMEM_QUANT_FIT_H
#define CCMEM_QUANT_FIT_H

#include "quant/formats.h"
#include "simd/scalar.h"

enum { FIT_LANES = 4 };

/* GCC's vector extensions, on every processor. */
typedef float fit_vec __attribute__((vector_size(4 * FIT_LANES)));
typedef int32_t fit_mask __attribute__((vector_size(4 * FIT_LANES)));

/* What whole numbers may be: `low` to `high`, or with `curved` the values of IQ4_VALUES. */
typedef struct fit_grid {
    float low, high;
    int curved;
} fit_grid;

/* A lane each: scale * q + offset stands for a float. */
typedef struct fit_lines {
    fit_vec scale, offset;
} fit_lines;

/* A lane each: sums over the floats x and their whole numbers q; `error` of
 * (x - scale * q - offset)^2. */
typedef struct fit_sums {
    fit_vec q, qq, xq, error;
} fit_sums;

/* Of the floats alone. */
typedef struct fit_floats {
    const float *x;
    size_t n;
    float low, high; /* the lowest, and the highest */
    float sum, squares;
} fit_floats;

typedef struct fit_line {
    float scale, offset, error;
} fit_line;

/* By masks: a compiler makes branches of conditions. */
static inline float at_least(float a, float b) { return pick(less(a, b), b, a); }
static inline float at_most(float a, float b) { return pick(less(a, b), a, b); }
static inline float within(float t, float low, float high) {
    return at_most(at_least(t, low), high);
}

/* The nearest whole number, of two the even one, of less than 2^22. */
static inline float whole(float t) { return (t + 0x1.8p23f) - 0x1.8p23f; }

/* 1 / a, or 0 for 0. */
static inline float inverse(float a) {
    const uint32_t none = below(bits_of(a) & 0x7fffffff, 1);
    return pick(none, 0, 1 / pick(none, 1, a));
}

static inline fit_vec fit_all(float f) { return (fit_vec){f, f, f, f}; }

static inline fit_vec fit_pick(fit_mask m, fit_vec a, fit_vec b) {
    return (fit_vec)(((fit_mask)a & m) | ((fit_mask)b & ~m));
}

/* The sums and the range of n floats. */
fit_floats fit_look(const float *x, size_t n);

/* The float with the larger size. */
static inline float fit_largest(float low, float high) { return pick(less(high, -low), low, high); }

/* The sums of lines. */
fit_sums fit_measure(const float *x, size_t n, const fit_lines *lines, const fit_grid *grid);

/* The best lines through the whole numbers that were measured: with `offsets` their offset is at
 * most `highest`, else they have none. */
fit_lines fit_regression(const fit_floats *in, const fit_sums *sums, int offsets, float highest);

/* The best line that was found. */
fit_line fit_search(const fit_floats *in, const fit_grid *grid, int offsets, float highest);

/* Writes the whole numbers of n floats: of a curved grid their places in it. */
void fit_numbers(const float *x, size_t n, float scale, float offset, const fit_grid *grid,
                 int8_t *q);

/* A power of two by which floats of this size are multiplied, so that squares of their sums are
 * neither infinite nor zero; and its inverse. Numbers below 2^-100 are not enlarged further. */
typedef struct fit_unit {
    float to, from;
} fit_unit;
fit_unit fit_unit_of(float size);

#endif
