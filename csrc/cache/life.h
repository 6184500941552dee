/* SPDX-License-Identifier: Apache-2.0
 * How caches are made. */
#ifndef CCMEM_CACHE_LIFE_H
#define CCMEM_CACHE_LIFE_H

#include "ccmem.h"

/* ccmem_cache_new(); with `plain` nothing is encrypted, for measuring what encryption costs. */
ccmem_status cache_new(uint32_t sequences, ccmem_secret_level require, int plain,
                       ccmem_cache **out);

#endif
