/* SPDX-License-Identifier: Apache-2.0
 * AEGIS-128L and AEGIS-128X2 (RFC 10032, draft-irtf-cfrg-aegis-aead): the kernels of each tier
 * behind one table of functions. */
#ifndef CCMEM_AEGIS_H
#define CCMEM_AEGIS_H

#include "ccmem.h"
#include "crypto/fused.h"

enum {
    AEGIS_KEY_SIZE = 16,
    AEGIS_TAG_SIZE = 16, /* of a page; messages may have 32 */
    AEGIS_BATCH = 64     /* pages per call at most */
};

/* Set for a destination far larger than the caches: write around them. Needs dst % 16 == 0 to open
 * and dst % 32 == 0 to seal, else it is ignored. */
enum { AEGIS_STREAM = 1u };

/* Set when no memory that will be wanted follows the last page of src, or perhaps no memory at all:
 * what kernels prefetch from there costs more than the page then. */
enum { AEGIS_LAST = 2u };

/* The eight 16-byte blocks S0 to S7 of RFC 10032, sections 3 and 5.4, for one lane (AEGIS-128L) or
 * two (AEGIS-128X2): block i of lane j is s[i][j]. Secret: its maker wipes it. */
typedef struct aegis_state {
    _Alignas(32) uint8_t s[8][2][16];
} aegis_state;

/* Opens npages pages into registers only, and adds their products; a step is AEGIS_FUSED_STEP bytes
 * or a block. Returns how many of them match their tags, up to the first that does not: if not all,
 * the sums mean nothing. */
enum { AEGIS_FUSED_STEP = 128 };
typedef size_t (*aegis_fused_function)(const uint8_t key[16], const uint8_t *src, size_t npages,
                                       size_t page_size, const uint8_t (*nonce)[16],
                                       const uint8_t (*tag)[16], const fused_rows *rows);

/* dst == src or no overlap, no alignment required; `key` may lie in secret memory and is read where
 * it lies. `lanes` is 1 or 2. Keys and nonces have 16 bytes, those of messages under AEGIS-256
 * (crypto/aegis256/aegis256.h) 32. */
typedef struct aegis_ops {
    /* AEGIS-128X2, no associated data: npages <= AEGIS_BATCH consecutive pages of page_size bytes
     * (a multiple of 64), each with its own nonce and tag. */
    void (*seal_pages)(const uint8_t *key, uint8_t *dst, const uint8_t *src, size_t npages,
                       size_t page_size, const uint8_t (*nonce)[16], uint8_t (*tag)[16],
                       unsigned flags);
    /* Bit i of the result is set when page i does not match its tag; its part of dst holds zeros.
     */
    uint64_t (*open_pages)(const uint8_t *key, uint8_t *dst, const uint8_t *src, size_t npages,
                           size_t page_size, const uint8_t (*nonce)[16], const uint8_t (*tag)[16],
                           unsigned flags);
    /* Verifies one page and hands out n bytes from `offset` of it (n may be 0: verify only). 1, or
     * 0 when it does not match its tag: the n bytes hold zeros. */
    int (*open_part)(const uint8_t *key, uint8_t *dst, const uint8_t *src, size_t page_size,
                     const uint8_t nonce[16], const uint8_t tag[16], size_t offset, size_t n,
                     unsigned flags);
    /* Opens one page of a row of pages that lie apart: as many bytes are fetched meanwhile from
     * `near`, which is opened next, into L1, and from `far`, into L2. 1, or 0 when the page does
     * not match its tag: dst holds zeros. */
    int (*open_next)(const uint8_t *key, uint8_t *dst, const uint8_t *src, size_t page_size,
                     const uint8_t nonce[16], const uint8_t tag[16], const uint8_t *near,
                     const uint8_t *far);

    /* The steps of RFC 10032 for messages of any length, whole blocks at a time. */
    void (*start)(aegis_state *state, unsigned lanes, const uint8_t *key, const uint8_t *nonce);
    void (*absorb)(aegis_state *state, unsigned lanes, const uint8_t *ad, size_t nblocks);
    void (*seal)(aegis_state *state, unsigned lanes, uint8_t *dst, const uint8_t *src,
                 size_t nblocks);
    void (*open)(aegis_state *state, unsigned lanes, uint8_t *dst, const uint8_t *src,
                 size_t nblocks);
    /* ad_len and msg_len in bytes; tag_len 16 or 32. The state is used up. */
    void (*finish)(aegis_state *state, unsigned lanes, uint64_t ad_len, uint64_t msg_len,
                   uint8_t *tag, size_t tag_len);
    /* By type of W's elements (ccmem_dtype), for processors with AVX2, FMA and F16C; NULL: none. */
    const aegis_fused_function *fused;
    unsigned block; /* bytes of one, for each lane: 32, and of AEGIS-256 16 */
    int spills; /* the functions for pages leave parts of states on the stack: see burn_stack() */
} aegis_ops;

extern const aegis_ops aegis_portable, aegis_aesni, aegis_avx2, aegis_vaes256, aegis_vaes512;

/* One message with these kernels, see ccmem_aegis_encrypt and ccmem_aegis_decrypt; the arguments
 * have been checked. */
void aegis_seal_message(const aegis_ops *ops, unsigned lanes, const uint8_t *key,
                        const uint8_t *nonce, const uint8_t *ad, size_t ad_len, const uint8_t *in,
                        uint8_t *out, size_t n, uint8_t *tag, size_t tag_len);

/* CCMEM_OK, or CCMEM_ERR_INTEGRITY and n zero bytes. */
ccmem_status aegis_open_message(const aegis_ops *ops, unsigned lanes, const uint8_t *key,
                                const uint8_t *nonce, const uint8_t *ad, size_t ad_len,
                                const uint8_t *in, uint8_t *out, size_t n, const uint8_t *tag,
                                size_t tag_len);

#endif
