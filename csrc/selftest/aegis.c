/* SPDX-License-Identifier: Apache-2.0
 * The self-test of AEGIS: published vectors, then pseudo-random messages against the portable tier.
 */
#include "crypto/aegis/aegis.h"
#include "selftest/selftest.h"

#include <stdlib.h>
#include <string.h>

static int same(const void *a, const void *b, size_t n) { return !memcmp(a, b, n); }

static int zero(const uint8_t *p, size_t n) {
    uint8_t all = 0;
    for (size_t i = 0; i < n; i++)
        all |= p[i];
    return !all;
}

/* ---- published vectors ----------------------------------------------------------------------- */

enum { VECTOR_TEXT = 120, VECTOR_AD = 42 };

typedef struct aegis_vector {
    uint8_t key[16], nonce[16], ad[VECTOR_AD], plain[VECTOR_TEXT], sealed[VECTOR_TEXT], tag[32];
    unsigned lanes;
    size_t ad_len, n, tag_len;
} aegis_vector;

/* RFC 10032, A.2.5 and A.2.6 (AEGIS-128L), A.4.2 and A.4.3 (AEGIS-128X2): a tag of each length. */
static const aegis_vector vectors[] = {
    {.lanes = 1,
     .ad_len = 8,
     .n = 14,
     .tag_len = 16,
     .key = {0x10, 0x01, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00,
             0x00, 0x00},
     .nonce = {0x10, 0x00, 0x02, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00,
               0x00, 0x00},
     .ad = {0x00, 0x01, 0x02, 0x03, 0x04, 0x05, 0x06, 0x07},
     .plain = {0x00, 0x01, 0x02, 0x03, 0x04, 0x05, 0x06, 0x07, 0x08, 0x09, 0x0a, 0x0b, 0x0c, 0x0d},
     .sealed = {0x79, 0xd9, 0x45, 0x93, 0xd8, 0xc2, 0x11, 0x9d, 0x7e, 0x8f, 0xd9, 0xb8, 0xfc, 0x77},
     .tag = {0x5c, 0x04, 0xb3, 0xdb, 0xa8, 0x49, 0xb2, 0x70, 0x1e, 0xff, 0xbe, 0x32, 0xc7, 0xf0,
             0xfa, 0xb7}},
    {.lanes = 1,
     .ad_len = 42,
     .n = 40,
     .tag_len = 32,
     .key = {0x10, 0x01, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00,
             0x00, 0x00},
     .nonce = {0x10, 0x00, 0x02, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00,
               0x00, 0x00},
     .ad = {0x00, 0x01, 0x02, 0x03, 0x04, 0x05, 0x06, 0x07, 0x08, 0x09, 0x0a, 0x0b, 0x0c, 0x0d,
            0x0e, 0x0f, 0x10, 0x11, 0x12, 0x13, 0x14, 0x15, 0x16, 0x17, 0x18, 0x19, 0x1a, 0x1b,
            0x1c, 0x1d, 0x1e, 0x1f, 0x20, 0x21, 0x22, 0x23, 0x24, 0x25, 0x26, 0x27, 0x28, 0x29},
     .plain = {0x10, 0x11, 0x12, 0x13, 0x14, 0x15, 0x16, 0x17, 0x18, 0x19, 0x1a, 0x1b, 0x1c, 0x1d,
               0x1e, 0x1f, 0x20, 0x21, 0x22, 0x23, 0x24, 0x25, 0x26, 0x27, 0x28, 0x29, 0x2a, 0x2b,
               0x2c, 0x2d, 0x2e, 0x2f, 0x30, 0x31, 0x32, 0x33, 0x34, 0x35, 0x36, 0x37},
     .sealed = {0xb3, 0x10, 0x52, 0xad, 0x1c, 0xca, 0x4e, 0x29, 0x1a, 0xbc, 0xf2, 0xdf, 0x35, 0x02,
                0xe6, 0xbd, 0xb1, 0xbf, 0xd6, 0xdb, 0x36, 0x79, 0x8b, 0xe3, 0x60, 0x7b, 0x1f, 0x94,
                0xd3, 0x44, 0x78, 0xaa, 0x7e, 0xde, 0x7f, 0x7a, 0x99, 0x0f, 0xec, 0x10},
     .tag = {0xb9, 0x1e, 0x29, 0x47, 0xa3, 0x3d, 0xa8, 0xbe, 0xe8, 0x9b, 0x67,
             0x94, 0xe6, 0x47, 0xba, 0xf0, 0xfc, 0x83, 0x5f, 0xf5, 0x74, 0xac,
             0xa3, 0xfc, 0x27, 0xc3, 0x3b, 0xe0, 0xdb, 0x2a, 0xff, 0x98}},
    {.lanes = 2,
     .ad_len = 0,
     .n = 0,
     .tag_len = 16,
     .key = {0x00, 0x01, 0x02, 0x03, 0x04, 0x05, 0x06, 0x07, 0x08, 0x09, 0x0a, 0x0b, 0x0c, 0x0d,
             0x0e, 0x0f},
     .nonce = {0x10, 0x11, 0x12, 0x13, 0x14, 0x15, 0x16, 0x17, 0x18, 0x19, 0x1a, 0x1b, 0x1c, 0x1d,
               0x1e, 0x1f},
     .tag = {0x63, 0x11, 0x7d, 0xc5, 0x77, 0x56, 0xe4, 0x02, 0x81, 0x9a, 0x82, 0xe1, 0x3e, 0xca,
             0x83, 0x79}},
    {.lanes = 2,
     .ad_len = 8,
     .n = 120,
     .tag_len = 32,
     .key = {0x00, 0x01, 0x02, 0x03, 0x04, 0x05, 0x06, 0x07, 0x08, 0x09, 0x0a, 0x0b, 0x0c, 0x0d,
             0x0e, 0x0f},
     .nonce = {0x10, 0x11, 0x12, 0x13, 0x14, 0x15, 0x16, 0x17, 0x18, 0x19, 0x1a, 0x1b, 0x1c, 0x1d,
               0x1e, 0x1f},
     .ad = {0x01, 0x02, 0x03, 0x04, 0x01, 0x02, 0x03, 0x04},
     .plain = {0x04, 0x05, 0x06, 0x07, 0x04, 0x05, 0x06, 0x07, 0x04, 0x05, 0x06, 0x07, 0x04, 0x05,
               0x06, 0x07, 0x04, 0x05, 0x06, 0x07, 0x04, 0x05, 0x06, 0x07, 0x04, 0x05, 0x06, 0x07,
               0x04, 0x05, 0x06, 0x07, 0x04, 0x05, 0x06, 0x07, 0x04, 0x05, 0x06, 0x07, 0x04, 0x05,
               0x06, 0x07, 0x04, 0x05, 0x06, 0x07, 0x04, 0x05, 0x06, 0x07, 0x04, 0x05, 0x06, 0x07,
               0x04, 0x05, 0x06, 0x07, 0x04, 0x05, 0x06, 0x07, 0x04, 0x05, 0x06, 0x07, 0x04, 0x05,
               0x06, 0x07, 0x04, 0x05, 0x06, 0x07, 0x04, 0x05, 0x06, 0x07, 0x04, 0x05, 0x06, 0x07,
               0x04, 0x05, 0x06, 0x07, 0x04, 0x05, 0x06, 0x07, 0x04, 0x05, 0x06, 0x07, 0x04, 0x05,
               0x06, 0x07, 0x04, 0x05, 0x06, 0x07, 0x04, 0x05, 0x06, 0x07, 0x04, 0x05, 0x06, 0x07,
               0x04, 0x05, 0x06, 0x07, 0x04, 0x05, 0x06, 0x07},
     .sealed = {0x57, 0x95, 0x54, 0x43, 0x01, 0x99, 0x7f, 0x93, 0x62, 0x1b, 0x27, 0x88, 0x09, 0xd6,
                0x33, 0x1b, 0x3b, 0xfa, 0x6f, 0x18, 0xe9, 0x0d, 0xb1, 0x2c, 0x4a, 0xa3, 0x59, 0x65,
                0xb5, 0xe9, 0x8c, 0x5f, 0xc6, 0xfb, 0x4e, 0x54, 0xbc, 0xb6, 0x11, 0x18, 0x42, 0xc2,
                0x06, 0x37, 0x25, 0x2e, 0xff, 0x74, 0x7c, 0xb3, 0xa8, 0xf8, 0x5b, 0x37, 0xde, 0x80,
                0x91, 0x9a, 0x58, 0x9f, 0xe0, 0xf2, 0x48, 0x72, 0xbc, 0x92, 0x63, 0x60, 0x69, 0x67,
                0x39, 0xe0, 0x55, 0x20, 0x64, 0x7e, 0x39, 0x09, 0x89, 0xe1, 0xeb, 0x5f, 0xd4, 0x2f,
                0x99, 0x67, 0x8a, 0x02, 0x76, 0xa4, 0x98, 0xf8, 0xc4, 0x54, 0x76, 0x1c, 0x9d, 0x6a,
                0xac, 0xb6, 0x47, 0xad, 0x56, 0xbe, 0x62, 0xb2, 0x9c, 0x22, 0xcd, 0x4b, 0x57, 0x61,
                0xb3, 0x8f, 0x43, 0xd5, 0xa5, 0xee, 0x06, 0x2f},
     .tag = {0xc4, 0x71, 0x87, 0x6f, 0x9b, 0x49, 0x78, 0xc4, 0x4f, 0x2a, 0xe1,
             0xce, 0x77, 0x0c, 0xdb, 0x11, 0xa0, 0x94, 0xee, 0x3f, 0xec, 0xa6,
             0x4e, 0x7a, 0xfc, 0xd4, 0x8b, 0xfe, 0x52, 0xc6, 0x0e, 0xca}},
};

static int check_vectors(const aegis_ops *ops) {
    int good = 1;

    for (size_t i = 0; i < sizeof vectors / sizeof *vectors; i++) {
        const aegis_vector *v = &vectors[i];
        uint8_t data[VECTOR_TEXT], tag[32];
        aegis_seal_message(ops, v->lanes, v->key, v->nonce, v->ad, v->ad_len, v->plain, data, v->n,
                           tag, v->tag_len);
        good &= same(data, v->sealed, v->n) && same(tag, v->tag, v->tag_len);
        good &= aegis_open_message(ops, v->lanes, v->key, v->nonce, v->ad, v->ad_len, data, data,
                                   v->n, tag, v->tag_len) == CCMEM_OK;
        good &= same(data, v->plain, v->n);
        tag[v->tag_len - 1] ^= 1;
        good &= aegis_open_message(ops, v->lanes, v->key, v->nonce, v->ad, v->ad_len, v->sealed,
                                   data, v->n, tag, v->tag_len) == CCMEM_ERR_INTEGRITY;
        good &= zero(data, v->n);
    }
    return good;
}

/* ---- against the portable tier --------------------------------------------------------------- */

enum {
    SMALL_PAGE = 4096,
    SMALL_PAGES = 4,
    PAGES = SMALL_PAGES + 1, /* the last one is large */
    LARGE_PAGE = 8192,
    LARGE_AT = SMALL_PAGE * SMALL_PAGES,
    TEXT = LARGE_AT + LARGE_PAGE,
    SLACK = 64,
    MESSAGE = 1001,
    MESSAGE_AD = 300
};

typedef struct pages {
    uint8_t key[16], nonce[PAGES][16], tag[PAGES][16];
    _Alignas(64) uint8_t plain[TEXT], sealed[TEXT], got[TEXT + SLACK];
} pages;

/* A page is a message of its own, and messages are what the published vectors test. */
static void pages_prepare(pages *p) {
    selftest_fill(p->key, sizeof p->key, 1);
    selftest_fill(*p->nonce, sizeof p->nonce, 2);
    selftest_fill(p->plain, sizeof p->plain, 3);
    for (size_t i = 0; i < PAGES; i++) {
        size_t at = i * SMALL_PAGE;
        aegis_seal_message(&aegis_portable, 2, p->key, p->nonce[i], NULL, 0, p->plain + at,
                           p->sealed + at, i < SMALL_PAGES ? SMALL_PAGE : LARGE_PAGE, p->tag[i],
                           AEGIS_TAG_SIZE);
    }
}

/* Several blocks of associated data and of text, and a rest of both. */
static int check_messages(const aegis_ops *ops, pages *p) {
    int good = 1;

    for (unsigned lanes = 1; lanes <= 2; lanes++) {
        uint8_t *got = p->got + lanes, *expected = p->got + MESSAGE + SLACK, tags[2][32];
        aegis_seal_message(&aegis_portable, lanes, p->key, *p->nonce, p->sealed, MESSAGE_AD,
                           p->plain, expected, MESSAGE, tags[0], 32);
        aegis_seal_message(ops, lanes, p->key, *p->nonce, p->sealed, MESSAGE_AD, p->plain, got,
                           MESSAGE, tags[1], 32);
        good &= same(got, expected, MESSAGE) && same(tags[0], tags[1], 32);
        good &= aegis_open_message(ops, lanes, p->key, *p->nonce, p->sealed, MESSAGE_AD, got, got,
                                   MESSAGE, tags[1], 32) == CCMEM_OK;
        good &= same(got, p->plain, MESSAGE);
    }
    return good;
}

#define NONCES(p) ((const uint8_t (*)[16])(p)->nonce)
#define TAGS(p) ((const uint8_t (*)[16])(p)->tag)

/* With every byte of the result at its right place and none outside. */
static int check_seal(const aegis_ops *ops, pages *p, size_t misalign, unsigned flags) {
    uint8_t *got = p->got + misalign, tags[PAGES][16];

    memset(p->got, 0x5a, sizeof p->got);
    ops->seal_pages(p->key, got, p->plain, SMALL_PAGES, SMALL_PAGE, NONCES(p), tags, flags);
    ops->seal_pages(p->key, got + LARGE_AT, p->plain + LARGE_AT, 1, LARGE_PAGE,
                    NONCES(p) + SMALL_PAGES, tags + SMALL_PAGES, flags);
    return same(got, p->sealed, TEXT) && same(tags, p->tag, sizeof tags) && got[TEXT] == 0x5a &&
           (!misalign || got[-1] == 0x5a);
}

static int check_open(const aegis_ops *ops, pages *p, size_t misalign, unsigned flags) {
    uint8_t *got = p->got + misalign;
    uint64_t bad;

    memset(p->got, 0x5a, sizeof p->got);
    bad =
        ops->open_pages(p->key, got, p->sealed, SMALL_PAGES, SMALL_PAGE, NONCES(p), TAGS(p), flags);
    bad |= ops->open_pages(p->key, got + LARGE_AT, p->sealed + LARGE_AT, 1, LARGE_PAGE,
                           NONCES(p) + SMALL_PAGES, TAGS(p) + SMALL_PAGES, flags);
    return !bad && same(got, p->plain, TEXT) && got[TEXT] == 0x5a && (!misalign || got[-1] == 0x5a);
}

/* In place, and one to four pages a call: kernels that take pages together have their rests. */
static int check_counts(const aegis_ops *ops, pages *p) {
    int good = 1;

    for (size_t n = 1; n <= SMALL_PAGES; n++) {
        size_t size = n * SMALL_PAGE;
        uint8_t tags[SMALL_PAGES][16];
        memcpy(p->got, p->plain, size);
        ops->seal_pages(p->key, p->got, p->got, n, SMALL_PAGE, NONCES(p), tags, 0);
        good &= same(p->got, p->sealed, size) && same(tags, p->tag, n * sizeof *tags);
        good &= !ops->open_pages(p->key, p->got, p->got, n, SMALL_PAGE, NONCES(p), TAGS(p), 0);
        good &= same(p->got, p->plain, size);
    }
    return good;
}

/* Each page by itself, also a large one, while others are fetched; then with one bit of it, its tag
 * or its nonce changed. */
static int check_next(const aegis_ops *ops, pages *p) {
    int good = 1;

    for (size_t i = 0; i < PAGES; i++) {
        const size_t at = i * SMALL_PAGE, size = i < SMALL_PAGES ? SMALL_PAGE : LARGE_PAGE;
        uint8_t *const places[] = {p->sealed + at + 1023 * i, p->tag[i] + 3 * i, p->nonce[i] + 15};
        uint8_t *got = p->got + 1, *changed = places[i % 3];
        memset(p->got, 0x5a, size + SLACK);
        good &= ops->open_next(p->key, got, p->sealed + at, size, p->nonce[i], p->tag[i], p->sealed,
                               p->sealed + at) == 1;
        good &= same(got, p->plain + at, size) && got[size] == 0x5a && got[-1] == 0x5a;
        *changed ^= 0x04;
        good &= ops->open_next(p->key, got, p->sealed + at, size, p->nonce[i], p->tag[i],
                               p->sealed + at, p->sealed) == 0;
        *changed ^= 0x04;
        good &= zero(got, size) && got[size] == 0x5a && got[-1] == 0x5a;
    }
    return good;
}

/* Parts of the large page; then the same parts of it with one bit changed, at its start, inside the
 * part, or at its end. */
static int check_parts(const aegis_ops *ops, pages *p) {
    static const uint16_t parts[][2] = {{0, 0},     {0, 1},      {1, 64},   {63, 130}, {511, 2},
                                        {1000, 64}, {4095, 514}, {8191, 1}, {8192, 0}, {0, 8192}};
    const uint8_t *nonce = p->nonce[SMALL_PAGES], *tag = p->tag[SMALL_PAGES];
    uint8_t *sealed = p->sealed + LARGE_AT;
    int good = 1;

    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++) {
        size_t offset = parts[i][0], n = parts[i][1];
        uint8_t *got = p->got + 1 + i % 5, *changed;
        memset(p->got, 0x5a, n + SLACK);
        good &= ops->open_part(p->key, got, sealed, LARGE_PAGE, nonce, tag, offset, n, 0) == 1;
        good &= same(got, p->plain + LARGE_AT + offset, n) && got[n] == 0x5a && got[-1] == 0x5a;
        changed = sealed + (i % 3 == 0 ? 0 : i % 3 == 1 ? LARGE_PAGE - 1 : offset % LARGE_PAGE);
        *changed ^= 0x10;
        good &= ops->open_part(p->key, got, sealed, LARGE_PAGE, nonce, tag, offset, n, 0) == 0;
        good &= zero(got, n) && got[n] == 0x5a && got[-1] == 0x5a;
        *changed ^= 0x10;
    }
    return good;
}

/* One bit changed in page i, its tag or its nonce: that page is refused and zero, the others are
 * right. */
static int check_changes(const aegis_ops *ops, pages *p, unsigned flags) {
    int good = 1;

    for (size_t i = 0; i < SMALL_PAGES; i++) {
        uint8_t *const places[] = {p->sealed + i * SMALL_PAGE + 1023 * i, p->tag[i] + 5 * i,
                                   p->nonce[i] + 15};
        uint8_t *changed = places[i % 3], *page = p->got + i * SMALL_PAGE;
        memset(p->got, 0x5a, LARGE_AT);
        *changed ^= 0x80;
        good &= ops->open_pages(p->key, p->got, p->sealed, SMALL_PAGES, SMALL_PAGE, NONCES(p),
                                TAGS(p), flags) == UINT64_C(1) << i;
        *changed ^= 0x80;
        good &= zero(page, SMALL_PAGE);
        memcpy(page, p->plain + i * SMALL_PAGE, SMALL_PAGE);
        good &= same(p->got, p->plain, LARGE_AT);
    }
    return good;
}

/* Every byte of the tag counts, also when nothing is handed out. */
static int check_tags(const aegis_ops *ops, pages *p) {
    int good = ops->open_part(p->key, p->got, p->sealed, SMALL_PAGE, *p->nonce, *p->tag, 7, 0, 0);

    for (size_t i = 0; i < AEGIS_TAG_SIZE; i++) {
        p->tag[0][i] ^= (uint8_t)(1u << i % 8);
        good &= !ops->open_part(p->key, p->got, p->sealed, SMALL_PAGE, *p->nonce, *p->tag, 7, 0, 0);
        good &=
            ops->open_pages(p->key, p->got, p->sealed, 1, SMALL_PAGE, NONCES(p), TAGS(p), 0) == 1;
        p->tag[0][i] ^= (uint8_t)(1u << i % 8);
    }
    return good;
}

ccmem_status selftest_aegis(const aegis_ops *ops) {
    pages *p;
    int good;

    if (!check_vectors(ops))
        return CCMEM_ERR_SELFTEST;
    if (posix_memalign((void **)&p, 64, sizeof *p))
        return CCMEM_ERR_NOMEM;
    pages_prepare(p);
    good = check_messages(ops, p);
    good &= check_seal(ops, p, 1, 0) && check_seal(ops, p, 0, AEGIS_STREAM);
    good &= check_open(ops, p, 3, 0) && check_open(ops, p, 0, AEGIS_STREAM);
    good &= check_counts(ops, p) && check_next(ops, p);
    good &= check_parts(ops, p) && check_tags(ops, p);
    good &= check_changes(ops, p, 0) && check_changes(ops, p, AEGIS_STREAM);
    free(p);
    return good ? CCMEM_OK : CCMEM_ERR_SELFTEST;
}
