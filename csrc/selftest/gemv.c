/* SPDX-License-Identifier: Apache-2.0
 * Products of a tier: small whole numbers, whose sums are exact in any order, and conversions
 * against the portable tier. */
#include "selftest/selftest.h"

#include "crypto/aegis/aegis.h"
#include "crypto/xts/xts.h"
#include "kernels/gemv.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { BLOCKS = 6, ELEMENTS = BLOCKS * GEMV_BLOCK_MAX, PAGE = 4096, PAGES = 2, LINE = 64 };

typedef struct products {
    gemv_sums sums;
    _Alignas(64) float x[PAGE * PAGES]; /* packed, up to a row of two pages of int8 */
    _Alignas(64) float row_sums[PAGES * PAGE / 128 * GEMV_BLOCK_MAX];
    _Alignas(64) float rest[GEMV_BLOCK_MAX];
    _Alignas(64) uint8_t w[PAGE * PAGES], sealed[PAGE * PAGES];
    float plain[PAGE * PAGES];
    int8_t number[PAGE * PAGES];
} products;

static void fill(products *p, ccmem_dtype dtype, size_t n) {
    const size_t element = dtype_size(dtype);
    selftest_fill((uint8_t *)p->number, n, 7 + (uint64_t)dtype);
    for (size_t i = 0; i < n; i++) {
        p->number[i] = (int8_t)((p->number[i] & 15) - 8);
        selftest_number(dtype, p->w + i * element, p->number[i]);
    }
}

static int x_of(size_t i) { return (int)(i % 7); }

static void pack_row(products *p, const gemv_ops *ops, ccmem_dtype dtype, size_t n) {
    for (size_t i = 0; i < n; i++)
        p->plain[i] = (float)x_of(i);
    gemv_pack(ops, dtype, p->x, p->plain, n);
}

static int check_dots(const gemv_ops *ops, products *p, ccmem_dtype dtype) {
    long expected = 0;
    fill(p, dtype, ELEMENTS);
    pack_row(p, ops, dtype, ELEMENTS);
    memset(&p->sums, 0, sizeof p->sums);
    ops->dot[dtype](&p->sums, p->w, p->x, ELEMENTS / ops->block);
    for (size_t i = 0; i < ELEMENTS; i++)
        expected += p->number[i] * x_of(i);
    return ops->total(&p->sums) == (float)expected;
}

/* One block times 1: the sums are the elements themselves. `order` tells which. */
static void convert(const gemv_ops *ops, products *p, ccmem_dtype dtype, const uint8_t *w,
                    float *out) {
    float order[GEMV_BLOCK_MAX];
    for (size_t i = 0; i < ops->block; i++)
        p->plain[i] = (float)i;
    gemv_pack(ops, dtype, order, p->plain, ops->block);
    for (size_t i = 0; i < ops->block; i++)
        p->x[i] = 1.0f;
    memset(&p->sums, 0, sizeof p->sums);
    ops->dot[dtype](&p->sums, w, p->x, 1);
    for (size_t i = 0; i < ops->block; i++)
        out[(size_t)order[i]] = p->sums.lane[i];
}

static int check_conversions(const gemv_ops *ops, products *p, ccmem_dtype dtype) {
    const size_t n = GEMV_BLOCK_MAX, bytes = n * dtype_size(dtype);
    int good = 1;
    selftest_fill(p->w, sizeof p->w, 3);
    /* Both signs of infinities, subnormal and largest numbers of both 16-bit types. */
    static const uint16_t special[] = {0x0001, 0x8001, 0x03ff, 0x83ff, 0x0400, 0x7bff,
                                       0xfbff, 0x7c00, 0xfc00, 0x7f7f, 0x7f80, 0xff80,
                                       0x007f, 0x0080, 0x8000, 0x0000};
    memcpy(p->w, special, sizeof special);
    for (size_t at = 0; at + bytes <= 16 * n; at += bytes) {
        float got[GEMV_BLOCK_MAX], expected[GEMV_BLOCK_MAX];
        for (size_t i = 0; i < n; i += ops->block)
            convert(ops, p, dtype, p->w + at + i * dtype_size(dtype), got + i);
        for (size_t i = 0; i < n; i += gemv_portable.block)
            convert(&gemv_portable, p, dtype, p->w + at + i * dtype_size(dtype), expected + i);
        for (size_t i = 0; i < n; i++)
            good &= got[i] == expected[i] || (isnan(got[i]) && isnan(expected[i]));
    }
    return good;
}

/* Two pages, rows of 1536 bytes from byte 512 on, so that rows lie across pages and the last does
 * not end. */
enum { ROW = 1536, FROM = 512, TO = PAGES * PAGE - 512 };

static fused_rows rows_of(const gemv_ops *ops, products *p, ccmem_dtype dtype) {
    static const _Alignas(64) float zeros[GEMV_BLOCK_MAX];
    const size_t element = dtype_size(dtype);
    fill(p, dtype, sizeof p->w / element);
    pack_row(p, ops, dtype, ROW / element);
    /* What the loop tested before left is right for this one as well. */
    memset(p->row_sums, 0x5a, sizeof p->row_sums);
    memset(p->rest, 0x5a, sizeof p->rest);
    return (fused_rows){.from = FROM,
                        .to = TO,
                        .in_features = ROW / element,
                        .x = p->x,
                        .first = zeros,
                        .sums = p->row_sums,
                        .rest = p->rest};
}

static int check_rows(const gemv_ops *ops, const products *p, ccmem_dtype dtype) {
    const size_t element = dtype_size(dtype);
    int good = 1;
    for (size_t at = FROM, row = 0; at < TO; at += ROW, row++) {
        long expected = 0;
        for (size_t i = 0; i < ROW / element && at + i * element < TO; i++)
            expected += p->number[at / element + i] * x_of(i);
        float got = ops->sum(at + ROW <= TO ? p->row_sums + row * ops->block : p->rest);
        good &= got == (float)expected;
    }
    return good;
}

/* A changed tag as well. */
static int check_fused(const gemv_ops *ops, const aegis_ops *aegis, products *p,
                       ccmem_dtype dtype) {
    static const uint8_t key[16] = {1, 2, 3}, nonce[PAGES][16] = {{4}, {5}};
    const fused_rows rows = rows_of(ops, p, dtype);
    uint8_t tag[PAGES][16];
    aegis_portable.seal_pages(key, p->sealed, p->w, PAGES, PAGE, nonce, tag, 0);
    int good = aegis->fused[dtype](key, p->sealed, PAGES, PAGE, nonce, (const uint8_t (*)[16])tag,
                                   &rows) == PAGES;
    good &= check_rows(ops, p, dtype);
    tag[1][15] ^= 0x80;
    good &= aegis->fused[dtype](key, p->sealed, PAGES, PAGE, nonce, (const uint8_t (*)[16])tag,
                                &rows) == 1;
    return good;
}

/* Both sizes of keys, and the two pages as one. */
static int check_fused_xts(const gemv_ops *ops, const xts_ops *xts, products *p,
                           ccmem_dtype dtype) {
    int good = 1;
    for (int i = 0; i < 3; i++) {
        const size_t size = i == 2 ? PAGES * PAGE : PAGE;
        const fused_rows rows = rows_of(ops, p, dtype);
        uint8_t raw[64], t0[PAGES][16] = {{4}, {5}};
        xts_key key;
        selftest_fill(raw, sizeof raw, 11);
        xts_expand(&key, raw, i == 1 ? 64 : 32);
        xts_portable.seal_pages(&key, p->sealed, p->w, PAGES * PAGE / size, size,
                                (const uint8_t (*)[16])t0, 0);
        xts->fused[dtype](&key, p->sealed, size, (const uint8_t (*)[16])t0, &rows);
        good &= check_rows(ops, p, dtype);
    }
    return good;
}

ccmem_status selftest_gemv(const gemv_ops *ops) {
    int good = 1;
    products *p;
    if (posix_memalign((void **)&p, LINE, sizeof *p))
        return CCMEM_ERR_NOMEM;
    for (int dtype = 0; dtype < DTYPES; dtype++) {
        good &= check_dots(ops, p, (ccmem_dtype)dtype);
        if (ops != &gemv_portable)
            good &= check_conversions(ops, p, (ccmem_dtype)dtype);
    }
    free(p);
    return good ? CCMEM_OK : CCMEM_ERR_SELFTEST;
}

ccmem_status selftest_fused(const gemv_ops *ops, const xts_ops *xts, const aegis_ops *aegis) {
    int good = 1;
    products *p;
    if (posix_memalign((void **)&p, LINE, sizeof *p))
        return CCMEM_ERR_NOMEM;
    for (int dtype = 0; dtype < DTYPES && ops->sum; dtype++) {
        if (aegis && aegis->fused)
            good &= check_fused(ops, aegis, p, (ccmem_dtype)dtype);
        if (xts && xts->fused)
            good &= check_fused_xts(ops, xts, p, (ccmem_dtype)dtype);
    }
    free(p);
    return good ? CCMEM_OK : CCMEM_ERR_SELFTEST;
}
