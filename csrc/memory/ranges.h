/* SPDX-License-Identifier: Apache-2.0
 * Mapped address ranges. Touching one can open a page of a store, so no thread touches one while it
 * holds a page's lock (deadlock). */
#ifndef CCMEM_RANGES_H
#define CCMEM_RANGES_H

#include <stddef.h>
#include <stdint.h>

/* Enters [p, p + n). Returns 0 when there is no memory. */
int ranges_enter(const void *p, size_t n);

/* Takes out the range that begins at p. */
void ranges_leave(const void *p);

/* Takes out all: a forked child has none of its parent's. */
void ranges_forget(void);

/* Returns 1 when some byte of [p, p + n) lies in one. */
int ranges_touch(const void *p, uint64_t n);

#endif
