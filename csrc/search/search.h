/* SPDX-License-Identifier: Apache-2.0
 * The best rows of an encrypted matrix for some queries. See ccmem_search() in ccmem.h. */
#ifndef CCMEM_SEARCH_H
#define CCMEM_SEARCH_H

#include "ccmem.h"

/* The k best of the rows that were seen: a heap whose first entry is the worst of them. A row with
 * a larger score is better; of equal ones, the one with the smaller id. So which are the best does
 * not depend on the order in which rows come. */
typedef struct best {
    uint64_t size, k;
    float *score;
    int64_t *id;
} best;

/* The least score that a row must have to be taken: -infinity until there are k. */
float best_threshold(const best *b);

/* Takes a row if it is among the best so far. A score that is no number is never taken. */
void best_add(best *b, float score, int64_t id);

/* Takes all that `from` has. */
void best_merge(best *b, const best *from);

/* Puts the entries in order, the best first, and fills up to k with -infinity and -1. The heap is
 * none any more. */
void best_sort(best *b);

#endif
