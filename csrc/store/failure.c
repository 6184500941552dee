/* SPDX-License-Identifier: Apache-2.0
 * Which page the last failed call in a thread was about. */
#include "store/core.h"

/* As errno: the page that the last failed call in this thread was about. */
static _Thread_local ccmem_failure last_failure;

ccmem_failure ccmem_last_failure(void) { return last_failure; }

void store_set_failure(ccmem_failure failure) { last_failure = failure; }

/* 1 from store_withheld() on, up to the next store_damaged(). */
static _Thread_local int withheld;

void store_withheld(void) { withheld = 1; }

ccmem_status store_damaged(shard *sh, uint64_t page, uint64_t version) {
    if (withheld) {
        withheld = 0;
        return CCMEM_ERR_WITHHELD;
    }
    add(&sh->count.integrity_failures, 1);
    last_failure = (ccmem_failure){page, version};
    return CCMEM_ERR_INTEGRITY;
}
