/* SPDX-License-Identifier: Apache-2.0
 * The end of the process when a touch cannot be answered. A touch has no caller to return an error
 * to, and going on would hand out what was never stored. */
#ifndef CCMEM_WINDOW_FATAL_H
#define CCMEM_WINDOW_FATAL_H

#include "mapping/state.h"

/* Wipes all windows, says on standard error what `status` was and of which block, and aborts. The
 * window's lock is held. */
_Noreturn void window_die(window *w, size_t block, ccmem_status status);

/* Returns 1 in the thread that is in window_die(): its own touches are not answered, since it holds
 * the lock. */
int window_dying_here(void);

#endif
