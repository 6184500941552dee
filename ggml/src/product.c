/* SPDX-License-Identifier: Apache-2.0
 * float32, float16 and bfloat16 go to pyccmem's products. A matrix of another type is opened a few
 * pages at a time into a tile and multiplied from there by the dot product of ggml's CPU backend,
 * so that the result is what it would be there to the bit; or, where that is not to be had,
 * converted to float32 by ggml. */
#include "product.h"

#include <stdlib.h>
#include <string.h>

#include "kernels.h"
#include "memory/secret.h"
#include "platform/threads.h"
#include "store/store.h"

enum {
    TILE_PAGES = 12,        /* opened at once: with x and y they stay in a core's own cache */
    LANES = 16,             /* sums of one dot product: a vector of the widest registers */
    X_BYTES = 128 << 10,    /* of converted x that are multiplied by a tile at a time */
    GRAIN_ROWS = 16,        /* of x that are worth a thread to convert */
    GRAIN_BYTES = 64 << 10, /* of a matrix that are worth a thread */
};

bool product_knows(enum ggml_type type) {
    return type == GGML_TYPE_F32 || host.type_traits(type)->to_float;
}

ccmem_status product_matrix(const struct ggml_tensor *tensor, int64_t i2, int64_t i3, matrix *out) {
    ccmem_status status = weights_find(tensor, &out->place);
    if (status != CCMEM_OK)
        return status;
    out->place.offset += (uint64_t)i2 * tensor->nb[2] + (uint64_t)i3 * tensor->nb[3];
    out->type = tensor->type;
    out->rows = (uint64_t)tensor->ne[1];
    out->columns = (uint64_t)tensor->ne[0];
    out->row_bytes = tensor->nb[1];
    return CCMEM_OK;
}

/* The type of ccmem_store_linear() that is the same; false: there is none. */
static bool same_dtype(enum ggml_type type, ccmem_dtype *out) {
    switch (type) {
    case GGML_TYPE_F32: *out = CCMEM_F32; return true;
    case GGML_TYPE_F16: *out = CCMEM_F16; return true;
    case GGML_TYPE_BF16: *out = CCMEM_BF16; return true;
    default: return false;
    }
}

/* The format of ccmem_store_linear_blocks() that is the same; false: there is none, or the user
 * wants ggml's products. */
static bool same_format(enum ggml_type type, ccmem_block_format *out) {
    static const struct {
        enum ggml_type type;
        ccmem_block_format format;
    } formats[] = {
        {GGML_TYPE_Q4_0, CCMEM_Q4_0},     {GGML_TYPE_Q4_1, CCMEM_Q4_1},
        {GGML_TYPE_Q5_0, CCMEM_Q5_0},     {GGML_TYPE_Q5_1, CCMEM_Q5_1},
        {GGML_TYPE_Q8_0, CCMEM_Q8_0},     {GGML_TYPE_Q2_K, CCMEM_Q2_K},
        {GGML_TYPE_Q3_K, CCMEM_Q3_K},     {GGML_TYPE_Q4_K, CCMEM_Q4_K},
        {GGML_TYPE_Q5_K, CCMEM_Q5_K},     {GGML_TYPE_Q6_K, CCMEM_Q6_K},
        {GGML_TYPE_IQ4_NL, CCMEM_IQ4_NL}, {GGML_TYPE_IQ4_XS, CCMEM_IQ4_XS},
    };
    const char *wanted = getenv("PYCCMEM_GGML_PRODUCTS");
    if (wanted && strcmp(wanted, "ggml") == 0)
        return false;
    for (size_t i = 0; i < sizeof formats / sizeof *formats; i++)
        if (formats[i].type == type) {
            *out = formats[i].format;
            return true;
        }
    return false;
}

/* ---- any other type, through a tile ---------------------------------------------------------- */

typedef struct call {
    const matrix *w;
    const float *x;
    uint64_t nrows, ldx;
    float *y;
    uint64_t ldy;
    bool blocks;       /* multiply as ggml's CPU backend does, and not in float32 */
    dot_kernel kernel; /* if so, and x as it wants it, in rows of so many bytes */
    uint8_t *converted;
    uint64_t converted_bytes;
    ggml_to_float_t to_float; /* if not */
    ccmem_status status;      /* atomic; the first failure */
} call;

static void fail(call *c, ccmem_status status) {
    ccmem_status none = CCMEM_OK;
    __atomic_compare_exchange_n(&c->status, &none, status, 0, __ATOMIC_RELAXED, __ATOMIC_RELAXED);
}

__attribute__((target_clones("avx512f", "avx2,fma", "default"))) static float
dot(const float *a, const float *b, uint64_t n) {
    float sums[LANES] = {0}, rest = 0;
    uint64_t i = 0;
    for (; i + LANES <= n; i += LANES)
        for (int lane = 0; lane < LANES; lane++)
            sums[lane] += a[i + (uint64_t)lane] * b[i + (uint64_t)lane];
    for (; i < n; i++)
        rest += a[i] * b[i];
    for (int lane = 0; lane < LANES; lane++)
        rest += sums[lane];
    return rest;
}

/* Multiplies rows [first, first + n) of W, which lie at `rows`. Some rows of x at a time, which
 * stay in the core's cache for all rows of W. */
static void multiply_blocks(const call *c, const uint8_t *rows, uint64_t first, uint64_t n) {
    const matrix *w = c->w;
    const uint64_t some = X_BYTES / c->converted_bytes + 1;
    for (uint64_t begin = 0; begin < c->nrows; begin += some) {
        const uint64_t end = c->nrows - begin < some ? c->nrows : begin + some;
        for (uint64_t o = 0; o < n; o++)
            for (uint64_t r = begin; r < end; r++)
                c->kernel.dot((int)w->columns, &c->y[r * c->ldy + first + o], 0,
                              rows + o * w->row_bytes, 0, c->converted + r * c->converted_bytes, 0,
                              1);
    }
}

/* The same in float32; `row` has room for one row. */
static void multiply_floats(const call *c, const uint8_t *rows, uint64_t first, uint64_t n,
                            float *row) {
    const matrix *w = c->w;
    for (uint64_t o = 0; o < n; o++) {
        c->to_float(rows + o * w->row_bytes, row, (int64_t)w->columns);
        for (uint64_t r = 0; r < c->nrows; r++)
            c->y[r * c->ldy + first + o] = dot(c->x + r * c->ldx, row, w->columns);
    }
}

/* Rows [begin, end) of W. Pages are opened in runs, each once: what a run has of a row whose end is
 * in the next one is put in front of that. */
CLEAR_REGISTERS static void multiply_rows(void *arg, uint64_t begin, uint64_t end) {
    call *c = arg;
    const matrix *w = c->w;
    ccmem_store *store = w->place.store;
    const uint64_t page = store_page_size(store), lead = (w->row_bytes + page - 1) / page * page;
    const uint64_t last = w->place.offset + end * w->row_bytes; /* one past the last byte */
    uint64_t at = (w->place.offset + begin * w->row_bytes) / page, kept = 0;
    uint64_t skip = (w->place.offset + begin * w->row_bytes) % page;
    const uint64_t room = lead + TILE_PAGES * page;
    uint8_t *tile = NULL;
    ccmem_status status =
        ccmem_plain_alloc(room + (c->blocks ? 0 : w->columns * sizeof(float)), &tile);
    while (status == CCMEM_OK && begin < end) {
        const uint64_t left = (last + page - 1) / page - at;
        const uint64_t count = left < TILE_PAGES ? left : TILE_PAGES;
        status = store_open_pages(store, at, tile + lead, count);
        if (status != CCMEM_OK)
            break;
        at += count;
        uint8_t *rows = tile + lead + skip - kept;
        uint64_t n = (kept + count * page - skip) / w->row_bytes;
        n = n < end - begin ? n : end - begin;
        if (c->blocks)
            multiply_blocks(c, rows, begin, n);
        else
            multiply_floats(c, rows, begin, n, (float *)(tile + room));
        begin += n;
        rows += n * w->row_bytes;
        kept = (uint64_t)(tile + lead + count * page - rows);
        skip = 0;
        if (begin < end)
            copy_secret(tile + lead - kept, rows, kept);
    }
    ccmem_plain_free(tile);
    burn_stack();
    if (status != CCMEM_OK)
        fail(c, status);
}

static void convert_rows(void *arg, uint64_t begin, uint64_t end) {
    const call *c = arg;
    for (uint64_t r = begin; r < end; r++)
        c->kernel.from_float(c->x + r * c->ldx, c->converted + r * c->converted_bytes,
                             (int64_t)c->w->columns);
}

static ccmem_status multiply_by_tiles(const matrix *w, const float *x, uint64_t nrows, uint64_t ldx,
                                      float *y, uint64_t ldy) {
    call c = {.w = w, .x = x, .nrows = nrows, .ldx = ldx, .y = y, .ldy = ldy};
    c.status = ccmem_store_check(w->place.store);
    c.blocks = kernels_find(w->type, &c.kernel) && w->columns % c.kernel.unit == 0;
    if (c.status == CCMEM_OK && c.blocks) {
        c.converted_bytes = w->columns / c.kernel.unit * c.kernel.unit_bytes;
        c.status = ccmem_plain_alloc(nrows * c.converted_bytes, &c.converted);
        if (c.status == CCMEM_OK)
            parallel_for(nrows, GRAIN_ROWS, convert_rows, &c);
    } else {
        c.to_float = host.type_traits(w->type)->to_float;
    }
    if (c.status == CCMEM_OK)
        parallel_for(w->rows, GRAIN_BYTES / w->row_bytes + 1, multiply_rows, &c);
    ccmem_plain_free(c.converted);
    if (c.status != CCMEM_OK)
        for (uint64_t r = 0; r < nrows; r++)
            memset(y + r * ldy, 0, w->rows * sizeof *y);
    return c.status;
}

/* ccmem_store_linear_blocks() for rows that do not lie one after the other. */
static ccmem_status multiply_formats(const matrix *w, ccmem_block_format format, const float *x,
                                     uint64_t nrows, uint64_t ldx, float *y, uint64_t ldy) {
    const bool in_place = nrows <= 1 || (ldx == w->columns && ldy == w->rows);
    float *dense = NULL, *sums = y;
    if (!in_place) {
        dense = malloc(nrows * (w->columns + w->rows) * sizeof *dense);
        if (!dense)
            return CCMEM_ERR_NOMEM;
        sums = dense + nrows * w->columns;
        for (uint64_t r = 0; r < nrows; r++)
            memcpy(dense + r * w->columns, x + r * ldx, w->columns * sizeof *x);
    }
    ccmem_status status =
        ccmem_store_linear_blocks(w->place.store, w->place.offset, format, w->rows, w->columns,
                                  NULL, in_place ? x : dense, nrows, NULL, sums);
    for (uint64_t r = 0; !in_place && r < nrows; r++)
        memcpy(y + r * ldy, sums + r * w->rows, w->rows * sizeof *y);
    free(dense);
    return status;
}

ccmem_status product_multiply(const matrix *w, const float *x, uint64_t nrows, uint64_t ldx,
                              float *y, uint64_t ldy) {
    ccmem_dtype dtype;
    ccmem_block_format format;
    if (same_dtype(w->type, &dtype))
        return ccmem_store_linear(w->place.store, w->place.offset, dtype, w->rows, w->columns, NULL,
                                  x, nrows, ldx, NULL, y, ldy);
    if (same_format(w->type, &format))
        return multiply_formats(w, format, x, nrows, ldx, y, ldy);
    return multiply_by_tiles(w, x, nrows, ldx, y, ldy);
}

/* ---- rows ------------------------------------------------------------------------------------ */

CLEAR_REGISTERS ccmem_status product_row(const matrix *w, int64_t row, float *out) {
    const uint64_t at = w->place.offset + (uint64_t)row * w->row_bytes;
    ccmem_status status = CCMEM_ERR_RANGE;
    if (row >= 0 && (uint64_t)row < w->rows && w->type == GGML_TYPE_F32) {
        status = ccmem_store_read(w->place.store, at, out, w->row_bytes);
    } else if (row >= 0 && (uint64_t)row < w->rows) {
        uint8_t *tile = NULL;
        status = ccmem_plain_alloc(w->row_bytes, &tile);
        if (status == CCMEM_OK)
            status = ccmem_store_read(w->place.store, at, tile, w->row_bytes);
        if (status == CCMEM_OK)
            host.type_traits(w->type)->to_float(tile, out, (int64_t)w->columns);
        ccmem_plain_free(tile);
    }
    if (status != CCMEM_OK)
        memset(out, 0, w->columns * sizeof *out);
    return status;
}
