/* SPDX-License-Identifier: Apache-2.0
 * The way into products with quantised blocks: arguments checked, x quantised, zeros on failure. */
#include "product/blocks.h"

#include <string.h>

#include "memory/secret.h"
#include "platform/float_env.h"
#include "platform/round.h"
#include "platform/threads.h"
#include "product/linear.h"

enum { LINE = 64 };

/* ---- x --------------------------------------------------------------------------------------- */

static int is_super(const blocks_call *l) { return l->format->elements == BLOCK_SUPER; }

/* What x is quantised in, of a row. */
static size_t units_of(const blocks_call *l) {
    return (size_t)l->blocks * (is_super(l) ? 1 : l->format->elements / BLOCKS_RUN);
}

/* Packed x of a row: its units, then their scales, on an odd number of cache lines, so that equal
 * places of rows are in different sets of a cache. */
static void lay_out(blocks_call *l) {
    const size_t units = units_of(l);
    const size_t q = units * (is_super(l) ? sizeof(blocks_super) : sizeof(blocks_run));
    l->x.stride = (round_up(q + units * sizeof(float), LINE) / LINE | 1) * LINE;
    l->x.scale = (const float *)(const void *)(l->x.q + q);
}

static void pack_rows(void *call, uint64_t begin, uint64_t end) {
    const blocks_call *l = call;
    const size_t units = units_of(l), in_features = (size_t)l->blocks * l->format->elements;
    const float_env env = float_env_default();
    for (uint64_t r = begin; r < end; r++) {
        uint8_t *q = (uint8_t *)l->x.q + r * l->x.stride;
        float *scale = (float *)(void *)((uint8_t *)l->x.scale + r * l->x.stride);
        if (is_super(l))
            l->ops->pack_supers((blocks_super *)(void *)q, scale, l->from + r * in_features, units);
        else
            l->ops->pack_runs((blocks_run *)(void *)q, scale, l->from + r * in_features, units,
                              blocks_zero(l->x.format), l->format->offset);
    }
    float_env_restore(env);
    burn_stack();
}

/* ---- one call -------------------------------------------------------------------------------- */

/* A byte of W costs a unit to open, and about as much for each few rows of x. */
static unsigned threads_worth(const blocks_call *l) {
    const uint64_t group = blocks_group_rows(l), groups = (l->out_features + group - 1) / group;
    const uint64_t work = l->out_features * l->row_bytes / BLOCKS_ROWS * (BLOCKS_ROWS + l->rows) /
                          l->sizes->blocks_grain;
    return threads_for(work, groups);
}

static void run_pass(blocks_call *l) {
    const uint64_t in_features = l->blocks * l->format->elements;
    l->room = blocks_room(l->rows);
    if (l->room > l->rows)
        memset((uint8_t *)l->x.q + l->rows * l->x.stride, 0, (l->room - l->rows) * l->x.stride);
    parallel_for(l->rows, l->sizes->pack_grain / (in_features * sizeof(float)) + 1, pack_rows, l);
    l->next = 0;
    if (l->rows > l->sizes->blocks_few && blocks_group_rows(l))
        parallel_for(threads_worth(l), 1, blocks_group, l);
    else
        parallel_for(l->out_features,
                     l->row_bytes < l->sizes->blocks_grain ? l->sizes->blocks_grain / l->row_bytes
                                                           : 1,
                     blocks_stream, l);
}

/* Rows of x that are packed at a time: about the same number in each pass. */
static uint64_t pass_of(const blocks_call *l, uint64_t nrows) {
    uint64_t most = l->sizes->blocks_pass / l->x.stride / BLOCKS_ROWS * BLOCKS_ROWS;
    if (most < BLOCKS_ROWS)
        most = BLOCKS_ROWS;
    const uint64_t passes = (nrows + most - 1) / most;
    return passes <= 1 ? nrows : round_up((nrows + passes - 1) / passes, BLOCKS_ROWS);
}

static ccmem_status multiply(blocks_call *l, uint64_t nrows) {
    const uint64_t in_features = l->blocks * l->format->elements;
    uint8_t *packed;
    lay_out(l);
    const uint64_t pass = pass_of(l, nrows);
    ccmem_status status = ccmem_plain_alloc(blocks_room((size_t)pass) * l->x.stride, &packed);
    if (status != CCMEM_OK)
        return status;
    l->x.q = packed;
    lay_out(l);
    for (uint64_t r = 0; r < nrows && !outcome_stopped(&l->end); r += l->rows) {
        l->rows = (size_t)(nrows - r < pass ? nrows - r : pass);
        run_pass(l);
        l->from += l->rows * in_features;
        l->y += l->rows * l->out_features;
    }
    ccmem_plain_free(packed);
    return outcome_end(&l->end);
}

static void only_bias(const float *bias, uint64_t nrows, uint64_t out_features, float *y) {
    for (uint64_t r = 0; r < nrows; r++)
        for (uint64_t o = 0; o < out_features; o++)
            *y++ = bias ? bias[o] : 0.0f;
}

ccmem_status ccmem_store_linear_blocks(ccmem_store *store, uint64_t offset,
                                       ccmem_block_format format, uint64_t out_features,
                                       uint64_t in_features, const float *scale, const float *x,
                                       uint64_t nrows, const float *bias, float *y) {
    const size_t elements = ccmem_block_elements(format);
    uint64_t results, bytes, row_bytes;
    if (!store || !elements || in_features % elements || (nrows && in_features && !x) ||
        (nrows && out_features && !y))
        return CCMEM_ERR_ARGUMENT;
    if (format == CCMEM_INT8_ROW)
        return ccmem_store_linear_int8(store, offset, out_features, in_features, scale, x,
                                       CCMEM_F32, nrows,
                                       (ccmem_bias){.data = bias, .dtype = CCMEM_F32}, y,
                                       CCMEM_F32);
    if (scale)
        return CCMEM_ERR_ARGUMENT;
    if (__builtin_mul_overflow(nrows, out_features, &results) ||
        __builtin_mul_overflow(results, sizeof *y, &bytes) ||
        __builtin_mul_overflow(in_features / elements, ccmem_block_bytes(format), &row_bytes))
        return CCMEM_ERR_RANGE;
    ccmem_status status = linear_check_matrix(store, offset, row_bytes, out_features, 1);
    if (status == CCMEM_OK && results && !in_features) {
        only_bias(bias, nrows, out_features, y);
    } else if (status == CCMEM_OK && results) {
        const blocks_ops *ops = tier_active_kernels().blocks;
        blocks_call call = {.store = store,
                            .ops = ops,
                            .sizes = tier_active_sizes(),
                            .offset = offset,
                            .format = &block_formats[format],
                            .dot = ops->dot[format],
                            .blocks = in_features / elements,
                            .row_bytes = row_bytes,
                            .out_features = out_features,
                            .bias = bias,
                            .from = x,
                            .y = y,
                            .x = {.format = format}};
        status = multiply(&call, nrows);
    }
    if (status != CCMEM_OK && bytes)
        ccmem_wipe(y, (size_t)bytes);
    return status;
}
