/* SPDX-License-Identifier: Apache-2.0
 * AES-XTS (IEEE 1619-2018): the kernels of each tier behind one table of functions. */
#ifndef CCMEM_XTS_H
#define CCMEM_XTS_H

#include <string.h>

#include "crypto/aes/aes.h"
#include "crypto/fused.h"

typedef struct xts_key {
    aes_key enc;   /* K1, encryption */
    aes_key dec;   /* K1, equivalent inverse cipher */
    aes_key tweak; /* K2, encryption */
} xts_key;

/* An encrypted tweak in one vector register: passed by value, it does not go through memory on its
 * way to the first AES round of a random read. Little-endian words, as it lies in memory. */
typedef uint64_t xts_tweak __attribute__((vector_size(16), aligned(16), may_alias));

static inline xts_tweak xts_tweak_load(const uint8_t t0[16]) {
    xts_tweak t;
    memcpy(&t, t0, sizeof t);
    return t;
}

/* Set for a destination far larger than the caches: write around them. Needs dst % 16 == 0, else
 * it is ignored. */
enum { XTS_STREAM = 1u };

/* Opens pages into registers only and adds their products; a step is XTS_FUSED_STEP bytes or a
 * block.
 */
enum { XTS_FUSED_STEP = 512 };
typedef void (*xts_fused_function)(const xts_key *key, const uint8_t *src, size_t page_size,
                                   const uint8_t (*t0)[16], const fused_rows *rows);

/* Runs of whole 16-byte blocks only; dst == src or no overlap; no alignment required. E_K2(tweak)
 * is called `t0`, 16 bytes. nothing is kept of any of it. */
typedef struct xts_ops {
    /* t0[i] = E_K2(t0[i]) for n tweaks, in place. */
    void (*tweaks)(const xts_key *key, uint8_t (*t0)[16], size_t n);
    /* npages consecutive pages of page_size bytes (a multiple of 4096), each with its own t0. */
    void (*seal_pages)(const xts_key *key, uint8_t *dst, const uint8_t *src, size_t npages,
                       size_t page_size, const uint8_t (*t0)[16], unsigned flags);
    void (*open_pages)(const xts_key *key, uint8_t *dst, const uint8_t *src, size_t npages,
                       size_t page_size, const uint8_t (*t0)[16], unsigned flags);
    /* nblocks blocks of one data unit from block number `first` (below 2^20) on. */
    void (*seal_blocks)(const xts_key *key, uint8_t *dst, const uint8_t *src, size_t nblocks,
                        size_t first, xts_tweak t0);
    void (*open_blocks)(const xts_key *key, uint8_t *dst, const uint8_t *src, size_t nblocks,
                        size_t first, xts_tweak t0);
    /* By type of W's elements (ccmem_dtype); NULL: none. */
    const xts_fused_function *fused;
} xts_ops;

extern const xts_ops xts_portable, xts_aesni, xts_vaes256, xts_vaes512, xts_vaes512_amd;

/* Expands K1 || K2 (32 or 64 bytes). CCMEM_ERR_ARGUMENT, CCMEM_ERR_EQUAL_HALVES. */
ccmem_status xts_expand(xts_key *out, const uint8_t *key, size_t key_len);

/* One data unit of n >= 16 bytes with ciphertext stealing. */
void xts_crypt(const xts_ops *ops, const xts_key *key, int encrypt, const uint8_t tweak[16],
               const uint8_t *in, uint8_t *out, size_t n);

#endif
