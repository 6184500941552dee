/* SPDX-License-Identifier: Apache-2.0
 * What a mechanism asks of a window: to answer a touch, to use an idle thread, to hear that it is
 * broken. */
#ifndef CCMEM_WINDOW_TOUCH_H
#define CCMEM_WINDOW_TOUCH_H

#include "mapping/state.h"

/* Returns the window as the owner of its mechanism. */
fault_owner touch_owner(window *w);

#endif
