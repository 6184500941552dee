/* SPDX-License-Identifier: Apache-2.0
 * What the layers above a store need beside the public functions. */
#ifndef CCMEM_STORE_H
#define CCMEM_STORE_H

#include "ccmem.h"
#include "crypto/fused.h"

/* Starts fetching what a read of n bytes at `offset` will touch first, which must lie inside the
 * store: version, cached tweak, ciphertext. */
void store_prefetch(const ccmem_store *store, uint64_t offset, uint64_t n);

/* Returns where the ciphertext of byte `offset` lies, to fetch it, and when a page begins there,
 * starts fetching what is needed to open it. */
const uint8_t *store_prefetch_page(const ccmem_store *store, uint64_t offset);

/* What ccmem_last_failure will tell in this thread: for a failure that another thread met. */
void store_set_failure(ccmem_failure failure);

/* How a loop that several threads share ends; starts as zeros. Of several that fail, one tells. */
typedef struct outcome {
    int status;            /* atomic */
    ccmem_failure failure; /* written by the thread that set `status` from CCMEM_OK */
} outcome;

/* Returns 1 when some thread has failed, and the others need not go on. */
static inline int outcome_stopped(const outcome *o) {
    return __atomic_load_n(&o->status, __ATOMIC_RELAXED) != CCMEM_OK;
}

/* Notes the failure that a store function has just returned in this thread. */
static inline void outcome_stop(outcome *o, ccmem_status status) {
    int none = CCMEM_OK;
    if (__atomic_compare_exchange_n(&o->status, &none, (int)status, 0, __ATOMIC_RELAXED,
                                    __ATOMIC_RELAXED))
        o->failure = ccmem_last_failure();
}

/* After the loop, in the thread that began it: the status, and the failure as its own. */
static inline ccmem_status outcome_end(const outcome *o) {
    if (o->status == CCMEM_ERR_INTEGRITY)
        store_set_failure(o->failure);
    return (ccmem_status)o->status;
}

uint32_t store_page_size(const ccmem_store *store);

/* The largest size of a store: its pages have numbers below PAGE_NUMBERS (pages/page.h). */
static const uint64_t STORE_BYTES_MAX = ((uint64_t)1 << 60) - CCMEM_PAGE_SIZE_MAX;

/* ccmem_store_read() in the calling thread alone, for the handler of a fault: no other thread is
 * started or waited for. */
ccmem_status store_read_alone(ccmem_store *store, uint64_t offset, void *out, uint64_t n);

/* ccmem_store_write() from memory that is there and stays there, be it in one of the ranges of
 * memory/ranges.h: it is not copied, which would take plaintext of its own. `alone` as above. */
ccmem_status store_write_present(ccmem_store *store, uint64_t offset, const void *data, uint64_t n,
                                 int alone);

/* Returns why the store is not to be written, CCMEM_ERR_READONLY or _FROZEN; else CCMEM_OK. */
ccmem_status store_write_refusal(const ccmem_store *store);

enum { STORE_OPEN_MAX = 16 };

/* Opens n <= STORE_OPEN_MAX whole pages from page `first`, all of them the store's, into `to`, in
 * the calling thread, each as one writer left it. The store was checked to be this process's.
 * CCMEM_ERR_INTEGRITY: a page was changed; `to` may hold what is not verified. */
ccmem_status store_open_pages(ccmem_store *store, uint64_t first, uint8_t *to, uint64_t n);

/* The same for pages that are read by themselves: what follows them is not fetched. */
ccmem_status store_open_apart(ccmem_store *store, uint64_t first, uint8_t *to, uint64_t n);

/* Returns the least bytes that a step takes of a loop that multiplies pages in the registers it
 * opens them in (crypto/fused.h); 0 when it cannot. */
size_t store_fused_step(const ccmem_store *store);

/* Opens n <= STORE_OPEN_MAX pages from page `first` into registers and adds their products
 * (crypto/fused.h). *done is 0 when that could not be, since one was never written or changed
 * meanwhile: the sums then mean nothing, and store_open_pages() will do. CCMEM_ERR_INTEGRITY. */
ccmem_status store_open_fused(ccmem_store *store, uint64_t first, uint64_t n, ccmem_dtype dtype,
                              const fused_rows *rows, int *done);

/* Writes `count` runs, at least 1, of n bytes each that lie in one page, from data + i * n to
 * offsets[i], as one change of that page: one version. The runs were checked and the store is this
 * process's. CCMEM_ERR_VERSION, CCMEM_ERR_INTEGRITY: nothing has changed. */
ccmem_status store_write_in_page(ccmem_store *store, const uint64_t *offsets, size_t count,
                                 const void *data, uint32_t n);

#endif
