/* SPDX-License-Identifier: Apache-2.0
 *
 * The AEGIS-256 and AEGIS-256X2 kernels of every SIMD tier. A tier file defines TARGET, includes
 * the vector words of its width (simd/target.h), one block or, for both lanes of AEGIS-256X2 at
 * once, two, defines what follows, then includes this file once.
 *
 *   vcontext(lane, n)  the bytes (lane, n - 1, 0, ...), each block's own where a vector has two
 *   AEGIS_OPS          the name of the table to define
 *   AEGIS_SPILLS       of the table
 *   AEGIS_BOTH         defined where a tier has loops of its own for two pages (run_vaes256.h)
 *
 * How the time goes. An update is six AES rounds for 16 bytes a lane, of which each waits for those
 * before it: as long as one round takes, twice as many could run. Where a vector has both lanes,
 * two pages go through side by side, in twelve registers. A lane sees the other only in the tag, so
 * where a vector has one block, the two lanes are what goes side by side.
 */
#include "crypto/aegis256/aegis256.h"

enum {
    CACHE_LINE = 64,
    BLOCK = 32, /* of both lanes */
    STEP = 64,
    /* As in crypto/aegis/template.h. */
    PREFETCH_L1 = 3072,
    PREFETCH_L2 = 12288
};

/* RFC 10032, 3.1 (the Fibonacci numbers modulo 256). */
static const uint8_t aegis_c[2][16] = {{0x00, 0x01, 0x01, 0x02, 0x03, 0x05, 0x08, 0x0d, 0x15, 0x22,
                                        0x37, 0x59, 0x90, 0xe9, 0x79, 0x62},
                                       {0xdb, 0x3d, 0x18, 0x55, 0x6d, 0xc2, 0x2f, 0xf1, 0x20, 0x11,
                                        0x31, 0x42, 0x73, 0xb5, 0x28, 0xdd}};

/* How far ahead of what is read: 0 where there is nothing behind it. */
typedef struct ahead {
    size_t l1, l2;
} ahead;

INLINE ahead look_ahead(unsigned flags, size_t after) {
    ahead a = {PREFETCH_L1, PREFETCH_L2};
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

/* ---- one state ------------------------------------------------------------------------------- */

typedef struct state {
    VEC s[6];
} state;

/* The message enters after the round instead of before it. */
INLINE void update(state *t, VEC m) {
    VEC last = t->s[5];
    t->s[5] = vaesenc(t->s[4], t->s[5]);
    t->s[4] = vaesenc(t->s[3], t->s[4]);
    t->s[3] = vaesenc(t->s[2], t->s[3]);
    t->s[2] = vaesenc(t->s[1], t->s[2]);
    t->s[1] = vaesenc(t->s[0], t->s[1]);
    t->s[0] = vxor(vaesenc(last, t->s[0]), m);
}

INLINE VEC keystream(const state *t) {
    return vxor(vxor(t->s[4], t->s[5]), vandxor(t->s[1], t->s[2], t->s[3]));
}

/* One state or two side by side, with nonces and contexts of their own. Key and nonce are in two
 * halves each. */
INLINE void start(state *t, int n, const uint8_t *key, const v128 n0[2], v128 n1,
                  const VEC context[2]) {
    const v128 c0 = v128_load(aegis_c[0]), c1 = v128_load(aegis_c[1]);
    const v128 k0 = v128_load(key), k1 = v128_load(key + 16);
    const VEC m[4] = {vlift(k0), vlift(k1), vlift(k0), vlift(v128_xor(k1, n1))};
    const VEC of[2] = {vlift(n0[0]), vlift(n0[1])};
#pragma GCC unroll 2
    for (int i = 0; i < n; i++)
        t[i] = (state){{vxor(m[0], of[i]), m[3], vlift(c1), vlift(c0), vlift(v128_xor(k0, c0)),
                        vlift(v128_xor(k1, c1))}};
#pragma GCC unroll 4
    for (int round = 0; round < 4; round++)
#pragma GCC unroll 4
        for (int j = 0; j < 4; j++)
#pragma GCC unroll 2
            for (int i = 0; i < n; i++) {
                t[i].s[3] = vxor(t[i].s[3], context[i]);
                t[i].s[5] = vxor(t[i].s[5], context[i]);
                update(&t[i], j == 2 ? vxor(m[2], of[i]) : m[j]);
            }
}

INLINE void finish(state *t, int n, uint64_t ad_len, uint64_t msg_len) {
    const VEC lengths = vlift(v128_words((long long)(msg_len * 8), (long long)(ad_len * 8)));
    const VEC m[2] = {vxor(t[0].s[3], lengths), vxor(t[n - 1].s[3], lengths)};
#pragma GCC unroll 7
    for (int round = 0; round < 7; round++)
#pragma GCC unroll 2
        for (int i = 0; i < n; i++)
            update(&t[i], m[i]);
}

INLINE v128 tag_half(const state *t, int half) {
    const VEC *s = t->s + 3 * half;
    return vfold(vxor3(s[0], s[1], s[2]));
}

INLINE v128 short_tag(const state *t) { return v128_xor(tag_half(t, 0), tag_half(t, 1)); }

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

INLINE void seal_vector(state *t, uint8_t *out, const uint8_t *in, storing how) {
    VEC p = vload(in);
    /* It is used twice and must be loaded once: see crypto/aegis/template.h. */
    __asm__("" : "+" SIMD_REGISTER(p));
    const VEC c = vxor(keystream(t), p);
    update(t, p);
    put(out, c, how);
}

/* `out` NULL: the plaintext is not stored. */
INLINE void open_vector(state *t, uint8_t *out, const uint8_t *in, storing how) {
    const VEC p = vxor(keystream(t), vload(in));
    update(t, p);
    if (out)
        put(out, p, how);
}

/* ---- pages ----------------------------------------------------------------------------------- */

/* What goes side by side: both lanes of a page, or two pages. */
enum { LANES = 2, PASSES = LANES / V_BLOCKS, VECTOR = 16 * V_BLOCKS };

/* One page, of which a vector with one block has two states, or two pages. */
INLINE void start_pages(state *t, int npages, const uint8_t *key, const uint8_t (*nonce)[16]) {
    const v128 n0[2] = {v128_load(nonce[0]), v128_load(nonce[npages - 1])};
    const VEC context[2] = {vcontext(0u, LANES), vcontext((unsigned)PASSES - 1, LANES)};
    start(t, npages * PASSES, key, n0, v128_zero(), context);
}

/* n bytes of each, which lie `apart`, whole STEPs. `dst` NULL: only for what it does to the states.
 */
INLINE void run_pages(int seal, state *t, int npages, uint8_t *dst, const uint8_t *src,
                      size_t apart, size_t n, storing how, ahead a) {
    for (size_t at = 0; at < n; at += STEP) {
#pragma GCC unroll 2
        for (int i = 0; i < npages; i++)
            prefetch(src + (size_t)i * apart + at, a);
#pragma GCC unroll 4
        for (size_t j = 0; j < STEP; j += BLOCK)
#pragma GCC unroll 2
            for (int i = 0; i < npages; i++)
#pragma GCC unroll 2
                for (int lane = 0; lane < PASSES; lane++) {
                    const size_t to = (size_t)i * apart + at + j + (size_t)lane * VECTOR;
                    state *own = &t[i * PASSES + lane];
                    if (seal)
                        seal_vector(own, dst + to, src + to, how);
                    else
                        open_vector(own, dst ? dst + to : NULL, src + to, how);
                }
    }
}

#ifdef AEGIS_BOTH
#include "crypto/aegis256/run_vaes256.h"

/* The same of two pages. */
INLINE void run_both(int seal, state t[2], uint8_t *dst, const uint8_t *src, size_t size,
                     storing how, ahead a) {
    if (seal && how == CACHED)
        seal_both(t, dst, src, size, size, a);
    else if (seal && how == AROUND)
        seal_both_around(t, dst, src, size, size, a);
    else if (seal)
        seal_both_around_halves(t, dst, src, size, size, a);
    else if (how == CACHED)
        open_both(t, dst, src, size, size, a);
    else if (how == AROUND)
        open_both_around(t, dst, src, size, size, a);
    else
        open_both_around_halves(t, dst, src, size, size, a);
}
#else
#define run_both(seal, t, dst, src, size, how, a)                                                  \
    run_pages(seal, t, 2, dst, src, size, size, how, a)
#endif

INLINE void page_tags(state *t, int npages, size_t size, v128 *tag) {
    finish(t, npages * PASSES, 0, size);
#pragma GCC unroll 2
    for (int i = 0; i < npages; i++)
        tag[i] = PASSES == 1 ? short_tag(&t[i]) : v128_xor(short_tag(&t[0]), short_tag(&t[1]));
}

/* Seals or opens one page or two, and leaves their tags. */
INLINE void crypt_pages(int seal, int npages, const uint8_t *key, uint8_t *dst, const uint8_t *src,
                        size_t size, const uint8_t (*nonce)[16], v128 *tag, storing how, ahead a) {
    state t[LANES * 2 / V_BLOCKS];
    start_pages(t, npages, key, nonce);
    if (npages == 2)
        run_both(seal, t, dst, src, size, how, a);
    else
        run_pages(seal, t, 1, dst, src, 0, size, how, a);
    page_tags(t, npages, size, tag);
}

/* 1 when the two are equal. Only the answer is looked at, not where they differ. */
INLINE int same_tag(v128 a, const uint8_t b[16]) {
    int same = v128_same(a, v128_load(b));
    DECLASSIFY(same); /* the caller is told */
    return same;
}

INLINE void seal_all(const uint8_t *key, uint8_t *dst, const uint8_t *src, size_t npages,
                     size_t size, const uint8_t (*nonce)[16], uint8_t (*tag)[16], storing how,
                     unsigned flags) {
    v128 found[2];
    size_t i = 0;
    for (; V_BLOCKS == 2 && i + 2 <= npages; i += 2) {
        crypt_pages(1, 2, key, dst + i * size, src + i * size, size, nonce + i, found, how,
                    look_ahead(flags, (npages - 2 - i) * size));
        v128_store(tag[i], found[0]);
        v128_store(tag[i + 1], found[1]);
    }
    for (; i < npages; i++) {
        crypt_pages(1, 1, key, dst + i * size, src + i * size, size, nonce + i, found, how,
                    look_ahead(flags, (npages - 1 - i) * size));
        v128_store(tag[i], found[0]);
    }
    if (how != CACHED)
        simd_fence();
}

/* The bit of page i, and its wiping, unless it is good. */
INLINE uint64_t judge(v128 found, const uint8_t (*tag)[16], size_t i, uint8_t *dst, size_t size) {
    if (__builtin_expect(same_tag(found, tag[i]), 1))
        return 0;
    ccmem_wipe(dst + i * size, size);
    return (uint64_t)1 << i;
}

INLINE uint64_t open_all(const uint8_t *key, uint8_t *dst, const uint8_t *src, size_t npages,
                         size_t size, const uint8_t (*nonce)[16], const uint8_t (*tag)[16],
                         storing how, unsigned flags) {
    uint64_t bad = 0;
    v128 found[2];
    size_t i = 0;
    for (; V_BLOCKS == 2 && i + 2 <= npages; i += 2) {
        crypt_pages(0, 2, key, dst + i * size, src + i * size, size, nonce + i, found, how,
                    look_ahead(flags, (npages - 2 - i) * size));
        bad |= judge(found[0], tag, i, dst, size) | judge(found[1], tag, i + 1, dst, size);
    }
    for (; i < npages; i++) {
        crypt_pages(0, 1, key, dst + i * size, src + i * size, size, nonce + i, found, how,
                    look_ahead(flags, (npages - 1 - i) * size));
        bad |= judge(found[0], tag, i, dst, size);
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
SEAL(seal_around, AROUND)
OPEN(open_around, AROUND)
#if V_BLOCKS == 2
SEAL(seal_around_halves, AROUND_HALVES)
OPEN(open_around_halves, AROUND_HALVES)
#endif
#undef SEAL
#undef OPEN

static void seal_pages(const uint8_t *key, uint8_t *dst, const uint8_t *src, size_t npages,
                       size_t page_size, const uint8_t (*nonce)[16], uint8_t (*tag)[16],
                       unsigned flags) {
    if (flags & AEGIS_STREAM && (uintptr_t)dst % sizeof(VEC) == 0)
        seal_around(key, dst, src, npages, page_size, nonce, tag, flags);
#if V_BLOCKS == 2
    else if (flags & AEGIS_STREAM && (uintptr_t)dst % 16 == 0)
        seal_around_halves(key, dst, src, npages, page_size, nonce, tag, flags);
#endif
    else
        seal_cached(key, dst, src, npages, page_size, nonce, tag, flags);
}

static uint64_t open_pages(const uint8_t *key, uint8_t *dst, const uint8_t *src, size_t npages,
                           size_t page_size, const uint8_t (*nonce)[16], const uint8_t (*tag)[16],
                           unsigned flags) {
    if (flags & AEGIS_STREAM && (uintptr_t)dst % sizeof(VEC) == 0)
        return open_around(key, dst, src, npages, page_size, nonce, tag, flags);
#if V_BLOCKS == 2
    if (flags & AEGIS_STREAM && (uintptr_t)dst % 16 == 0)
        return open_around_halves(key, dst, src, npages, page_size, nonce, tag, flags);
#endif
    return open_cached(key, dst, src, npages, page_size, nonce, tag, flags);
}

KERNEL int open_next(const uint8_t *key, uint8_t *dst, const uint8_t *src, size_t size,
                     const uint8_t nonce[16], const uint8_t tag[16], const uint8_t *near,
                     const uint8_t *far) {
    /* The difference of two places in memory, which need not be of one object. */
    const ahead a = {(uintptr_t)near - (uintptr_t)src, (uintptr_t)far - (uintptr_t)src};
    v128 found;
    crypt_pages(0, 1, key, dst, src, size, (const uint8_t (*)[16])nonce, &found, CACHED, a);
    return !judge(found, (const uint8_t (*)[16])tag, 0, dst, size);
}

/* The page without its plaintext but for the part asked for, which falls into whole steps that go
 * straight to their place and at most two edges. */
KERNEL int open_part(const uint8_t *key, uint8_t *dst, const uint8_t *src, size_t size,
                     const uint8_t nonce[16], const uint8_t tag[16], size_t offset, size_t n,
                     unsigned flags) {
    const ahead a = look_ahead(flags, 0);
    _Alignas(32) uint8_t edge[2][STEP];
    const size_t step = STEP, skip = offset % step;
    const size_t head = skip ? (n < step - skip ? n : step - skip) : 0;
    const size_t tail = (n - head) % step, whole = n - head - tail;
    size_t i = offset - skip;
    state t[LANES / V_BLOCKS];
    v128 found;
    int good;

    start_pages(t, 1, key, (const uint8_t (*)[16])nonce);
    run_pages(0, t, 1, NULL, src, 0, i, CACHED, a);
    if (head) {
        run_pages(0, t, 1, edge[0], src + i, 0, step, CACHED, a);
        i += step;
    }
    if (whole)
        run_pages(0, t, 1, dst + head, src + i, 0, whole, CACHED, a);
    i += whole;
    if (tail) {
        run_pages(0, t, 1, edge[1], src + i, 0, step, CACHED, a);
        i += step;
    }
    run_pages(0, t, 1, NULL, src + i, 0, size - i, CACHED, a);
    page_tags(t, 1, size, &found);
    good = same_tag(found, tag);
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
INLINE void load_state(state *t, const aegis_state *from, unsigned lane) {
#pragma GCC unroll 6
    for (int i = 0; i < 6; i++)
        t->s[i] = vload(from->s[i][lane]);
}

INLINE void save_state(aegis_state *to, unsigned lane, const state *t) {
#pragma GCC unroll 6
    for (int i = 0; i < 6; i++)
        vstore(to->s[i][lane], t->s[i]);
}

KERNEL void message_start(aegis_state *of, unsigned lanes, const uint8_t *key,
                          const uint8_t *nonce) {
    for (unsigned lane = 0; lane < lanes; lane += V_BLOCKS) {
        state t;
        const v128 n0 = v128_load(nonce), n1 = v128_load(nonce + 16);
        const VEC context = vcontext(lane, lanes);
        start(&t, 1, key, (v128[2]){n0, n0}, n1, (VEC[2]){context, context});
        save_state(of, lane, &t);
    }
}

KERNEL void message_absorb(aegis_state *of, unsigned lanes, const uint8_t *ad, size_t nblocks) {
    for (unsigned lane = 0; lane < lanes; lane += V_BLOCKS) {
        state t;
        load_state(&t, of, lane);
        for (size_t i = 0; i < nblocks; i++)
            update(&t, vload(ad + 16 * (i * lanes + lane)));
        save_state(of, lane, &t);
    }
}

KERNEL void message_seal(aegis_state *of, unsigned lanes, uint8_t *dst, const uint8_t *src,
                         size_t nblocks) {
    for (unsigned lane = 0; lane < lanes; lane += V_BLOCKS) {
        state t;
        load_state(&t, of, lane);
        for (size_t i = 0, at = 16 * lane; i < nblocks; i++, at += (size_t)16 * lanes)
            seal_vector(&t, dst + at, src + at, CACHED);
        save_state(of, lane, &t);
    }
}

KERNEL void message_open(aegis_state *of, unsigned lanes, uint8_t *dst, const uint8_t *src,
                         size_t nblocks) {
    for (unsigned lane = 0; lane < lanes; lane += V_BLOCKS) {
        state t;
        load_state(&t, of, lane);
        for (size_t i = 0, at = 16 * lane; i < nblocks; i++, at += (size_t)16 * lanes)
            open_vector(&t, dst + at, src + at, CACHED);
        save_state(of, lane, &t);
    }
}

KERNEL void message_finish(aegis_state *of, unsigned lanes, uint64_t ad_len, uint64_t msg_len,
                           uint8_t *tag, size_t tag_len) {
    v128 sum[2] = {v128_zero(), v128_zero()};
    for (unsigned lane = 0; lane < lanes; lane += V_BLOCKS) {
        state t;
        load_state(&t, of, lane);
        finish(&t, 1, ad_len, msg_len);
        sum[0] = v128_xor(sum[0], tag_half(&t, 0));
        sum[1] = v128_xor(sum[1], tag_half(&t, 1));
    }
    if (tag_len == 16)
        sum[0] = v128_xor(sum[0], sum[1]);
    for (size_t i = 0; i < tag_len / 16; i++)
        v128_store((v128 *)tag + i, sum[i]);
}

#if V_BLOCKS == 2
/* One lane is a matter of 128-bit registers, whatever the tier. */
#define BY_LANES(name, params, args)                                                               \
    static void by_##name params {                                                                 \
        if (lanes == 1)                                                                            \
            aegis256_aesni.name args;                                                              \
        else                                                                                       \
            message_##name args;                                                                   \
    }
BY_LANES(start, (aegis_state * of, unsigned lanes, const uint8_t *key, const uint8_t *nonce),
         (of, lanes, key, nonce))
BY_LANES(absorb, (aegis_state * of, unsigned lanes, const uint8_t *ad, size_t nblocks),
         (of, lanes, ad, nblocks))
BY_LANES(seal, (aegis_state * of, unsigned lanes, uint8_t *dst, const uint8_t *src, size_t nblocks),
         (of, lanes, dst, src, nblocks))
BY_LANES(open, (aegis_state * of, unsigned lanes, uint8_t *dst, const uint8_t *src, size_t nblocks),
         (of, lanes, dst, src, nblocks))
BY_LANES(finish,
         (aegis_state * of, unsigned lanes, uint64_t ad_len, uint64_t msg_len, uint8_t *tag,
          size_t tag_len),
         (of, lanes, ad_len, msg_len, tag, tag_len))
#undef BY_LANES
#define MESSAGES(name) by_##name
#else
#define MESSAGES(name) message_##name
#endif
const aegis_ops AEGIS_OPS = {.seal_pages = seal_pages,
                             .open_pages = open_pages,
                             .open_part = open_part,
                             .open_next = open_next,
                             .start = MESSAGES(start),
                             .absorb = MESSAGES(absorb),
                             .seal = MESSAGES(seal),
                             .open = MESSAGES(open),
                             .finish = MESSAGES(finish),
                             .block = 16,
                             .spills = AEGIS_SPILLS};
#undef MESSAGES
#undef KERNEL
