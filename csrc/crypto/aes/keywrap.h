/* SPDX-License-Identifier: Apache-2.0
 * AES key wrap, KW of SP 800-38F and RFC 3394: encrypts a key under another and notices any change.
 */
#ifndef CCMEM_KEYWRAP_H
#define CCMEM_KEYWRAP_H

#include "crypto/aes/aes.h"

enum {
    KEYWRAP_UNIT = 8,     /* bytes of a semiblock; the wrapped key is one longer */
    KEYWRAP_MIN = 16,     /* bytes of the shortest key that can be wrapped */
    KEYWRAP_MAX = 1 << 16 /* and of the longest; a limit of this code, far beyond any key */
};

/* A key-encryption key, both ways. Secret: its maker wipes it. */
typedef struct keywrap_key {
    aes_key enc, dec;
} keywrap_key;

/* From 16, 24 or 32 bytes. */
void keywrap_expand(keywrap_key *out, const uint8_t *kek, size_t kek_len);

/* Wraps n bytes, a multiple of KEYWRAP_UNIT from KEYWRAP_MIN to KEYWRAP_MAX, as n + KEYWRAP_UNIT
 * bytes at `out`, which does not overlap `in`. */
void keywrap_wrap(const aes_ops *ops, const keywrap_key *key, const uint8_t *in, size_t n,
                  uint8_t *out);

/* Unwraps n bytes as n - KEYWRAP_UNIT bytes at `out`, likewise. 1, or 0 when they were not wrapped
 * under this key: `out` is zero then. */
int keywrap_unwrap(const aes_ops *ops, const keywrap_key *key, const uint8_t *in, size_t n,
                   uint8_t *out);

#endif
