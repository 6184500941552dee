/* SPDX-License-Identifier: Apache-2.0
 * Bytes from the system's random generator. */
#ifndef CCMEM_RANDOM_H
#define CCMEM_RANDOM_H

#include "ccmem.h"

/* Fills n bytes. CCMEM_ERR_ENTROPY. */
ccmem_status random_bytes(void *out, size_t n);

#endif
