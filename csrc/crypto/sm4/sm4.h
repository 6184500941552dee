/* SPDX-License-Identifier: Apache-2.0
 * SM4 (GB/T 32907-2016), a block cipher of 16 bytes with keys of 16: key schedules, and the kernels
 * of each tier behind one table of functions. */
#ifndef CCMEM_SM4_H
#define CCMEM_SM4_H

#include "crypto/xts/xts.h"

enum { SM4_BLOCK = 16, SM4_KEY_SIZE = 16, SM4_ROUNDS = 32 };

/* Round keys of one direction in the form that kernels over AES instructions take: see
 * docs/design/sm4.md. Words lie as in the standard, the most significant byte first. */
typedef struct sm4_rounds {
    uint8_t key[SM4_ROUNDS][4];
    uint8_t first[4];   /* xored to the last word of a block before the first round, */
    uint8_t last[3][4]; /* and to words 32, 33 and 34 after the last one */
} sm4_rounds;

typedef struct sm4_key {
    _Alignas(16) uint8_t rk[SM4_ROUNDS][4]; /* as in the standard; backwards, they decrypt */
    sm4_rounds enc, dec;
} sm4_key;

/* K1 and K2 of XTS. The functions of `xts` below are given it as their key. */
typedef struct sm4_xts_key {
    sm4_key data, tweak;
} sm4_xts_key;

typedef struct sm4_ops {
    /* Blocks by themselves, in place or not overlapping. `decrypt`: 1 or 0. */
    void (*blocks)(const sm4_key *key, int decrypt, uint8_t *out, const uint8_t *in,
                   size_t nblocks);
    /* XTS with the tweaks of GB/T 17964-2021 (crypto/sm4/tweak.h), otherwise as crypto/xts/xts.h
     * says. */
    xts_ops xts;
} sm4_ops;

extern const sm4_ops sm4_portable, sm4_aesni, sm4_vaes256, sm4_vaes512, sm4_gfni128, sm4_gfni256,
    sm4_gfni512;

/* Expands a key in constant time on every processor. */
void sm4_expand(sm4_key *out, const uint8_t key[SM4_KEY_SIZE]);

/* Expands K1 || K2. CCMEM_ERR_EQUAL_HALVES. */
ccmem_status sm4_xts_expand(sm4_xts_key *out, const uint8_t key[2 * SM4_KEY_SIZE]);

/* The S-box on each of 16 bytes: of the portable tier, for key schedules. */
void sm4_sub_bytes(uint8_t bytes[SM4_BLOCK]);

/* How the tweak of one block becomes the next one's. */
typedef enum sm4_doubling { SM4_DOUBLING_GB = 0, SM4_DOUBLING_IEEE } sm4_doubling;

/* One data unit of n >= 16 bytes with ciphertext stealing, by either standard. */
void sm4_xts_crypt(const sm4_ops *ops, const sm4_xts_key *key, sm4_doubling doubling, int decrypt,
                   const uint8_t tweak[16], const uint8_t *in, uint8_t *out, size_t n);

#endif
