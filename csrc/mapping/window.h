/* SPDX-License-Identifier: Apache-2.0
 * A fixed number of frames between a store and a range of addresses: which blocks are open, which
 * goes when another is wanted, what is opened ahead. One of the two doors from ciphertext to
 * plaintext. */
#ifndef CCMEM_WINDOW_H
#define CCMEM_WINDOW_H

#include "ccmem.h"
#include "mapping/fault.h"

typedef struct window window;

typedef struct window_options {
    ccmem_store *store;
    uint64_t origin;   /* where block 0 begins in the store, a multiple of the page size */
    uint64_t from, to; /* the bytes of the window, origin <= from < to */
    size_t block, nframes;
    int writable, read_ahead;
    const fault_ops *ops;
    const char *name; /* copied */
} window_options;

/* The frames count against the budget. On success *out owns everything until window_free().
 * CCMEM_ERR_MAPPED when another window of the same bytes is in the way; _BUDGET, _NOMEM, _FAULT,
 * _SECRETMEM. */
ccmem_status window_new(const window_options *options, window **out);

/* The address of byte `from`. */
uint8_t *window_data(const window *w);

/* See ccmem_region_prefault() and its neighbours; [first, last] are blocks of the window. */
ccmem_status window_prefault(window *w, size_t first, size_t last);
ccmem_status window_pin(window *w, size_t first, size_t last);
ccmem_status window_unpin(window *w, size_t first, size_t last);
ccmem_status window_flush(window *w);
ccmem_status window_close(window *w);
ccmem_status window_get_stats(window *w, ccmem_region_stats *out);

/* Closes, and gives the addresses back. In a forked child it frees only what the child inherited.
 */
void window_free(window *w);

#endif
