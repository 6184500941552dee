/* SPDX-License-Identifier: Apache-2.0
 * What can be asked of a cache: lengths, counts, and for tests where its ciphertext lies. */
#include "cache/cache.h"
#include "platform/fork.h"

/* A layer, with the lock for reading; the key may be gone. NULL: there is none. */
static const cache_layer *look(const ccmem_cache *cache, uint32_t layer, ccmem_status *status) {
    *status = CCMEM_ERR_FORK;
    if (fork_alien(cache->pool->generation))
        return NULL;
    (void)pthread_rwlock_rdlock((pthread_rwlock_t *)&cache->lock);
    *status = layer < cache->nlayers ? CCMEM_OK : CCMEM_ERR_ARGUMENT;
    return *status == CCMEM_OK ? &cache->layer[layer] : NULL;
}

static void looked(const ccmem_cache *cache, ccmem_status status) {
    if (status != CCMEM_ERR_FORK)
        (void)pthread_rwlock_unlock((pthread_rwlock_t *)&cache->lock);
}

uint32_t ccmem_cache_block_tokens(const ccmem_cache *cache, uint32_t layer) {
    ccmem_status status;
    const cache_layer *of = look(cache, layer, &status);
    const uint32_t tokens = of ? (uint32_t)of->layout.tokens : 0;
    looked(cache, status);
    return tokens;
}

uint32_t ccmem_cache_sequences(const ccmem_cache *cache, uint32_t layer) {
    ccmem_status status;
    const cache_layer *of = look(cache, layer, &status);
    const uint32_t n = of ? of->n : 0;
    looked(cache, status);
    return n;
}

ccmem_status ccmem_cache_length(const ccmem_cache *cache, uint32_t layer, uint32_t sequence,
                                uint64_t *tokens, uint64_t *first) {
    ccmem_status status;
    const cache_layer *of = look(cache, layer, &status);
    if (of && sequence < of->n) {
        *tokens = sequence_length(&of->sequence[sequence], &of->layout);
        *first = sequence_first(&of->sequence[sequence], &of->layout);
    } else if (of) {
        looked(cache, status);
        return CCMEM_ERR_ARGUMENT;
    }
    looked(cache, status);
    return status;
}

ccmem_status ccmem_cache_get_stats(ccmem_cache *cache, ccmem_cache_stats *out) {
    cache_pool *pool = cache->pool;
    if (fork_alien(pool->generation))
        return CCMEM_ERR_FORK;
    (void)pthread_mutex_lock(&pool->slots.lock);
    const uint64_t mapped = pool->slots.mapped;
    (void)pthread_mutex_unlock(&pool->slots.lock);
    *out = (ccmem_cache_stats){.blocks = __atomic_load_n(&pool->blocks, __ATOMIC_RELAXED),
                               .records = __atomic_load_n(&pool->records, __ATOMIC_RELAXED),
                               .ciphertext_bytes =
                                   __atomic_load_n(&pool->ciphertext_bytes, __ATOMIC_RELAXED),
                               .memory_bytes = mapped,
                               .sealed = __atomic_load_n(&pool->numbers, __ATOMIC_RELAXED),
                               .opened = __atomic_load_n(&pool->opened, __ATOMIC_RELAXED),
                               .integrity_failures =
                                   __atomic_load_n(&pool->failures, __ATOMIC_RELAXED)};
    return CCMEM_OK;
}

ccmem_secret_level ccmem_cache_level(const ccmem_cache *cache) {
    return cache->pool->plain ? CCMEM_SECRET_NONE : cache->pool->level;
}

/* ---- places ---------------------------------------------------------------------------------- */

typedef struct places {
    ccmem_cache_place *out;
    uint64_t capacity, count;
} places;

static void add(places *p, ccmem_cache_place place) {
    if (p->count < p->capacity)
        p->out[p->count] = place;
    p->count++;
}

static void add_group(places *p, const cache_layout *l, const cache_entry *e, uint64_t first) {
    for (int which = 0; which < 2; which++)
        for (size_t h = 0; h < l->heads; h++) {
            const size_t block = (which ? l->heads : 0) + h;
            add(p, (ccmem_cache_place){.data = e->slot->data + layout_block(l, which, h),
                                       .bytes = l->block[which],
                                       .tag = group_tags(e, l)[block],
                                       .number = e->number + block,
                                       .first = first,
                                       .tokens = l->tokens,
                                       .head = (uint32_t)h,
                                       .which = which});
        }
}

static void add_sequence(places *p, const cache_layout *l, const cache_sequence *s) {
    uint64_t first = sequence_first(s, l);
    for (uint64_t g = 0; g < s->groups; g++, first += l->tokens)
        add_group(p, l, &sequence_groups(s)[g], first);
    for (uint64_t r = 0; r < s->records; r++) {
        const cache_entry *e = &sequence_records(s)[r];
        add(p, (ccmem_cache_place){.data = e->slot->data,
                                   .bytes = l->record,
                                   .tag = *record_tag(e, l),
                                   .number = e->number,
                                   .first = first + r,
                                   .tokens = 1,
                                   .which = 2});
    }
}

ccmem_status ccmem_cache_places(ccmem_cache *cache, uint32_t layer, uint32_t sequence,
                                ccmem_cache_place *out, uint64_t capacity, uint64_t *count) {
    ccmem_status status;
    const cache_layer *of = look(cache, layer, &status);
    if (of && sequence >= of->n) {
        looked(cache, status);
        return CCMEM_ERR_ARGUMENT;
    }
    if (of) {
        places p = {out, capacity, 0};
        add_sequence(&p, &of->layout, &of->sequence[sequence]);
        *count = p.count;
    }
    looked(cache, status);
    return status;
}
