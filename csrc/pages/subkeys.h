/* SPDX-License-Identifier: Apache-2.0
 * Subkeys of read-only stores, derived when they are used: a file has thousands of tensors with a
 * subkey each, and locked memory is scarce. */
#ifndef CCMEM_SUBKEYS_H
#define CCMEM_SUBKEYS_H

#include "pages/key.h"

enum { SUBKEY_SIZE = 16 };

/* One subkey's owner: a store. */
typedef struct subkey {
    ccmem_key *root; /* it is derived from; a reference of its own */
    const char *cipher;
    uint8_t id[CCMEM_STORE_ID_SIZE];
    uint32_t page_size;
    uint32_t entry;  /* atomic: where it was last */
    uint64_t serial; /* no other subkey of this process has it */
    int level;       /* of the memory it lies in, as asked for */
} subkey;

/* Takes a reference to `root`, and room for subkeys of its level; *level is what that reaches.
 * CCMEM_ERR_MEMLOCK, _SECRETMEM, _NOMEM. */
ccmem_status subkey_open(subkey *k, ccmem_key *root, const char *cipher,
                         const uint8_t id[CCMEM_STORE_ID_SIZE], uint32_t page_size,
                         ccmem_secret_level *level);

/* Wipes the subkey and gives back what subkey_open() took. `alien`: in a forked child. */
void subkey_close(subkey *k, int alien);

/* The subkey in secret memory, and a ticket: other threads may put another one there at any time,
 * so what was done with it means nothing unless subkey_kept() is true afterwards. */
const uint8_t *subkey_borrow(subkey *k, uint64_t *ticket);
int subkey_kept(const subkey *k, uint64_t ticket);

#endif
