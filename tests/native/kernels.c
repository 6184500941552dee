/* SPDX-License-Identifier: Apache-2.0
 *
 * Breaks the library's kernels, one function of one table at a time, and looks whether the
 * self-test notices, and notices before a result of theirs is handed out. Prints what it tried, a
 * line each; status 0 when all was noticed, 1 when not. test_selftest.py builds it with csrc/ and
 * runs it. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "platform/cpu.h"
#include "tiers/tiers.h"

enum { SLOTS = 2048, TEXT = 64 };

typedef void (*any_function)(void);

/* A place in a table, the tier whose self-test covers it, and what is put there instead. */
typedef struct slot {
    char name[64];
    any_function *place, broken;
    ccmem_tier tier;
} slot;

static slot slots[SLOTS];
static size_t count;

/* ---- broken functions ---------------------------------------------------------------------------
 */

static any_function real; /* what stands in for it was put in the place of */

static long does_nothing(void) { return 0; }

static float is_zero(void) { return 0.0f; }

/* Right, but for the last block. */
static void blocks_but_one(float *sums, const blocks_w *w, const blocks_x *x) {
    blocks_w fewer = *w;
    fewer.n--;
    ((blocks_dot)real)(sums, &fewer, x);
}

/* Right but for one bit, at the end. */
static void xts_pages(const xts_key *key, uint8_t *dst, const uint8_t *src, size_t npages,
                      size_t page_size, const uint8_t (*t0)[16], unsigned flags) {
    ((void (*)(const xts_key *, uint8_t *, const uint8_t *, size_t, size_t, const uint8_t (*)[16],
               unsigned))real)(key, dst, src, npages, page_size, t0, flags);
    dst[npages * page_size - 1] ^= 0x40;
}

static void xts_blocks(const xts_key *key, uint8_t *dst, const uint8_t *src, size_t nblocks,
                       size_t first, xts_tweak t0) {
    ((void (*)(const xts_key *, uint8_t *, const uint8_t *, size_t, size_t,
               xts_tweak))real)(key, dst, src, nblocks, first, t0);
    if (nblocks > 12)
        dst[nblocks * 16 - 1] ^= 0x40;
}

static void aegis_sealed(const uint8_t key[16], uint8_t *dst, const uint8_t *src, size_t npages,
                         size_t page_size, const uint8_t (*nonce)[16], uint8_t (*tag)[16],
                         unsigned flags) {
    aegis_portable.seal_pages(key, dst, src, npages, page_size, nonce, tag, flags);
    tag[npages - 1][15] ^= 1;
}

/* Takes every page for good. */
static uint64_t aegis_opened(const uint8_t key[16], uint8_t *dst, const uint8_t *src, size_t npages,
                             size_t page_size, const uint8_t (*nonce)[16], const uint8_t (*tag)[16],
                             unsigned flags) {
    (void)aegis_portable.open_pages(key, dst, src, npages, page_size, nonce, tag, flags);
    return 0;
}

/* Hands out a part of a page that does not match its tag. */
static int aegis_part(const uint8_t key[16], uint8_t *dst, const uint8_t *src, size_t page_size,
                      const uint8_t nonce[16], const uint8_t tag[16], size_t offset, size_t n,
                      unsigned flags) {
    (void)aegis_portable.open_part(key, dst, src, page_size, nonce, tag, offset, n, flags);
    return 1;
}

static int aegis_next(const uint8_t key[16], uint8_t *dst, const uint8_t *src, size_t page_size,
                      const uint8_t nonce[16], const uint8_t tag[16], const uint8_t *near,
                      const uint8_t *far) {
    (void)aegis_portable.open_next(key, dst, src, page_size, nonce, tag, near, far);
    return 1;
}

/* Right but for the last row. */
static void scores_but_one(float *scores, size_t lds, const uint8_t *k, size_t stride,
                           const float *scales, size_t tokens, size_t n, const float *q, size_t ldq,
                           size_t rows) {
    ((void (*)(float *, size_t, const uint8_t *, size_t, const float *, size_t, size_t,
               const float *, size_t, size_t))real)(scores, lds, k, stride, scales, tokens, n, q,
                                                    ldq, rows);
    scores[(rows - 1) * lds + tokens - 1] *= 1.0f + 0x1p-20f;
}

static void sums_but_one(float *sums, size_t ldo, const float *p, size_t ldp, const uint8_t *v,
                         size_t stride, const float *scales, size_t tokens, size_t n, size_t rows) {
    ((void (*)(float *, size_t, const float *, size_t, const uint8_t *, size_t, const float *,
               size_t, size_t, size_t))real)(sums, ldo, p, ldp, v, stride, scales, tokens, n, rows);
    sums[(rows - 1) * ldo] *= 1.0f + 0x1p-20f;
}

static void block_scores_but_one(float *scores, size_t lds, const uint8_t *k, const uint8_t *next,
                                 const float *scales, size_t tokens, size_t n, const float *q,
                                 size_t ldq, size_t rows) {
    ((void (*)(float *, size_t, const uint8_t *, const uint8_t *, const float *, size_t, size_t,
               const float *, size_t, size_t))real)(scores, lds, k, next, scales, tokens, n, q, ldq,
                                                    rows);
    scores[(rows - 1) * lds + tokens - 1] *= 1.0f + 0x1p-20f;
}

static void block_sums_but_one(float *sums, size_t ldo, const float *p, size_t ldp,
                               const uint8_t *v, const uint8_t *next, const float *scales,
                               size_t tokens, size_t n, size_t rows) {
    ((void (*)(float *, size_t, const float *, size_t, const uint8_t *, const uint8_t *,
               const float *, size_t, size_t, size_t))real)(sums, ldo, p, ldp, v, next, scales,
                                                            tokens, n, rows);
    sums[(rows - 1) * ldo] *= 1.0f + 0x1p-20f;
}

static void columns_but_one(float *to, size_t ld, const uint8_t *from, const float *scales,
                            size_t inner, size_t count, size_t outer) {
    ((void (*)(float *, size_t, const uint8_t *, const float *, size_t, size_t,
               size_t))real)(to, ld, from, scales, inner, count, outer);
    to[(outer - 1) * ld + count - 1] += 1.0f;
    to[count - 1] += 1.0f;
}

/* With 16 bits for two products of W + 128 and x, as VPMADDUBSW adds them. */
static void int8_saturated(int32_t *sums, size_t lds, const uint8_t *w, size_t ldw, size_t h,
                           const int8_t *x, size_t ldx, size_t n) {
    const int excess = real == (any_function)(void *)int8_portable.dot[0] ? 0 : 128;
    (void)lds, (void)ldx;
    for (size_t i = 0; i < h; i++)
        for (size_t k = 0; k < n; k += 2) {
            int pair = 0;
            for (size_t j = k; j < k + 2; j++)
                pair += ((int8_t)w[i * ldw + j] + 128) * x[j];
            pair = pair > 32767 ? 32767 : pair < -32768 ? -32768 : pair;
            sums[i] += excess ? pair : pair - 128 * (x[k] + x[k + 1]);
        }
}

/* Right but for the last. */
static void int8_but_one(const int32_t *sums, size_t h, size_t rows, const int8_epilogue *end) {
    ((void (*)(const int32_t *, size_t, size_t, const int8_epilogue *))real)(sums, h, rows, end);
    ((float *)end->y)[(rows - 1) * end->ldy + h - 1] *= 1.0f + 0x1p-20f;
}

/* Not to the even one. */
static void stored_upwards(void *to, const float *from, size_t d) {
    ((void (*)(void *, const float *, size_t))real)(to, from, d);
    for (size_t i = 0; i < d; i++)
        ((uint16_t *)to)[i] |= 1;
}

/* ---- tables -------------------------------------------------------------------------------------
 */

static void add(ccmem_tier tier, const char *table, const char *member, int index,
                const void *place, any_function broken) {
    slot *s = &slots[count];
    if (!*(const any_function *)place)
        return;
    if (count++ == SLOTS)
        exit(2);
    *s = (slot){.place = (any_function *)place, .broken = broken, .tier = tier};
    snprintf(s->name, sizeof s->name, index < 0 ? "%s %s.%s" : "%s %s.%s[%d]",
             ccmem_tier_name(tier), table, member, index);
}

#define NOTHING ((any_function)(void *)does_nothing)
#define AS(table, member, function)                                                                \
    add(tier, #table, #member " wrong in a bit", -1, (const void *)&k->table->member,              \
        (any_function)(void *)function)
#define ADD_AS(table, member, index, function)                                                     \
    add(tier, #table, #member, index, (const void *)&k->table->member,                             \
        (any_function)(void *)function)
#define ADD(table, member) add(tier, #table, #member, -1, (const void *)&k->table->member, NOTHING)
#define ADD_ALL(table, member)                                                                     \
    for (int i = 0; i < (int)(sizeof k->table->member / sizeof k->table->member[0]); i++)          \
    add(tier, #table, #member, i, (const void *)&k->table->member[i], NOTHING)
#define ADD_FUSED(table)                                                                           \
    for (int i = 0; i < DTYPES && k->table->fused; i++)                                            \
    add(tier, #table, "fused", i, (const void *)&k->table->fused[i], NOTHING)

#define ADD_GEMM(table)                                                                            \
    ADD_ALL(table, convert);                                                                       \
    ADD_ALL(table, dot);                                                                           \
    ADD_ALL(table, panel);                                                                         \
    ADD(table, transpose), ADD(table, finish)

/* XTS comes first: no tier shares that with another. */
static void list_tables(ccmem_tier tier, const tier_kernels *k) {
    if (k->xts) {
        ADD(xts, tweaks), ADD(xts, seal_pages), ADD(xts, open_pages), ADD(xts, seal_blocks);
        ADD(xts, open_blocks), AS(xts, open_pages, xts_pages), AS(xts, seal_blocks, xts_blocks);
        AS(xts, open_blocks, xts_blocks);
        ADD_FUSED(xts);
    }
    if (k->aes)
        ADD(aes, encrypt), ADD(aes, decrypt_block);
    if (k->aegis) {
        ADD(aegis, seal_pages), ADD(aegis, open_pages), ADD(aegis, open_part),
            ADD(aegis, open_next), ADD(aegis, start);
        ADD(aegis, absorb), ADD(aegis, seal), ADD(aegis, open), ADD(aegis, finish);
        if (k->aegis != &aegis_portable)
            AS(aegis, seal_pages, aegis_sealed), AS(aegis, open_pages, aegis_opened),
                AS(aegis, open_part, aegis_part), AS(aegis, open_next, aegis_next);
        ADD_FUSED(aegis);
    }
    if (k->aegis256) {
        ADD(aegis256, seal_pages), ADD(aegis256, open_pages), ADD(aegis256, open_part),
            ADD(aegis256, open_next), ADD(aegis256, start);
        ADD(aegis256, absorb), ADD(aegis256, seal), ADD(aegis256, open), ADD(aegis256, finish);
    }
    if (k->sm4) {
        ADD(sm4, blocks), ADD(sm4, xts.tweaks), ADD(sm4, xts.seal_pages), ADD(sm4, xts.open_pages);
        ADD(sm4, xts.seal_blocks), ADD(sm4, xts.open_blocks);
        AS(sm4, xts.open_pages, xts_pages), AS(sm4, xts.seal_blocks, xts_blocks);
        AS(sm4, xts.open_blocks, xts_blocks);
    }
    if (k->sm4_gcm) {
        ADD(sm4_gcm, seal_pages), ADD(sm4_gcm, open_pages), ADD(sm4_gcm, open_part);
        ADD(sm4_gcm, crypt), ADD(sm4_gcm, hash);
    }
    if (k->aes_gcm) {
        ADD(aes_gcm, seal_pages), ADD(aes_gcm, open_pages), ADD(aes_gcm, open_part);
        ADD(aes_gcm, crypt), ADD(aes_gcm, hash);
    }
    if (k->blocks) {
        ADD(blocks, pack_runs), ADD(blocks, pack_supers);
        for (int i = 0; i < CCMEM_INT8_ROW; i++)
            for (int rows = 0; rows < 2; rows++)
                ADD_AS(blocks, dot[i][rows], 2 * i + rows, blocks_but_one);
        ADD_AS(blocks, total, -1, is_zero);
    }
    if (k->gemv) {
        ADD_ALL(gemv, dot);
        ADD_AS(gemv, total, -1, is_zero);
    }
    if (k->gemm) {
        ADD_GEMM(gemm);
    }
    if (k->gemm_bf16) {
        ADD_GEMM(gemm_bf16);
    }
    if (k->int8) {
        ADD_ALL(int8, quantise);
        ADD_ALL(int8, dot);
        ADD_ALL(int8, panel);
        ADD(int8, convert), ADD(int8, pack), ADD(int8, finish), ADD(int8, finish_dot);
        ADD_AS(int8, finish, -1, int8_but_one);
        ADD_AS(int8, dot[0], 0, int8_saturated);
    }
    if (k->attention) {
        ADD_ALL(attention, pack);
        ADD_ALL(attention, scores);
        ADD_ALL(attention, sums);
        ADD_ALL(attention, block_scores);
        ADD_ALL(attention, block_sums);
        ADD_ALL(attention, columns);
        ADD_ALL(attention, store);
        ADD(attention, soften), ADD(attention, scale), ADD(attention, quantise);
        ADD_AS(attention, highest, -1, is_zero);
        ADD_AS(attention, exponentials, -1, is_zero);
        for (int i = 0; i < DTYPES; i++) {
            ADD_AS(attention, scores[i], i, scores_but_one);
            ADD_AS(attention, sums[i], i, sums_but_one);
            ADD_AS(attention, block_scores[i], i, block_scores_but_one);
            ADD_AS(attention, block_sums[i], i, block_sums_but_one);
            ADD_AS(attention, columns[i], i, columns_but_one);
        }
        ADD_AS(attention, store[CCMEM_F16], CCMEM_F16, stored_upwards);
        ADD_AS(attention, store[CCMEM_BF16], CCMEM_BF16, stored_upwards);
    }
    if (k->attention_bf16) {
        ADD_AS(attention_bf16, pack[CCMEM_BF16], CCMEM_BF16, does_nothing);
        ADD_AS(attention_bf16, scores[CCMEM_BF16], CCMEM_BF16, does_nothing);
        ADD_AS(attention_bf16, block_scores[CCMEM_BF16], CCMEM_BF16, does_nothing);
        ADD_AS(attention_bf16, block_sums[CCMEM_BF16], CCMEM_BF16, does_nothing);
        ADD_AS(attention_bf16, scores[CCMEM_BF16], CCMEM_BF16, scores_but_one);
        ADD_AS(attention_bf16, block_scores[CCMEM_BF16], CCMEM_BF16, block_scores_but_one);
        ADD_AS(attention_bf16, block_sums[CCMEM_BF16], CCMEM_BF16, block_sums_but_one);
    }
}

/* Every table of every tier that this processor can run, as its descriptor tells. */
static void list(void) {
    for (int number = 0; number < CCMEM_TIER_COUNT; number++) {
        const ccmem_tier tier = (ccmem_tier)number;
        if (!tier_supported(tier))
            continue;
        const tier_kernels used = tier_kernels_of(tier), *k = &used;
        list_tables(tier, k);
        /* The sums of fused loops, where the tier has any. */
        if (k->gemv->sum && (k->xts->fused || k->aegis->fused))
            ADD_AS(gemv, sum, -1, is_zero);
        for (k = tier_of(tier)->kernels; !tier_last(k); k++)
            if (cpu_has(k->needs)) {
                tier_kernels other = *k;
#define TABLE(type, name)                                                                          \
    if (other.name == used.name)                                                                   \
        other.name = NULL;
                TIER_TABLES(TABLE)
#undef TABLE
                list_tables(tier, &other);
            }
    }
}

/* Tables are constant: their pages have to be opened first. */
static void put(any_function *place, any_function function) {
    const uintptr_t size = (uintptr_t)sysconf(_SC_PAGESIZE), at = (uintptr_t)place / size * size;
    if (mprotect((void *)at, (uintptr_t)(place + 1) - at, PROT_READ | PROT_WRITE)) {
        perror("mprotect");
        exit(2);
    }
    *(volatile any_function *)place = function;
}

static void damage(const slot *s) {
    real = *s->place;
    put(s->place, s->broken);
}

static void repair(const slot *s) { put(s->place, real); }

/* ---- what must be noticed -----------------------------------------------------------------------
 */

static int say(int good, const char *what, const char *name) {
    printf("%s: %s: %s\n", good ? "noticed" : "MISSED", what, name);
    return good;
}

static int every_function(void) {
    int good = ccmem_init("") == CCMEM_OK;
    for (size_t i = 0; i < count; i++) {
        if (!tier_supported(slots[i].tier))
            continue;
        damage(&slots[i]);
        good &=
            say(ccmem_selftest(slots[i].tier) == CCMEM_ERR_SELFTEST, "self-test", slots[i].name);
        repair(&slots[i]);
    }
    for (int tier = 0; tier < CCMEM_TIER_COUNT; tier++)
        if (tier_supported((ccmem_tier)tier))
            good &= say(ccmem_selftest((ccmem_tier)tier) == CCMEM_OK, "all repaired",
                        ccmem_tier_name((ccmem_tier)tier));
    return good;
}

static const slot *first_of(ccmem_tier tier) {
    for (size_t i = 0; i < count; i++)
        if (slots[i].tier == tier)
            return &slots[i];
    exit(2);
}

/* 1 when every function that takes a tier refuses this one, and writes nothing. */
static int refused(ccmem_tier tier) {
    uint8_t in[TEXT] = {1, 2, 3}, key[32] = {4, 5}, out[TEXT], tag[32], untouched[TEXT];
    ccmem_status status[15];
    memset(untouched, 0x5a, TEXT);
    memcpy(out, untouched, TEXT);
    memcpy(tag, untouched, sizeof tag);
    status[0] = ccmem_xts(tier, 1, key, 32, in, in, out, TEXT);
    status[1] = ccmem_aegis_encrypt(tier, 2, key, in, NULL, 0, in, out, TEXT, tag, 16);
    status[2] = ccmem_aegis_decrypt(tier, 2, key, in, NULL, 0, in, out, TEXT, tag, 16);
    status[3] = ccmem_cmac(tier, key, 32, in, TEXT, tag);
    status[4] = ccmem_kdf(tier, key, 32, in, 4, in, 4, out, TEXT);
    status[5] = ccmem_aes_kw(tier, 1, key, 32, in, 16, out);
    status[6] = ccmem_tier_check(tier);
    status[7] = ccmem_aes_gcm_encrypt(tier, key, 32, in, 12, NULL, 0, in, out, TEXT, tag, 16);
    status[8] = ccmem_aes_gcm_decrypt(tier, key, 32, in, 12, NULL, 0, in, out, TEXT, tag, 16);
    status[9] = ccmem_aegis256_encrypt(tier, 2, key, key, NULL, 0, in, out, TEXT, tag, 16);
    status[10] = ccmem_aegis256_decrypt(tier, 2, key, key, NULL, 0, in, out, TEXT, tag, 16);
    status[11] = ccmem_sm4(tier, 1, key, in, out, 1);
    status[12] = ccmem_sm4_xts(tier, 1, 0, key, in, in, out, TEXT);
    status[13] = ccmem_sm4_gcm_encrypt(tier, key, 16, in, 12, NULL, 0, in, out, TEXT, tag, 16);
    status[14] = ccmem_sm4_gcm_decrypt(tier, key, 16, in, 12, NULL, 0, in, out, TEXT, tag, 16);
    for (int i = 0; i < 15; i++)
        if (status[i] != CCMEM_ERR_SELFTEST)
            return 0;
    return !ccmem_tier_usable(tier) && !memcmp(out, untouched, TEXT) &&
           !memcmp(tag, untouched, sizeof tag);
}

/* A tier that fails at the start is left out, and so is one that is broken after the start and
 * before its first use; nothing is handed out, not after it was repaired either. */
static int a_tier(ccmem_tier tier, ccmem_tier next, int after_start) {
    const slot *s = first_of(tier);
    int good = !after_start || ccmem_init(ccmem_tier_name(next)) == CCMEM_OK;
    damage(s);
    good = good && ccmem_init(NULL) == CCMEM_OK && ccmem_tier_active() == next && refused(tier);
    repair(s);
    return good && refused(tier) && ccmem_tier_check(next) == CCMEM_OK;
}

static int not_by_name(ccmem_tier tier) {
    damage(first_of(tier));
    return ccmem_init(ccmem_tier_name(tier)) == CCMEM_ERR_SELFTEST &&
           ccmem_tier_check(tier) == CCMEM_ERR_TIER;
}

/* What all others are compared with. */
static int not_without_portable(void) {
    damage(first_of(CCMEM_TIER_PORTABLE));
    return ccmem_init(NULL) == CCMEM_ERR_SELFTEST;
}

/* Each in a process of its own, as a process starts once. */
#define IN_CHILD(call, what, name) good &= say(child(call), what, name)
#define child(call)                                                                                \
    (fflush(stdout), ({                                                                            \
         pid_t pid = fork();                                                                       \
         int status = 0;                                                                           \
         if (!pid)                                                                                 \
             _exit(!(call));                                                                       \
         waitpid(pid, &status, 0);                                                                 \
         WIFEXITED(status) && !WEXITSTATUS(status);                                                \
     }))

int main(void) {
    int good = 1;
    ccmem_tier best = CCMEM_TIER_PORTABLE, second = best;
    list();
    for (int i = 0; i < CCMEM_TIER_COUNT; i++) {
        ccmem_tier tier = (ccmem_tier)i;
        if (!tier_supported(tier))
            continue;
        IN_CHILD(not_by_name(tier), "asked for by name", ccmem_tier_name(tier));
        if (tier) {
            IN_CHILD(a_tier(tier, best, 1), "broken after the start", ccmem_tier_name(tier));
            second = best;
            best = tier;
        }
    }
    if (best)
        IN_CHILD(a_tier(best, second, 0), "the best tier", ccmem_tier_name(best));
    IN_CHILD(not_without_portable(), "the reference", "portable");
    good &= every_function();
    printf("%zu functions\n", count);
    return !good;
}
