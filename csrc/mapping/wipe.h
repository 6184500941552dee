/* SPDX-License-Identifier: Apache-2.0
 * Wipes frames wherever the kernel keeps their memory. */
#ifndef CCMEM_WINDOW_WIPE_H
#define CCMEM_WINDOW_WIPE_H

#include "mapping/state.h"

/* Wipes a block that the kernel keeps at its place. Where that is for reading only, writing to it
 * would be a fault that no thread answers: the kernel is asked to take the pages, which it wipes.
 * If it refuses even that, they go when the range or the process ends. */
void wipe_placed(window *w, const frame *f);

/* Wipes what can be reached of all frames, for a process that is about to end. A block that was
 * moved in part can be reached by no reader either. */
void wipe_window(window *w);

#endif
