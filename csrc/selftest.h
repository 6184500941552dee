/* SPDX-License-Identifier: Apache-2.0
 * Known-answer tests: published vectors first, then pseudo-random pages against the portable tier. */
#ifndef CCMEM_SELFTEST_H
#define CCMEM_SELFTEST_H

#include "ccmem.h"

/* Tests a tier that the processor supports. CCMEM_ERR_SELFTEST, CCMEM_ERR_NOMEM. */
ccmem_status selftest_run(ccmem_tier tier);

#endif
