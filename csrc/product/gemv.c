/* SPDX-License-Identifier: Apache-2.0
 *
 * Products of an encrypted matrix with one row of x. Each thread takes rows of W, opens their pages
 * in order into a tile in its own cache, and multiplies from there; AEGIS pages are multiplied in
 * the registers they are opened in where that can be (crypto/aegis/fused.h). Memory is read once,
 * as ciphertext; the tile is wiped at the end of a thread's piece.
 *
 * Rows and pages have nothing to do with each other. A row is cut into blocks; a block that the
 * end of a page cuts waits, in front of where the next pages will be opened, for its rest. So a
 * block is always whole when it is multiplied, and a result does not depend on where the pages end.
 * The last block of a row is filled up with zeros.
 */
#include "product/gemv.h"

#include <string.h>

#include "memory/secret.h"
#include "platform/float_env.h"
#include "platform/threads.h"
#include "store/store.h"

enum { BLOCK_BYTES = GEMV_BLOCK_MAX * 4 };

/* ---- one matrix ------------------------------------------------------------------------------ */

typedef struct gemv_call {
    ccmem_store *store;
    const gemv_ops *ops;
    const tier_sizes *sizes;
    uint64_t offset;
    ccmem_dtype dtype;
    size_t element;
    uint64_t out_features, in_features;
    const float *scale, *bias;
    const float *x; /* packed */
    float *y;
    size_t batch;      /* pages opened at a time */
    size_t fused;      /* pages multiplied at a time in the registers they are opened in; 0: none */
    size_t fused_rows; /* rows of W that may end in these, and one more */
    outcome *end;
} gemv_call;

/* All that a thread has of the plaintext. */
typedef struct tile {
    gemv_sums sums;
    /* The sums of the row that is being multiplied when fused, in one of two places in turn: what a
     * call leaves is what the next starts from, and nothing is copied. */
    _Alignas(64) float lane[2][GEMV_BLOCK_MAX];
    unsigned at;                            /* which */
    _Alignas(64) uint8_t edge[BLOCK_BYTES]; /* the last block of a row */
    uint8_t before[BLOCK_BYTES];            /* the beginning of a block, up to the first page */
    uint8_t pages[]; /* and after them, when fused, the sums of the rows of one page */
} tile;

/* Where a thread is. */
typedef struct position {
    uint64_t row;  /* of W */
    uint64_t done; /* elements of it */
} position;

static void add_products(const gemv_call *l, tile *t, const uint8_t *w, uint64_t first,
                         size_t blocks) {
    l->ops->dot[l->dtype](&t->sums, w, l->x + first, blocks);
}

static inline void put_result(const gemv_call *l, uint64_t row, float sum) {
    float v = l->scale ? sum * l->scale[row] : sum;
    l->y[row] = l->bias ? v + l->bias[row] : v;
}

static void finish_row(const gemv_call *l, tile *t, uint64_t row) {
    put_result(l, row, l->ops->total(&t->sums));
}

/* Multiplies what n bytes at w hold of W's rows up to `end`. Returns how many bytes at their end
 * are the beginning of a block. */
static size_t multiply(const gemv_call *l, tile *t, position *at, uint64_t end, const uint8_t *w,
                       size_t n) {
    const size_t block = l->ops->block, block_bytes = block * l->element;
    while (at->row < end) {
        uint64_t left = l->in_features - at->done;
        size_t have = n / l->element;
        size_t blocks = (have < left ? have : (size_t)left) / block;
        if (blocks) {
            add_products(l, t, w, at->done, blocks);
            at->done += blocks * block;
            left -= blocks * block;
            w += blocks * block_bytes;
            n -= blocks * block_bytes;
        }
        if (left >= block || left * l->element > n)
            return n;
        if (left) {
            copy_secret(t->edge, w, left * l->element);
            memset(t->edge + left * l->element, 0, block_bytes - left * l->element);
            add_products(l, t, t->edge, at->done, 1);
            w += left * l->element;
            n -= left * l->element;
        }
        finish_row(l, t, at->row);
        at->row++;
        at->done = 0;
    }
    return 0;
}

/* The same for n pages that are opened into registers: bytes [from, to) of them are W's. Returns 0
 * when that could not be. */
static int multiply_fused(gemv_call *l, tile *t, position *at, uint64_t page, size_t n, size_t from,
                          size_t to) {
    float *sums = (float *)(t->pages + l->batch * store_page_size(l->store));
    fused_rows rows = {.from = from,
                       .to = to,
                       .in_features = (size_t)l->in_features,
                       .done = (size_t)at->done,
                       .x = l->x,
                       .first = t->lane[t->at],
                       .sums = sums,
                       .rest = t->lane[t->at ^ 1]};
    int done;
    ccmem_status status = store_open_fused(l->store, page, n, l->dtype, &rows, &done);
    if (status != CCMEM_OK)
        outcome_stop(l->end, status);
    if (!done)
        return 0;
    t->at ^= 1;
    at->done += (to - from) / l->element;
    for (; at->done >= l->in_features; at->done -= l->in_features, sums += l->ops->block)
        put_result(l, at->row++, l->ops->sum(sums));
    return 1;
}

static void multiply_rows(gemv_call *l, tile *t, uint64_t begin, uint64_t end) {
    const uint64_t size = store_page_size(l->store);
    const uint64_t row_bytes = l->in_features * l->element;
    const uint64_t last = l->offset + end * row_bytes;
    uint64_t from = l->offset + begin * row_bytes;
    size_t cut = 0; /* bytes of a block that wait in front of the pages */
    position at = {begin, 0};

    memset(&t->sums, 0, sizeof t->sums);
    memset(t->lane, 0, sizeof t->lane);
    t->at = 0;
    while (from < last && !outcome_stopped(l->end)) {
        uint64_t page = from / size, skip = from % size, left = (last - 1) / size + 1 - page;
        if (l->fused) {
            size_t n = left < l->fused ? (size_t)left : l->fused;
            uint64_t to = (page + n) * size < last ? (page + n) * size : last;
            if (multiply_fused(l, t, &at, page, n, (size_t)skip, (size_t)(to - page * size))) {
                from = to;
                continue;
            }
            if (outcome_stopped(l->end))
                return;
            memcpy(t->sums.lane, t->lane[t->at], sizeof t->lane[0]);
        }
        size_t n = left < l->batch ? (size_t)left : l->batch;
        uint64_t to = (page + n) * size < last ? (page + n) * size : last;
        ccmem_status status = store_open_pages(l->store, page, t->pages, n);
        if (status != CCMEM_OK) {
            outcome_stop(l->end, status);
            return;
        }
        uint8_t *w = t->pages + skip - cut;
        size_t have = (size_t)(to - from) + cut;
        cut = multiply(l, t, &at, end, w, have);
        if (cut) /* to copy nothing takes its time too */
            copy_secret(t->pages - cut, w + have - cut, cut);
        if (l->fused)
            memcpy(t->lane[t->at], t->sums.lane, sizeof t->lane[0]);
        from = to;
    }
}

/* Chooses whether pages are multiplied in registers: only when no row of W begins or ends within
 * what one step of the loop takes. A step is max(the cipher's, a block of the kernels) bytes. */
static void choose_way(gemv_call *l) {
    const size_t size = store_page_size(l->store), row_bytes = l->in_features * l->element;
    const size_t block_bytes = l->ops->block * l->element;
    const size_t least = store_fused_step(l->store),
                 step = block_bytes < least ? least : block_bytes;
    l->fused = l->fused_rows = 0;
    l->batch = size < l->sizes->open ? l->sizes->open / size : 1;
    if (l->batch > STORE_OPEN_MAX)
        l->batch = STORE_OPEN_MAX;
    if (least && l->ops->sum && l->offset % step == 0 && row_bytes % step == 0) {
        l->fused = size < l->sizes->fused ? l->sizes->fused / size : 1;
        l->fused_rows = l->fused * size / row_bytes + 2;
        l->batch = 1;
    }
}

static gemv_call call_of(const gemv_ops *ops, const linear_product *p, const float *x,
                         outcome *end) {
    gemv_call l = {.store = p->store,
                   .ops = ops,
                   .sizes = tier_active_sizes(),
                   .offset = p->offset,
                   .dtype = p->dtype,
                   .element = dtype_size(p->dtype),
                   .out_features = p->out_features,
                   .in_features = p->in_features,
                   .scale = p->scale,
                   .bias = p->bias,
                   .x = x,
                   .y = p->y,
                   .end = end};
    choose_way(&l);
    return l;
}

/* ---- all of them ----------------------------------------------------------------------------- */

/* Rows of W are numbered through all matrices. */
typedef struct gemv_job {
    gemv_call call[LINEAR_PARTS];
    size_t n;
    size_t tile; /* bytes that any of them needs */
    outcome end;
} gemv_job;

static size_t tile_bytes(const gemv_call *l) {
    return sizeof(tile) + l->batch * store_page_size(l->store) +
           l->fused_rows * l->ops->block * sizeof(float);
}

static void run_piece(void *arg, uint64_t begin, uint64_t end) {
    gemv_job *job = arg;
    uint8_t *block;
    ccmem_status status = ccmem_plain_alloc(job->tile, &block);
    if (status != CCMEM_OK) {
        outcome_stop(&job->end, status);
        return;
    }
    const float_env env = float_env_default();
    uint64_t first = 0, last;
    for (size_t i = 0; i < job->n && first < end; i++, first = last) {
        last = first + job->call[i].out_features;
        if (begin < last)
            multiply_rows(&job->call[i], (tile *)block, begin > first ? begin - first : 0,
                          (end < last ? end : last) - first);
    }
    float_env_restore(env);
    ccmem_plain_free(block);
}

ccmem_status gemv_multiply(const gemv_ops *ops, const linear_product *p, size_t n) {
    const tier_sizes *sizes = tier_active_sizes();
    const uint64_t row_bytes = p->in_features * dtype_size(p->dtype);
    const uint64_t grain = row_bytes < sizes->gemv_grain ? sizes->gemv_grain / row_bytes : 1;
    gemv_job job = {.n = n};
    uint64_t rows = 0;
    uint8_t *packed;
    ccmem_status status =
        ccmem_plain_alloc(sizes->x_shift + gemv_padded(ops, (size_t)p->in_features) * sizeof(float),
                          &packed);
    if (status != CCMEM_OK)
        return status;
    float *x = (float *)(packed + sizes->x_shift);
    for (size_t i = 0; i < n; i++) {
        job.call[i] = call_of(ops, &p[i], x, &job.end);
        rows += p[i].out_features;
        const size_t tile = tile_bytes(&job.call[i]);
        job.tile = tile > job.tile ? tile : job.tile;
    }
    gemv_pack(ops, p->dtype, x, p->x, (size_t)p->in_features);
    parallel_for(rows, grain, run_piece, &job);
    ccmem_plain_free(packed);
    return outcome_end(&job.end);
}
