/* SPDX-License-Identifier: Apache-2.0
 * All windows of the process: which may exist side by side, what a forked child does with them, and
 * what they count together. */
#ifndef CCMEM_WINDOW_REGISTRY_H
#define CCMEM_WINDOW_REGISTRY_H

#include "mapping/state.h"

/* Adds the window. CCMEM_ERR_MAPPED when another one has some of the same bytes, and one of the two
 * is writable. */
ccmem_status windows_enter(window *w);

void windows_leave(window *w);

/* The first of the list, for a process that is about to end: takes no lock. */
window *windows_first(void);

extern ccmem_region_stats windows_totals; /* of all windows so far; each word atomic */

/* Counts one `what` of ccmem_region_stats; with the window's lock held. */
#define COUNT(w, what)                                                                             \
    ((w)->count.what++, __atomic_fetch_add(&windows_totals.what, 1, __ATOMIC_RELAXED))

#endif
