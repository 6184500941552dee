/* SPDX-License-Identifier: Apache-2.0
 * A batch of caches, each with some rows: what a server computes in one step for many requests.
 * Appending a token and attending to it is a short call, of which the callers' own work and the
 * meeting of threads would be a large part; here threads take whole runs. */
#include "cache/cache.h"
#include "platform/dtype.h"
#include "platform/threads.h"

/* Rows of a run from which on its attention, which then shares blocks among rows, has enough for
 * all threads. */
enum { MANY = 8 };

typedef struct batch {
    ccmem_cache_run *run;
    const ccmem_cache_rows *k, *v;
    const ccmem_attention *what;
    uint64_t tokens;  /* of all short runs */
    uint64_t threads; /* that there are */
} batch;

static uint64_t tokens_of(const ccmem_cache_run *r) { return r->past + r->rows; }

/* 1 for a run that all threads work on, one after the other: of many rows, or so long that the
 * others would wait for the thread that had it. */
static int is_long(const batch *b, const ccmem_cache_run *r) {
    return r->rows >= MANY || tokens_of(r) > b->tokens / b->threads;
}

static ccmem_cache_rows rows_of(const ccmem_cache_rows *all, const ccmem_cache_run *r) {
    ccmem_cache_rows some = *all;
    some.data =
        (uint8_t *)all->data + (int64_t)r->first * all->token * (int64_t)dtype_size(all->dtype);
    return some;
}

static ccmem_attention attention_of(const ccmem_attention *all, const ccmem_cache_run *r) {
    const int64_t size = (int64_t)dtype_size(all->q_dtype), first = (int64_t)r->first * size;
    ccmem_attention some = *all;
    some.layer = r->layer;
    some.sequence = 0;
    some.sequences = 1;
    some.rows = r->rows;
    some.q = (const uint8_t *)all->q + first * all->q_row;
    some.out = (uint8_t *)all->out + first * all->out_row;
    return some;
}

static ccmem_status append(const batch *b, const ccmem_cache_run *r) {
    const ccmem_cache_rows k = rows_of(b->k, r), v = rows_of(b->v, r);
    uint64_t length, first;
    ccmem_status status = ccmem_cache_length(r->cache, r->layer, 0, &length, &first);
    if (status == CCMEM_OK && length != r->past)
        status = CCMEM_ERR_RANGE;
    if (status == CCMEM_OK)
        status = ccmem_cache_append(r->cache, r->layer, 0, 1, r->rows, &k, &v);
    return status;
}

static void run_one(const batch *b, ccmem_cache_run *r) {
    const ccmem_attention what = attention_of(b->what, r);
    r->status = append(b, r);
    if (r->status == CCMEM_OK)
        r->status = ccmem_cache_attend(r->cache, &what);
}

static void run_short(void *arg, uint64_t begin, uint64_t end) {
    const batch *b = arg;
    for (uint64_t i = begin; i < end; i++)
        if (!is_long(b, &b->run[i]))
            run_one(b, &b->run[i]);
}

ccmem_status ccmem_cache_attend_runs(ccmem_cache_run *runs, uint64_t n, const ccmem_cache_rows *k,
                                     const ccmem_cache_rows *v, const ccmem_attention *what) {
    batch b = {.run = runs, .k = k, .v = v, .what = what, .threads = ccmem_threads()};
    if (what->from || what->to || what->mask)
        return CCMEM_ERR_ARGUMENT;
    for (uint64_t i = 0; i < n; i++)
        if (runs[i].rows < MANY)
            b.tokens += tokens_of(&runs[i]);
    for (uint64_t i = 0; i < n; i++)
        if (is_long(&b, &runs[i]))
            run_one(&b, &runs[i]);
    parallel_for(n, 1, run_short, &b);
    for (uint64_t i = 0; i < n; i++)
        if (runs[i].status != CCMEM_OK)
            return runs[i].status;
    return CCMEM_OK;
}
