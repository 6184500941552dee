/* SPDX-License-Identifier: Apache-2.0
 * One frame from state to state: EMPTY, OPENING, OPENED, PLACED and back. All with the window's
 * lock held. */
#ifndef CCMEM_WINDOW_FRAMES_H
#define CCMEM_WINDOW_FRAMES_H

#include "mapping/state.h"

/* Opens a block into a frame that is EMPTY, or `reused` and still holds another; `alone` in this
 * thread only. Drops the lock meanwhile. On failure the frame is wiped and EMPTY. */
ccmem_status frame_open(window *w, size_t block, frame *f, int reused, int alone);

/* Places an opened frame; for writing where the window may be written, and `write` is 1 or writes
 * are not tracked. Returns 0 when the system refuses, and nothing has changed. */
int frame_place(window *w, frame *f, int write);

/* Takes a frame from its address, if it is placed. Returns 0 when the system refuses, and nothing
 * has changed. `unused`: so that it may be a step of frame_insist(). */
int frame_take(window *w, frame *f, int unused);

/* Repeats a step until it returns 1; returns 0 when the kernel has refused it for some seconds. */
int frame_insist(window *w, int (*step)(window *, frame *, int), frame *f, int argument);

/* Takes a block out of a frame, which still holds it afterwards and is to be filled or wiped at
 * once. Returns 0 when it has to stay; *status says why if it could not be sealed. */
int frame_evict(window *w, frame *f, ccmem_status *status);

/* Seals a block and leaves it where it is. */
ccmem_status frame_flush(window *w, frame *f);

/* Seals a block if it was written, and wipes the frame, which is EMPTY then. */
ccmem_status frame_empty(window *w, frame *f);

#endif
