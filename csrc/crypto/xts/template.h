/* SPDX-License-Identifier: Apache-2.0
 *
 * The AES-XTS kernels of every SIMD tier. A tier file defines TARGET, includes the vector words of
 * its width (simd/target.h), defines what follows, then includes this file once.
 *
 *   gen, gen_start, gen_step  the tweak generator, see below; or
 *   XTS_PAGES                 the header of the tier's own crypt_pages()
 *   vnext(t)                  t times x^V_BLOCKS in every block, where a vector has less than 64
 * bytes XTS_OPS                   the name of the table to define XTS_FUSED                   that
 * of crypto/xts/fused.h, where a tier has it
 *
 * How the work is laid out, in a tier without XTS_PAGES. A page is cut into chunks of 256 blocks
 * (4 KiB). Two buffers in L1 hold the tweaks of one chunk each: while chunk c is encrypted with
 * the tweaks in one, the tweaks of chunk c+1 are made into the other, between the AES rounds, in
 * issue slots that the AES unit leaves free. This runs on across page boundaries, so only the
 * first chunk of a call waits for its tweaks: callers pass many pages at once. Eight vectors are
 * in flight: VAESENC has a latency of 3 to 4 cycles and a throughput of 2 a cycle on Zen 3 and
 * Golden Cove, so fewer than eight leave the unit idle. Round keys are broadcast from memory,
 * which costs load slots only.
 *
 * gen_start(g, t) puts the generator at a chunk whose first tweak is t. gen_step(g, out, i), for
 * i = 0 .. GEN_STEPS - 1, makes the next share of the chunk's tweaks; the shares may be scattered
 * over `out`, and all 256 are there after the last step.
 */

enum { GROUP = 8 /* vectors in flight */ };

/* Makes the compiler fetch round keys anew from their secret memory: hoisted out of a loop they
 * overflow the registers and would be spilled to the stack, where they would stay. */
#define REFETCH(key) __asm__ volatile("" : "+r"(key))

/* n vectors, round by round, so that each round key is used up before the next is fetched. */
INLINE void crypt_vectors(int encrypt, unsigned rounds, const aes_key *key, VEC *x, const VEC *t,
                          int n) {
    REFETCH(key);
    VEC k = vkey(key->rk[0]);
#pragma GCC unroll 4
    for (int i = 0; i < n; i++)
        x[i] = vxor3(x[i], t[i], k);
#pragma GCC unroll 13
    for (unsigned r = 1; r < rounds; r++) {
        k = vkey(key->rk[r]);
#pragma GCC unroll 4
        for (int i = 0; i < n; i++)
            x[i] = encrypt ? vaesenc(x[i], k) : vaesdec(x[i], k);
    }
    k = vkey(key->rk[rounds]);
#pragma GCC unroll 4
    for (int i = 0; i < n; i++)
        x[i] = encrypt ? vaesenclast(x[i], vxor(t[i], k)) : vaesdeclast(x[i], vxor(t[i], k));
}

#ifdef XTS_PAGES
#include XTS_PAGES
#else
enum {
    CHUNK_BLOCKS = 256,
    CHUNK_BYTES = CHUNK_BLOCKS * AES_BLOCK,
    GROUP_BYTES = GROUP * V_BLOCKS * AES_BLOCK,
    GROUPS = CHUNK_BYTES / GROUP_BYTES,
    GEN_STEPS = 4 * GROUPS, /* four between the rounds of each group */
    CACHE_LINE = 64,
    /* Prefetched twice: into L2 two pages ahead, beyond the 4 KiB boundary where the hardware
     * prefetchers stop, and into L1 shortly before the load. From DRAM to DRAM this gave 0.96 of
     * memcpy where one prefetch into L1 a page ahead gave 0.85 (Sapphire Rapids): the latency of
     * DRAM is waited out in L2's queue, not in the few line-fill buffers of L1, which the
     * non-temporal stores need as well. */
    PREFETCH_L2 = 8192,
    PREFETCH_L1 = 1024
};

typedef struct scratch {
    _Alignas(64) uint8_t tweaks[2][CHUNK_BYTES + CACHE_LINE];
} scratch;

INLINE void group_rounds(int encrypt, unsigned rounds, const aes_key *key, VEC x[GROUP],
                         const VEC *tweak, gen *g, uint8_t *next, unsigned step) {
#pragma GCC unroll 16
    for (unsigned r = 1; r < rounds; r++) {
        VEC k = vkey(key->rk[r]);
#pragma GCC unroll 8
        for (int i = 0; i < GROUP; i++)
            x[i] = encrypt ? vaesenc(x[i], k) : vaesdec(x[i], k);
        if (next && r % 2 == 0 && r <= 8)
            gen_step(g, next, step + r / 2 - 1);
    }
    VEC last = vkey(key->rk[rounds]);
#pragma GCC unroll 8
    for (int i = 0; i < GROUP; i++) {
        /* The output whitening rides in the last round key: one xor, off the AES chain. */
        VEC k = vxor(vload(tweak + i), last);
        x[i] = encrypt ? vaesenclast(x[i], k) : vaesdeclast(x[i], k);
    }
}

/* The first `groups` groups of a chunk. `next` NULL: no tweaks are made. */
INLINE void crypt_chunk(int encrypt, unsigned rounds, const aes_key *key, uint8_t *dst,
                        const uint8_t *src, unsigned groups, uint8_t *tweak, size_t shift, gen *g,
                        uint8_t *next, int stream) {
    for (unsigned n = 0; n < groups; n++) {
        REFETCH(key);
        VEC x[GROUP], first = vkey(key->rk[0]);
        const VEC *t = (const VEC *)(tweak + shift * AES_BLOCK + (size_t)n * GROUP_BYTES);
        if (next && n == GROUPS - 1) /* what the last vector needs of the chunk after this */
            for (int i = 0; i < V_BLOCKS - 1; i++)
                v128_store_aligned((v128 *)(tweak + CHUNK_BYTES) + i,
                                   v128_load_aligned((const v128 *)next + i));
        for (int i = 0; i < GROUP_BYTES; i += CACHE_LINE) {
            __builtin_prefetch(src + PREFETCH_L2 + i, 0, 2);
            __builtin_prefetch(src + PREFETCH_L1 + i, 0, 3);
        }
#pragma GCC unroll 8
        for (int i = 0; i < GROUP; i++)
            x[i] = vxor3(vload((const VEC *)src + i), vload(t + i), first);
        group_rounds(encrypt, rounds, key, x, t, g, next, n * 4);
#pragma GCC unroll 8
        for (int i = 0; i < GROUP; i++) {
            if (stream)
                vstream((VEC *)dst + i, x[i]);
            else
                vstore((VEC *)dst + i, x[i]);
        }
        src += GROUP_BYTES;
        dst += GROUP_BYTES;
    }
}

/* Up to a group's worth of blocks at the edges of a call, their tweaks at t. */
INLINE void crypt_edge(int encrypt, unsigned rounds, const aes_key *key, uint8_t *dst,
                       const uint8_t *src, size_t nblocks, const uint8_t *t) {
    while (nblocks) {
        size_t n = nblocks < V_BLOCKS ? nblocks : V_BLOCKS;
        VEC x = vload_part(src, n), tweak = vload((const VEC *)t);
        crypt_vectors(encrypt, rounds, key, &x, &tweak, 1);
        vstore_part(dst, x, n);
        nblocks -= n;
        src += n * AES_BLOCK;
        dst += n * AES_BLOCK;
        t += n * AES_BLOCK;
    }
}

/* Vectors are laid on the destination's grid, not the page's: arrays from numpy or malloc begin 16
 * bytes after a cache line, where every full-width store would touch two lines and a non-temporal
 * one is not allowed. So the first `shift` blocks of the call are taken alone, and from there on a
 * vector may reach into the next chunk, whose first tweaks are made first. */
INLINE void crypt_pages(int encrypt, unsigned rounds, const xts_key *key, uint8_t *dst,
                        const uint8_t *src, size_t npages, size_t page_size,
                        const uint8_t (*t0)[16], int stream, scratch *work) {
    uint8_t (*tweaks)[CHUNK_BYTES + CACHE_LINE] = work->tweaks;
    const aes_key *k = encrypt ? &key->enc : &key->dec;
    size_t chunks_per_page = page_size / CHUNK_BYTES, in_page = 0;
    size_t chunks = npages * chunks_per_page;
    size_t shift = (uintptr_t)dst % AES_BLOCK ? 0 : (0 - (uintptr_t)dst / AES_BLOCK) % V_BLOCKS;
    gen g;

    v128 t = v128_load(t0[0]);
    gen_start(&g, t);
    for (unsigned i = 0; i < GEN_STEPS; i++)
        gen_step(&g, tweaks[0], i);
    crypt_edge(encrypt, rounds, k, dst, src, shift, tweaks[0]);
    src += shift * AES_BLOCK;
    dst += shift * AES_BLOCK;
    for (size_t c = 0; c + 1 < chunks; c++) {
        if (++in_page < chunks_per_page) {
            t = gf_times(t, v128_load_aligned((const v128 *)gf_chunk_power[1]));
        } else {
            in_page = 0;
            t = v128_load(*++t0);
        }
        gen_start(&g, t);
        crypt_chunk(encrypt, rounds, k, dst, src, GROUPS, tweaks[c & 1], shift, &g,
                    tweaks[(c + 1) & 1], stream);
        src += CHUNK_BYTES;
        dst += CHUNK_BYTES;
    }
    uint8_t *last = tweaks[(chunks - 1) & 1];
    unsigned groups = shift ? GROUPS - 1 : GROUPS;
    crypt_chunk(encrypt, rounds, k, dst, src, groups, last, shift, &g, NULL, stream);
    if (shift) {
        size_t done = (size_t)groups * GROUP_BYTES;
        crypt_edge(encrypt, rounds, k, dst + done, src + done, (size_t)GROUP * V_BLOCKS - shift,
                   last + shift * AES_BLOCK + done);
    }
    if (stream)
        simd_fence();
}

#endif

/* One specialised copy for each key size, direction and kind of store. */
#define PAGES_FUNCTION(name, encrypt, rounds, stream)                                              \
    static TARGET CLEAR_REGISTERS __attribute__((noinline)) void name(                             \
        const xts_key *key, uint8_t *dst, const uint8_t *src, size_t npages, size_t page_size,     \
        const uint8_t (*t0)[16], scratch *work) {                                                  \
        crypt_pages(encrypt, rounds, key, dst, src, npages, page_size, t0, stream, work);          \
    }
PAGES_FUNCTION(seal_pages_128, 1, 10, 0)
PAGES_FUNCTION(seal_pages_256, 1, 14, 0)
PAGES_FUNCTION(open_pages_128, 0, 10, 0)
PAGES_FUNCTION(open_pages_256, 0, 14, 0)
PAGES_FUNCTION(seal_stream_128, 1, 10, 1)
PAGES_FUNCTION(seal_stream_256, 1, 14, 1)
PAGES_FUNCTION(open_stream_128, 0, 10, 1)
PAGES_FUNCTION(open_stream_256, 0, 14, 1)
#undef PAGES_FUNCTION

static __attribute__((noinline)) void burn_frame(void) {
    uint8_t frame[512];
    ccmem_wipe(frame, sizeof frame);
}

/* Wipes what a kernel worked with, and what the compiler may have put into the kernel's frame: of a
 * generator in integer registers, tweaks. */
static void leave(scratch *work) {
    ccmem_wipe(work, sizeof *work);
    burn_frame();
}

static int may_stream(const uint8_t *dst, unsigned flags) {
    return (flags & XTS_STREAM) && (uintptr_t)dst % AES_BLOCK == 0;
}

static void seal_pages(const xts_key *key, uint8_t *dst, const uint8_t *src, size_t npages,
                       size_t page_size, const uint8_t (*t0)[16], unsigned flags) {
    int stream = may_stream(dst, flags);
    scratch work;
    if (!npages)
        return;
    if (key->enc.rounds == 10)
        (stream ? seal_stream_128 : seal_pages_128)(key, dst, src, npages, page_size, t0, &work);
    else
        (stream ? seal_stream_256 : seal_pages_256)(key, dst, src, npages, page_size, t0, &work);
    leave(&work);
}

static void open_pages(const xts_key *key, uint8_t *dst, const uint8_t *src, size_t npages,
                       size_t page_size, const uint8_t (*t0)[16], unsigned flags) {
    int stream = may_stream(dst, flags);
    scratch work;
    if (!npages)
        return;
    if (key->enc.rounds == 10)
        (stream ? open_stream_128 : open_pages_128)(key, dst, src, npages, page_size, t0, &work);
    else
        (stream ? open_stream_256 : open_pages_256)(key, dst, src, npages, page_size, t0, &work);
    leave(&work);
}

/* ---- a run of blocks inside a data unit ------------------------------------------------------ */

/* t0 moved to the 4 KiB chunk of block `first`: no multiplication in the first chunk, one in the
 * rest of the largest page, a few more in the larger data units of the low-level functions.
 * Branches and addresses depend on the offset, which is no secret. */
INLINE v128 chunk_start(xts_tweak t0, size_t first) {
    v128 t = (v128)t0;
    size_t chunk = first / GF_CHUNK;
    if (__builtin_expect(chunk != 0, 0)) {
        t = gf_times(t, v128_load_aligned((const v128 *)gf_chunk_power[chunk % GF_CHUNKS]));
        for (size_t far = chunk / GF_CHUNKS, i = 0; far; far >>= 1, i++)
            if (far & 1)
                t = gf_times(t, v128_load_aligned((const v128 *)gf_far_power[i]));
    }
    return t;
}

/* t in every lane times x^first, x^(first+1), ...: the jump inside a chunk. The table also has the
 * power times x^64, for the upper half of t: of the sum of the four products only 63 bits lie
 * beyond x^128, and one fold brings them back. This stands before the first AES round of every
 * random read. */
INLINE VEC jump(VEC t, size_t first) {
    VEC m = vload((const VEC *)gf_power[first]), m64 = vload((const VEC *)gf_power[first + 64]);
    VEC upper = vxor(vclmul(t, m, 0x10), vclmul(t, m64, 0x11));
    VEC lower = vxor(vclmul(t, m, 0x00), vclmul(t, m64, 0x01));
    return vxor3(lower, vshl_bytes(upper, 8), vclmul(upper, vremainder(), 0x01));
}

#ifndef vnext
#define vnext(t) (t) /* one vector is a unit */
#endif

/* Vectors for 64 bytes, the unit of random access: enough to keep the AES unit busy for its
 * latency on the narrow tiers, and one vector on the widest. */
enum { UNIT = 4 / V_BLOCKS };

INLINE void crypt_blocks(int encrypt, unsigned rounds, const aes_key *key, uint8_t *dst,
                         const uint8_t *src, size_t nblocks, size_t first, xts_tweak t0) {
    VEC t = vlift((v128)t0);
    size_t at = first % GF_CHUNK;
    if (__builtin_expect(first >= GF_CHUNK, 0))
        t = vlift(chunk_start(t0, first));
    while (nblocks) {
        size_t n = 4;
        if (__builtin_expect(at >= GF_CHUNK, 0)) {
            at -= GF_CHUNK;
            t = vlift(chunk_start(t0, first));
        }
        if (__builtin_expect(nblocks >= 4, 1)) {
            VEC x[UNIT], tweak[UNIT];
#pragma GCC unroll 4
            for (size_t i = 0; i < UNIT; i++) {
                x[i] = vload((const VEC *)src + i);
                tweak[i] = i ? vnext(tweak[i - 1]) : jump(t, at);
            }
            crypt_vectors(encrypt, rounds, key, x, tweak, UNIT);
#pragma GCC unroll 4
            for (size_t i = 0; i < UNIT; i++)
                vstore((VEC *)dst + i, x[i]);
        } else {
            n = nblocks < V_BLOCKS ? nblocks : V_BLOCKS;
            VEC x = vload_part(src, n), tweak = jump(t, at);
            crypt_vectors(encrypt, rounds, key, &x, &tweak, 1);
            vstore_part(dst, x, n);
        }
        nblocks -= n;
        first += n;
        at += n;
        src += n * AES_BLOCK;
        dst += n * AES_BLOCK;
    }
}

#if V_BLOCKS > 1
/* t times x^(4 * V_BLOCKS) in every block. */
#define vstep(t)                                                                                   \
    vxor(vshl_bytes(t, V_BLOCKS / 2), vclmul(vshr_bytes(t, 16 - V_BLOCKS / 2), vremainder(), 0x00))

/* Rows of a table, parts of pages: only the first tweaks are worth a jump, each of the following is
 * a step from the one four vectors before. A function of its own, since clearing the registers
 * it takes would cost a read of 64 bytes a tenth of its time. */
enum { STRIDE = 4 * V_BLOCKS, LONG = 2 * STRIDE };

INLINE void crypt_long(int encrypt, unsigned rounds, const aes_key *key, uint8_t *dst,
                       const uint8_t *src, size_t nblocks, size_t first, xts_tweak t0) {
    /* The table of jumps ends with the chunk: up to there in units of 64 bytes. */
    size_t left = GF_CHUNK - first % GF_CHUNK, head = left < STRIDE ? left : 0;
    VEC t, tweak[4];
    if (__builtin_expect(head != 0, 0)) {
        crypt_blocks(encrypt, rounds, key, dst, src, head, first, t0);
        nblocks -= head;
        first += head;
        src += head * AES_BLOCK;
        dst += head * AES_BLOCK;
    }
    t = vlift(chunk_start(t0, first));
#pragma GCC unroll 4
    for (size_t i = 0; i < 4; i++)
        tweak[i] = jump(t, first % GF_CHUNK + i * V_BLOCKS);
    for (; nblocks >= STRIDE; nblocks -= STRIDE, first += STRIDE) {
        VEC x[4], now[4];
#pragma GCC unroll 4
        for (size_t i = 0; i < 4; i++) {
            x[i] = vload((const VEC *)src + i);
            now[i] = tweak[i];
            tweak[i] = vstep(tweak[i]);
        }
        crypt_vectors(encrypt, rounds, key, x, now, 4);
#pragma GCC unroll 4
        for (size_t i = 0; i < 4; i++)
            vstore((VEC *)dst + i, x[i]);
        src += STRIDE * AES_BLOCK;
        dst += STRIDE * AES_BLOCK;
    }
    if (nblocks)
        crypt_blocks(encrypt, rounds, key, dst, src, nblocks, first, t0);
}

#define LONG_FUNCTION(name, encrypt, schedule)                                                     \
    static TARGET CLEAR_REGISTERS __attribute__((noinline)) void name##_long(                      \
        const xts_key *key, uint8_t *dst, const uint8_t *src, size_t nblocks, size_t first,        \
        xts_tweak t0) {                                                                            \
        if (key->enc.rounds == 10)                                                                 \
            crypt_long(encrypt, 10, &key->schedule, dst, src, nblocks, first, t0);                 \
        else                                                                                       \
            crypt_long(encrypt, 14, &key->schedule, dst, src, nblocks, first, t0);                 \
    }
#define IF_LONG(name)                                                                              \
    if (__builtin_expect(nblocks >= LONG, 0)) {                                                    \
        name##_long(key, dst, src, nblocks, first, t0);                                            \
        return;                                                                                    \
    }
LONG_FUNCTION(seal_blocks, 1, enc)
LONG_FUNCTION(open_blocks, 0, dec)
#undef LONG_FUNCTION
#else
#define IF_LONG(name)
#endif

#define BLOCKS_FUNCTION(name, encrypt, schedule)                                                   \
    static TARGET CLEAR_REGISTERS void name(const xts_key *key, uint8_t *dst, const uint8_t *src,  \
                                            size_t nblocks, size_t first, xts_tweak t0) {          \
        IF_LONG(name)                                                                              \
        if (__builtin_expect(key->enc.rounds == 10, 1))                                            \
            crypt_blocks(encrypt, 10, &key->schedule, dst, src, nblocks, first, t0);               \
        else                                                                                       \
            crypt_blocks(encrypt, 14, &key->schedule, dst, src, nblocks, first, t0);               \
    }
BLOCKS_FUNCTION(seal_blocks, 1, enc)
BLOCKS_FUNCTION(open_blocks, 0, dec)
#undef IF_LONG
#undef BLOCKS_FUNCTION

/* ---- E_K2 ------------------------------------------------------------------------------------ */

/* Many at a time in full vectors; what is left, one by one: the tweak of a random read is one. */
INLINE void encrypt_tweaks(unsigned rounds, const aes_key *key, uint8_t (*t0)[16], size_t n) {
    for (; n >= V_BLOCKS * GROUP; n -= V_BLOCKS * GROUP, t0 += V_BLOCKS * GROUP) {
        REFETCH(key);
        VEC x[GROUP], k = vkey(key->rk[0]);
#pragma GCC unroll 8
        for (int i = 0; i < GROUP; i++)
            x[i] = vxor(vload((const VEC *)t0 + i), k);
#pragma GCC unroll 16
        for (unsigned r = 1; r < rounds; r++) {
            k = vkey(key->rk[r]);
#pragma GCC unroll 8
            for (int i = 0; i < GROUP; i++)
                x[i] = vaesenc(x[i], k);
        }
        k = vkey(key->rk[rounds]);
#pragma GCC unroll 8
        for (int i = 0; i < GROUP; i++)
            vstore((VEC *)t0 + i, vaesenclast(x[i], k));
    }
    for (; n; n--, t0++) {
        REFETCH(key);
        const v128 *rk = (const v128 *)key->rk;
        v128 x = v128_xor(v128_load(t0), v128_load_aligned(rk));
#pragma GCC unroll 16
        for (unsigned r = 1; r < rounds; r++)
            x = v128_aesenc(x, v128_load_aligned(rk + r));
        v128_store((v128 *)t0, v128_aesenclast(x, v128_load_aligned(rk + rounds)));
    }
}

static TARGET CLEAR_REGISTERS void tweaks(const xts_key *key, uint8_t (*t0)[16], size_t n) {
    if (__builtin_expect(key->tweak.rounds == 10, 1))
        encrypt_tweaks(10, &key->tweak, t0, n);
    else
        encrypt_tweaks(14, &key->tweak, t0, n);
}

#ifndef XTS_FUSED
#define XTS_FUSED NULL
#endif
const xts_ops XTS_OPS = {tweaks, seal_pages, open_pages, seal_blocks, open_blocks, XTS_FUSED};
