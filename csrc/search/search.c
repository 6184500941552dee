/* SPDX-License-Identifier: Apache-2.0
 *
 * The best rows of an encrypted matrix for some queries. Threads take blocks of rows from a
 * counter. A block is multiplied by all queries that are for it, as any product (product/linear.h):
 * its pages are opened once, in a tile or in registers. What it gives, a score for each row and
 * query, stays in the thread's own memory, which a core's cache holds, and is compared with the
 * worst of the k best that the thread has for that query. At the end the threads' best are merged.
 * So there is never more of the scores than a block's, and of the matrix than a tile. */
#include <math.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "memory/secret.h"
#include "platform/dtype.h"
#include "platform/round.h"
#include "platform/threads.h"
#include "product/linear.h"
#include "search/search.h"
#include "store/store.h"
#include "tiers/tiers.h"

enum {
    LINE = 64,
    SCORES = 256 << 10,    /* bytes of a block's scores, beside what a product takes of an L2 */
    BLOCK_BYTES = 4 << 20, /* of rows that are worth a product of their own, */
    BLOCK_MAX = 8192,      /* and rows of one at most and at least: whole pages of any page size */
    BLOCK_MIN = 256,
    GROUP = 32 /* scores that are compared at once */
};

typedef struct search_call {
    const ccmem_search_part *part;
    uint64_t nparts;
    const uint64_t *first; /* for each part, and behind the last: blocks before it */
    uint64_t block;        /* rows of one */
    ccmem_dtype dtype;
    uint64_t dim, nqueries, k;
    const float *query;
    best *all;
    pthread_mutex_t lock; /* of `all` and `failed` */
    uint64_t next;        /* atomic; the first block that no thread has taken */
    uint64_t failed;      /* where the failure was that `end` has, as ccmem_search() tells it */
    outcome end;
} search_call;

/* What a thread has for itself, in one block of memory. */
typedef struct workspace {
    float *y;      /* [query][row] */
    float *factor; /* of the block's rows */
    float *bias;
    float *gathered; /* the queries of a part that is not for all */
    best *own;       /* for each query */
} workspace;

static int may_be_found(const ccmem_search_part *p, uint64_t row) {
    const uint64_t bit = p->live_first + row;
    return !p->live || (p->live[bit / 8] >> bit % 8 & 1);
}

/* 1 when a row among n from `row` on may be found. */
static int any_live(const ccmem_search_part *p, uint64_t row, uint64_t n) {
    if (!p->live)
        return 1;
    for (uint64_t i = 0; i < n;) {
        const uint64_t bit = p->live_first + row + i;
        if (bit % 8 == 0 && n - i >= 8 && !p->live[bit / 8]) {
            i += 8;
            continue;
        }
        if (p->live[bit / 8] >> bit % 8 & 1)
            return 1;
        i++;
    }
    return 0;
}

/* Takes what is good enough of the scores of n rows from `row` on. */
static CLEAR_REGISTERS void take(const ccmem_search_part *p, best *b, const float *y, uint64_t row,
                                 uint64_t n) {
    float least = best_threshold(b);
    for (uint64_t i = 0; i < n; i += GROUP) {
        const uint64_t some = n - i < GROUP ? n - i : GROUP;
        int any = some < GROUP;
        if (!any)
            for (unsigned j = 0; j < GROUP; j++)
                any |= y[i + j] >= least;
        if (!any)
            continue;
        for (uint64_t j = i; j < i + some; j++)
            if (y[j] >= least && may_be_found(p, row + j)) {
                best_add(b, y[j], p->ids ? p->ids[row + j] : p->first_id + (int64_t)(row + j));
                least = best_threshold(b);
            }
    }
}

/* Opens what the rows' sums are multiplied by, or what is added to them. */
static ccmem_status open_column(ccmem_store *store, uint64_t offset, uint64_t row, uint64_t n,
                                float *to, const float **out) {
    *out = store ? to : NULL;
    return store ? ccmem_store_read(store, offset + row * sizeof *to, to, n * sizeof *to)
                 : CCMEM_OK;
}

/* *which is which of the part's stores a failure was in. */
static ccmem_status search_block(const search_call *c, const workspace *w,
                                 const ccmem_search_part *p, uint64_t row, uint64_t n,
                                 unsigned *which) {
    const uint64_t queries = p->queries ? p->nqueries : c->nqueries;
    const float *factor, *bias, *x = c->query;
    *which = 1;
    ccmem_status status = open_column(p->factors, p->factor_offset, row, n, w->factor, &factor);
    if (status != CCMEM_OK)
        return status;
    *which = 2;
    status = open_column(p->biases, p->bias_offset, row, n, w->bias, &bias);
    if (status != CCMEM_OK)
        return status;
    *which = 0;
    if (p->queries) {
        x = w->gathered;
        for (uint64_t q = 0; q < queries; q++)
            memcpy(w->gathered + q * c->dim, c->query + p->queries[q] * c->dim, c->dim * sizeof *x);
    }
    const linear_product product = {
        .store = p->rows,
        .offset = p->offset + row * c->dim * dtype_size(c->dtype),
        .dtype = c->dtype,
        .out_features = n,
        .in_features = c->dim,
        .x = x,
        .nrows = queries,
        .ldx = c->dim,
        .scale = factor,
        .bias = bias,
        .y = w->y,
        .ldy = n,
    };
    status = linear_multiply(&product, 0);
    if (status != CCMEM_OK)
        return status;
    for (uint64_t q = 0; q < queries; q++)
        take(p, &w->own[p->queries ? p->queries[q] : q], w->y + q * n, row, n);
    return CCMEM_OK;
}

/* The part that block `number` belongs to. */
static uint64_t part_of(const search_call *c, uint64_t number) {
    uint64_t low = 0, high = c->nparts;
    while (high - low > 1) {
        const uint64_t middle = (low + high) / 2;
        if (c->first[middle] <= number)
            low = middle;
        else
            high = middle;
    }
    return low;
}

static void search_blocks(search_call *c, const workspace *w) {
    while (!outcome_stopped(&c->end)) {
        const uint64_t number = __atomic_fetch_add(&c->next, 1, __ATOMIC_RELAXED);
        if (number >= c->first[c->nparts])
            return;
        const uint64_t at = part_of(c, number), row = (number - c->first[at]) * c->block;
        const ccmem_search_part *p = &c->part[at];
        const uint64_t n = p->count - row < c->block ? p->count - row : c->block;
        if (!any_live(p, row, n))
            continue;
        unsigned which;
        ccmem_status status = search_block(c, w, p, row, n, &which);
        if (status != CCMEM_OK) {
            pthread_mutex_lock(&c->lock);
            if (!outcome_stopped(&c->end))
                c->failed = 3 * at + which;
            outcome_stop(&c->end, status);
            pthread_mutex_unlock(&c->lock);
            return;
        }
    }
}

static size_t heaps_bytes(const search_call *c) {
    return (size_t)(c->nqueries * c->k) * (sizeof(float) + sizeof(int64_t)) +
           (size_t)c->nqueries * sizeof(best);
}

/* Puts empty heaps into memory of heaps_bytes(). */
static best *heaps_in(const search_call *c, uint8_t *memory) {
    best *b = (best *)(void *)memory;
    int64_t *id = (int64_t *)(void *)(b + c->nqueries);
    float *score = (float *)(id + c->nqueries * c->k);
    for (uint64_t q = 0; q < c->nqueries; q++)
        b[q] = (best){.k = c->k, .score = score + q * c->k, .id = id + q * c->k};
    return b;
}

static void run_thread(void *arg, uint64_t begin, uint64_t end) {
    search_call *c = arg;
    const size_t y = round_up((size_t)(c->nqueries * c->block) * sizeof(float), LINE);
    const size_t column = round_up((size_t)c->block * sizeof(float), LINE);
    const size_t gathered = round_up((size_t)(c->nqueries * c->dim) * sizeof(float), LINE);
    uint8_t *memory;
    (void)begin;
    (void)end;
    if (__atomic_load_n(&c->next, __ATOMIC_RELAXED) >= c->first[c->nparts])
        return;
    ccmem_status status = ccmem_plain_alloc(y + 2 * column + gathered + heaps_bytes(c), &memory);
    if (status != CCMEM_OK) {
        outcome_stop(&c->end, status);
        return;
    }
    workspace w = {.y = (float *)(void *)memory};
    w.factor = (float *)(void *)(memory + y);
    w.bias = (float *)(void *)(memory + y + column);
    w.gathered = (float *)(void *)(memory + y + 2 * column);
    w.own = heaps_in(c, memory + y + 2 * column + gathered);
    search_blocks(c, &w);
    pthread_mutex_lock(&c->lock);
    for (uint64_t q = 0; q < c->nqueries; q++)
        best_merge(&c->all[q], &w.own[q]);
    pthread_mutex_unlock(&c->lock);
    ccmem_plain_free(memory);
    burn_stack_of_kernels();
}

/* Rows of a block: a power of two, so that blocks are whole pages wherever rows can be. */
static uint64_t block_of(uint64_t row_bytes, uint64_t nqueries) {
    uint64_t rows = BLOCK_MAX;
    while (rows > BLOCK_MIN && (rows * row_bytes > BLOCK_BYTES || rows * nqueries * 4 > SCORES))
        rows /= 2;
    return rows;
}

static ccmem_status check_part(const search_call *c, const ccmem_search_part *p) {
    ccmem_status status = CCMEM_OK;
    if (!p->rows || (p->queries && (p->nqueries > c->nqueries || !p->nqueries)))
        return CCMEM_ERR_ARGUMENT;
    for (uint32_t q = 0; p->queries && q < p->nqueries; q++)
        if (p->queries[q] >= c->nqueries)
            return CCMEM_ERR_ARGUMENT;
    status = linear_check_matrix(p->rows, p->offset, dtype_size(c->dtype), p->count, c->dim);
    if (status == CCMEM_OK && p->factors)
        status = linear_check_matrix(p->factors, p->factor_offset, sizeof(float), p->count, 1);
    if (status == CCMEM_OK && p->biases)
        status = linear_check_matrix(p->biases, p->bias_offset, sizeof(float), p->count, 1);
    return status;
}

/* Counts the blocks of all parts. */
static ccmem_status plan(search_call *c, uint64_t *first) {
    uint64_t blocks = 0;
    for (uint64_t i = 0; i < c->nparts; i++) {
        ccmem_status status = check_part(c, &c->part[i]);
        if (status != CCMEM_OK) {
            c->failed = 3 * i;
            return status;
        }
        first[i] = blocks;
        blocks += (c->part[i].count + c->block - 1) / c->block;
    }
    first[c->nparts] = blocks;
    c->first = first;
    return CCMEM_OK;
}

static void search_all(search_call *c, uint8_t *heaps, float *scores, int64_t *ids) {
    const uint64_t blocks = c->first[c->nparts];
    const uint64_t bytes = blocks * c->block * c->dim * dtype_size(c->dtype);
    c->all = heaps_in(c, heaps);
    parallel_for(threads_for(bytes / tier_active_sizes()->gemv_grain, blocks), 1, run_thread, c);
    for (uint64_t q = 0; q < c->nqueries && !outcome_stopped(&c->end); q++) {
        best_sort(&c->all[q]);
        memcpy(scores + q * c->k, c->all[q].score, c->k * sizeof *scores);
        memcpy(ids + q * c->k, c->all[q].id, c->k * sizeof *ids);
    }
}

ccmem_status ccmem_search(const ccmem_search_part *parts, uint64_t nparts, ccmem_dtype dtype,
                          uint64_t dim, const float *queries, uint64_t nqueries, uint64_t k,
                          float *scores, int64_t *ids, uint64_t *failed) {
    uint64_t *first, row_bytes, room;
    uint8_t *heaps;
    if ((nparts && !parts) || !dtype_size(dtype) || !dim || !queries || !nqueries || !k ||
        !scores || !ids || !failed || nqueries > CCMEM_SEARCH_QUERIES_MAX)
        return CCMEM_ERR_ARGUMENT;
    if (__builtin_mul_overflow(dim, (uint64_t)sizeof(float), &row_bytes) ||
        __builtin_mul_overflow(row_bytes, nqueries, &room) ||
        __builtin_mul_overflow(nqueries * sizeof(best), k, &room))
        return CCMEM_ERR_RANGE;
    row_bytes = dim * dtype_size(dtype);
    search_call c = {.part = parts,
                     .nparts = nparts,
                     .block = block_of(row_bytes, nqueries),
                     .dtype = dtype,
                     .dim = dim,
                     .nqueries = nqueries,
                     .k = k,
                     .query = queries,
                     .lock = PTHREAD_MUTEX_INITIALIZER};
    first = calloc(nparts + 1, sizeof *first);
    if (!first)
        return CCMEM_ERR_NOMEM;
    ccmem_status status = plan(&c, first);
    if (status == CCMEM_OK)
        status = ccmem_plain_alloc(heaps_bytes(&c), &heaps);
    if (status == CCMEM_OK) {
        search_all(&c, heaps, scores, ids);
        ccmem_plain_free(heaps);
        status = outcome_end(&c.end);
    }
    free(first);
    *failed = c.failed;
    if (status != CCMEM_OK) {
        ccmem_wipe(scores, nqueries * k * sizeof *scores);
        ccmem_wipe(ids, nqueries * k * sizeof *ids);
    }
    return status;
}
