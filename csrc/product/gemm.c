/* SPDX-License-Identifier: Apache-2.0
 *
 * Products of an encrypted matrix with several rows of x. Each thread takes groups of W's rows,
 * opens and converts them into memory of its own, which its cache holds, and multiplies them by all
 * rows of x before it takes the next; no thread waits for another. Memory is read once, as
 * ciphertext, for all rows of x of a pass.
 *
 * Few rows of x stay as they are, and products are summed along k. Otherwise x is copied into
 * panels first, by all threads. What is added to what, and in which order, depends on in_features,
 * on whether rows of x are few, and on the tier alone. */
#include "product/gemm.h"

#include <string.h>

#include "platform/float_env.h"
#include "platform/round.h"
#include "platform/threads.h"
#include "product/fetch.h"
#include "store/store.h"

enum {
    WORD = 4,
    LINE_WORDS = 16,
    PAD_WORDS = 16,  /* that a conversion may write past the last of a row */
    SET_BYTES = 4096 /* words so far apart share the few places of one set of an L1 */
};

typedef struct gemm_call {
    const gemm_ops *ops;
    const tier_sizes *sizes;
    linear_product p;
    size_t element;   /* bytes of one of W */
    size_t unit;      /* bytes of one of x, and of W when converted */
    int along_k;      /* rows of x are few: products are summed along k, without panels */
    int as_is;        /* rows of W are multiplied where they were opened */
    const uint8_t *x; /* the rows of this pass: as they are, or in panels */
    size_t ldx;       /* words, of rows that are not in panels */
    size_t rows;      /* of this pass */
    uint64_t group;   /* rows of W that are taken at a time */
    uint64_t part;    /* elements of a row that are */
    size_t ldw;       /* words */
    uint64_t next;    /* atomic; the first row of W that no thread has taken */
    outcome end;
} gemm_call;

static size_t result_bytes(const linear_product *p) {
    return p->halves ? sizeof(uint16_t) : sizeof(float);
}

static size_t words(const gemm_call *l, uint64_t elements) {
    return ((size_t)elements * l->unit + WORD - 1) / WORD;
}

static size_t sums_words(const gemm_call *l) {
    return l->along_k ? 0 : round_up(l->group, 24) * l->ops->width;
}

static size_t rows_words(const gemm_call *l) {
    return l->as_is ? 0 : round_up(l->group, l->ops->height) * l->ldw;
}

static size_t pages_bytes(const gemm_call *l) {
    const size_t bytes = (size_t)(l->group * l->p.in_features) * l->element;
    return round_up(l->as_is ? fetch_room_whole(l->p.store, bytes) : fetch_room(l->p.store), 64);
}

/* ---- x --------------------------------------------------------------------------------------- */

/* The words of one panel that are left over by blocks of 8 rows and 4 words. */
static void transpose_rest(const gemm_call *l, float *to, const uint8_t *x, size_t rows,
                           size_t transposed) {
    const size_t bytes = (size_t)l->p.in_features * l->unit, n = words(l, l->p.in_features);
    for (size_t r = 0; r < l->ops->width; r++)
        for (size_t j = r < rows / 8 * 8 ? transposed : 0; j < n; j++) {
            size_t left = bytes - j * WORD;
            float word = 0.0f;
            if (r < rows)
                memcpy(&word, x + r * l->p.ldx * l->unit + j * WORD, left < WORD ? left : WORD);
            to[j * l->ops->width + r] = word;
        }
}

static void pack_panels(void *arg, uint64_t begin, uint64_t end) {
    const gemm_call *l = arg;
    const size_t width = l->ops->width, n = words(l, l->p.in_features);
    const size_t stride = l->p.ldx * l->unit, whole = l->p.in_features * l->unit / WORD / 4 * 4;
    for (uint64_t i = begin; i < end; i++) {
        const size_t rows = l->rows - i * width < width ? l->rows - i * width : width;
        const uint8_t *x = (const uint8_t *)l->p.x + i * width * stride;
        float *to = (float *)l->x + i * n * width;
        for (size_t k = 0; k < whole; k += l->sizes->transpose)
            for (size_t r = 0; r + 8 <= rows; r += 8)
                l->ops->transpose(to + k * width + r, x + r * stride + k * WORD, stride,
                                  whole - k < l->sizes->transpose ? whole - k
                                                                  : l->sizes->transpose);
        transpose_rest(l, to, x, rows, whole);
    }
}

static void pack_rows(gemm_call *l, uint8_t *to) {
    for (size_t r = 0; r < l->rows; r++)
        memcpy(to + r * l->ldx * WORD, (const uint8_t *)l->p.x + r * l->p.ldx * l->unit,
               (size_t)l->p.in_features * l->unit);
}

/* ---- one group of W's rows ------------------------------------------------------------------- */

/* Opens n elements from number `first` on of h rows from `row` on: at `room`, or at *w. */
static ccmem_status fetch_rows(const gemm_call *l, fetch *f, float *room, uint64_t row, size_t h,
                               uint64_t first, size_t n, const float **w) {
    const uint64_t row_bytes = l->p.in_features * l->element;
    const int whole = n == l->p.in_features;
    if (l->as_is)
        return fetch_whole(f, l->p.offset + row * row_bytes, (size_t)(h * row_bytes),
                           (const uint8_t **)(const void *)w);
    *w = room;
    for (size_t i = 0; i < h; i++) {
        const uint64_t at = l->p.offset + (row + i) * row_bytes + first * l->element;
        const uint64_t end = whole ? at + (h - i) * row_bytes : at + n * l->element;
        uint8_t *to = (uint8_t *)(room + i * l->ldw);
        ccmem_status status = fetch_run(f, to, at, n, end);
        if (status != CCMEM_OK)
            return status;
        memset(to + n * l->unit, 0, l->ldw * WORD - n * l->unit);
    }
    return CCMEM_OK;
}

/* What becomes of the sums of the rows of W from `row` on and those of x from r on. */
static gemm_epilogue epilogue_of(const gemm_call *l, uint64_t row, size_t r, uint64_t first,
                                 size_t n) {
    const int last = first + n == l->p.in_features;
    return (gemm_epilogue){.scale = last && l->p.scale ? l->p.scale + row : NULL,
                           .bias = last && l->p.bias ? l->p.bias + row : NULL,
                           .y = (uint8_t *)l->p.y + (r * l->p.ldy + row) * result_bytes(&l->p),
                           .halves = l->p.halves,
                           .ldy = (size_t)l->p.ldy,
                           .add = first > 0};
}

static void multiply_along_k(const gemm_call *l, const float *w, uint64_t row, size_t h,
                             uint64_t first, size_t n) {
    const size_t vectors = round_up(words(l, n), l->ops->lanes) / l->ops->lanes;
    const size_t blocks = (l->rows + l->ops->dot_rows - 1) / l->ops->dot_rows;
    for (size_t i = 0; i < h; i += GEMM_DOT_HEIGHT)
        for (size_t b = 0; b < blocks; b++) {
            const size_t r = l->rows * b / blocks, rows = l->rows * (b + 1) / blocks - r;
            const gemm_epilogue end = epilogue_of(l, row + i, r, first, n);
            l->ops->dot[rows - 1](w + i * l->ldw, l->ldw,
                                  h - i < GEMM_DOT_HEIGHT ? h - i : GEMM_DOT_HEIGHT,
                                  l->x + (r * l->ldx + first * l->unit / WORD) * WORD, l->ldx,
                                  vectors, &end);
        }
}

static void multiply_panels(const gemm_call *l, const float *w, float *sums, uint64_t row, size_t h,
                            uint64_t first, size_t n) {
    const size_t width = l->ops->width, height = l->ops->height, n_words = words(l, n);
    const float *x = (const float *)l->x + first * l->unit / WORD * width;
    for (size_t r = 0; r < l->rows; r += width, x += words(l, l->p.in_features) * width) {
        const size_t rows = l->rows - r < width ? l->rows - r : width;
        const gemm_epilogue end = epilogue_of(l, row, r, first, n);
        memset(sums, 0, sums_words(l) * WORD);
        for (size_t i = 0; i < rows; i++)
            for (size_t o = 0; o < h * result_bytes(&l->p); o += LINE_WORDS * WORD)
                __builtin_prefetch((uint8_t *)end.y + i * end.ldy * result_bytes(&l->p) + o, 1);
        for (size_t k = 0; k < n_words; k += l->sizes->depth) {
            const size_t depth = n_words - k < l->sizes->depth ? n_words - k : l->sizes->depth;
            for (size_t i = 0; i < h; i += height)
                l->ops->panel[rows > l->ops->lanes](sums + i * width, w + i * l->ldw + k, l->ldw,
                                                    x + k * width, depth);
        }
        l->ops->finish(sums, h, rows, &end);
    }
}

static void multiply_groups(gemm_call *l, float *sums, fetch *f, float *room) {
    while (!outcome_stopped(&l->end)) {
        const uint64_t row = __atomic_fetch_add(&l->next, l->group, __ATOMIC_RELAXED);
        if (row >= l->p.out_features)
            return;
        const uint64_t left = l->p.out_features - row;
        const size_t h = (size_t)(left < l->group ? left : l->group);
        for (uint64_t first = 0, n; first < l->p.in_features; first += n) {
            n = l->p.in_features - first < l->part ? l->p.in_features - first : l->part;
            const float *w;
            ccmem_status status = fetch_rows(l, f, room, row, h, first, (size_t)n, &w);
            if (status != CCMEM_OK) {
                outcome_stop(&l->end, status);
                return;
            }
            if (l->along_k)
                multiply_along_k(l, w, row, h, first, (size_t)n);
            else
                multiply_panels(l, w, sums, row, h, first, (size_t)n);
        }
    }
}

static void run_thread(void *arg, uint64_t begin, uint64_t end) {
    gemm_call *l = arg;
    const size_t pages = pages_bytes(l), sums = sums_words(l) * WORD;
    uint8_t *block;
    (void)begin;
    (void)end;
    if (__atomic_load_n(&l->next, __ATOMIC_RELAXED) >= l->p.out_features)
        return;
    ccmem_status status = ccmem_plain_alloc(sums + pages + rows_words(l) * WORD, &block);
    if (status != CCMEM_OK) {
        outcome_stop(&l->end, status);
        return;
    }
    fetch f = {.store = l->p.store,
               .pages = block + sums,
               .element = l->element,
               .convert = l->ops->convert[l->p.dtype],
               .converted = l->unit};
    const float_env env = float_env_default();
    multiply_groups(l, (float *)block, &f, (float *)(block + sums + pages));
    float_env_restore(env);
    ccmem_plain_free(block);
}

/* ---- one call -------------------------------------------------------------------------------- */

/* So many rows of W at a time that they take up to `limit` bytes; and whole pages where that can
 * be, as others are opened once more for the next. */
static uint64_t group_of(const gemm_call *l, size_t limit, size_t height) {
    const uint64_t row_bytes = l->p.in_features * l->element, size = store_page_size(l->p.store);
    uint64_t most = limit / (l->ldw * WORD), step = height;
    while (step * 2 <= most && step * row_bytes % size)
        step *= 2;
    if (step * row_bytes % size)
        step = height;
    most = most / step * step;
    return most < height ? height : most;
}

/* Which rows and elements of W are taken at a time. */
static void choose_sizes(gemm_call *l) {
    const size_t height = l->along_k ? GEMM_DOT_HEIGHT : l->ops->height;
    const uint64_t part =
        l->sizes->rows_max / (height * l->unit) / (PAD_WORDS * 4) * (PAD_WORDS * 4);
    const size_t n = words(l, l->p.in_features);
    l->part = l->p.in_features < part ? l->p.in_features : part;
    l->as_is = l->along_k && l->part == l->p.in_features && l->element == l->unit &&
               l->p.in_features * l->unit % (l->ops->lanes * WORD) == 0;
    if (l->as_is) {
        l->ldw = n;
    } else {
        /* An odd number of cache lines, so that equal places of rows are in different sets. */
        l->ldw = round_up(words(l, l->part), LINE_WORDS) + PAD_WORDS;
        if (l->ldw / LINE_WORDS % 2 == 0)
            l->ldw += LINE_WORDS;
    }
    l->group = group_of(l, l->along_k ? l->sizes->few_group : l->sizes->group, height);
    if (!l->along_k && l->group > l->sizes->group_rows)
        l->group = l->sizes->group_rows;
    if (l->group > l->p.out_features)
        l->group = round_up((size_t)l->p.out_features, height);
}

/* An element of W costs a unit to open and to convert, and one for each 16 rows of x. */
static unsigned threads_worth(const gemm_call *l) {
    const uint64_t work =
        l->p.out_features * l->p.in_features / 16 * (16 + l->rows) / l->sizes->gemm_grain;
    const uint64_t groups = (l->p.out_features + l->group - 1) / l->group;
    const uint64_t most = work < groups ? work : groups;
    return most < 1 ? 1 : most > CCMEM_MAX_THREADS ? CCMEM_MAX_THREADS : (unsigned)most;
}

static void run_pass(gemm_call *l, uint8_t *packed) {
    const size_t width = l->ops->width;
    if (packed)
        l->x = packed;
    else
        l->x = l->p.x;
    if (packed && l->along_k)
        pack_rows(l, packed);
    else if (packed)
        parallel_for((l->rows + width - 1) / width,
                     l->sizes->pack_grain / (width * words(l, l->p.in_features) * WORD) + 1,
                     pack_panels, l);
    l->next = 0;
    parallel_for(threads_worth(l), 1, run_thread, l);
}

static gemm_call product_of(const gemm_ops *ops, const linear_product *product) {
    gemm_call l = {.ops = ops,
                   .sizes = tier_active_sizes(),
                   .p = *product,
                   .element = dtype_size(product->dtype)};
    l.unit = ops->unit;
    l.along_k = product->nrows <= l.sizes->few_rows;
    choose_sizes(&l);
    return l;
}

int gemm_whole(const gemm_ops *ops, const linear_product *product) {
    return product_of(ops, product).part == product->in_features;
}

/* How many rows of x, each `row_bytes` in panels, are multiplied at a time: the same number in each
 * pass but the last. */
static uint64_t pass_of(const gemm_call *l, size_t row_bytes) {
    const size_t width = l->ops->width;
    uint64_t most = l->sizes->pass_wide / row_bytes;
    if (l->sizes->pass_rows * row_bytes <= l->sizes->pass_max)
        most = l->sizes->pass / row_bytes > l->sizes->pass_rows ? l->sizes->pass / row_bytes
                                                                : l->sizes->pass_rows;
    most = most / width * width;
    if (most < width)
        most = width;
    const uint64_t nrows = l->p.nrows, passes = (nrows + most - 1) / most;
    return passes <= 1 ? nrows : ((nrows + passes - 1) / passes + width - 1) / width * width;
}

ccmem_status gemm_multiply(const gemm_ops *ops, const linear_product *product) {
    gemm_call l = product_of(ops, product);
    const uint64_t nrows = product->nrows;
    uint8_t *packed = NULL;
    const size_t n = words(&l, product->in_features);
    const size_t row_bytes = (l.along_k ? round_up(n, LINE_WORDS) + LINE_WORDS : n) * WORD;
    const uint64_t pass = pass_of(&l, row_bytes);
    l.ldx = row_bytes / WORD;
    if (l.along_k && product->in_features * l.unit % (ops->lanes * WORD) == 0 &&
        product->ldx * l.unit % WORD == 0 && product->ldx * l.unit % SET_BYTES) {
        l.ldx = (size_t)product->ldx * l.unit / WORD;
    } else {
        ccmem_status status =
            ccmem_plain_alloc(round_up(pass, l.along_k ? 1 : ops->width) * row_bytes, &packed);
        if (status != CCMEM_OK)
            return status;
    }
    for (uint64_t r = 0; r < nrows && !outcome_stopped(&l.end); r += l.rows) {
        l.rows = (size_t)(nrows - r < pass ? nrows - r : pass);
        run_pass(&l, packed);
        l.p.x = (const uint8_t *)l.p.x + l.rows * l.p.ldx * l.unit;
        l.p.y = (uint8_t *)l.p.y + l.rows * l.p.ldy * result_bytes(product);
    }
    ccmem_plain_free(packed);
    return outcome_end(&l.end);
}
