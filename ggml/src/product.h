/* SPDX-License-Identifier: Apache-2.0
 * Products with, and rows of, an encrypted matrix of any of ggml's types. */
#ifndef PYCCMEM_GGML_PRODUCT_H
#define PYCCMEM_GGML_PRODUCT_H

#include "weights.h"

typedef struct matrix {
    weight_place place;
    enum ggml_type type;
    uint64_t rows, columns;
    uint64_t row_bytes;
} matrix;

/* Whether a matrix of this type can be used. */
bool product_knows(enum ggml_type type);

/* The matrix number (i2, i3) of a tensor that weights_hold(). Errors of weights_find(). */
ccmem_status product_matrix(const struct ggml_tensor *tensor, int64_t i2, int64_t i3, matrix *out);

/* For r < nrows and o < rows of the matrix:
 *
 *     y[r * ldy + o] = sum over i of x[r * ldx + i] * w[o][i]
 *
 * On failure all of y that lies in its rows is zero. Errors of ccmem_store_linear(). */
ccmem_status product_multiply(const matrix *w, const float *x, uint64_t nrows, uint64_t ldx,
                              float *y, uint64_t ldy);

/* Row number `row`, as float32. Zeros on failure: errors of ccmem_store_read(), CCMEM_ERR_RANGE. */
ccmem_status product_row(const matrix *w, int64_t row, float *out);

#endif
