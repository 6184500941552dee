/* SPDX-License-Identifier: Apache-2.0
 * What the layers above a store need beside the public functions. */
#ifndef CCMEM_STORE_H
#define CCMEM_STORE_H

#include "ccmem.h"

/* Starts fetching what a read of n bytes at `offset` will touch first, which must lie inside the
 * store: version, cached tweak, ciphertext. */
void store_prefetch(const ccmem_store *store, uint64_t offset, uint64_t n);

#endif
