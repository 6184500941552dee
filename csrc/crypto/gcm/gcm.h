/* SPDX-License-Identifier: Apache-2.0
 * GCM (NIST SP 800-38D) of any block cipher of 16 bytes: the kernels of each tier behind one table
 * of functions, which is the same for all ciphers, and messages. */
#ifndef CCMEM_GCM_H
#define CCMEM_GCM_H

#include "ccmem.h"
#include "crypto/gcm/ghash.h"

enum {
    GCM_BLOCK = 16,
    GCM_NONCE_SIZE = 12, /* of a page; messages may have others */
    GCM_TAG_SIZE = 16,   /* of a page, and the longest there is */
    GCM_UNIT = 64,       /* bytes: pages are whole ones */
    GCM_BATCH = 64       /* pages per call at most */
};

/* As those of crypto/aegis/aegis.h. Streaming needs dst to be a multiple of 16. */
enum { GCM_STREAM = 1u, GCM_LAST = 2u };

/* What a page is sealed under: a nonce that never comes twice, and one block of associated data. */
typedef struct gcm_place {
    uint8_t nonce[GCM_NONCE_SIZE];
    uint8_t unused[GCM_BLOCK - GCM_NONCE_SIZE];
    uint8_t ad[GCM_BLOCK];
} gcm_place;

/* `key` is the cipher's own, with a ghash_key in it. dst == src or no overlap, no alignment
 * required. Pages are whole GCM_UNITs, at most 2^31 bytes. */
typedef struct gcm_ops {
    /* npages <= GCM_BATCH consecutive pages, each with a place and a tag of its own. */
    void (*seal_pages)(const void *key, uint8_t *dst, const uint8_t *src, size_t npages,
                       size_t page_size, const gcm_place *place, uint8_t (*tag)[16],
                       unsigned flags);
    /* Bit i of the result is set when page i does not match its tag; its part of dst holds zeros.
     */
    uint64_t (*open_pages)(const void *key, uint8_t *dst, const uint8_t *src, size_t npages,
                           size_t page_size, const gcm_place *place, const uint8_t (*tag)[16],
                           unsigned flags);
    /* Verifies one page and hands out n bytes from `offset` of it (n may be 0). 1, or 0 when it
     * does not match its tag: the n bytes hold zeros. */
    int (*open_part)(const void *key, uint8_t *dst, const uint8_t *src, size_t page_size,
                     const gcm_place *place, const uint8_t tag[16], size_t offset, size_t n,
                     unsigned flags);
    /* For messages, of whole blocks: counter mode from `counter` on, which moves along; and GHASH
     * of more blocks into `sum`. */
    void (*crypt)(const void *key, uint8_t *dst, const uint8_t *src, size_t nblocks,
                  uint8_t counter[GCM_BLOCK]);
    void (*hash)(const void *key, uint8_t sum[GCM_BLOCK], const uint8_t *data, size_t nblocks);
    /* Bytes of the stack below the functions for pages that may hold parts of secrets; 0: what
     * burn_stack() reaches has been overwritten. */
    int spills;
} gcm_ops;

/* One message, see ccmem_aes_gcm_encrypt(); the arguments have been checked. */
typedef struct gcm_message {
    const gcm_ops *ops;
    const void *key;
    const uint8_t *iv, *ad;
    size_t iv_len, ad_len;
} gcm_message;

void gcm_seal_message(const gcm_message *m, const uint8_t *in, uint8_t *out, size_t n, uint8_t *tag,
                      size_t tag_len);

/* Nothing is decrypted before the tag was looked at. CCMEM_OK, or CCMEM_ERR_INTEGRITY and n zero
 * bytes. */
ccmem_status gcm_open_message(const gcm_message *m, const uint8_t *in, uint8_t *out, size_t n,
                              const uint8_t *tag, size_t tag_len);

#endif
