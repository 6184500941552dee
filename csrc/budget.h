/* SPDX-License-Identifier: Apache-2.0
 * How much plaintext this process has in memory of ours, and how much it may have: see
 * ccmem_set_plaintext_budget() in ccmem.h. Both doors from ciphertext to plaintext count here. */
#ifndef CCMEM_BUDGET_H
#define CCMEM_BUDGET_H

#include "ccmem.h"

/* Sets n bytes aside that may hold plaintext from now on. CCMEM_ERR_BUDGET, and nothing was set aside,
 * when the budget has no room for them; CCMEM_ERR_NOMEM. */
ccmem_status budget_reserve(uint64_t n);

/* Gives back what budget_reserve() set aside; n bytes of it hold no plaintext any more. */
void budget_release(uint64_t n);

/* n bytes of those set aside hold plaintext now. */
void budget_fill(uint64_t n);

/* They have been wiped. */
void budget_wipe(uint64_t n);

/* Events of windows, in the order of ccmem_plaintext_stats from `fills` on. */
typedef enum budget_event {
    BUDGET_FILL = 0,
    BUDGET_EVICTION,
    BUDGET_FAULT,
    BUDGET_READ_AHEAD,
    BUDGET_WRITE_BACK,
    BUDGET_EVENTS
} budget_event;

void budget_count(budget_event event);

#endif
