/* SPDX-License-Identifier: Apache-2.0
 *
 * The SM4 kernels of every SIMD tier: blocks and XTS. A tier file defines TARGET and SM4_SETS,
 * includes the vector words of its width (simd/target.h), then crypto/sm4/round_aes.h or
 * round_gfni.h, then this file, with SM4_OPS the name of the table to define. */
#include <string.h>

#include "crypto/sm4/sets.h"
#include "crypto/sm4/tweak.h"
#include "memory/secret.h"

enum {
    GROUP_BLOCKS = SM4_SETS * SET_BLOCKS,
    GROUP_VECTORS = SM4_SETS * 4,
    VECTOR_BYTES = V_BLOCKS * SM4_BLOCK,
    PREFETCH = 4096
};

/* What a call works with; wiped. */
typedef struct scratch {
    _Alignas(64) uint8_t tweaks[GROUP_BLOCKS * SM4_BLOCK];
    uint8_t text[GROUP_BLOCKS * SM4_BLOCK];
} scratch;

/* Sets from `in` to `out`; with tweaks, xored with them before and after. */
INLINE void crypt_vectors(int sets, const rounds *r, uint8_t *out, const uint8_t *in,
                          const uint8_t *tweaks) {
    VEC x[SM4_SETS][4];
#pragma GCC unroll 16
    for (int i = 0; i < 4 * sets; i++) {
        x[i / 4][i % 4] = vload((const VEC *)(in + i * VECTOR_BYTES));
        if (tweaks)
            x[i / 4][i % 4] =
                vxor(x[i / 4][i % 4], vload((const VEC *)(tweaks + i * VECTOR_BYTES)));
    }
    crypt_sets(sets, r, x);
#pragma GCC unroll 16
    for (int i = 0; i < 4 * sets; i++) {
        if (tweaks)
            x[i / 4][i % 4] =
                vxor(x[i / 4][i % 4], vload((const VEC *)(tweaks + i * VECTOR_BYTES)));
        vstore((VEC *)(out + i * VECTOR_BYTES), x[i / 4][i % 4]);
    }
}

#define KERNEL static TARGET CLEAR_REGISTERS __attribute__((noinline)) void

KERNEL crypt_group(const rounds *r, uint8_t *out, const uint8_t *in) {
    crypt_vectors(SM4_SETS, r, out, in, NULL);
}

KERNEL crypt_set(const rounds *r, uint8_t *out, const uint8_t *in) {
    crypt_vectors(1, r, out, in, NULL);
}

KERNEL crypt_group_tweaked(const rounds *r, uint8_t *out, const uint8_t *in,
                           const uint8_t *tweaks) {
    crypt_vectors(SM4_SETS, r, out, in, tweaks);
}

KERNEL crypt_set_tweaked(const rounds *r, uint8_t *out, const uint8_t *in, const uint8_t *tweaks) {
    crypt_vectors(1, r, out, in, tweaks);
}

/* Overwrites what the compiler may have put into the frames of kernels: up to twice the words of
 * the sets. */
static __attribute__((noinline)) void burn_frames(void) {
    uint8_t frames[4 * GROUP_VECTORS * VECTOR_BYTES / 2 + 512];
    ccmem_wipe(frames, sizeof frames);
}

/* ---- blocks by themselves -------------------------------------------------------------------- */

static __attribute__((noinline)) void crypt_rest(const rounds *r, uint8_t *out, const uint8_t *in,
                                                 size_t nblocks) {
    uint8_t text[SET_BLOCKS * SM4_BLOCK] = {0};
    copy_secret(text, in, nblocks * SM4_BLOCK);
    crypt_set(r, text, text);
    copy_secret(out, text, nblocks * SM4_BLOCK);
    ccmem_wipe(text, sizeof text);
}

static void crypt_many(const rounds *r, uint8_t *out, const uint8_t *in, size_t nblocks) {
    for (; nblocks >= GROUP_BLOCKS; nblocks -= GROUP_BLOCKS) {
        crypt_group(r, out, in);
        in += GROUP_BLOCKS * SM4_BLOCK;
        out += GROUP_BLOCKS * SM4_BLOCK;
    }
    for (; nblocks >= SET_BLOCKS; nblocks -= SET_BLOCKS) {
        crypt_set(r, out, in);
        in += SET_BLOCKS * SM4_BLOCK;
        out += SET_BLOCKS * SM4_BLOCK;
    }
    if (nblocks)
        crypt_rest(r, out, in, nblocks);
}

static void blocks(const sm4_key *key, int decrypt, uint8_t *out, const uint8_t *in,
                   size_t nblocks) {
    const rounds r = rounds_of(key, decrypt);
    crypt_many(&r, out, in, nblocks);
    burn_frames();
}

/* ---- XTS ------------------------------------------------------------------------------------- */

static const sm4_xts_key *both(const xts_key *key) {
    return (const sm4_xts_key *)(const void *)key;
}

INLINE v128 tweak_vector(gb_tweak t) {
    return v128_words((int64_t)__builtin_bswap64(t.lo), (int64_t)__builtin_bswap64(t.hi));
}

/* The tweaks of n blocks from t on, one by one. */
INLINE gb_tweak make_tweaks(uint8_t *out, gb_tweak t, size_t n) {
    for (size_t i = 0; i < n; i++) {
        v128_store(out + i * SM4_BLOCK, tweak_vector(t));
        t = gb_double(t);
    }
    return t;
}

/* t times x^(8 n) in each block, n from 1 to 4: n bytes are shifted out at the end; as a number,
 * times the remainder 0xe1, they come back at the beginning. Shifted by one bit, the product ends
 * with a byte. */
#define R(n, i) ((i) < (n) ? 15 - (i) : -128)
#define B(n, i) ((i) <= (n) ? (n) - (i) : -128)
#define EACH_BYTE(f, n)                                                                            \
    {f(n, 0), f(n, 1), f(n, 2),  f(n, 3),  f(n, 4),  f(n, 5),  f(n, 6),  f(n, 7),                  \
     f(n, 8), f(n, 9), f(n, 10), f(n, 11), f(n, 12), f(n, 13), f(n, 14), f(n, 15)}
static const _Alignas(16) int8_t gb_out[2][16] = {EACH_BYTE(R, 2), EACH_BYTE(R, 4)};
static const _Alignas(16) int8_t gb_back[2][16] = {EACH_BYTE(B, 2), EACH_BYTE(B, 4)};
#undef R
#undef B
#undef EACH_BYTE

#define gb_times(t, n)                                                                             \
    vxor(vshl_bytes(t, n),                                                                         \
         vshuffle(vclmul(vshuffle(t, vkey(gb_out[(n) / 4])), vlow64(0x1c2), 0x00),                 \
                  vkey(gb_back[(n) / 4])))

/* The tweaks of the first group of a page, whose first one is t0. */
INLINE void first_tweaks(uint8_t *out, const uint8_t t0[16]) {
    make_tweaks(out, gb_load(t0), 16);
    for (int i = 16 * SM4_BLOCK; i < GROUP_VECTORS * VECTOR_BYTES; i += VECTOR_BYTES)
        vstore((VEC *)(out + i), gb_times(vload((const VEC *)(out + i - 16 * SM4_BLOCK)), 2));
}

/* The same for the group after. */
INLINE void next_tweaks(uint8_t *tweaks) {
#pragma GCC unroll 16
    for (int i = 0; i < GROUP_VECTORS; i++) {
        VEC *at = (VEC *)(tweaks + i * VECTOR_BYTES);
        VEC t = vload(at);
        for (int n = 0; n < GROUP_BLOCKS; n += 32)
            t = GROUP_BLOCKS == 16 ? gb_times(t, 2) : gb_times(t, 4);
        vstore(at, t);
    }
}

KERNEL crypt_pages(const rounds *r, uint8_t *dst, const uint8_t *src, size_t npages,
                   size_t page_size, const uint8_t (*t0)[16], scratch *work) {
    for (; npages; npages--, t0++) {
        first_tweaks(work->tweaks, *t0);
        for (size_t i = 0; i < page_size; i += sizeof work->tweaks) {
            for (size_t line = 0; line < sizeof work->tweaks; line += 64)
                __builtin_prefetch(src + PREFETCH + line, 0, 3);
            crypt_vectors(SM4_SETS, r, dst, src, work->tweaks);
            next_tweaks(work->tweaks);
            src += sizeof work->tweaks;
            dst += sizeof work->tweaks;
        }
    }
}

static void leave_call(scratch *work) {
    ccmem_wipe(work, sizeof *work);
    burn_frames();
}

static void pages(const xts_key *key, int decrypt, uint8_t *dst, const uint8_t *src, size_t npages,
                  size_t page_size, const uint8_t (*t0)[16]) {
    const rounds r = rounds_of(&both(key)->data, decrypt);
    scratch work;
    crypt_pages(&r, dst, src, npages, page_size, t0, &work);
    leave_call(&work);
}

static void seal_pages(const xts_key *key, uint8_t *dst, const uint8_t *src, size_t npages,
                       size_t page_size, const uint8_t (*t0)[16], unsigned flags) {
    (void)flags;
    pages(key, 0, dst, src, npages, page_size, t0);
}

static void open_pages(const xts_key *key, uint8_t *dst, const uint8_t *src, size_t npages,
                       size_t page_size, const uint8_t (*t0)[16], unsigned flags) {
    (void)flags;
    pages(key, 1, dst, src, npages, page_size, t0);
}

/* Fewer blocks than a set go through scratch, with blocks of zeros behind them: memcheck holds a
 * vector for unknown in which one word is. */
static void crypt_part(const rounds *r, uint8_t *dst, const uint8_t *src, size_t nblocks,
                       scratch *work) {
    const size_t bytes = nblocks * SM4_BLOCK, rest = SET_BLOCKS * SM4_BLOCK - bytes;
    memset(work->text + bytes, 0, rest);
    memset(work->tweaks + bytes, 0, rest);
    copy_secret(work->text, src, bytes);
    crypt_set_tweaked(r, work->text, work->text, work->tweaks);
    copy_secret(dst, work->text, bytes);
}

/* In a frame of its own, which burn_frames() reaches. */
static TARGET __attribute__((noinline)) void crypt_run(const rounds *r, uint8_t *dst,
                                                       const uint8_t *src, size_t nblocks,
                                                       size_t first, const xts_tweak *t0,
                                                       scratch *work) {
    gb_tweak t = gb_jump(gb_load((const uint8_t *)t0), first);
    for (size_t n; nblocks; nblocks -= n) {
        n = nblocks >= GROUP_BLOCKS ? GROUP_BLOCKS : nblocks < SET_BLOCKS ? nblocks : SET_BLOCKS;
        t = make_tweaks(work->tweaks, t, n);
        if (n == GROUP_BLOCKS)
            crypt_group_tweaked(r, dst, src, work->tweaks);
        else if (n == SET_BLOCKS)
            crypt_set_tweaked(r, dst, src, work->tweaks);
        else
            crypt_part(r, dst, src, n, work);
        src += n * SM4_BLOCK;
        dst += n * SM4_BLOCK;
    }
}

static void run(const xts_key *key, int decrypt, uint8_t *dst, const uint8_t *src, size_t nblocks,
                size_t first, xts_tweak t0) {
    const rounds r = rounds_of(&both(key)->data, decrypt);
    scratch work;
    crypt_run(&r, dst, src, nblocks, first, &t0, &work);
    ccmem_wipe(&t0, sizeof t0);
    leave_call(&work);
}

static void seal_blocks(const xts_key *key, uint8_t *dst, const uint8_t *src, size_t nblocks,
                        size_t first, xts_tweak t0) {
    run(key, 0, dst, src, nblocks, first, t0);
}

static void open_blocks(const xts_key *key, uint8_t *dst, const uint8_t *src, size_t nblocks,
                        size_t first, xts_tweak t0) {
    run(key, 1, dst, src, nblocks, first, t0);
}

static void tweaks(const xts_key *key, uint8_t (*t0)[16], size_t n) {
    blocks(&both(key)->tweak, 0, *t0, *t0, n);
}

const sm4_ops SM4_OPS = {.blocks = blocks,
                         .xts = {.tweaks = tweaks,
                                 .seal_pages = seal_pages,
                                 .open_pages = open_pages,
                                 .seal_blocks = seal_blocks,
                                 .open_blocks = open_blocks}};
