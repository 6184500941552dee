/* SPDX-License-Identifier: Apache-2.0
 * For mechanisms whose faults end in SIGSEGV or SIGBUS: whose range an address lies in. */
#ifndef CCMEM_FAULT_SIGNAL_H
#define CCMEM_FAULT_SIGNAL_H

#include "mapping/fault.h"

/* From now on the owner is asked about signals whose address lies in the mechanism's range. 0 when
 * the system refuses (errno says why). */
int fault_signal_enter(fault_mechanism *m);

/* The reverse: no handler is in the owner any more. */
void fault_signal_leave(fault_mechanism *m);

#endif
