/* SPDX-License-Identifier: Apache-2.0
 * Subkeys of read-only stores, derived when they are used: a file has thousands of tensors with a
 * subkey each, and locked memory is scarce. */
#ifndef CCMEM_SUBKEYS_H
#define CCMEM_SUBKEYS_H

#include "pages/key.h"
#include "pages/page.h"

/* What subkeys have in common: a core's. */
typedef struct subkeys {
    ccmem_key *root; /* they are derived from; a reference of its own; NULL while it is withheld */
    ccmem_cipher cipher;
    uint32_t page_size;
    int level; /* of the memory they lie in, as asked for */
} subkeys;

/* One of them: a store's. */
typedef struct subkey {
    uint8_t id[CCMEM_STORE_ID_SIZE];
    uint64_t serial; /* no other subkey of this process has it */
    uint32_t entry;  /* atomic: where it was last */
} subkey;

/* Takes a reference to `root`, and room for subkeys of its level; *level is what that reaches.
 * CCMEM_ERR_MEMLOCK, _SECRETMEM, _NOMEM. */
ccmem_status subkeys_open(subkeys *of, ccmem_key *root, ccmem_cipher cipher, uint32_t page_size,
                          ccmem_secret_level *level);

/* Gives back what subkeys_open() took. `alien`: in a forked child. */
void subkeys_close(subkeys *of, int alien);

/* A subkey that is yet to be derived. */
void subkey_begin(subkey *k, const uint8_t id[CCMEM_STORE_ID_SIZE]);

/* Wipes it, if it is anywhere. */
void subkey_end(const subkeys *of, const subkey *k);

/* The subkey in secret memory, expanded where the suite does that, and a ticket: other threads may
 * put another one there at any time, so what was done with it means nothing unless subkey_kept() is
 * true afterwards. NULL while the root is withheld. */
const uint8_t *subkey_borrow(const subkeys *of, subkey *k, uint64_t *ticket);
int subkey_kept(const subkeys *of, uint64_t ticket);

/* Drops the root, and wipes whatever was derived from it, with the subkeys of others that lie
 * beside them, which are derived anew. What is borrowed meanwhile is not kept. */
void subkeys_withhold(subkeys *of);

/* Gives a root back, in the place of one there may be. */
void subkeys_restore(subkeys *of, ccmem_key *root);

#endif
