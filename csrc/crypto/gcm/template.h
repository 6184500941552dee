/* SPDX-License-Identifier: Apache-2.0
 *
 * The GCM kernels of every SIMD tier, for any block cipher. A tier file defines TARGET, includes
 * the vector words of its width (simd/target.h) and its cipher, which gives what follows, then
 * includes this file once.
 *
 *   GCM_KEY      the type of its expanded key, with a member `ghash_key hash`
 *   GCM_GROUP    vectors in flight
 *   GCM_LEAST    vectors that take no more time than one; 1 unless it says otherwise
 *   gcm_encrypt(key, x, n, h)  encrypts n vectors at x in place, a constant: 1, GCM_LEAST or
 *                GCM_GROUP. Unless h is NULL, it calls gcm_vector(h, i) for i = 0 .. GCM_GROUP - 1,
 *                in their order, between its rounds; or gcm_step(h, i) for i = 0 .. GCM_STEPS - 1,
 *                where a group is one run
 *   GCM_GROUPS   a header with loops of the tier's own for groups, where it has such, and
 *                group_counts_fit(counters), where they may be used
 *   GCM_OPS      the name of the table to define
 *
 * How the work is laid out. Counter mode and GHASH are one loop: while a group of counters is
 * encrypted, the ciphertext of the group before is multiplied by powers of H, one remainder for as
 * many blocks as there are powers, a run. Ciphertext goes from one to the other by way of memory of
 * the kernel's own, when sealing as when opening. So both are the same loop, and each byte of the
 * source is loaded once: another process may change it at any moment, and what is handed out must
 * be what the tag was checked for.
 */
#include "crypto/gcm/gcm.h"

#ifndef GCM_LEAST
#define GCM_LEAST 1
#endif

enum {
    GROUP_BLOCKS = GCM_GROUP * V_BLOCKS,
    RUN_BLOCKS = (int)GROUP_BLOCKS < (int)GHASH_POWERS ? (int)GROUP_BLOCKS : (int)GHASH_POWERS,
    RUN_VECTORS = RUN_BLOCKS / V_BLOCKS,
    GROUP_BYTES = GROUP_BLOCKS * GCM_BLOCK,
    VECTOR = V_BLOCKS * GCM_BLOCK,
    CACHE_LINE = 64,
    /* As in crypto/aegis/template.h. */
    PREFETCH_L1 = 3072,
    PREFETCH_L2 = 12288
};
/* Groups are there up to four times, and what compilers keep of them. */
enum { GCM_SPILLS = GROUP_BYTES <= 256 ? 3072 : 8 * GROUP_BYTES };
_Static_assert(GROUP_BLOCKS % RUN_BLOCKS == 0, "a group is whole runs");

/* ---- GHASH ----------------------------------------------------------------------------------- */

/* A sum without its remainder, and where the group lies that is being hashed. */
struct hasher {
    VEC low, mid, high;
    v128 sum; /* of what came before: reversed, as everything here */
    const ghash_key *key;
    const uint8_t *group;
};

/* Four products: three, with sums of halves, take as long, as what is saved goes into their sums.
 */
INLINE void multiply(hasher *h, VEC data, VEC power, int first) {
    VEC low = vclmul(data, power, 0x00), high = vclmul(data, power, 0x11);
    VEC mid = vxor(vclmul(data, power, 0x01), vclmul(data, power, 0x10));
    h->low = first ? low : vxor(h->low, low);
    h->mid = first ? mid : vxor(h->mid, mid);
    h->high = first ? high : vxor(h->high, high);
}

/* The remainder. Twice the lower word moves up, as it is and times the polynomial. */
INLINE v128 reduce(v128 low, v128 mid, v128 high) {
    const v128 polynomial = v128_words(0, (long long)GHASH_REMAINDER);
    low = v128_xor(low, v128_shl_bytes(mid, 8));
    high = v128_xor(high, v128_shr_bytes(mid, 8));
    low = v128_xor(v128_swap64(low), v128_clmul(low, polynomial, 0x00));
    low = v128_xor(v128_swap64(low), v128_clmul(low, polynomial, 0x00));
    return v128_xor(low, high);
}

/* Vector number i of n blocks, the last of which may not fill its vector. */
INLINE void add_vector(hasher *h, const uint8_t *data, size_t i, size_t n, size_t blocks) {
    (void)blocks; /* vectors of one block have no parts */
    const uint8_t *power = h->key->power[GHASH_POWERS - n + i * V_BLOCKS];
    VEC d = vreverse(vload_part(data + i * VECTOR, blocks));
    if (!i)
        d = vxor(d, valone(h->sum));
    multiply(h, d, vload_part(power, blocks), !i);
}

INLINE void end_sum(hasher *h) { h->sum = reduce(vfold(h->low), vfold(h->mid), vfold(h->high)); }

/* One block, reversed. */
INLINE void hash_block(hasher *h, v128 block) {
    const v128 power = v128_load_aligned(h->key->power[GHASH_POWERS - 1]);
    const v128 d = v128_xor(h->sum, block);
    h->sum = reduce(v128_clmul(d, power, 0x00),
                    v128_xor(v128_clmul(d, power, 0x01), v128_clmul(d, power, 0x10)),
                    v128_clmul(d, power, 0x11));
}

/* The shares of a group's sum: its vectors, and what ends it, if it is one run. */
enum { GCM_STEPS = GCM_GROUP + 1 };

INLINE void gcm_step(hasher *h, int i) {
    if (i < GCM_GROUP)
        add_vector(h, h->group, (size_t)i, GROUP_BLOCKS, V_BLOCKS);
    else
        end_sum(h);
}

/* The shares of any group: a run ends with its last vector. */
INLINE void gcm_vector(hasher *h, int i) {
    const int at = i % RUN_VECTORS;
    add_vector(h, h->group + (i - at) * VECTOR, (size_t)at, RUN_BLOCKS, V_BLOCKS);
    if (at == RUN_VECTORS - 1)
        end_sum(h);
}

/* Any number of whole blocks that are nowhere else of use. */
INLINE void hash_run(hasher *h, const uint8_t *data, size_t nblocks) {
    for (; nblocks >= RUN_BLOCKS; nblocks -= RUN_BLOCKS, data += RUN_BLOCKS * GCM_BLOCK) {
        h->group = data;
#pragma GCC unroll 16
        for (int i = 0; i < RUN_VECTORS; i++)
            gcm_vector(h, i);
    }
    for (size_t i = 0, n = nblocks; i * V_BLOCKS < n; i++) {
        const size_t left = n - i * V_BLOCKS;
        add_vector(h, data, i, n, left < V_BLOCKS ? left : V_BLOCKS);
        if (left <= V_BLOCKS)
            end_sum(h);
    }
}

/* ---- both ------------------------------------------------------------------------------------ */

/* How a result is stored. Arrays from numpy or malloc begin 16 bytes after a cache line. */
typedef enum storing { CACHED, AROUND, AROUND_HALVES } storing;

/* How far ahead of what is read: 0 where there is nothing behind it. */
typedef struct ahead {
    size_t l1, l2;
} ahead;

INLINE ahead look_ahead(unsigned flags, size_t after) {
    ahead a = {PREFETCH_L1, PREFETCH_L2};
    if (flags & GCM_LAST) {
        a.l1 = after < PREFETCH_L1 ? 0 : PREFETCH_L1;
        a.l2 = after < PREFETCH_L2 ? 0 : PREFETCH_L2;
    }
    return a;
}

/* Counters of one vector, reversed: the number is the lowest word of a block. */
INLINE VEC counters(v128 nonce, size_t number) {
    static const uint32_t lanes[4][4] = {{0}, {1}, {2}, {3}};
    const VEC n = vlift(v128_low32((int)number));
    return vadd32(vlift(v128_reverse(nonce)), vadd32(n, vload(lanes)));
}

/* The counters of a vector `i` vectors further on. */
INLINE VEC counters_ahead(VEC at, int i) { return vadd32(at, vlift(v128_low32(i * V_BLOCKS))); }

/* Vector x of keystream: `src` becomes `dst`, and the ciphertext of both goes to `kept`. */
INLINE void apply(int seal, VEC x, uint8_t *dst, const uint8_t *src, uint8_t *kept, storing how) {
    VEC in = vload(src);
    __asm__("" : "+" SIMD_REGISTER(in)); /* loaded once */
    const VEC out = vxor(in, x);
    vstore(kept, seal ? out : in);
    if (how == AROUND)
        vstream(dst, out);
#if V_BLOCKS == 2
    else if (how == AROUND_HALVES)
        vstream_blocks(dst, out);
#endif
    else
        vstore(dst, out);
}

/* A group, while the one at `kept` is hashed, unless there is none yet. */
INLINE void crypt_group(int seal, const GCM_KEY *key, VEC *at, hasher *h, int hashing, uint8_t *dst,
                        const uint8_t *src, uint8_t *kept, storing how, ahead a) {
    VEC x[GCM_GROUP];
    h->group = kept;
#pragma GCC unroll 16
    for (int i = 0; i < GROUP_BYTES; i += CACHE_LINE) {
        __builtin_prefetch((const void *)((uintptr_t)src + a.l2 + (size_t)i), 0, 2);
        __builtin_prefetch((const void *)((uintptr_t)src + a.l1 + (size_t)i), 0, 3);
    }
#pragma GCC unroll 16
    for (int i = 0; i < GCM_GROUP; i++)
        x[i] = vreverse(counters_ahead(*at, i));
    *at = counters_ahead(*at, GCM_GROUP);
    gcm_encrypt(key, x, GCM_GROUP, hashing ? h : NULL);
#pragma GCC unroll 16
    for (int i = 0; i < GCM_GROUP; i++)
        apply(seal, x[i], dst + i * VECTOR, src + i * VECTOR, kept + i * VECTOR, how);
}

/* A group while another is hashed: by the tier's own loop, or the one above. */
#ifdef GCM_GROUPS
#include GCM_GROUPS
#define hashed_group(seal, key, at, h, dst, src, kept, how, a)                                     \
    do {                                                                                           \
        if ((how) == AROUND_HALVES || !group_counts_fit(*(at)))                                    \
            crypt_group(seal, key, at, h, 1, dst, src, kept, how, a);                              \
        else if ((how) == AROUND)                                                                  \
            (seal ? seal_group_around : open_group_around)(key, at, &(h)->sum, dst, src, kept, a); \
        else                                                                                       \
            (seal ? seal_group : open_group)(key, at, &(h)->sum, dst, src, kept, a);               \
    } while (0)
#else
#define hashed_group(seal, key, at, h, dst, src, kept, how, a)                                     \
    crypt_group(seal, key, at, h, 1, dst, src, kept, how, a)
#endif

/* n bytes, whole GCM_UNITs. */
INLINE void crypt_run(int seal, const GCM_KEY *key, VEC at, hasher *h, uint8_t *dst,
                      const uint8_t *src, size_t n, uint8_t *kept, storing how, ahead a) {
    size_t i = 0;
    if (n >= GROUP_BYTES) {
        crypt_group(seal, key, &at, h, 0, dst, src, kept, how, a);
        for (i = GROUP_BYTES; n - i >= GROUP_BYTES; i += GROUP_BYTES)
            hashed_group(seal, key, &at, h, dst + i, src + i, kept, how, a);
        hash_run(h, kept, GROUP_BLOCKS);
    }
    if (i < n) {
        const size_t left = n - i;
        for (size_t j = 0; j < left;) {
            VEC x[GCM_LEAST];
#pragma GCC unroll 4
            for (int k = 0; k < GCM_LEAST; k++)
                x[k] = vreverse(counters_ahead(at, k));
            at = counters_ahead(at, GCM_LEAST);
            gcm_encrypt(key, x, GCM_LEAST, NULL);
            for (int k = 0; k < GCM_LEAST && j < left; k++, j += VECTOR)
                apply(seal, x[k], dst + i + j, src + i + j, kept + j, how);
        }
        hash_run(h, kept, left / GCM_BLOCK);
    }
}

/* ---- pages ----------------------------------------------------------------------------------- */

/* What a page begins with: its associated data hashed; returns what the tag is masked with. */
INLINE v128 begin_page(const GCM_KEY *key, hasher *h, const gcm_place *place) {
    VEC mask = vreverse(counters(v128_load(place->nonce), 1));
    h->key = &key->hash;
    h->sum = v128_zero();
    hash_block(h, v128_reverse(v128_load(place->ad)));
    gcm_encrypt(key, &mask, 1, NULL);
    return vfirst(mask);
}

/* Where the text of a page goes on at a byte of it, a multiple of GCM_UNIT: the first block's
 * number is 2. */
INLINE VEC counters_at(const gcm_place *place, size_t offset) {
    return counters(v128_load(place->nonce), 2 + offset / GCM_BLOCK);
}

/* The tag. */
INLINE v128 end_page(hasher *h, size_t size, v128 mask) {
    hash_block(h, v128_words(8 * GCM_BLOCK, (long long)(8 * size)));
    return v128_xor(v128_reverse(h->sum), mask);
}

INLINE v128 crypt_page(int seal, const GCM_KEY *key, uint8_t *dst, const uint8_t *src, size_t size,
                       const gcm_place *place, storing how, ahead a) {
    _Alignas(64) uint8_t kept[GROUP_BYTES];
    hasher h;
    const v128 mask = begin_page(key, &h, place);
    crypt_run(seal, key, counters_at(place, 0), &h, dst, src, size, kept, how, a);
    return end_page(&h, size, mask);
}

/* 1 when the two are equal. Only the answer is looked at, not where they differ. */
INLINE int same_tag(v128 a, const uint8_t b[16]) {
    int same = v128_same(a, v128_load(b));
    DECLASSIFY(same); /* the caller is told */
    return same;
}

INLINE void seal_all(const GCM_KEY *key, uint8_t *dst, const uint8_t *src, size_t npages,
                     size_t size, const gcm_place *place, uint8_t (*tag)[16], storing how,
                     unsigned flags) {
    for (size_t i = 0; i < npages; i++)
        v128_store(tag[i], crypt_page(1, key, dst + i * size, src + i * size, size, place + i, how,
                                      look_ahead(flags, (npages - 1 - i) * size)));
    if (how != CACHED)
        simd_fence();
}

INLINE uint64_t open_all(const GCM_KEY *key, uint8_t *dst, const uint8_t *src, size_t npages,
                         size_t size, const gcm_place *place, const uint8_t (*tag)[16], storing how,
                         unsigned flags) {
    uint64_t bad = 0;
    for (size_t i = 0; i < npages; i++) {
        const v128 found = crypt_page(0, key, dst + i * size, src + i * size, size, place + i, how,
                                      look_ahead(flags, (npages - 1 - i) * size));
        if (__builtin_expect(!same_tag(found, tag[i]), 0)) {
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
    KERNEL void name(const void *key, uint8_t *dst, const uint8_t *src, size_t npages,             \
                     size_t size, const gcm_place *place, uint8_t (*tag)[16], unsigned flags) {    \
        seal_all(key, dst, src, npages, size, place, tag, how, flags);                             \
    }
#define OPEN(name, how)                                                                            \
    KERNEL uint64_t name(const void *key, uint8_t *dst, const uint8_t *src, size_t npages,         \
                         size_t size, const gcm_place *place, const uint8_t (*tag)[16],            \
                         unsigned flags) {                                                         \
        return open_all(key, dst, src, npages, size, place, tag, how, flags);                      \
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

static void seal_pages(const void *key, uint8_t *dst, const uint8_t *src, size_t npages,
                       size_t page_size, const gcm_place *place, uint8_t (*tag)[16],
                       unsigned flags) {
    if (flags & GCM_STREAM && (uintptr_t)dst % sizeof(VEC) == 0)
        seal_around(key, dst, src, npages, page_size, place, tag, flags);
#if V_BLOCKS == 2
    else if (flags & GCM_STREAM && (uintptr_t)dst % 16 == 0)
        seal_around_halves(key, dst, src, npages, page_size, place, tag, flags);
#endif
    else
        seal_cached(key, dst, src, npages, page_size, place, tag, flags);
}

static uint64_t open_pages(const void *key, uint8_t *dst, const uint8_t *src, size_t npages,
                           size_t page_size, const gcm_place *place, const uint8_t (*tag)[16],
                           unsigned flags) {
    if (flags & GCM_STREAM && (uintptr_t)dst % sizeof(VEC) == 0)
        return open_around(key, dst, src, npages, page_size, place, tag, flags);
#if V_BLOCKS == 2
    if (flags & GCM_STREAM && (uintptr_t)dst % 16 == 0)
        return open_around_halves(key, dst, src, npages, page_size, place, tag, flags);
#endif
    return open_cached(key, dst, src, npages, page_size, place, tag, flags);
}

/* What is not asked for is hashed and not decrypted. The part falls into whole units that go
 * straight to their place and at most two edges. */
KERNEL int open_part(const void *of, uint8_t *dst, const uint8_t *src, size_t size,
                     const gcm_place *place, const uint8_t tag[16], size_t offset, size_t n,
                     unsigned flags) {
    const GCM_KEY *key = of;
    const ahead a = look_ahead(flags, 0);
    _Alignas(64) uint8_t kept[GROUP_BYTES], edge[2][GCM_UNIT];
    const size_t unit = GCM_UNIT, skip = offset % unit;
    const size_t head = skip ? (n < unit - skip ? n : unit - skip) : 0;
    const size_t tail = (n - head) % unit, whole = n - head - tail;
    size_t i = offset - skip;
    hasher h;
    const v128 mask = begin_page(key, &h, place);
    int good;

    hash_run(&h, src, i / GCM_BLOCK);
    if (head) {
        crypt_run(0, key, counters_at(place, i), &h, edge[0], src + i, unit, kept, CACHED, a);
        i += unit;
    }
    crypt_run(0, key, counters_at(place, i), &h, dst + head, src + i, whole, kept, CACHED, a);
    i += whole;
    if (tail) {
        crypt_run(0, key, counters_at(place, i), &h, edge[1], src + i, unit, kept, CACHED, a);
        i += unit;
    }
    hash_run(&h, src + i, (size - i) / GCM_BLOCK);
    good = same_tag(end_page(&h, size, mask), tag);
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

KERNEL void message_crypt(const void *key, uint8_t *dst, const uint8_t *src, size_t nblocks,
                          uint8_t counter[GCM_BLOCK]) {
    VEC at = vadd32(vlift(v128_reverse(v128_load(counter))), counters(v128_zero(), 0));
    while (nblocks) {
        const size_t n = nblocks < V_BLOCKS ? nblocks : V_BLOCKS;
        VEC x = vreverse(at);
        gcm_encrypt(key, &x, 1, NULL);
        vstore_part(dst, vxor(vload_part(src, n), x), n);
        at = vadd32(at, vlift(v128_low32((int)n)));
        nblocks -= n;
        dst += n * GCM_BLOCK;
        src += n * GCM_BLOCK;
    }
    v128_store(counter, v128_reverse(vfirst(at)));
}

KERNEL void message_hash(const void *of, uint8_t sum[GCM_BLOCK], const uint8_t *data,
                         size_t nblocks) {
    const GCM_KEY *key = of;
    hasher h;
    h.key = &key->hash;
    h.sum = v128_reverse(v128_load(sum));
    hash_run(&h, data, nblocks);
    v128_store(sum, v128_reverse(h.sum));
}

const gcm_ops GCM_OPS = {.seal_pages = seal_pages,
                         .open_pages = open_pages,
                         .open_part = open_part,
                         .crypt = message_crypt,
                         .hash = message_hash,
                         .spills = GCM_SPILLS};
#undef KERNEL
