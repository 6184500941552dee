/* SPDX-License-Identifier: Apache-2.0
 * AES, CMAC and key wrap of a tier against published vectors. */

#include "crypto/aes/keywrap.h"
#include "crypto/mac/kdf.h"
#include "selftest/selftest.h"

static void count_up(uint8_t *p, size_t n) {
    for (size_t i = 0; i < n; i++)
        p[i] = (uint8_t)i;
}

/* FIPS 197, C.1 to C.3: keys 00 01 02 ..., plaintext 00 11 22 .... Nine blocks: a full group of
 * eight and a rest. */
static int check_block_cipher(const aes_ops *ops) {
    static const uint8_t expected[3][AES_BLOCK] = {{0x69, 0xc4, 0xe0, 0xd8, 0x6a, 0x7b, 0x04, 0x30,
                                                    0xd8, 0xcd, 0xb7, 0x80, 0x70, 0xb4, 0xc5, 0x5a},
                                                   {0xdd, 0xa9, 0x7c, 0xa4, 0x86, 0x4c, 0xdf, 0xe0,
                                                    0x6e, 0xaf, 0x70, 0xa0, 0xec, 0x0d, 0x71, 0x91},
                                                   {0x8e, 0xa2, 0xb7, 0xca, 0x51, 0x67, 0x45, 0xbf,
                                                    0xea, 0xfc, 0x49, 0x90, 0x4b, 0x49, 0x60,
                                                    0x89}};
    uint8_t key[32], blocks[9][AES_BLOCK];
    aes_key expanded;
    int good = 1;

    count_up(key, sizeof key);
    for (size_t size = 0; size < 3; size++) {
        aes_expand(&expanded, key, 16 + 8 * size);
        for (size_t i = 0; i < sizeof blocks; i++)
            blocks[i / AES_BLOCK][i % AES_BLOCK] = (uint8_t)(i % AES_BLOCK * 0x11);
        ops->encrypt(&expanded, *blocks, *blocks, 9);
        for (size_t i = 0; i < 9; i++)
            good &= selftest_same(blocks[i], expected[size], AES_BLOCK);
    }
    return good;
}

/* SP 800-38B, D.3, example 11 (AES-256, 40 bytes). */
static int check_cmac(const aes_ops *ops) {
    static const uint8_t key[32] = {0x60, 0x3d, 0xeb, 0x10, 0x15, 0xca, 0x71, 0xbe,
                                    0x2b, 0x73, 0xae, 0xf0, 0x85, 0x7d, 0x77, 0x81,
                                    0x1f, 0x35, 0x2c, 0x07, 0x3b, 0x61, 0x08, 0xd7,
                                    0x2d, 0x98, 0x10, 0xa3, 0x09, 0x14, 0xdf, 0xf4};
    static const uint8_t msg[40] = {0x6b, 0xc1, 0xbe, 0xe2, 0x2e, 0x40, 0x9f, 0x96, 0xe9, 0x3d,
                                    0x7e, 0x11, 0x73, 0x93, 0x17, 0x2a, 0xae, 0x2d, 0x8a, 0x57,
                                    0x1e, 0x03, 0xac, 0x9c, 0x9e, 0xb7, 0x6f, 0xac, 0x45, 0xaf,
                                    0x8e, 0x51, 0x30, 0xc8, 0x1c, 0x46, 0xa3, 0x5c, 0xe4, 0x11};
    static const uint8_t expected[16] = {0xaa, 0xf3, 0xd8, 0xf1, 0xde, 0x56, 0x40, 0xc2,
                                         0x32, 0xf5, 0xb1, 0x69, 0xb9, 0xc9, 0x11, 0xe6};
    uint8_t tag[16];
    aes_key expanded;

    aes_expand(&expanded, key, sizeof key);
    cmac(ops, &expanded, msg, sizeof msg, tag);
    return selftest_same(tag, expected, sizeof tag);
}

/* RFC 3394, 4.6: 256 bits under a key of 256 bits. */
static int check_key_wrap(const aes_ops *ops) {
    static const uint8_t expected[40] = {0x28, 0xc9, 0xf4, 0x04, 0xc4, 0xb8, 0x10, 0xf4,
                                         0xcb, 0xcc, 0xb3, 0x5c, 0xfb, 0x87, 0xf8, 0x26,
                                         0x3f, 0x57, 0x86, 0xe2, 0xd8, 0x0e, 0xd3, 0x26,
                                         0xcb, 0xc7, 0xf0, 0xe7, 0x1a, 0x99, 0xf4, 0x3b,
                                         0xfb, 0x98, 0x8b, 0x9b, 0x7a, 0x02, 0xdd, 0x21};
    uint8_t raw[32], data[32], wrapped[40], got[32];
    keywrap_key key;
    int good;

    count_up(raw, sizeof raw);
    for (size_t i = 0; i < sizeof data; i++)
        data[i] = (uint8_t)(i < AES_BLOCK ? i * 0x11 : i - AES_BLOCK);
    keywrap_expand(&key, raw, sizeof raw);
    keywrap_wrap(ops, &key, data, sizeof data, wrapped);
    good = selftest_same(wrapped, expected, sizeof wrapped) &&
           keywrap_unwrap(ops, &key, wrapped, sizeof wrapped, got) &&
           selftest_same(got, data, sizeof data);
    wrapped[sizeof wrapped - 1] ^= 1;
    return good && !keywrap_unwrap(ops, &key, wrapped, sizeof wrapped, got);
}

ccmem_status selftest_aes(const aes_ops *ops) {
    return check_block_cipher(ops) && check_cmac(ops) && check_key_wrap(ops) ? CCMEM_OK
                                                                             : CCMEM_ERR_SELFTEST;
}
