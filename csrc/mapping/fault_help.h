/* SPDX-License-Identifier: Apache-2.0
 * A thread that opens blocks ahead, beside those that answer faults. */
#ifndef CCMEM_FAULT_HELP_H
#define CCMEM_FAULT_HELP_H

#include "mapping/fault.h"

/* Starts the thread, if the process may use more than one; the mechanism does without it when that
 * fails. */
void fault_help(fault_mechanism *m);

/* Tells the thread that it has work. May be called by a signal's handler. */
void fault_poke(fault_mechanism *m);

/* Ends it. */
void fault_stop_help(fault_mechanism *m);

#endif
