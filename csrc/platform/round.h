/* SPDX-License-Identifier: Apache-2.0
 * Sizes filled up to whole units. */
#ifndef CCMEM_ROUND_H
#define CCMEM_ROUND_H

#include <stddef.h>

/* Returns the lowest multiple of `to` that is not below n. */
static inline size_t round_up(size_t n, size_t to) { return (n + to - 1) / to * to; }

#endif
