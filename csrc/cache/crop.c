/* SPDX-License-Identifier: Apache-2.0
 * Cropping at the end of a sequence, evicting at its beginning. */
#include <string.h>

#include "cache/cache.h"
#include "cache/stage.h"

/* The first `n` tokens of a group as records, which are sealed at *e. 0: a block was changed. */
static ccmem_status seal_records_of(cache_pool *pool, const cache_layout *l,
                                    const cache_entry *group, size_t n, const cache_entry *e) {
    uint8_t *plain;
    ccmem_status status = ccmem_plain_alloc(l->group + l->record, &plain);
    if (status != CCMEM_OK)
        return status;
    uint8_t *record = plain + l->group;
    memset(record, 0, l->record);
    for (int which = 0; which < 2 && status == CCMEM_OK; which++)
        for (size_t h = 0; h < l->heads && status == CCMEM_OK; h++)
            if (!group_open(pool, l, group, which, h, plain + layout_block(l, which, h)))
                status = CCMEM_ERR_INTEGRITY;
    if (status == CCMEM_OK)
        pool_opened(pool, 2 * l->heads);
    for (size_t t = 0; t < n && status == CCMEM_OK; t++) {
        stage_record_of_group(l, record, plain, t);
        pool_seal(pool, e[t].slot->data, record, e[t].number, record_tag(&e[t], l), 1, l->record);
    }
    ccmem_plain_free(plain);
    return status;
}

/* Keeps `groups` groups and the first n > 0 tokens of the next one. */
static ccmem_status cut(cache_pool *pool, const cache_layout *l, cache_sequence *s, uint64_t groups,
                        size_t n) {
    cache_slot *made = slots_take(&pool->slots, SLOT_TABLE, l->tokens * sizeof(cache_entry));
    uint64_t number = 0;
    if (!made)
        return CCMEM_ERR_NOMEM;
    cache_entry *e = (cache_entry *)made->data;
    ccmem_status status = pool_numbers(pool, n, &number);
    for (size_t t = 0; t < n && status == CCMEM_OK; t++) {
        e[t] = record_new(pool, l);
        e[t].number = number + t;
        if (!e[t].slot)
            status = CCMEM_ERR_NOMEM;
    }
    if (status == CCMEM_OK)
        status = seal_records_of(pool, l, &sequence_groups(s)[groups], n, e);
    if (status == CCMEM_OK) {
        sequence_drop_records(pool, l, s, 0);
        sequence_drop_groups(pool, l, s, groups);
        (void)slots_drop(&pool->slots, s->records_table);
        s->records_table = made;
        s->records = n;
        return status;
    }
    for (size_t t = 0; t < n; t++)
        record_drop(pool, l, &e[t]);
    (void)slots_drop(&pool->slots, made);
    return status;
}

static ccmem_status crop(cache_pool *pool, const cache_layout *l, cache_sequence *s,
                         uint64_t tokens) {
    const uint64_t whole = (s->gone + s->groups) * l->tokens, first = sequence_first(s, l);
    if (tokens > whole + s->records)
        return CCMEM_ERR_RANGE;
    if (!tokens) {
        sequence_clear(pool, l, s);
        return CCMEM_OK;
    }
    if (tokens < first)
        return CCMEM_ERR_RANGE;
    if (tokens >= whole) {
        sequence_drop_records(pool, l, s, tokens - whole);
        return CCMEM_OK;
    }
    const uint64_t groups = (tokens - first) / l->tokens;
    const size_t rest = (size_t)(tokens % l->tokens);
    if (rest)
        return cut(pool, l, s, groups, rest);
    sequence_drop_records(pool, l, s, 0);
    sequence_drop_groups(pool, l, s, groups);
    return CCMEM_OK;
}

ccmem_status ccmem_cache_crop(ccmem_cache *cache, uint32_t layer, uint32_t sequence,
                              uint64_t tokens) {
    cache_layer *of;
    ccmem_status status = cache_enter(cache, layer, 1, &of);
    if (status != CCMEM_OK)
        return status;
    status = sequence < of->n ? crop(cache->pool, &of->layout, &of->sequence[sequence], tokens)
                              : CCMEM_ERR_ARGUMENT;
    cache_leave(cache);
    return status;
}

static void evict(cache_pool *pool, const cache_layout *l, cache_sequence *s, uint64_t before) {
    const uint64_t whole = before / l->tokens;
    if (whole <= s->gone)
        return;
    const uint64_t n = whole - s->gone < s->groups ? whole - s->gone : s->groups;
    cache_entry *e = sequence_groups(s);
    for (uint64_t i = 0; i < n; i++)
        group_drop(pool, l, &e[i]);
    if (n)
        memmove(e, e + n, (s->groups - n) * sizeof *e);
    s->groups -= n;
    s->gone += n;
}

ccmem_status ccmem_cache_evict(ccmem_cache *cache, uint32_t layer, uint32_t sequence,
                               uint64_t before) {
    cache_layer *of;
    ccmem_status status = cache_enter(cache, layer, 1, &of);
    if (status != CCMEM_OK)
        return status;
    if (sequence < of->n)
        evict(cache->pool, &of->layout, &of->sequence[sequence], before);
    else
        status = CCMEM_ERR_ARGUMENT;
    cache_leave(cache);
    return status;
}
