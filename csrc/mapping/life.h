/* SPDX-License-Identifier: Apache-2.0
 * Whether a window may still be used. */
#ifndef CCMEM_WINDOW_LIFE_H
#define CCMEM_WINDOW_LIFE_H

#include "mapping/state.h"

/* Takes the lock of an open window. CCMEM_ERR_FORK in a child, CCMEM_ERR_ARGUMENT when it is
 * closed; the lock is not held then. */
ccmem_status window_lock(window *w);

#endif
