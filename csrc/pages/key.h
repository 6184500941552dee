/* SPDX-License-Identifier: Apache-2.0
 * The root key object: 32 bytes in secret memory, and what stores derive from it. */
#ifndef CCMEM_KEY_H
#define CCMEM_KEY_H

#include "ccmem.h"

/* How subkeys are derived: with AES-CMAC, or with HMAC over SM3 for suites that use no AES. */
typedef enum key_derivation { KEY_BY_AES = 0, KEY_BY_SM3 } key_derivation;

/* Derives out_len bytes for one store: label = cipher name, context = store id || page size (4
 * bytes, big-endian). `out` should lie in secret memory. CCMEM_ERR_FORK. */
ccmem_status key_derive(const ccmem_key *key, key_derivation by, const char *cipher_name,
                        const uint8_t store_id[CCMEM_STORE_ID_SIZE], uint32_t page_size,
                        uint8_t *out, size_t out_len);

/* The level asked for when the key was made; what is derived from it must reach it too. */
ccmem_secret_level key_require(const ccmem_key *key);

/* Another reference to a key, which ccmem_key_free() drops; the last one wipes it. */
ccmem_key *key_retain(ccmem_key *key);

#endif
