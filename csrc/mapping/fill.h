/* SPDX-License-Identifier: Apache-2.0
 * Gets a block into a frame, for a caller that waits for it or ahead of a stream. With the window's
 * lock held, which is dropped while a block is opened. */
#ifndef CCMEM_WINDOW_FILL_H
#define CCMEM_WINDOW_FILL_H

#include "mapping/state.h"

/* Returns the block's frame, OPENED or PLACED; `s` is the stream that asks, or NULL; `alone`: opens
 * it in this thread only. NULL on failure, and when the window is being closed
 * (CCMEM_ERR_ARGUMENT). */
frame *fill_block(window *w, const stream *s, size_t block, int alone, ccmem_status *status);

/* Opens the next block ahead of the stream that faulted last. Returns 0 when there is none, or no
 * frame for it. */
int fill_ahead(window *w);

/* Waits for a frame to change its state, or a moment. */
void fill_wait(window *w);

#endif
