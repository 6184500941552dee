/* SPDX-License-Identifier: Apache-2.0
 *
 * Timed loops for the benchmarks. They live here because a call from the interpreter costs more
 * than what most of them measure. */
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "cache/life.h"
#include "memory/secret.h"
#include "pages/page.h"
#include "platform/random.h"
#include "tiers/tiers.h"

static double seconds_now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

double ccmem_measure_ceiling(ccmem_tier tier, unsigned rounds, uint64_t repeats) {
    if (!ccmem_tier_usable(tier) || !rounds || !repeats)
        return 0;
    const probe_ops *probe = tier_kernels_of(tier).probe;
    if (!probe->aes_rounds)
        return 0;
    double start = seconds_now();
    probe->aes_rounds(repeats);
    double seconds = seconds_now() - start;
    return seconds > 0 ? (double)repeats * 8 * probe->aes_width / rounds / seconds : 0;
}

/* ---- pages ----------------------------------------------------------------------------------- */

/* Seals or opens all pages once, page p under number p. Not 0 when one did not match its tag. */
static uint64_t pass(const page_context *ctx, ccmem_measure_op op, uint8_t *out, const uint8_t *in,
                     page_tag *tag, uint64_t npages) {
    uint64_t version[PAGE_BATCH], bad = 0;

    for (int i = 0; i < PAGE_BATCH; i++)
        version[i] = 1 + (uint64_t)i;
    for (uint64_t p = 0, n; p < npages; p += n) {
        uint64_t at = p * ctx->size;
        page_tag *tags = tag ? tag + p : NULL;
        n = npages - p < PAGE_BATCH ? npages - p : PAGE_BATCH;
        if (op == CCMEM_MEASURE_SEAL)
            ctx->ops->seal(ctx, out + at, in + at, p, version, tags, (size_t)n, 0);
        else
            bad |= ctx->ops->open(ctx, out + at, in + at, p, version, (const page_tag *)tags,
                                  (size_t)n, 0);
    }
    return bad;
}

ccmem_status ccmem_measure_pages(ccmem_tier tier, ccmem_cipher cipher, ccmem_measure_op op,
                                 uint8_t *in, uint8_t *out, uint32_t page_size, uint64_t npages,
                                 uint64_t repeats, double *seconds) {
    const page_suite *suite = page_suite_of(cipher);
    uint8_t raw[PAGE_SUBKEY_MAX];
    void *key = NULL;
    page_context ctx;
    page_tag *tag = NULL;
    ccmem_status status = ccmem_tier_check(tier);

    if (status)
        return status;
    if (!suite || page_size < CCMEM_PAGE_SIZE_MIN || page_size > CCMEM_PAGE_SIZE_MAX ||
        (page_size & (page_size - 1)))
        return CCMEM_ERR_ARGUMENT;
    if (suite->is.tag_size && op == CCMEM_MEASURE_OPEN && in == out)
        return CCMEM_ERR_ARGUMENT;
    if (posix_memalign(&key, 64, suite->key_size))
        return CCMEM_ERR_NOMEM;
    status = random_bytes(raw, suite->is.subkey_size);
    if (status == CCMEM_OK)
        status = page_init(&ctx, cipher, tier, page_size, key, raw);
    if (status == CCMEM_OK && suite->is.tag_size &&
        !(tag = malloc((npages ? npages : 1) * sizeof tag[0])))
        status = CCMEM_ERR_NOMEM;
    if (status == CCMEM_OK) {
        uint64_t bad = 0;
        if (tag && op == CCMEM_MEASURE_OPEN)
            pass(&ctx, CCMEM_MEASURE_SEAL, in, in, tag, npages);
        double start = seconds_now();
        for (uint64_t r = 0; r < repeats; r++)
            bad |= pass(&ctx, op, out, in, tag, npages);
        *seconds = seconds_now() - start;
        /* Pages that do not open again would be a fault of the kernel. */
        if (bad)
            status = CCMEM_ERR_INTEGRITY;
    }
    free(tag);
    ccmem_wipe(raw, sizeof raw);
    ccmem_wipe(key, suite->key_size);
    free(key);
    return status;
}

/* ---- 64 bytes at random ---------------------------------------------------------------------- */

/* The next line of n, from a linear congruential generator (Knuth's MMIX constants) xored with the
 * bytes read before, if these are to be waited for. Its few cycles are part of the subject and of
 * the reference. */
static inline uint64_t next_line(uint64_t *state, uint64_t n, uint64_t read_before) {
    *state = *state * 6364136223846793005u + 1442695040888963407u;
    return (((*state ^ read_before) >> 32) * n) >> 32;
}

/* Every call walks another way: the same one again would find its lines in the last-level cache. */
static uint64_t walk_start(double seconds) { return (uint64_t)(seconds * 1e9); }

ccmem_status ccmem_measure_random_reads(ccmem_store *store, uint64_t count, int dependent,
                                        double *seconds) {
    _Alignas(64) uint64_t line[8] = {0};
    uint64_t lines = ccmem_store_size(store) / sizeof line;
    if (!lines || lines > UINT32_MAX)
        return CCMEM_ERR_ARGUMENT;
    double start = seconds_now();
    uint64_t state = walk_start(start);
    for (uint64_t i = 0; i < count; i++) {
        uint64_t at = next_line(&state, lines, dependent ? line[0] : 0) * sizeof line;
        ccmem_status status = ccmem_store_read(store, at, line, sizeof line);
        if (status != CCMEM_OK)
            return status;
    }
    *seconds = seconds_now() - start;
    ccmem_wipe(line, sizeof line);
    return CCMEM_OK;
}

/* A call like the subject's, so that the difference is the work and not the calling. */
__attribute__((noinline)) static void copy_line(uint64_t *out, const uint8_t *in) {
    memcpy(out, in, 64);
}

ccmem_status ccmem_measure_random_copies(const uint8_t *memory, uint64_t n, uint64_t count,
                                         int dependent, double *seconds) {
    _Alignas(64) uint64_t line[8] = {0};
    uint64_t lines = n / sizeof line;
    if (!lines || lines > UINT32_MAX)
        return CCMEM_ERR_ARGUMENT;
    double start = seconds_now();
    uint64_t state = walk_start(start);
    for (uint64_t i = 0; i < count; i++) {
        copy_line(line, memory + next_line(&state, lines, dependent ? line[0] : 0) * sizeof line);
        __asm__ volatile("" : : "r"(line) : "memory");
    }
    *seconds = seconds_now() - start;
    return CCMEM_OK;
}

/* ---- a whole store, and plain memory --------------------------------------------------------- */

ccmem_status ccmem_measure_open_to_scratch(ccmem_store *store, uint8_t *scratch, uint64_t step,
                                           double *seconds) {
    uint64_t size = ccmem_store_size(store);
    if (!step)
        return CCMEM_ERR_ARGUMENT;
    double start = seconds_now();
    for (uint64_t at = 0, n; at < size; at += n) {
        n = size - at < step ? size - at : step;
        ccmem_status status = ccmem_store_read(store, at, scratch, n);
        if (status != CCMEM_OK)
            return status;
    }
    *seconds = seconds_now() - start;
    return CCMEM_OK;
}

double ccmem_measure_plain_read(const uint8_t *memory, uint64_t n) {
    const probe_ops *probe = tier_active_kernels().probe;
    double start = seconds_now();
    probe->load(memory, n);
    return seconds_now() - start;
}

double ccmem_measure_memcpy(void *out, const void *in, uint64_t n) {
    double start = seconds_now();
    memcpy(out, in, n);
    __asm__ volatile("" : : "r"(out) : "memory");
    return seconds_now() - start;
}

ccmem_status ccmem_measure_cache_new(uint32_t sequences, ccmem_cache **out) {
    return cache_new(sequences, CCMEM_SECRET_MLOCK, 1, out);
}
