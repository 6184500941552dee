/* SPDX-License-Identifier: Apache-2.0
 * float32, float16 and bfloat16 go to pyccmem's products. A matrix of another type is opened a few
 * rows at a time into a tile, converted by ggml's own function for the type, and multiplied from
 * there. */
#include "product.h"

#include <string.h>

#include "memory/secret.h"
#include "platform/threads.h"

enum {
    TILE_BYTES = 32 << 10, /* of ciphertext opened at once, beside one row as float32 */
    LANES = 16,            /* sums of one dot product: a vector of the widest registers */
    GRAIN_BYTES = 64 << 10 /* of a matrix that are worth a thread */
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

/* ---- any type, through a tile ---------------------------------------------------------------- */

typedef struct call {
    const matrix *w;
    const float *x;
    uint64_t nrows, ldx;
    float *y;
    uint64_t ldy;
    ggml_to_float_t to_float;
    ccmem_status status; /* atomic; the first failure */
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

CLEAR_REGISTERS static void multiply_rows(void *arg, uint64_t begin, uint64_t end) {
    call *c = arg;
    const matrix *w = c->w;
    const uint64_t most = w->row_bytes < TILE_BYTES ? TILE_BYTES / w->row_bytes : 1;
    const uint64_t room = (most * w->row_bytes + 63) / 64 * 64;
    uint8_t *tile = NULL;
    ccmem_status status = ccmem_plain_alloc(room + w->columns * sizeof(float), &tile);
    for (uint64_t o = begin; status == CCMEM_OK && o < end;) {
        const uint64_t n = end - o < most ? end - o : most;
        float *row = (float *)(tile + room);
        status = ccmem_store_read(w->place.store, w->place.offset + o * w->row_bytes, tile,
                                  n * w->row_bytes);
        for (uint64_t i = 0; status == CCMEM_OK && i < n; i++, o++) {
            c->to_float(tile + i * w->row_bytes, row, (int64_t)w->columns);
            for (uint64_t r = 0; r < c->nrows; r++)
                c->y[r * c->ldy + o] = dot(c->x + r * c->ldx, row, w->columns);
        }
    }
    ccmem_plain_free(tile);
    if (status != CCMEM_OK)
        fail(c, status);
}

static ccmem_status multiply_by_tiles(const matrix *w, const float *x, uint64_t nrows, uint64_t ldx,
                                      float *y, uint64_t ldy) {
    call c = {w, x, nrows, ldx, y, ldy, host.type_traits(w->type)->to_float, CCMEM_OK};
    parallel_for(w->rows, GRAIN_BYTES / w->row_bytes + 1, multiply_rows, &c);
    if (c.status != CCMEM_OK)
        for (uint64_t r = 0; r < nrows; r++)
            memset(y + r * ldy, 0, w->rows * sizeof *y);
    return c.status;
}

ccmem_status product_multiply(const matrix *w, const float *x, uint64_t nrows, uint64_t ldx,
                              float *y, uint64_t ldy) {
    ccmem_dtype dtype;
    if (!same_dtype(w->type, &dtype))
        return multiply_by_tiles(w, x, nrows, ldx, y, ldy);
    return ccmem_store_linear(w->place.store, w->place.offset, dtype, w->rows, w->columns, NULL, x,
                              nrows, ldx, NULL, y, ldy);
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
