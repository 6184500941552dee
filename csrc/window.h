/* SPDX-License-Identifier: Apache-2.0
 * A fixed number of frames between a store and a range of addresses: which blocks are open, which goes
 * when another is wanted, what is opened ahead. One of the two doors from ciphertext to plaintext. */
#ifndef CCMEM_WINDOW_H
#define CCMEM_WINDOW_H

#include "ccmem.h"
#include "fault.h"

typedef struct window window;

/* Bytes [from, to) of the store, from < to, in blocks that are counted from byte `origin` of it, a
 * multiple of the page size <= from; at most `nframes` of them are open at a time. `name` is copied. The
 * frames count against the budget. On success *out owns everything until window_free().
 * CCMEM_ERR_BUDGET, _NOMEM, _FAULT, _SECRETMEM. */
ccmem_status window_new(ccmem_store *store, uint64_t origin, uint64_t from, uint64_t to,
                        int writable, size_t block, size_t nframes, const fault_ops *ops,
                        const char *name, window **out);

/* The address of byte `from`; 1 when system calls fault, too. */
uint8_t *window_data(const window *w);
int window_system_calls(const window *w);

/* See ccmem_region_pin(), _unpin(), _flush() and _close(); [first, last] are blocks of the window. */
ccmem_status window_pin(window *w, size_t first, size_t last);
ccmem_status window_unpin(window *w, size_t first, size_t last);
ccmem_status window_flush(window *w);
ccmem_status window_close(window *w);

/* Closes, and gives the addresses back. In a forked child it frees only what the child inherited. */
void window_free(window *w);

#endif
