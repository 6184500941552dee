/* SPDX-License-Identifier: Apache-2.0
 * The way into products with quantised blocks: arguments checked, x quantised, zeros on failure. */
#include "product/blocks.h"

#include <string.h>

#include "memory/secret.h"
#include "platform/float_env.h"
#include "platform/round.h"
#include "platform/threads.h"
#include "product/halves.h"
#include "product/linear.h"

/* Rows of x that are packed and transposed together. */
enum { TRANSPOSED = 8 };

/* ---- x --------------------------------------------------------------------------------------- */

static size_t number_bytes(int halves) { return halves ? sizeof(uint16_t) : sizeof(float); }

static size_t in_features(const blocks_call *l) { return (size_t)l->blocks * l->format->elements; }

/* `floats` has room for a row where x is of bfloat16. */
static void pack_row(const blocks_call *l, size_t r, float *floats) {
    const size_t n = in_features(l);
    const uint8_t *from = l->from + r * n * number_bytes(l->x_halves);
    const float *x = l->x_halves ? floats : (const float *)(const void *)from;
    uint8_t *row = (uint8_t *)l->x.row + r * l->x.at.bytes;
    if (l->x_halves)
        widen_halves(floats, (const uint16_t *)(const void *)from, n);
    if (blocks_super(l->x.format))
        l->ops->pack_supers(row, &l->x.at, x);
    else
        l->ops->pack_runs(row, &l->x.at, x, blocks_zero(l->x.format));
}

/* Packs TRANSPOSED rows of x each. */
static void pack_rows(void *call, uint64_t begin, uint64_t end) {
    blocks_call *l = call;
    const size_t words = l->x.at.bytes / sizeof(int32_t);
    uint8_t *floats = NULL;
    ccmem_status status =
        l->x_halves ? ccmem_plain_alloc(in_features(l) * sizeof(float), &floats) : CCMEM_OK;
    if (status != CCMEM_OK) {
        outcome_stop(&l->end, status);
        return;
    }
    const float_env env = float_env_default();
    for (uint64_t i = begin; i < end; i++) {
        const size_t first = (size_t)i * TRANSPOSED;
        for (size_t r = first; r < first + TRANSPOSED && r < l->rows; r++)
            pack_row(l, r, (float *)(void *)floats);
        if (l->columns) {
            const size_t width = l->panels->width, panel = first / width;
            l->panels->pack(l->columns + panel * width * words + first % width,
                            (const int8_t *)l->x.row + first * l->x.at.bytes, l->x.at.bytes, words);
        }
    }
    float_env_restore(env);
    burn_stack_of_kernels();
    ccmem_plain_free(floats);
}

/* ---- one call -------------------------------------------------------------------------------- */

/* A byte of W costs a unit to open, and about as much for each few rows of x. */
static unsigned threads_worth(const blocks_call *l, uint64_t group) {
    const uint64_t groups = (l->out_features + group - 1) / group;
    const uint64_t work = l->out_features * l->row_bytes / BLOCKS_ROWS * (BLOCKS_ROWS + l->rows) /
                          l->sizes->blocks_grain;
    return threads_for(work, groups);
}

static size_t room_of(const blocks_call *l, size_t rows) {
    return l->columns ? round_up(rows, TRANSPOSED) : blocks_room(rows);
}

static void run_pass(blocks_call *l) {
    l->room = room_of(l, l->rows);
    if (l->room > l->rows)
        memset((uint8_t *)l->x.row + l->rows * l->x.at.bytes, 0,
               (l->room - l->rows) * l->x.at.bytes);
    parallel_for((l->rows + TRANSPOSED - 1) / TRANSPOSED,
                 l->sizes->pack_grain / (in_features(l) * sizeof(float) * TRANSPOSED) + 1,
                 pack_rows, l);
    l->next = 0;
    if (outcome_stopped(&l->end))
        return;
    if (l->columns)
        parallel_for(threads_worth(l, blocks_panel_rows(l)), 1, blocks_panel_groups, l);
    else if (l->rows > l->sizes->blocks_few && blocks_group_rows(l))
        parallel_for(threads_worth(l, blocks_group_rows(l)), 1, blocks_group, l);
    else
        parallel_for(l->out_features,
                     l->row_bytes < l->sizes->blocks_grain ? l->sizes->blocks_grain / l->row_bytes
                                                           : 1,
                     blocks_stream, l);
}

/* Rows of x that are packed at a time, whole panels of `width`: about the same number in each pass.
 */
static uint64_t pass_of(const blocks_call *l, uint64_t nrows, size_t width) {
    uint64_t most = l->sizes->blocks_pass / l->x.at.bytes / width * width;
    if (most < width)
        most = width;
    const uint64_t passes = (nrows + most - 1) / most;
    return passes <= 1 ? nrows : round_up((nrows + passes - 1) / passes, width);
}

static ccmem_status multiply(blocks_call *l, uint64_t nrows) {
    const int many = nrows > l->sizes->blocks_many && blocks_panel_rows(l);
    const size_t width = many ? l->panels->width : BLOCKS_ROWS;
    uint8_t *packed;
    const uint64_t pass = pass_of(l, nrows, width);
    const size_t rows = many ? round_up((size_t)pass, TRANSPOSED) : blocks_room((size_t)pass);
    const size_t columns = many ? round_up((size_t)pass, width) : 0;
    ccmem_status status = ccmem_plain_alloc((rows + columns) * l->x.at.bytes, &packed);
    if (status != CCMEM_OK)
        return status;
    l->x.row = packed;
    l->columns = many ? (int32_t *)(void *)(packed + rows * l->x.at.bytes) : NULL;
    for (uint64_t r = 0; r < nrows && !outcome_stopped(&l->end); r += l->rows) {
        l->rows = (size_t)(nrows - r < pass ? nrows - r : pass);
        run_pass(l);
        l->from += l->rows * in_features(l) * number_bytes(l->x_halves);
        l->y += l->rows * l->out_features * number_bytes(l->y_halves);
    }
    ccmem_plain_free(packed);
    return outcome_end(&l->end);
}

static void only_bias(const blocks_call *l, uint64_t nrows) {
    for (uint64_t r = 0; r < nrows; r++)
        for (uint64_t o = 0; o < l->out_features; o++)
            blocks_put(l, (size_t)r, o, 0.0f);
}

ccmem_status blocks_linear(ccmem_store *store, uint64_t offset, ccmem_block_format format,
                           uint64_t out_features, uint64_t in_features, const void *x, int x_halves,
                           uint64_t nrows, const float *bias, void *y, int y_halves) {
    const size_t elements = ccmem_block_elements(format);
    uint64_t results, bytes, row_bytes;
    if (!store || !elements || in_features % elements || (nrows && in_features && !x) ||
        (nrows && out_features && !y))
        return CCMEM_ERR_ARGUMENT;
    if (__builtin_mul_overflow(nrows, out_features, &results) ||
        __builtin_mul_overflow(results, number_bytes(y_halves), &bytes) ||
        __builtin_mul_overflow(in_features / elements, ccmem_block_bytes(format), &row_bytes))
        return CCMEM_ERR_RANGE;
    ccmem_status status = linear_check_matrix(store, offset, row_bytes, out_features, 1);
    if (status == CCMEM_OK && results) {
        const blocks_ops *ops = tier_active_kernels().blocks;
        blocks_call call = {.store = store,
                            .ops = ops,
                            .sizes = tier_active_sizes(),
                            .offset = offset,
                            .format = &block_formats[format],
                            .dot = ops->dot[format],
                            .panels = ops->panels,
                            .blocks = in_features / elements,
                            .row_bytes = row_bytes,
                            .out_features = out_features,
                            .bias = bias,
                            .from = x,
                            .y = y,
                            .x_halves = x_halves,
                            .y_halves = y_halves,
                            .x = {.at = blocks_layout_of(format, in_features / elements),
                                  .format = format}};
        if (in_features)
            status = multiply(&call, nrows);
        else
            only_bias(&call, nrows);
    }
    if (status != CCMEM_OK && bytes)
        ccmem_wipe(y, (size_t)bytes);
    return status;
}

ccmem_status ccmem_store_linear_blocks(ccmem_store *store, uint64_t offset,
                                       ccmem_block_format format, uint64_t out_features,
                                       uint64_t in_features, const float *scale, const float *x,
                                       uint64_t nrows, const float *bias, float *y) {
    if (format == CCMEM_INT8_ROW)
        return ccmem_store_linear_int8(store, offset, out_features, in_features, scale, x,
                                       CCMEM_F32, nrows,
                                       (ccmem_bias){.data = bias, .dtype = CCMEM_F32}, y,
                                       CCMEM_F32);
    if (scale)
        return CCMEM_ERR_ARGUMENT;
    return blocks_linear(store, offset, format, out_features, in_features, x, 0, nrows, bias, y, 0);
}
