/* SPDX-License-Identifier: Apache-2.0
 * The handlers of SIGSEGV and SIGBUS, for mechanisms whose faults end in one of them. */
#ifndef CCMEM_FAULT_SIGNAL_H
#define CCMEM_FAULT_SIGNAL_H

#include "fault.h"

/* From now on the owner is asked about signals whose address lies in the mechanism's range. 0 when the
 * system refuses, or there are too many ranges. */
int fault_signal_enter(fault_mechanism *m);

/* The reverse: no handler is in the owner any more. */
void fault_signal_leave(const fault_mechanism *m);

#endif
