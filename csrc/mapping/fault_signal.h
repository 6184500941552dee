/* SPDX-License-Identifier: Apache-2.0
 * For mechanisms whose faults raise SIGSEGV or SIGBUS: finds the mechanism by the address. */
#ifndef CCMEM_FAULT_SIGNAL_H
#define CCMEM_FAULT_SIGNAL_H

#include "mapping/fault.h"

/* Asks the owner, from now on, about signals whose address lies in the mechanism's range. Returns 0
 * when the system refuses (errno says why). */
int fault_signal_enter(fault_mechanism *m);

/* Undoes it, and waits until no handler is in the owner any more. */
void fault_signal_leave(fault_mechanism *m);

#endif
