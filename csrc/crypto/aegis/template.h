/* SPDX-License-Identifier: Apache-2.0
 *
 * The AEGIS-128L and AEGIS-128X2 kernels of every SIMD tier. A tier file defines TARGET, includes
 * the vector words of its width (simd/target.h), one block or, for both lanes of AEGIS-128X2 at
 * once, two, defines what follows, then includes this file once.
 *
 *   vcontext(lane, n)  the bytes (lane, n - 1, 0, ...), each block's own where a vector has two
 *   AEGIS_OPS          the name of the table to define
 *   AEGIS_SPILLS       of the table
 *   AEGIS_STEP         bytes that the tier's own loops take at a time, where it has such
 *   AEGIS_FUSED          the name of the table of crypto/aegis/fused.h, where a tier has it
 *
 * How the time goes. An update is eight AES rounds that each need only the state before, so its
 * latency is one round and what stands between two. The message enters after the round instead of
 * before it, AESRound(S7, S0 ^ M) = AESRound(S7, M) ^ S0, and the keystream is summed while the
 * round runs: an update then takes little more than the four cycles that Zen 3 needs for eight
 * rounds at two a cycle. Pages need no interleaving: the start of one page runs beside the end of
 * the page before, as far as the processor looks ahead.
 *
 * A lane of AEGIS-128X2 sees the other only in the tag. Where a vector holds one block, a page is
 * gone over once for each lane, and the state never leaves eight registers.
 */

enum {
    CACHE_LINE = 64,
    /* Across the 4 KiB boundary where the hardware prefetchers stop, and near enough for L1. From
     * DRAM to DRAM, 3 and 4 KiB opened at 1.2 of memcpy, 2 KiB at 1.06, none at 0.91 (Zen 3). */
    PREFETCH_L1 = 3072,
    /* The latency of DRAM is waited out in L2, which can wait for more lines than L1. From DRAM
     * into a tile in L2, 64 bytes took 8 cycles with it and 14.5 without (Zen 4). */
    PREFETCH_L2 = 12288
};

/* RFC 10032, 3.1 (the Fibonacci numbers modulo 256). */
static const uint8_t aegis_c[2][16] = {{0x00, 0x01, 0x01, 0x02, 0x03, 0x05, 0x08, 0x0d, 0x15, 0x22,
                                        0x37, 0x59, 0x90, 0xe9, 0x79, 0x62},
                                       {0xdb, 0x3d, 0x18, 0x55, 0x6d, 0xc2, 0x2f, 0xf1, 0x20, 0x11,
                                        0x31, 0x42, 0x73, 0xb5, 0x28, 0xdd}};

/* Where a vector's two halves of a block lie: for lane `lane` of `lanes`. */
typedef struct shape {
    size_t block, first, second;
} shape;

INLINE shape shape_of(unsigned lanes, unsigned lane) {
    return (shape){32 * lanes, 16 * lane, 16 * (lanes + lane)};
}

/* How far ahead of what is read: 0 where there is nothing behind it. */
typedef struct ahead {
    size_t l1, l2;
} ahead;

static const ahead usual_ahead = {PREFETCH_L1, PREFETCH_L2};

/* For one of several pages, `after` bytes of which follow it. With AEGIS_LAST nothing follows
 * these: a prefetch of a page of memory that is not there has the processor look for it each time,
 * which took 22 us of the 25 us for a page of 4 KiB (Zen, under a hypervisor). */
INLINE ahead look_ahead(unsigned flags, size_t after) {
    ahead a = usual_ahead;
    if (flags & AEGIS_LAST) {
        a.l1 = after < PREFETCH_L1 ? 0 : PREFETCH_L1;
        a.l2 = after < PREFETCH_L2 ? 0 : PREFETCH_L2;
    }
    return a;
}

INLINE void prefetch(const uint8_t *p, ahead a) {
    __builtin_prefetch((const void *)((uintptr_t)p + a.l2), 0, 2);
    __builtin_prefetch((const void *)((uintptr_t)p + a.l1), 0, 3);
}

INLINE void update(VEC s[8], VEC m0, VEC m1) {
    VEC last = s[7];
    s[7] = vaesenc(s[6], s[7]);
    s[6] = vaesenc(s[5], s[6]);
    s[5] = vaesenc(s[4], s[5]);
    s[4] = vxor(vaesenc(s[3], m1), s[4]);
    s[3] = vaesenc(s[2], s[3]);
    s[2] = vaesenc(s[1], s[2]);
    s[1] = vaesenc(s[0], s[1]);
    s[0] = vxor(vaesenc(last, m0), s[0]);
}

INLINE void start(VEC s[8], v128 key, v128 nonce, VEC context) {
    VEC k = vlift(key), n = vlift(nonce);
    VEC c0 = vlift(v128_load(aegis_c[0])), c1 = vlift(v128_load(aegis_c[1]));
    s[0] = s[4] = vxor(k, n);
    s[1] = s[3] = c1;
    s[2] = c0;
    s[5] = s[7] = vxor(k, c0);
    s[6] = vxor(k, c1);
    /* S3 and S7 are kept with the context of the next round in them: it enters as the round key. */
    s[3] = vxor(s[3], context);
    s[7] = vxor(s[7], context);
#pragma GCC unroll 10
    for (int i = 0; i < 10; i++) {
        VEC t[8] = {s[0], s[1], s[2], s[3], s[4], s[5], s[6], s[7]};
        s[0] = vxor(vaesenc(t[7], n), t[0]);
        s[1] = vaesenc(t[0], t[1]);
        s[2] = vaesenc(t[1], t[2]);
        s[3] = vxor(vaesenc(t[2], context), t[3]);
        s[4] = vxor(vaesenc(t[3], k), t[4]);
        s[5] = vaesenc(t[4], t[5]);
        s[6] = vaesenc(t[5], t[6]);
        s[7] = vxor(vaesenc(t[6], context), t[7]);
    }
    s[3] = vxor(s[3], context);
    s[7] = vxor(s[7], context);
}

INLINE void finish(VEC s[8], uint64_t ad_len, uint64_t msg_len) {
    VEC t = vxor(s[2], vlift(v128_words((long long)(msg_len * 8), (long long)(ad_len * 8))));
#pragma GCC unroll 7
    for (int i = 0; i < 7; i++)
        update(s, t, t);
}

INLINE v128 short_tag(const VEC s[8]) {
    return vfold(vxor(vxor3(vxor3(s[0], s[1], s[2]), s[3], s[4]), vxor(s[5], s[6])));
}

INLINE void absorb_block(VEC s[8], const uint8_t *in, shape at) {
    update(s, vload(in + at.first), vload(in + at.second));
}

/* How a result is stored. Arrays from numpy or malloc begin 16 bytes after a cache line. */
typedef enum storing { CACHED, AROUND, AROUND_HALVES } storing;

INLINE void put(uint8_t *out, VEC v, storing how) {
    if (how == AROUND)
        vstream(out, v);
    else if (how == AROUND_HALVES)
        vstream_blocks(out, v);
    else
        vstore(out, v);
}

INLINE void seal_block(VEC s[8], uint8_t *out, const uint8_t *in, shape at, storing how) {
    VEC p0 = vload(in + at.first), p1 = vload(in + at.second);
    /* Each is used twice and must be loaded once: a caller's thread may change it meanwhile, and a
     * page whose ciphertext and tag are of different bytes could never be opened again. */
    __asm__("" : "+" SIMD_REGISTER(p0), "+" SIMD_REGISTER(p1));
    VEC c0 = vxor(vxor(p0, s[6]), vandxor(s[1], s[2], s[3]));
    VEC c1 = vxor(vxor(p1, s[5]), vandxor(s[2], s[6], s[7]));
    update(s, p0, p1);
    put(out + at.first, c0, how);
    put(out + at.second, c1, how);
}

/* The two halves of a block opened: the plaintext takes their place. */
INLINE void open_halves(VEC s[8], VEC *half0, VEC *half1) {
    VEC p0 = vxor(vxor(*half0, s[6]), vandxor(s[1], s[2], s[3]));
    VEC p1 = vxor(vxor(*half1, s[5]), vandxor(s[2], s[6], s[7]));
    VEC last = s[7];
    s[7] = vaesenc(s[6], s[7]);
    s[6] = vaesenc(s[5], s[6]);
    s[5] = vaesenc(s[4], s[5]);
    s[4] = vxor(vaesenc(s[3], s[4]), p1);
    s[3] = vaesenc(s[2], s[3]);
    s[2] = vaesenc(s[1], s[2]);
    s[1] = vaesenc(s[0], s[1]);
    s[0] = vxor(vaesenc(last, s[0]), p0);
    *half0 = p0;
    *half1 = p1;
}

/* `out` NULL: the plaintext is not stored. */
INLINE void open_block(VEC s[8], uint8_t *out, const uint8_t *in, shape at, storing how) {
    VEC p0 = vload(in + at.first), p1 = vload(in + at.second);
    open_halves(s, &p0, &p1);
    if (out) {
        put(out + at.first, p0, how);
        put(out + at.second, p1, how);
    }
}

/* ---- runs of blocks -------------------------------------------------------------------------- */

#ifdef AEGIS_STEP
#include "crypto/aegis/run_vaes256.h"
#else
#define AEGIS_STEP 0 /* n & ~(0 - 1) is 0 */
#define seal_steps(s, dst, src, n, a) (void)0
#define seal_steps_around seal_steps
#define open_steps seal_steps
#define open_steps_around seal_steps
#define open_steps_around_halves seal_steps
#define open_steps_nowhere seal_steps
#endif

/* n bytes, a multiple of the block. */
INLINE void seal_run(VEC s[8], uint8_t *dst, const uint8_t *src, size_t n, shape at, storing how,
                     ahead a) {
    size_t whole = n & ~(size_t)(AEGIS_STEP - 1);
    if (whole) {
        if (how == AROUND)
            seal_steps_around(s, dst, src, whole, a);
        else
            seal_steps(s, dst, src, whole, a);
    }
    for (size_t i = whole; i < n; i += at.block) {
        prefetch(src + i, a);
        seal_block(s, dst + i, src + i, at, how);
    }
}

INLINE void open_run(VEC s[8], uint8_t *dst, const uint8_t *src, size_t n, shape at, storing how,
                     ahead a) {
    size_t whole = n & ~(size_t)(AEGIS_STEP - 1);
    if (whole) {
        if (how == AROUND)
            open_steps_around(s, dst, src, whole, a);
        else if (how == AROUND_HALVES)
            open_steps_around_halves(s, dst, src, whole, a);
        else
            open_steps(s, dst, src, whole, a);
    }
    for (size_t i = whole; i < n; i += at.block) {
        prefetch(src + i, a);
        open_block(s, dst + i, src + i, at, how);
    }
}

/* Only for what it does to the state. */
INLINE void verify_run(VEC s[8], const uint8_t *src, size_t n, shape at, ahead a) {
    size_t whole = n & ~(size_t)(AEGIS_STEP - 1);
    if (whole)
        open_steps_nowhere(s, NULL, src, whole, a);
    for (size_t i = whole; i < n; i += at.block) {
        prefetch(src + i, a);
        open_block(s, NULL, src + i, at, CACHED);
    }
}

/* ---- pages ----------------------------------------------------------------------------------- */

/* The lanes take whole when a vector holds one of them. */
enum { PASSES = 2 / V_BLOCKS };

INLINE void seal_page(const uint8_t *key, uint8_t *dst, const uint8_t *src, size_t size,
                      const uint8_t nonce[16], uint8_t tag[16], storing how, ahead a) {
    v128 sum = v128_zero();
    for (unsigned lane = 0; lane < PASSES; lane++) {
        shape at = shape_of(2, lane);
        VEC s[8];
        start(s, v128_load(key), v128_load(nonce), vcontext(lane, 2));
        seal_run(s, dst, src, size, at, how, a);
        finish(s, 0, size);
        sum = v128_xor(sum, short_tag(s));
    }
    v128_store((v128 *)tag, sum);
}

/* 1 when the two are equal. Only the answer is looked at, not where they differ. */
INLINE int same_tag(v128 a, const uint8_t b[16]) {
    int same = v128_same(a, v128_load(b));
    DECLASSIFY(same); /* the caller is told */
    return same;
}

INLINE int open_page(const uint8_t *key, uint8_t *dst, const uint8_t *src, size_t size,
                     const uint8_t nonce[16], const uint8_t tag[16], storing how, ahead a) {
    v128 sum = v128_zero();
    for (unsigned lane = 0; lane < PASSES; lane++) {
        shape at = shape_of(2, lane);
        VEC s[8];
        start(s, v128_load(key), v128_load(nonce), vcontext(lane, 2));
        open_run(s, dst, src, size, at, how, a);
        finish(s, 0, size);
        sum = v128_xor(sum, short_tag(s));
    }
    return same_tag(sum, tag);
}

INLINE void seal_all(const uint8_t *key, uint8_t *dst, const uint8_t *src, size_t npages,
                     size_t size, const uint8_t (*nonce)[16], uint8_t (*tag)[16], storing how,
                     unsigned flags) {
    for (size_t i = 0; i < npages; i++)
        seal_page(key, dst + i * size, src + i * size, size, nonce[i], tag[i], how,
                  look_ahead(flags, (npages - 1 - i) * size));
    if (how != CACHED)
        simd_fence();
}

INLINE uint64_t open_all(const uint8_t *key, uint8_t *dst, const uint8_t *src, size_t npages,
                         size_t size, const uint8_t (*nonce)[16], const uint8_t (*tag)[16],
                         storing how, unsigned flags) {
    uint64_t bad = 0;
    for (size_t i = 0; i < npages; i++) {
        if (__builtin_expect(!open_page(key, dst + i * size, src + i * size, size, nonce[i], tag[i],
                                        how, look_ahead(flags, (npages - 1 - i) * size)),
                             0)) {
            ccmem_wipe(dst + i * size, size);
            bad |= (uint64_t)1 << i;
        }
    }
    if (how != CACHED)
        simd_fence();
    return bad;
}

#define KERNEL static TARGET CLEAR_REGISTERS __attribute__((noinline))

#define SEAL(name, how)                                                                            \
    KERNEL void name(const uint8_t *key, uint8_t *dst, const uint8_t *src, size_t npages,          \
                     size_t size, const uint8_t (*nonce)[16], uint8_t (*tag)[16],                  \
                     unsigned flags) {                                                             \
        seal_all(key, dst, src, npages, size, nonce, tag, how, flags);                             \
    }
#define OPEN(name, how)                                                                            \
    KERNEL uint64_t name(const uint8_t *key, uint8_t *dst, const uint8_t *src, size_t npages,      \
                         size_t size, const uint8_t (*nonce)[16], const uint8_t (*tag)[16],        \
                         unsigned flags) {                                                         \
        return open_all(key, dst, src, npages, size, nonce, tag, how, flags);                      \
    }
SEAL(seal_cached, CACHED)
OPEN(open_cached, CACHED)
#if V_BLOCKS == 2
SEAL(seal_around, AROUND)
OPEN(open_around, AROUND)
OPEN(open_around_halves, AROUND_HALVES)
#endif
#undef SEAL
#undef OPEN

/* Lanes that take whole leave lines half written, which is no way around the caches. */
static void seal_pages(const uint8_t key[16], uint8_t *dst, const uint8_t *src, size_t npages,
                       size_t size, const uint8_t (*nonce)[16], uint8_t (*tag)[16],
                       unsigned flags) {
#if V_BLOCKS == 2
    if (flags & AEGIS_STREAM && (uintptr_t)dst % sizeof(VEC) == 0) {
        seal_around(key, dst, src, npages, size, nonce, tag, flags);
        return;
    }
#endif
    seal_cached(key, dst, src, npages, size, nonce, tag, flags);
}

static uint64_t open_pages(const uint8_t key[16], uint8_t *dst, const uint8_t *src, size_t npages,
                           size_t size, const uint8_t (*nonce)[16], const uint8_t (*tag)[16],
                           unsigned flags) {
#if V_BLOCKS == 2
    if (flags & AEGIS_STREAM && (uintptr_t)dst % sizeof(VEC) == 0)
        return open_around(key, dst, src, npages, size, nonce, tag, flags);
    if (flags & AEGIS_STREAM && (uintptr_t)dst % 16 == 0)
        return open_around_halves(key, dst, src, npages, size, nonce, tag, flags);
#endif
    return open_cached(key, dst, src, npages, size, nonce, tag, flags);
}

KERNEL int open_next(const uint8_t key[16], uint8_t *dst, const uint8_t *src, size_t size,
                     const uint8_t nonce[16], const uint8_t tag[16], const uint8_t *near,
                     const uint8_t *far) {
    /* The difference of two places in memory, which need not be of one object. */
    const ahead a = {(uintptr_t)near - (uintptr_t)src, (uintptr_t)far - (uintptr_t)src};
    const int good = open_page(key, dst, src, size, nonce, tag, CACHED, a);
    if (__builtin_expect(!good, 0))
        ccmem_wipe(dst, size);
    return good;
}

/* The page without its plaintext but for the part asked for, which falls into whole blocks that go
 * straight to their place and at most two edges. */
KERNEL int open_part(const uint8_t key[16], uint8_t *dst, const uint8_t *src, size_t size,
                     const uint8_t nonce[16], const uint8_t tag[16], size_t offset, size_t n,
                     unsigned flags) {
    const ahead a = look_ahead(flags, 0);
    _Alignas(32) uint8_t edge[2][64];
    const size_t block = sizeof edge[0], skip = offset % block;
    const size_t head = skip ? (n < block - skip ? n : block - skip) : 0;
    const size_t tail = (n - head) % block, whole = n - head - tail;
    v128 sum = v128_zero();
    int good;

    for (unsigned lane = 0; lane < PASSES; lane++) {
        shape at = shape_of(2, lane);
        size_t i = offset - skip;
        VEC s[8];
        start(s, v128_load(key), v128_load(nonce), vcontext(lane, 2));
        verify_run(s, src, i, at, a);
        if (head) {
            open_block(s, edge[0], src + i, at, CACHED);
            i += block;
        }
        open_run(s, dst + head, src + i, whole, at, CACHED, a);
        i += whole;
        if (tail) {
            open_block(s, edge[1], src + i, at, CACHED);
            i += block;
        }
        verify_run(s, src + i, size - i, at, a);
        finish(s, 0, size);
        sum = v128_xor(sum, short_tag(s));
    }
    good = same_tag(sum, tag);
    if (__builtin_expect(good, 1)) {
        copy_secret(dst, edge[0] + skip, head);
        copy_secret(dst + head + whole, edge[1], tail);
    } else {
        ccmem_wipe(dst, n);
    }
    if (head)
        ccmem_wipe(edge[0], sizeof edge[0]);
    if (tail)
        ccmem_wipe(edge[1], sizeof edge[1]);
    return good;
}

/* ---- messages -------------------------------------------------------------------------------- */

/* One lane or, in a wide vector, both. */
INLINE void load_state(VEC s[8], const aegis_state *state, unsigned lane) {
#pragma GCC unroll 8
    for (int i = 0; i < 8; i++)
        s[i] = vload(state->s[i][lane]);
}

INLINE void save_state(aegis_state *state, unsigned lane, const VEC s[8]) {
#pragma GCC unroll 8
    for (int i = 0; i < 8; i++)
        vstore(state->s[i][lane], s[i]);
}

KERNEL void message_start(aegis_state *state, unsigned lanes, const uint8_t key[16],
                          const uint8_t nonce[16]) {
    for (unsigned lane = 0; lane < lanes; lane += V_BLOCKS) {
        VEC s[8];
        start(s, v128_load(key), v128_load(nonce), vcontext(lane, lanes));
        save_state(state, lane, s);
    }
}

KERNEL void message_absorb(aegis_state *state, unsigned lanes, const uint8_t *ad, size_t nblocks) {
    for (unsigned lane = 0; lane < lanes; lane += V_BLOCKS) {
        shape at = shape_of(lanes, lane);
        VEC s[8];
        load_state(s, state, lane);
        for (size_t i = 0; i < nblocks; i++)
            absorb_block(s, ad + i * at.block, at);
        save_state(state, lane, s);
    }
}

KERNEL void message_seal(aegis_state *state, unsigned lanes, uint8_t *dst, const uint8_t *src,
                         size_t nblocks) {
    for (unsigned lane = 0; lane < lanes; lane += V_BLOCKS) {
        shape at = shape_of(lanes, lane);
        VEC s[8];
        load_state(s, state, lane);
        for (size_t i = 0; i < nblocks; i++)
            seal_block(s, dst + i * at.block, src + i * at.block, at, CACHED);
        save_state(state, lane, s);
    }
}

KERNEL void message_open(aegis_state *state, unsigned lanes, uint8_t *dst, const uint8_t *src,
                         size_t nblocks) {
    for (unsigned lane = 0; lane < lanes; lane += V_BLOCKS) {
        shape at = shape_of(lanes, lane);
        VEC s[8];
        load_state(s, state, lane);
        for (size_t i = 0; i < nblocks; i++)
            open_block(s, dst + i * at.block, src + i * at.block, at, CACHED);
        save_state(state, lane, s);
    }
}

KERNEL void message_finish(aegis_state *state, unsigned lanes, uint64_t ad_len, uint64_t msg_len,
                           uint8_t *tag, size_t tag_len) {
    v128 sum[2] = {v128_zero(), v128_zero()};
    for (unsigned lane = 0; lane < lanes; lane += V_BLOCKS) {
        VEC s[8];
        load_state(s, state, lane);
        finish(s, ad_len, msg_len);
        if (tag_len == 16) {
            sum[0] = v128_xor(sum[0], short_tag(s));
        } else {
            sum[0] = v128_xor(sum[0], vfold(vxor(vxor3(s[0], s[1], s[2]), s[3])));
            sum[1] = v128_xor(sum[1], vfold(vxor(vxor3(s[4], s[5], s[6]), s[7])));
        }
    }
    for (size_t i = 0; i < tag_len / 16; i++)
        v128_store((v128 *)tag + i, sum[i]);
}

#ifndef AEGIS_FUSED
#define AEGIS_FUSED NULL
#endif
#if V_BLOCKS == 2
/* One lane is a matter of 128-bit registers, whatever the tier. */
#define BY_LANES(ret, name, params, args)                                                          \
    static ret one_##name params {                                                                 \
        if (lanes == 1)                                                                            \
            aegis_aesni.name args;                                                                 \
        else                                                                                       \
            message_##name args;                                                                   \
    }
BY_LANES(void, start,
         (aegis_state * state, unsigned lanes, const uint8_t key[16], const uint8_t nonce[16]),
         (state, lanes, key, nonce))
BY_LANES(void, absorb, (aegis_state * state, unsigned lanes, const uint8_t *ad, size_t nblocks),
         (state, lanes, ad, nblocks))
BY_LANES(void, seal,
         (aegis_state * state, unsigned lanes, uint8_t *dst, const uint8_t *src, size_t nblocks),
         (state, lanes, dst, src, nblocks))
BY_LANES(void, open,
         (aegis_state * state, unsigned lanes, uint8_t *dst, const uint8_t *src, size_t nblocks),
         (state, lanes, dst, src, nblocks))
BY_LANES(void, finish,
         (aegis_state * state, unsigned lanes, uint64_t ad_len, uint64_t msg_len, uint8_t *tag,
          size_t tag_len),
         (state, lanes, ad_len, msg_len, tag, tag_len))
#undef BY_LANES
const aegis_ops AEGIS_OPS = {seal_pages, open_pages,  open_part, open_next,
                             one_start,  one_absorb,  one_seal,  one_open,
                             one_finish, AEGIS_FUSED, 32,        AEGIS_SPILLS};
#else
const aegis_ops AEGIS_OPS = {seal_pages,     open_pages,     open_part,    open_next,
                             message_start,  message_absorb, message_seal, message_open,
                             message_finish, AEGIS_FUSED,    32,           AEGIS_SPILLS};
#endif
#undef KERNEL
