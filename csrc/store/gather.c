/* SPDX-License-Identifier: Apache-2.0
 * Many runs of one length in one call: rows of a table, elements at a stride. */
#include "platform/threads.h"
#include "store/store.h"

enum {
    AHEAD = 6,              /* runs: their misses in DRAM overlap, which one read cannot do */
    GRAIN_BYTES = 256 << 10 /* the least that is worth another thread */
};

typedef struct runs {
    ccmem_store *store;
    const uint64_t *offsets;
    uint64_t count, run;
    uint8_t *out;
    outcome end;
} runs;

static ccmem_status check_runs(ccmem_store *store, const uint64_t *offsets, uint64_t count,
                               uint64_t run) {
    uint64_t size = ccmem_store_size(store);
    ccmem_status status = ccmem_store_check(store);
    if (status != CCMEM_OK)
        return status;
    for (uint64_t i = 0; i < count; i++)
        if (run > size || offsets[i] > size - run)
            return CCMEM_ERR_RANGE;
    return CCMEM_OK;
}

static void gather_runs(void *arg, uint64_t begin, uint64_t end) {
    runs *r = arg;
    for (uint64_t i = begin; i < end; i++) {
        if (i + AHEAD < end)
            store_prefetch(r->store, r->offsets[i + AHEAD], r->run);
        ccmem_status status =
            ccmem_store_read(r->store, r->offsets[i], r->out + i * r->run, r->run);
        if (__builtin_expect(status != CCMEM_OK, 0)) {
            outcome_stop(&r->end, status);
            return;
        }
    }
}

ccmem_status ccmem_store_gather(ccmem_store *store, const uint64_t *offsets, uint64_t count,
                                uint64_t run, void *out) {
    runs r = {.store = store, .offsets = offsets, .count = count, .run = run, .out = out};
    ccmem_status status = check_runs(store, offsets, count, run);
    if (status != CCMEM_OK || !run)
        return status;
    uint64_t grain = GRAIN_BYTES / run;
    parallel_for(count, grain ? grain : 1, gather_runs, &r);
    status = outcome_end(&r.end);
    if (status != CCMEM_OK)
        ccmem_wipe(out, count * run);
    return status;
}

/* How many runs from the first on follow each other in the store too. */
static uint64_t adjoining(const uint64_t *offsets, uint64_t count, uint64_t run) {
    uint64_t n = 1;
    while (n < count && offsets[n] == offsets[n - 1] + run)
        n++;
    return n;
}

/* How many from the first on lie wholly in its page; 0 when it reaches into the next one itself. */
static uint64_t in_one_page(const uint64_t *offsets, uint64_t count, uint64_t run, uint64_t size) {
    uint64_t page = offsets[0] & ~(size - 1), n = 0;
    while (n < count && offsets[n] >= page && offsets[n] - page <= size - run)
        n++;
    return n;
}

ccmem_status ccmem_store_scatter(ccmem_store *store, const uint64_t *offsets, uint64_t count,
                                 uint64_t run, const void *data) {
    const uint8_t *from = data;
    ccmem_status status = check_runs(store, offsets, count, run);
    uint64_t size, n;
    if (status != CCMEM_OK || !run)
        return status;
    size = store_page_size(store);
    for (uint64_t i = 0; status == CCMEM_OK && i < count; i += n) {
        uint64_t left = count - i, alike = adjoining(offsets + i, left, run);
        /* Every write re-encrypts a whole page, so those of one page are made together. */
        n = run <= size ? in_one_page(offsets + i, left, run, size) : 0;
        if (alike * run > size || n <= alike) {
            n = alike;
            status = ccmem_store_write(store, offsets[i], from + i * run, n * run);
        } else {
            status = store_write_in_page(store, offsets + i, n, from + i * run, (uint32_t)run);
        }
    }
    return status;
}
