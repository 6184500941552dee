/* SPDX-License-Identifier: Apache-2.0
 * AES-XTS of a tier: published vectors first, then pseudo-random pages against the portable tier.
 */
#include <stdlib.h>
#include <string.h>

#include "crypto/xts/xts.h"
#include "selftest/selftest.h"

/* ---- published vectors ----------------------------------------------------------------------- */

typedef struct xts_vector {
    uint8_t key[64], tweak[16], plain[64], sealed[64];
    size_t key_len, n;
} xts_vector;

/* IEEE 1619-2018, annex B: vectors 2 and 15 (AES-128, the second with a stolen byte), and the
 * first 64 bytes of vector 10 (AES-256). */
static const xts_vector vectors[] = {
    {.key_len = 32,
     .n = 32,
     .key = {0x11, 0x11, 0x11, 0x11, 0x11, 0x11, 0x11, 0x11, 0x11, 0x11, 0x11,
             0x11, 0x11, 0x11, 0x11, 0x11, 0x22, 0x22, 0x22, 0x22, 0x22, 0x22,
             0x22, 0x22, 0x22, 0x22, 0x22, 0x22, 0x22, 0x22, 0x22, 0x22},
     .tweak = {0x33, 0x33, 0x33, 0x33, 0x33},
     .plain = {0x44, 0x44, 0x44, 0x44, 0x44, 0x44, 0x44, 0x44, 0x44, 0x44, 0x44,
               0x44, 0x44, 0x44, 0x44, 0x44, 0x44, 0x44, 0x44, 0x44, 0x44, 0x44,
               0x44, 0x44, 0x44, 0x44, 0x44, 0x44, 0x44, 0x44, 0x44, 0x44},
     .sealed = {0xc4, 0x54, 0x18, 0x5e, 0x6a, 0x16, 0x93, 0x6e, 0x39, 0x33, 0x40,
                0x38, 0xac, 0xef, 0x83, 0x8b, 0xfb, 0x18, 0x6f, 0xff, 0x74, 0x80,
                0xad, 0xc4, 0x28, 0x93, 0x82, 0xec, 0xd6, 0xd3, 0x94, 0xf0}},
    {.key_len = 32,
     .n = 17,
     .key = {0xff, 0xfe, 0xfd, 0xfc, 0xfb, 0xfa, 0xf9, 0xf8, 0xf7, 0xf6, 0xf5,
             0xf4, 0xf3, 0xf2, 0xf1, 0xf0, 0xbf, 0xbe, 0xbd, 0xbc, 0xbb, 0xba,
             0xb9, 0xb8, 0xb7, 0xb6, 0xb5, 0xb4, 0xb3, 0xb2, 0xb1, 0xb0},
     .tweak = {0x9a, 0x78, 0x56, 0x34, 0x12},
     .plain = {0x00, 0x01, 0x02, 0x03, 0x04, 0x05, 0x06, 0x07, 0x08, 0x09, 0x0a, 0x0b, 0x0c, 0x0d,
               0x0e, 0x0f, 0x10},
     .sealed = {0x6c, 0x16, 0x25, 0xdb, 0x46, 0x71, 0x52, 0x2d, 0x3d, 0x75, 0x99, 0x60, 0x1d, 0xe7,
                0xca, 0x09, 0xed}},
    {.key_len = 64,
     .n = 64,
     .key = {0x27, 0x18, 0x28, 0x18, 0x28, 0x45, 0x90, 0x45, 0x23, 0x53, 0x60, 0x28, 0x74,
             0x71, 0x35, 0x26, 0x62, 0x49, 0x77, 0x57, 0x24, 0x70, 0x93, 0x69, 0x99, 0x59,
             0x57, 0x49, 0x66, 0x96, 0x76, 0x27, 0x31, 0x41, 0x59, 0x26, 0x53, 0x58, 0x97,
             0x93, 0x23, 0x84, 0x62, 0x64, 0x33, 0x83, 0x27, 0x95, 0x02, 0x88, 0x41, 0x97,
             0x16, 0x93, 0x99, 0x37, 0x51, 0x05, 0x82, 0x09, 0x74, 0x94, 0x45, 0x92},
     .tweak = {0xff},
     .plain = {0x00, 0x01, 0x02, 0x03, 0x04, 0x05, 0x06, 0x07, 0x08, 0x09, 0x0a, 0x0b, 0x0c,
               0x0d, 0x0e, 0x0f, 0x10, 0x11, 0x12, 0x13, 0x14, 0x15, 0x16, 0x17, 0x18, 0x19,
               0x1a, 0x1b, 0x1c, 0x1d, 0x1e, 0x1f, 0x20, 0x21, 0x22, 0x23, 0x24, 0x25, 0x26,
               0x27, 0x28, 0x29, 0x2a, 0x2b, 0x2c, 0x2d, 0x2e, 0x2f, 0x30, 0x31, 0x32, 0x33,
               0x34, 0x35, 0x36, 0x37, 0x38, 0x39, 0x3a, 0x3b, 0x3c, 0x3d, 0x3e, 0x3f},
     .sealed = {0x1c, 0x3b, 0x3a, 0x10, 0x2f, 0x77, 0x03, 0x86, 0xe4, 0x83, 0x6c, 0x99, 0xe3,
                0x70, 0xcf, 0x9b, 0xea, 0x00, 0x80, 0x3f, 0x5e, 0x48, 0x23, 0x57, 0xa4, 0xae,
                0x12, 0xd4, 0x14, 0xa3, 0xe6, 0x3b, 0x5d, 0x31, 0xe2, 0x76, 0xf8, 0xfe, 0x4a,
                0x8d, 0x66, 0xb3, 0x17, 0xf9, 0xac, 0x68, 0x3f, 0x44, 0x68, 0x0a, 0x86, 0xac,
                0x35, 0xad, 0xfc, 0x33, 0x45, 0xbe, 0xfe, 0xcb, 0x4b, 0xb1, 0x88, 0xfd}},
};

static int check_vectors(const xts_ops *ops) {
    int good = 1;

    for (size_t i = 0; i < sizeof vectors / sizeof *vectors; i++) {
        const xts_vector *v = &vectors[i];
        uint8_t data[64];
        xts_key key;
        if (xts_expand(&key, v->key, v->key_len))
            return 0;
        xts_crypt(ops, &key, 1, v->tweak, v->plain, data, v->n);
        good &= selftest_same(data, v->sealed, v->n);
        xts_crypt(ops, &key, 0, v->tweak, data, data, v->n);
        good &= selftest_same(data, v->plain, v->n);
    }
    return good;
}

/* ---- pages against the portable tier --------------------------------------------------------- */

enum {
    SMALL_PAGE = 4096,
    SMALL_PAGES = 4,
    LARGE_PAGE = 8192,
    LARGE_AT = SMALL_PAGE * SMALL_PAGES,
    TEXT = LARGE_AT + LARGE_PAGE,
    SLACK = 64,
    FAR_BLOCKS = 3
};

typedef struct pages {
    xts_key key;
    uint8_t t0[SMALL_PAGES + 1][16]; /* encrypted tweaks, the large page's last */
    _Alignas(64) uint8_t plain[TEXT], sealed[TEXT], got[TEXT + SLACK];
} pages;

static void pages_prepare(pages *p, size_t key_len) {
    uint8_t key[64];

    selftest_fill(key, sizeof key, key_len);
    selftest_fill(*p->t0, sizeof p->t0, key_len + 1);
    selftest_fill(p->plain, sizeof p->plain, key_len + 2);
    xts_expand(&p->key, key, key_len);
    xts_portable.tweaks(&p->key, p->t0, SMALL_PAGES + 1);
    xts_portable.seal_pages(&p->key, p->sealed, p->plain, SMALL_PAGES, SMALL_PAGE,
                            (const uint8_t (*)[16])p->t0, 0);
    xts_portable.seal_pages(&p->key, p->sealed + LARGE_AT, p->plain + LARGE_AT, 1, LARGE_PAGE,
                            (const uint8_t (*)[16])p->t0 + SMALL_PAGES, 0);
}

/* The tweaks again, by the tier itself. */
static int check_tweaks(const xts_ops *ops, const pages *p, size_t key_len) {
    uint8_t t0[SMALL_PAGES + 1][16];

    selftest_fill(*t0, sizeof t0, key_len + 1);
    ops->tweaks(&p->key, t0, SMALL_PAGES + 1);
    return selftest_same(t0, p->t0, sizeof t0);
}

typedef void (*pages_function)(const xts_key *, uint8_t *, const uint8_t *, size_t, size_t,
                               const uint8_t (*)[16], unsigned);

/* Out of place, with every byte of the result at its right place and none outside. */
static int check_pages(pages_function f, pages *p, const uint8_t *in, const uint8_t *out,
                       size_t misalign, unsigned flags) {
    uint8_t *got = p->got + misalign;
    const uint8_t (*t0)[16] = (const uint8_t (*)[16])p->t0;

    memset(p->got, 0x5a, sizeof p->got);
    f(&p->key, got, in, SMALL_PAGES, SMALL_PAGE, t0, flags);
    f(&p->key, got + LARGE_AT, in + LARGE_AT, 1, LARGE_PAGE, t0 + SMALL_PAGES, flags);
    return selftest_same(got, out, TEXT) && got[TEXT] == 0x5a && (!misalign || got[-1] == 0x5a);
}

/* In place: what the stores are filled and emptied with when source and destination are one. */
static int check_pages_in_place(const xts_ops *ops, pages *p) {
    const uint8_t (*t0)[16] = (const uint8_t (*)[16])p->t0;
    uint8_t *got = p->got + 1;
    int good;

    memcpy(got, p->plain, LARGE_AT);
    ops->seal_pages(&p->key, got, got, SMALL_PAGES, SMALL_PAGE, t0, 0);
    good = selftest_same(got, p->sealed, LARGE_AT);
    ops->open_pages(&p->key, got, got, SMALL_PAGES, SMALL_PAGE, t0, 0);
    return good && selftest_same(got, p->plain, LARGE_AT);
}

/* Runs of blocks inside the large page: single blocks, rests of every vector width, runs over the
 * 4 KiB line. */
static int check_blocks(const xts_ops *ops, pages *p) {
    static const uint16_t runs[][2] = {{0, 1},    {1, 1},   {2, 3},   {7, 4},    {13, 9},
                                       {31, 17},  {60, 33}, {100, 8}, {249, 12}, {255, 1},
                                       {256, 64}, {300, 7}, {509, 3}, {511, 1}};
    const uint8_t *plain = p->plain + LARGE_AT, *sealed = p->sealed + LARGE_AT;
    const xts_tweak t0 = xts_tweak_load(p->t0[SMALL_PAGES]);
    int good = 1;

    for (size_t i = 0; i < sizeof runs / sizeof *runs; i++) {
        size_t first = runs[i][0], n = runs[i][1], at = first * AES_BLOCK, size = n * AES_BLOCK;
        uint8_t *got = p->got + i % 5;
        memset(got, 0x5a, size + 1);
        ops->seal_blocks(&p->key, got, plain + at, n, first, t0);
        good &= selftest_same(got, sealed + at, size) && got[size] == 0x5a;
        ops->open_blocks(&p->key, got, got, n, first, t0);
        good &= selftest_same(got, plain + at, size) && got[size] == 0x5a;
    }
    return good;
}

/* Jumps beyond the pages tested: the end of the largest page, and far into a long data unit. */
static int check_far_blocks(const xts_ops *ops, pages *p) {
    static const uint32_t firsts[] = {1023, 4093, 4096, 70001, (1u << 20) - FAR_BLOCKS};
    const xts_tweak t0 = xts_tweak_load(p->t0[0]);
    int good = 1;

    for (size_t i = 0; i < sizeof firsts / sizeof *firsts; i++) {
        uint8_t expected[FAR_BLOCKS * AES_BLOCK], got[FAR_BLOCKS * AES_BLOCK];
        xts_portable.seal_blocks(&p->key, expected, p->plain, FAR_BLOCKS, firsts[i], t0);
        ops->seal_blocks(&p->key, got, p->plain, FAR_BLOCKS, firsts[i], t0);
        good &= selftest_same(got, expected, sizeof got);
        ops->open_blocks(&p->key, got, got, FAR_BLOCKS, firsts[i], t0);
        good &= selftest_same(got, p->plain, sizeof got);
    }
    return good;
}

static int check_against_portable(const xts_ops *ops, pages *p, size_t key_len) {
    int good;

    pages_prepare(p, key_len);
    good = check_tweaks(ops, p, key_len);
    good &= check_pages(ops->open_pages, p, p->sealed, p->plain, 3, 0);
    good &= check_blocks(ops, p);
    if (ops == &xts_portable)
        return good; /* it sealed the pages itself, and it has one way of writing them */
    good &= check_far_blocks(ops, p);
    good &= check_pages(ops->seal_pages, p, p->plain, p->sealed, 1, 0);
    good &= check_pages(ops->seal_pages, p, p->plain, p->sealed, 0, XTS_STREAM);
    good &= check_pages(ops->open_pages, p, p->sealed, p->plain, 0, XTS_STREAM);
    good &= check_pages_in_place(ops, p);
    return good;
}

/* Against published vectors, and against portable. */
static int check_xts(const xts_ops *ops, pages *p) {
    return check_vectors(ops) && check_against_portable(ops, p, 32) &&
           check_against_portable(ops, p, 64);
}

ccmem_status selftest_xts(const xts_ops *ops) {
    pages *p;
    if (posix_memalign((void **)&p, 64, sizeof *p))
        return CCMEM_ERR_NOMEM;
    int good = check_xts(ops, p);
    free(p);
    return good ? CCMEM_OK : CCMEM_ERR_SELFTEST;
}
