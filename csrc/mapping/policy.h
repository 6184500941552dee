/* SPDX-License-Identifier: Apache-2.0
 * Which block goes when another is wanted, and which comes next. Touches no memory of a frame; all
 * with the window's lock held.
 *
 * The touches of a block that is placed are not seen, so what was used last is not known, only what
 * faulted last. A thread that reads block after block (a stream) gets its next blocks opened ahead
 * by threads of the mechanism, and leaves the oldest of its own behind: a pass over more than the
 * window does not sweep out everything else, the next pass finds a part of it, and the frames it
 * goes through stay in the caches. Everything else goes first in, first out; but the last
 * CCMEM_WINDOW_BLOCKS blocks that faulted never go: an instruction that needs them all would begin
 * again for ever.
 *
 * Of the blocks opened ahead one in every `stride` is not placed: its fault, which costs no
 * decryption, tells how far the reader has come. The others are placed, and touched without a
 * fault. */
#ifndef CCMEM_WINDOW_POLICY_H
#define CCMEM_WINDOW_POLICY_H

#include "mapping/state.h"

/* Sets how far to open ahead with so many frames, or not at all. */
void policy_init(window *w, size_t nframes, int read_ahead);

/* Notes that the block is in use now. */
void policy_note_recent(window *w, size_t block);

/* Notes a fault; returns the stream that it belongs to, or the beginning of one. */
stream *policy_note_fault(window *w, size_t block);

/* Each returns a frame or NULL: one that holds nothing; */
frame *policy_empty_frame(const window *w);

/* the block that the stream (or NULL) left behind last, but for the one before its last, which may
 * still be in use; */
frame *policy_left_behind(const window *w, const stream *s);

/* and the one that has been there longest, with `force` even one that a stream is coming to. */
frame *policy_oldest(const window *w, int force);

/* Returns 1 while the thread that was woken for the block may not have got to run yet. A thread
 * that answers its own touch goes on at once. */
int policy_in_grace(const window *w, const frame *f);

/* Returns the stream that faulted last, if there is a block to open ahead of it: `end` of the
 * stream. Else NULL. */
stream *policy_next_ahead(window *w);

enum { GRACE_NS = 100000 }; /* what a thread that was woken for a block gets to use it */

#endif
