/* SPDX-License-Identifier: Apache-2.0
 * Addresses whose touch may open a page of a store: nobody may touch them while holding a page's
 * lock, or the one who opens the page would wait for him. */
#ifndef CCMEM_RANGES_H
#define CCMEM_RANGES_H

#include <stddef.h>
#include <stdint.h>

/* From now on [p, p + n) is one; 0 when there is no memory. */
int ranges_enter(const void *p, size_t n);

/* Undoes it. */
void ranges_leave(const void *p);

/* None is left: a forked child has none of its parent's. */
void ranges_forget(void);

/* 1 when some byte of [p, p + n) lies in one. */
int ranges_touch(const void *p, uint64_t n);

#endif
