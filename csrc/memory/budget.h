/* SPDX-License-Identifier: Apache-2.0
 * The process's plaintext budget: what may hold plaintext is reserved first, and what does hold it
 * is counted, in bytes and in bytes times seconds. Blocks of memory/plain.c and frames of
 * mapping/frames.c come here. */
#ifndef CCMEM_BUDGET_H
#define CCMEM_BUDGET_H

#include "ccmem.h"

/* Has a forked child begin its counts at zero; the limit stays. Called by ccmem_init(). */
void budget_init(void);

/* Takes n bytes of the budget. CCMEM_ERR_BUDGET: fewer are left, and nothing was taken. */
ccmem_status budget_reserve(uint64_t n);

/* Gives back what budget_reserve() took. */
void budget_release(uint64_t n);

/* n bytes that were reserved hold plaintext from now on. */
void budget_expose(uint64_t n);

/* n bytes that budget_expose() counted have been wiped. */
void budget_hide(uint64_t n);

#endif
