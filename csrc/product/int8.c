/* SPDX-License-Identifier: Apache-2.0
 *
 * Products of an encrypted matrix of int8 with rows of x that are rounded to int8. See
 * ccmem_store_linear_int8() in ccmem.h. Threads take groups of W's rows, as in product/gemm.c, open
 * them into memory of their own and multiply them by all rows of x of a pass.
 *
 * Sums of whole numbers are exact in any order. So rows of W may be cut where pages end, and are
 * multiplied where they were opened when rows of x are few; for more, decryption is the packing
 * step, and x lies in panels that all threads share. */
#include <string.h>

#include "kernels/int8.h"
#include "memory/secret.h"
#include "platform/dtype.h"
#include "platform/float_env.h"
#include "platform/round.h"
#include "platform/threads.h"
#include "product/bias.h"
#include "product/fetch.h"
#include "product/linear.h"
#include "store/store.h"
#include "tiers/tiers.h"

enum {
    WORD = 4,
    LINE = 64,
    SUM_ROWS = 24,   /* whole blocks of every table, and what finish() reads */
    TILE_ROWS = 1024 /* of a group at most: of short rows, whose sums would be many */
};

typedef struct int8_call {
    const int8_ops *ops;
    const tier_sizes *sizes;
    ccmem_store *store;
    uint64_t offset, out_features, in_features, nrows;
    const float *scale, *bias;
    const uint8_t *x; /* of this pass */
    uint8_t *y;
    int x_halves, y_halves;
    int along_k;        /* rows of x are few */
    int wide;           /* rows are too long for sums of 32 bits */
    size_t rows;        /* of this pass */
    size_t words;       /* of a row in a panel */
    int8_row *row;      /* of x, rounded */
    int64_t *total;     /* of each, when wide */
    int8_t *q;          /* the rounded rows, */
    size_t ldq;         /* so many bytes apart */
    int32_t *panels;    /* and in panels */
    uint64_t group;     /* rows of W that are taken at a time */
    uint64_t part, ldw; /* elements of a row that are, and the bytes from one row to the next */
    uint64_t next;      /* atomic; the first row of W that no thread has taken */
    outcome end;
} int8_call;

static size_t number_bytes(int halves) { return halves ? sizeof(uint16_t) : sizeof(float); }

static size_t panels_of(const int8_call *l, size_t rows) {
    return (rows + l->ops->width - 1) / l->ops->width;
}

/* ---- x --------------------------------------------------------------------------------------- */

static void quantise_row(const int8_call *l, size_t r) {
    const size_t n = (size_t)l->in_features;
    l->ops->quantise[l->x_halves](l->q + r * l->ldq, &l->row[r],
                                  l->x + r * n * number_bytes(l->x_halves), n);
    if (l->wide) {
        l->total[r] = 0;
        for (size_t i = 0; i < n; i++)
            l->total[r] += l->q[r * l->ldq + i];
    }
}

/* Rounds the rows of panels [begin, end), and packs them when there are panels. */
static void round_panels(void *arg, uint64_t begin, uint64_t end) {
    const int8_call *l = arg;
    const size_t width = l->ops->width;
    const float_env env = float_env_default();
    for (uint64_t i = begin; i < end; i++) {
        const size_t first = (size_t)i * width;
        const size_t last = first + width < l->rows ? first + width : l->rows;
        for (size_t r = first; r < last; r++)
            quantise_row(l, r);
        for (size_t r = first; r < last && !l->along_k; r += INT8_TRANSPOSED)
            l->ops->pack(l->panels + i * l->words * width + r - first, l->q + r * l->ldq, l->ldq,
                         l->words);
    }
    float_env_restore(env);
    burn_stack_of_kernels();
}

/* ---- few rows of x --------------------------------------------------------------------------- */

static int8_epilogue epilogue_of(const int8_call *l, uint64_t row, size_t r) {
    return (int8_epilogue){.row = l->row + r,
                           .excess = l->ops->excess,
                           .scale = l->scale + row,
                           .bias = l->bias ? l->bias + row : NULL,
                           .y = l->y + (r * l->out_features + row) * number_bytes(l->y_halves),
                           .ldy = (size_t)l->out_features,
                           .halves = l->y_halves};
}

/* Adds the products of elements from `first` on, n of each of h rows of W. At the end of a row x
 * has zeros for whole vectors. */
static void dot_rows(const int8_call *l, int32_t *sums, const uint8_t *w, size_t h, size_t first,
                     size_t n) {
    const size_t blocks = (l->rows + l->ops->dot_rows - 1) / l->ops->dot_rows;
    if (first + n == l->in_features)
        n = round_up(n, INT8_VECTOR_MAX);
    for (size_t b = 0; b < blocks; b++) {
        const size_t r = l->rows * b / blocks, rows = l->rows * (b + 1) / blocks - r;
        l->ops->dot[rows - 1](sums + r * l->group, (size_t)l->group, w, (size_t)l->in_features, h,
                              l->q + r * l->ldq + first, l->ldq, n);
    }
}

/* Multiplies `have` bytes of W at w, whose row number *i of the group goes on with element *done.
 */
static void dot_tile(const int8_call *l, int32_t *sums, const uint8_t *w, size_t have, size_t *i,
                     size_t *done) {
    const size_t n = (size_t)l->in_features;
    while (have) {
        size_t h = 1, run = n - *done < have ? n - *done : have;
        if (run == n) {
            h = have / n < INT8_DOT_HEIGHT ? have / n : INT8_DOT_HEIGHT;
            dot_rows(l, sums + *i, w, h, 0, n);
            *i += h;
        } else {
            dot_rows(l, sums + *i, w, 1, *done, run);
            *done += run;
            if (*done == n) {
                *i += 1;
                *done = 0;
            }
        }
        w += h * run;
        have -= h * run;
    }
}

static ccmem_status multiply_along_k(const int8_call *l, int32_t *sums, fetch *f, uint64_t row,
                                     size_t h) {
    const uint64_t end = l->offset + (row + h) * l->in_features;
    uint64_t at = l->offset + row * l->in_features;
    size_t i = 0, done = 0;
    memset(sums, 0, l->rows * l->group * sizeof *sums);
    while (at < end) {
        const uint8_t *w;
        size_t have;
        ccmem_status status = fetch_some(f, at, end, &w, &have);
        if (status != CCMEM_OK)
            return status;
        dot_tile(l, sums, w, have, &i, &done);
        at += have;
    }
    const int8_epilogue put = epilogue_of(l, row, 0);
    l->ops->finish_dot(sums, (size_t)l->group, h, l->rows, &put);
    return CCMEM_OK;
}

/* ---- panels ---------------------------------------------------------------------------------- */

static size_t sums_of_panel(const int8_call *l) {
    return round_up((size_t)l->group, SUM_ROWS) * l->ops->width;
}

static void multiply_panel(const int8_call *l, int32_t *sums, const uint8_t *w, size_t h,
                           const int32_t *x, size_t words, size_t rows) {
    const size_t width = l->ops->width, height = l->ops->height;
    for (size_t k = 0; k < words; k += l->sizes->int8_depth) {
        const size_t depth = words - k < l->sizes->int8_depth ? words - k : l->sizes->int8_depth;
        for (size_t i = 0; i < h; i += height)
            l->ops->panel[rows > l->ops->lanes](sums + i * width, w + i * l->ldw + k * WORD,
                                                (size_t)l->ldw, x + k * width, depth);
    }
}

/* What becomes of the sums of one panel when a part of the rows of W is multiplied. */
static void end_panel(const int8_call *l, int32_t *sums, int64_t *sums_wide, uint64_t row, size_t h,
                      size_t r, size_t rows, int last) {
    const int8_epilogue put = epilogue_of(l, row, r);
    if (l->wide) {
        for (size_t i = 0; i < sums_of_panel(l); i++)
            sums_wide[i] += sums[i];
        memset(sums, 0, sums_of_panel(l) * sizeof *sums);
        if (last)
            int8_finish_wide(sums_wide, l->ops->width, h, rows, l->total + r, &put);
    } else if (last) {
        l->ops->finish(sums, h, rows, &put);
    }
}

static ccmem_status multiply_panels(const int8_call *l, int32_t *sums, int64_t *sums_wide, fetch *f,
                                    uint8_t *w, uint64_t row, size_t h) {
    const size_t width = l->ops->width, panels = panels_of(l, l->rows), step = sums_of_panel(l);
    const uint64_t n = l->in_features;
    memset(sums, 0, panels * step * sizeof *sums);
    if (l->wide)
        memset(sums_wide, 0, panels * step * sizeof *sums_wide);
    for (uint64_t first = 0; first < n; first += l->part) {
        const size_t part = (size_t)(n - first < l->part ? n - first : l->part);
        for (size_t i = 0; i < h; i++) {
            const uint64_t at = l->offset + (row + i) * n + first;
            const uint64_t end = part == n ? l->offset + (row + h) * n : at + part;
            ccmem_status status = fetch_run(f, w + i * l->ldw, at, part, end);
            if (status != CCMEM_OK)
                return status;
        }
        const size_t words = round_up(part * l->ops->unit, WORD) / WORD;
        const int32_t *x = l->panels + first * l->ops->unit / WORD * width;
        for (size_t p = 0; p < panels; p++, x += l->words * width) {
            const size_t rows = l->rows - p * width < width ? l->rows - p * width : width;
            multiply_panel(l, sums + p * step, w, h, x, words, rows);
            end_panel(l, sums + p * step, sums_wide + (l->wide ? p * step : 0), row, h, p * width,
                      rows, first + part == n);
        }
    }
    return CCMEM_OK;
}

/* ---- one thread ------------------------------------------------------------------------------ */

/* What a thread has of its own, and where in its block. */
typedef struct room {
    size_t sums, wide, pages, rows; /* bytes */
} room;

static room room_of(const int8_call *l) {
    const size_t sums =
        l->along_k ? l->rows * (size_t)l->group : panels_of(l, l->rows) * sums_of_panel(l);
    return (room){.sums = round_up(sums * sizeof(int32_t), LINE),
                  .wide = l->wide ? round_up(sums * sizeof(int64_t), LINE) : 0,
                  .pages = round_up(fetch_room(l->store), LINE),
                  .rows = l->along_k ? 0 : round_up((size_t)l->group, SUM_ROWS) * (size_t)l->ldw};
}

static void multiply_groups(int8_call *l, uint8_t *block, const room *room) {
    int32_t *sums = (int32_t *)(void *)block;
    int64_t *wide = (int64_t *)(void *)(block + room->sums);
    uint8_t *pages = block + room->sums + room->wide;
    fetch f = fetch_from(l->store, pages);
    f.element = 1;
    f.convert = l->ops->convert;
    f.converted = l->ops->unit;
    while (!outcome_stopped(&l->end)) {
        const uint64_t row = __atomic_fetch_add(&l->next, l->group, __ATOMIC_RELAXED);
        if (row >= l->out_features)
            return;
        const uint64_t left = l->out_features - row;
        const size_t h = (size_t)(left < l->group ? left : l->group);
        ccmem_status status = l->along_k
                                  ? multiply_along_k(l, sums, &f, row, h)
                                  : multiply_panels(l, sums, wide, &f, pages + room->pages, row, h);
        if (status != CCMEM_OK)
            outcome_stop(&l->end, status);
    }
}

static void run_thread(void *arg, uint64_t begin, uint64_t end) {
    int8_call *l = arg;
    const room room = room_of(l);
    uint8_t *block;
    (void)begin;
    (void)end;
    if (__atomic_load_n(&l->next, __ATOMIC_RELAXED) >= l->out_features)
        return;
    ccmem_status status = ccmem_plain_alloc(room.sums + room.wide + room.pages + room.rows, &block);
    if (status != CCMEM_OK) {
        outcome_stop(&l->end, status);
        return;
    }
    const float_env env = float_env_default();
    multiply_groups(l, block, &room);
    float_env_restore(env);
    burn_stack_of_kernels();
    ccmem_plain_free(block);
}

/* ---- one call -------------------------------------------------------------------------------- */

/* So many rows of W at a time as fit into `limit` bytes, and whole pages where that can be, as
 * others are opened once more for the next. */
static uint64_t group_of(const int8_call *l, uint64_t row_bytes, uint64_t limit, uint64_t least,
                         uint64_t highest) {
    uint64_t most = limit / row_bytes;
    if (most > highest)
        most = highest;
    const uint64_t step = fetch_step(l->store, l->in_features, least, most);
    most = most < step ? step : most / step * step;
    return most > l->out_features ? round_up((size_t)l->out_features, (size_t)least) : most;
}

static void choose_sizes(int8_call *l) {
    const tier_sizes *sizes = l->sizes;
    const size_t n = (size_t)l->in_features, unit = l->ops->unit;
    l->wide = n > INT8_SUM_MAX;
    l->along_k = !l->wide && l->nrows <= l->ops->few_rows;
    l->ldq = round_up(n, INT8_VECTOR_MAX) + INT8_VECTOR_MAX;
    l->words = round_up(n * unit, 4 * WORD) / WORD;
    l->part = n < sizes->int8_part ? n : sizes->int8_part;
    /* An odd number of cache lines, so that equal places of rows are in different sets. */
    l->ldw = round_up((size_t)l->part * unit, LINE) + LINE;
    if (l->ldw / LINE % 2 == 0)
        l->ldw += LINE;
    l->group = l->along_k ? group_of(l, n, sizes->int8_tile, INT8_DOT_HEIGHT, TILE_ROWS)
                          : group_of(l, l->ldw, sizes->int8_group, l->ops->height, TILE_ROWS);
}

/* An element of W costs a unit to open, and one for each 16 rows of x. */
static unsigned threads_worth(const int8_call *l) {
    const uint64_t work =
        l->out_features * l->in_features / 16 * (16 + l->rows) / l->sizes->int8_grain;
    const uint64_t groups = (l->out_features + l->group - 1) / l->group;
    return threads_for(work, groups);
}

static void run_pass(int8_call *l) {
    const size_t row = (size_t)l->in_features * number_bytes(l->x_halves) * l->ops->width;
    parallel_for(panels_of(l, l->rows), l->sizes->pack_grain / row + 1, round_panels, l);
    l->next = 0;
    parallel_for(threads_worth(l), 1, run_thread, l);
}

/* Rows of x of a pass: the same number in each but the last. */
static uint64_t pass_of(const int8_call *l) {
    const uint64_t width = l->ops->width, panel = l->words * WORD * width;
    const uint64_t most = l->sizes->int8_pass < panel ? width : l->sizes->int8_pass / panel * width;
    const uint64_t passes = (l->nrows + most - 1) / most;
    return passes <= 1 ? l->nrows : round_up((size_t)((l->nrows + passes - 1) / passes), width);
}

/* With at least one row of each and one column. */
static ccmem_status multiply(int8_call *l, const ccmem_bias *bias) {
    choose_sizes(l);
    const uint64_t pass = pass_of(l), rows = round_up((size_t)pass, INT8_TRANSPOSED);
    const size_t row_bytes = round_up(rows * sizeof *l->row, LINE);
    const size_t totals = l->wide ? round_up(rows * sizeof *l->total, LINE) : 0;
    const size_t panels =
        l->along_k ? 0 : panels_of(l, pass) * l->words * l->ops->width * sizeof *l->panels;
    const uint64_t biased = bias_scratch(bias, l->out_features);
    uint64_t bytes = row_bytes + totals + rows * l->ldq + panels;
    uint8_t *block;
    if (__builtin_add_overflow(bytes, biased, &bytes))
        return CCMEM_ERR_NOMEM;
    ccmem_status status = ccmem_plain_alloc(bytes, &block);
    if (status != CCMEM_OK)
        return status;
    l->row = (int8_row *)(void *)block;
    l->total = (int64_t *)(void *)(block + row_bytes);
    l->panels = (int32_t *)(void *)(block + row_bytes + totals);
    l->q = (int8_t *)block + row_bytes + totals + panels;
    status = bias_floats(bias, l->out_features, block + bytes - biased, &l->bias);
    for (uint64_t r = 0; r < l->nrows && status == CCMEM_OK; r += l->rows) {
        l->rows = (size_t)(l->nrows - r < pass ? l->nrows - r : pass);
        run_pass(l);
        l->x += l->rows * l->in_features * number_bytes(l->x_halves);
        l->y += l->rows * l->out_features * number_bytes(l->y_halves);
        status = outcome_end(&l->end);
    }
    ccmem_plain_free(block);
    return status;
}

/* The product of rows without an element: what is left of it is the bias. */
static ccmem_status only_bias(const int8_call *l, const ccmem_bias *bias) {
    const int8_row none = {0};
    const uint64_t biased = bias_scratch(bias, l->out_features);
    int32_t zero = 0;
    uint8_t *block = NULL;
    ccmem_status status = biased ? ccmem_plain_alloc(biased, &block) : CCMEM_OK;
    if (status != CCMEM_OK)
        return status;
    const float *floats;
    status = bias_floats(bias, l->out_features, block, &floats);
    for (uint64_t r = 0; r < l->nrows && status == CCMEM_OK; r++)
        for (uint64_t o = 0; o < l->out_features; o++) {
            const int8_epilogue put = {.row = &none,
                                       .scale = l->scale + o,
                                       .bias = floats ? floats + o : NULL,
                                       .y = l->y +
                                            (r * l->out_features + o) * number_bytes(l->y_halves),
                                       .halves = l->y_halves};
            l->ops->finish_dot(&zero, 1, 1, 1, &put);
        }
    ccmem_plain_free(block);
    return status;
}

static int supported(ccmem_dtype dtype) { return dtype == CCMEM_F32 || dtype == CCMEM_BF16; }

ccmem_status ccmem_store_linear_int8(ccmem_store *store, uint64_t offset, uint64_t out_features,
                                     uint64_t in_features, const float *scale, const void *x,
                                     ccmem_dtype x_dtype, uint64_t nrows, ccmem_bias bias, void *y,
                                     ccmem_dtype y_dtype) {
    uint64_t nx, ny;
    if (!store || !supported(x_dtype) || !supported(y_dtype) || !bias_valid(&bias) ||
        (out_features && !scale))
        return CCMEM_ERR_ARGUMENT;
    if (__builtin_mul_overflow(nrows, in_features, &nx) ||
        __builtin_mul_overflow(nrows, out_features, &ny))
        return CCMEM_ERR_RANGE;
    if ((nx && !x) || (ny && !y))
        return CCMEM_ERR_ARGUMENT;
    int8_call l = {.ops = tier_active_kernels().int8,
                   .sizes = tier_active_sizes(),
                   .store = store,
                   .offset = offset,
                   .out_features = out_features,
                   .in_features = in_features,
                   .nrows = nrows,
                   .scale = scale,
                   .x = x,
                   .y = y,
                   .x_halves = x_dtype == CCMEM_BF16,
                   .y_halves = y_dtype == CCMEM_BF16};
    ccmem_status status = linear_check_matrix(store, offset, 1, out_features, in_features);
    if (status == CCMEM_OK && ny)
        status = in_features ? multiply(&l, &bias) : only_bias(&l, &bias);
    if (status != CCMEM_OK && ny)
        ccmem_wipe(y, ny * dtype_size(y_dtype));
    return status;
}
