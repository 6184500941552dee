/* SPDX-License-Identifier: Apache-2.0
 * Caches: made, forked, erased, freed; their layers; beams. */
#include <stdlib.h>
#include <string.h>

#include "cache/cache.h"
#include "cache/life.h"
#include "platform/fork.h"

enum { SEQUENCES_MAX = 65536, LAYERS_MAX = 65536 };

/* ---- locks ----------------------------------------------------------------------------------- */

ccmem_status cache_enter(ccmem_cache *cache, uint32_t layer, int write, cache_layer **out) {
    if (fork_alien(cache->pool->generation))
        return CCMEM_ERR_FORK;
    (void)(write ? pthread_rwlock_wrlock(&cache->lock) : pthread_rwlock_rdlock(&cache->lock));
    ccmem_status status = layer < cache->nlayers ? CCMEM_OK : CCMEM_ERR_ARGUMENT;
    if (status == CCMEM_OK)
        status = pool_enter(cache->pool);
    if (status != CCMEM_OK)
        (void)pthread_rwlock_unlock(&cache->lock);
    else
        *out = &cache->layer[layer];
    return status;
}

void cache_leave(ccmem_cache *cache) {
    pool_leave(cache->pool);
    (void)pthread_rwlock_unlock(&cache->lock);
}

/* ---- caches ---------------------------------------------------------------------------------- */

/* A cache without layers that has a reference to the pool, which is the caller's on failure. */
static ccmem_cache *cache_over(cache_pool *pool, uint32_t sequences) {
    ccmem_cache *cache = calloc(1, sizeof *cache);
    if (!cache)
        return NULL;
    if (pthread_rwlock_init(&cache->lock, NULL)) {
        free(cache);
        return NULL;
    }
    cache->pool = pool;
    cache->sequences = sequences;
    return cache;
}

ccmem_status cache_new(uint32_t sequences, ccmem_secret_level require, int plain,
                       ccmem_cache **out) {
    cache_pool *pool;
    if (!sequences || sequences > SEQUENCES_MAX)
        return CCMEM_ERR_ARGUMENT;
    ccmem_status status = pool_new(require, plain, &pool);
    if (status != CCMEM_OK)
        return status;
    *out = cache_over(pool, sequences);
    if (*out)
        return CCMEM_OK;
    pool_release(pool);
    return CCMEM_ERR_NOMEM;
}

ccmem_status ccmem_cache_new(uint32_t sequences, ccmem_secret_level require, ccmem_cache **out) {
    return cache_new(sequences, require, 0, out);
}

/* Empties a layer's sequences and frees their array. */
static void layer_end(cache_pool *pool, cache_layer *layer) {
    for (uint32_t i = 0; i < layer->n; i++)
        sequence_clear(pool, &layer->layout, &layer->sequence[i]);
    free(layer->sequence);
    *layer = (cache_layer){.n = 0};
}

void ccmem_cache_free(ccmem_cache *cache) {
    if (!cache)
        return;
    const int alien = fork_alien(cache->pool->generation);
    for (uint32_t i = 0; i < cache->nlayers; i++)
        if (alien) /* the tables were not inherited */
            free(cache->layer[i].sequence);
        else
            layer_end(cache->pool, &cache->layer[i]);
    free(cache->layer);
    if (!alien)
        (void)pthread_rwlock_destroy(&cache->lock);
    pool_release(cache->pool);
    free(cache);
}

ccmem_status ccmem_cache_check(const ccmem_cache *cache) {
    ccmem_status status = pool_enter(cache->pool);
    if (status == CCMEM_OK)
        pool_leave(cache->pool);
    return status;
}

ccmem_status ccmem_cache_erase(ccmem_cache *cache) {
    if (fork_alien(cache->pool->generation))
        return CCMEM_ERR_FORK;
    pool_erase(cache->pool);
    return CCMEM_OK;
}

/* ---- layers ---------------------------------------------------------------------------------- */

/* n sequences that share what the layer's sequences from[0], from[1], ... have (NULL: 0, 1, ...).
 */
static ccmem_status share_sequences(cache_pool *pool, const cache_layer *layer,
                                    const uint32_t *from, uint32_t n, cache_sequence **out) {
    cache_layer made = {.layout = layer->layout,
                        .sequence = calloc(n ? n : 1, sizeof *made.sequence)};
    if (!made.sequence)
        return CCMEM_ERR_NOMEM;
    for (; made.n < n; made.n++) {
        const cache_sequence *s = &layer->sequence[from ? from[made.n] : made.n];
        ccmem_status status = sequence_share(pool, &layer->layout, s, &made.sequence[made.n]);
        if (status != CCMEM_OK) {
            layer_end(pool, &made);
            return status;
        }
    }
    *out = made.sequence;
    return CCMEM_OK;
}

/* Has room for one layer more. */
static ccmem_status layers_room(ccmem_cache *cache, uint32_t wanted) {
    if (wanted <= cache->room)
        return CCMEM_OK;
    uint32_t room = cache->room ? 2 * cache->room : 32;
    if (room < wanted)
        room = wanted;
    cache_layer *more = realloc(cache->layer, room * sizeof *more);
    if (!more)
        return CCMEM_ERR_NOMEM;
    cache->layer = more;
    cache->room = room;
    return CCMEM_OK;
}

ccmem_status ccmem_cache_add_layer(ccmem_cache *cache, const ccmem_cache_layer *layer,
                                   uint32_t *number) {
    cache_layer made = {.n = cache->sequences};
    if (fork_alien(cache->pool->generation))
        return CCMEM_ERR_FORK;
    if (!cache_layout_of(&made.layout, layer))
        return CCMEM_ERR_ARGUMENT;
    made.sequence = calloc(made.n, sizeof *made.sequence);
    if (!made.sequence)
        return CCMEM_ERR_NOMEM;
    (void)pthread_rwlock_wrlock(&cache->lock);
    ccmem_status status =
        cache->nlayers < LAYERS_MAX ? layers_room(cache, cache->nlayers + 1) : CCMEM_ERR_ARGUMENT;
    if (status == CCMEM_OK) {
        *number = cache->nlayers;
        cache->layer[cache->nlayers++] = made;
    } else {
        free(made.sequence);
    }
    (void)pthread_rwlock_unlock(&cache->lock);
    return status;
}

ccmem_status ccmem_cache_fork(ccmem_cache *cache, ccmem_cache **out) {
    ccmem_status status = pool_enter(cache->pool);
    if (status != CCMEM_OK)
        return status;
    pool_leave(cache->pool);
    ccmem_cache *made = cache_over(cache->pool, cache->sequences);
    if (!made)
        return CCMEM_ERR_NOMEM;
    (void)pool_retain(cache->pool);
    (void)pthread_rwlock_rdlock(&cache->lock);
    status = layers_room(made, cache->nlayers);
    for (; status == CCMEM_OK && made->nlayers < cache->nlayers; made->nlayers++) {
        const cache_layer *layer = &cache->layer[made->nlayers];
        cache_layer *to = &made->layer[made->nlayers];
        *to = (cache_layer){.layout = layer->layout, .n = layer->n};
        status = share_sequences(made->pool, layer, NULL, layer->n, &to->sequence);
        if (status != CCMEM_OK)
            break;
    }
    (void)pthread_rwlock_unlock(&cache->lock);
    if (status == CCMEM_OK)
        *out = made;
    else
        ccmem_cache_free(made);
    return status;
}

ccmem_status ccmem_cache_reorder(ccmem_cache *cache, uint32_t layer, const uint32_t *from,
                                 uint32_t n) {
    cache_layer *of;
    cache_sequence *made;
    ccmem_status status = cache_enter(cache, layer, 1, &of);
    if (status != CCMEM_OK)
        return status;
    if (!n || n > SEQUENCES_MAX)
        status = CCMEM_ERR_ARGUMENT;
    for (uint32_t i = 0; status == CCMEM_OK && i < n; i++)
        if (from[i] >= of->n)
            status = CCMEM_ERR_ARGUMENT;
    if (status == CCMEM_OK)
        status = share_sequences(cache->pool, of, from, n, &made);
    if (status == CCMEM_OK) {
        const cache_layout layout = of->layout;
        layer_end(cache->pool, of);
        *of = (cache_layer){.layout = layout, .n = n, .sequence = made};
        cache->sequences = n; /* what layers that are yet to come have */
    }
    cache_leave(cache);
    return status;
}
