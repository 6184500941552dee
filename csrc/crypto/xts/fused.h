/* SPDX-License-Identifier: Apache-2.0
 *
 * Opens pages of AES-XTS and multiplies them in the registers they were opened in: included after
 * crypto/xts/template.h by a tier whose vectors are as wide as those of its products (sixteen
 * floats).
 *
 * A group of eight vectors is opened as in crypt_chunk(), the next chunk's tweaks made between its
 * rounds. What then waits for nothing but the last round are the multiply-adds, where there the
 * stores are; they run beside the first rounds of the group after. The tile that is left out took a
 * quarter of the time of a row: it is written, read again, and nothing is fetched meanwhile.
 */

#include "crypto/fused_template.h"

_Static_assert((int)GROUP_BYTES == (int)XTS_FUSED_STEP, "a group is a step");

FUSED_INLINE void fused_group(ccmem_dtype dtype, unsigned rounds, const aes_key *key,
                              fvec sum[FUSED_SUMS], const uint8_t *src, const float *x,
                              const VEC *tweak, gen *g, uint8_t *next, unsigned step) {
    REFETCH(key);
    VEC w[GROUP], first = vkey(key->rk[0]);
    for (int i = 0; i < GROUP_BYTES; i += CACHE_LINE) {
        __builtin_prefetch(src + PREFETCH_L2 + i, 0, 2);
        __builtin_prefetch(src + PREFETCH_L1 + i, 0, 3);
    }
#pragma GCC unroll 8
    for (int i = 0; i < GROUP; i++)
        w[i] = vxor3(vload((const VEC *)src + i), vload(tweak + i), first);
    group_rounds(0, rounds, key, w, tweak, g, next, step);
#pragma GCC unroll 8
    for (size_t i = 0; i < GROUP; i++)
        fused_vector(dtype, sum, w[i], x, i);
}

/* Puts the generator at chunk number `chunk` of the call. */
FUSED_INLINE void start_chunk(gen *g, const uint8_t (*t0)[16], size_t chunk,
                              size_t chunks_per_page) {
    xts_tweak t = xts_tweak_load(t0[chunk / chunks_per_page]);
    gen_start(g, chunk_start(t, chunk % chunks_per_page * GF_CHUNK));
}

FUSED_INLINE void open_fused(ccmem_dtype dtype, size_t element, unsigned rounds, const xts_key *key,
                             const uint8_t *src, size_t size, const uint8_t (*t0)[16],
                             const fused_rows *d, scratch *work) {
    uint8_t (*tweaks)[CHUNK_BYTES + CACHE_LINE] = work->tweaks;
    const size_t per_page = size / CHUNK_BYTES, row_bytes = d->in_features * element;
    const size_t last = (d->to - 1) / CHUNK_BYTES;
    size_t at = d->from, done = d->done * element;
    float *sums = d->sums;
    fvec sum[FUSED_SUMS];
    gen g;

    load_sums(sum, d->first);
    start_chunk(&g, t0, at / CHUNK_BYTES, per_page);
    for (unsigned i = 0; i < GEN_STEPS; i++)
        gen_step(&g, tweaks[at / CHUNK_BYTES & 1], i);
    for (size_t chunk = at / CHUNK_BYTES; chunk <= last; chunk++) {
        const size_t stop = chunk < last ? (chunk + 1) * CHUNK_BYTES : d->to;
        uint8_t *next = NULL;
        unsigned step = (unsigned)(at % CHUNK_BYTES / GROUP_BYTES) * 4;
        const VEC *tweak = (const VEC *)(tweaks[chunk & 1] + at % CHUNK_BYTES);
        if (chunk < last) {
            next = tweaks[~chunk & 1];
            start_chunk(&g, t0, chunk + 1, per_page);
            for (unsigned i = 0; i < step; i++) /* beside the groups before `from` */
                gen_step(&g, next, i);
        }
        for (; at < stop; at += GROUP_BYTES, step += 4, tweak += GROUP) {
            const float *x = d->x + done / element;
            if (next)
                fused_group(dtype, rounds, &key->dec, sum, src + at, x, tweak, &g, next, step);
            else
                fused_group(dtype, rounds, &key->dec, sum, src + at, x, tweak, &g, NULL, 0);
            done += GROUP_BYTES;
            if (done == row_bytes) {
                save_sums(sums, sum);
                sums += FUSED_BLOCK;
                done = 0;
                clear_sums(sum);
            }
        }
    }
    save_sums(d->rest, sum);
}

#define FUSED(name, dtype, element, rounds)                                                        \
    static FUSED_TARGET CLEAR_REGISTERS __attribute__((noinline)) void name(                       \
        const xts_key *key, const uint8_t *src, size_t size, const uint8_t (*t0)[16],              \
        const fused_rows *d, scratch *work) {                                                      \
        open_fused(dtype, element, rounds, key, src, size, t0, d, work);                           \
    }
#define FUSED_BOTH(name, dtype, element)                                                           \
    FUSED(name##_128, dtype, element, 10)                                                          \
    FUSED(name##_256, dtype, element, 14)                                                          \
    static void name(const xts_key *key, const uint8_t *src, size_t size, const uint8_t (*t0)[16], \
                     const fused_rows *d) {                                                        \
        scratch work;                                                                              \
        (key->enc.rounds == 10 ? name##_128 : name##_256)(key, src, size, t0, d, &work);           \
        leave(&work);                                                                              \
    }
FUSED_BOTH(fused_f32, CCMEM_F32, 4)
FUSED_BOTH(fused_f16, CCMEM_F16, 2)
FUSED_BOTH(fused_bf16, CCMEM_BF16, 2)
FUSED_BOTH(fused_i8, CCMEM_I8, 1)
#undef FUSED
#undef FUSED_BOTH

static const xts_fused_function XTS_FUSED[4] = {[CCMEM_F32] = fused_f32,
                                                [CCMEM_F16] = fused_f16,
                                                [CCMEM_BF16] = fused_bf16,
                                                [CCMEM_I8] = fused_i8};
