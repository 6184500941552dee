/* SPDX-License-Identifier: Apache-2.0
 * Appending: all memory and all numbers are taken first, then everything is sealed, in several
 * threads where it is much, and only then the lists change. */
#include <stdlib.h>
#include <string.h>

#include "cache/cache.h"
#include "cache/stage.h"
#include "memory/secret.h"
#include "platform/dtype.h"
#include "platform/float_env.h"
#include "platform/threads.h"
#include "store/store.h"

enum { GRAIN = 256 << 10 }; /* bytes of groups that are worth another thread */

/* An append on its way. New groups and records of all sequences, in order. */
typedef struct append {
    cache_pool *pool;
    cache_layer *layer;
    const ccmem_cache_rows *in; /* K, V */
    uint64_t tokens;            /* of each sequence */
    uint64_t from;              /* the first sequence */
    uint64_t n;                 /* sequences */
    cache_entry *entry;         /* groups of sequence 0, 1, ...; records of sequence 0, 1, ... */
    uint64_t groups, records;   /* of all */
    outcome end;
} append;

static cache_sequence *sequence_of(const append *a, uint64_t i) {
    return &a->layer->sequence[a->from + i];
}

/* How many groups and records sequence i gets. */
static uint64_t new_groups(const append *a, uint64_t i) {
    return (sequence_of(a, i)->records + a->tokens) / a->layer->layout.tokens;
}

static uint64_t new_records(const append *a, uint64_t i) {
    return new_groups(a, i) ? (sequence_of(a, i)->records + a->tokens) % a->layer->layout.tokens
                            : a->tokens;
}

/* ---- memory and numbers ---------------------------------------------------------------------- */

static void give_back(append *a) {
    const cache_layout *l = &a->layer->layout;
    for (uint64_t i = 0; a->entry && i < a->groups + a->records; i++)
        if (i < a->groups)
            group_drop(a->pool, l, &a->entry[i]);
        else
            record_drop(a->pool, l, &a->entry[i]);
    free(a->entry);
}

static ccmem_status take(append *a) {
    const cache_layout *l = &a->layer->layout;
    uint64_t number, each = 2 * l->heads;
    for (uint64_t i = 0; i < a->n; i++) {
        cache_sequence *s = sequence_of(a, i);
        ccmem_status status = sequence_room(a->pool, l, s, s->groups + new_groups(a, i));
        if (status != CCMEM_OK)
            return status;
        a->groups += new_groups(a, i);
        a->records += new_records(a, i);
    }
    a->entry = calloc(a->groups + a->records, sizeof *a->entry);
    if (!a->entry)
        return CCMEM_ERR_NOMEM;
    ccmem_status status = pool_numbers(a->pool, a->groups * each + a->records, &number);
    for (uint64_t i = 0; status == CCMEM_OK && i < a->groups + a->records; i++) {
        cache_entry *e = &a->entry[i];
        *e = i < a->groups ? group_new(a->pool, l) : record_new(a->pool, l);
        e->number = number;
        number += i < a->groups ? each : 1;
        if (!e->slot)
            status = CCMEM_ERR_NOMEM;
    }
    return status;
}

/* ---- sealing --------------------------------------------------------------------------------- */

/* Plaintext of a group, of a record, and numbers on their way. */
static ccmem_status scratch(const cache_layout *l, uint8_t **group, uint8_t **record,
                            float **floats) {
    ccmem_status status = ccmem_plain_alloc(l->group + l->record + stage_floats(l), group);
    if (status != CCMEM_OK)
        return status;
    *record = *group + l->group;
    *floats = (float *)(*record + l->record);
    return status;
}

/* Fills group number g of sequence i, from its records as far as they go. 0: one was changed. */
static int fill_group(const append *a, uint64_t i, uint64_t g, uint8_t *group, uint8_t *record,
                      float *floats) {
    const cache_layout *l = &a->layer->layout;
    const cache_sequence *s = sequence_of(a, i);
    for (size_t t = 0; t < l->tokens; t++) {
        const uint64_t at = g * l->tokens + t;
        if (at >= s->records) {
            stage_token(l, group, t, a->in, i, at - s->records, floats);
            continue;
        }
        if (!record_open(a->pool, l, &sequence_records(s)[at], record))
            return 0;
        stage_token_of_record(l, group, t, record);
    }
    if (!g)
        pool_opened(a->pool, s->records);
    return 1;
}

static void seal_group(const append *a, const cache_entry *e, const uint8_t *group) {
    const cache_layout *l = &a->layer->layout;
    const size_t v = layout_block(l, CACHE_V, 0);
    uint8_t (*tags)[PAGE_TAG] = group_tags(e, l);
    pool_seal(a->pool, e->slot->data, group, e->number, tags, l->heads, l->block[0]);
    pool_seal(a->pool, e->slot->data + v, group + v, e->number + l->heads, tags + l->heads,
              l->heads, l->block[1]);
}

/* Groups [begin, end) of all new ones. */
static void seal_groups(void *arg, uint64_t begin, uint64_t end) {
    append *a = arg;
    uint8_t *group, *record;
    float *floats;
    ccmem_status status = scratch(&a->layer->layout, &group, &record, &floats);
    if (status != CCMEM_OK) {
        outcome_stop(&a->end, status);
        return;
    }
    const float_env env = float_env_default();
    uint64_t i = 0, g = begin;
    for (; g >= new_groups(a, i); i++)
        g -= new_groups(a, i);
    for (uint64_t at = begin; at < end && !outcome_stopped(&a->end); at++) {
        if (!fill_group(a, i, g, group, record, floats)) {
            outcome_stop(&a->end, CCMEM_ERR_INTEGRITY);
            break;
        }
        seal_group(a, &a->entry[at], group);
        if (++g == new_groups(a, i) && at + 1 < end)
            for (g = 0, i++; !new_groups(a, i);)
                i++;
    }
    float_env_restore(env);
    ccmem_plain_free(group);
}

static ccmem_status seal_records(const append *a) {
    const cache_layout *l = &a->layer->layout;
    uint8_t *record;
    if (!a->records)
        return CCMEM_OK;
    ccmem_status status = ccmem_plain_alloc(l->record + stage_floats(l), &record);
    if (status != CCMEM_OK)
        return status;
    float *floats = (float *)(record + l->record);
    const float_env env = float_env_default();
    const cache_entry *e = a->entry + a->groups;
    memset(record, 0, l->record);
    for (uint64_t i = 0; i < a->n; i++)
        for (uint64_t left = new_records(a, i); left; left--, e++) {
            stage_record(l, record, a->in, i, a->tokens - left, floats);
            pool_seal(a->pool, e->slot->data, record, e->number, record_tag(e, l), 1, l->record);
        }
    float_env_restore(env);
    ccmem_plain_free(record);
    return CCMEM_OK;
}

/* Puts the new entries into the lists, which cannot fail. */
static void publish(append *a) {
    const cache_layout *l = &a->layer->layout;
    const cache_entry *group = a->entry, *record = a->entry + a->groups;
    for (uint64_t i = 0; i < a->n; i++) {
        cache_sequence *s = sequence_of(a, i);
        const uint64_t groups = new_groups(a, i), records = new_records(a, i);
        if (groups)
            sequence_drop_records(a->pool, l, s, 0);
        if (groups)
            memcpy(sequence_groups(s) + s->groups, group, groups * sizeof *group);
        if (records)
            memcpy(sequence_records(s) + s->records, record, records * sizeof *record);
        s->groups += groups;
        s->records += records;
        group += groups;
        record += records;
    }
    free(a->entry);
}

static ccmem_status append_all(append *a) {
    const cache_layout *l = &a->layer->layout;
    ccmem_status status = take(a);
    if (status == CCMEM_OK && a->groups) {
        const uint64_t grain = l->group < GRAIN ? GRAIN / l->group : 1;
        parallel_for(a->groups, grain, seal_groups, a);
        status = outcome_end(&a->end);
    }
    if (status == CCMEM_OK)
        status = seal_records(a);
    if (status == CCMEM_OK)
        publish(a);
    else
        give_back(a);
    return status;
}

/* ---- the entry ------------------------------------------------------------------------------- */

static int type_allowed(const cache_layout *l, ccmem_dtype dtype) {
    return l->dtype == CCMEM_I8 ? dtype == CCMEM_F32 || dtype == CCMEM_F16 || dtype == CCMEM_BF16
                                : dtype == l->dtype;
}

ccmem_status ccmem_cache_append(ccmem_cache *cache, uint32_t layer, uint32_t sequence,
                                uint32_t sequences, uint64_t tokens, const ccmem_cache_rows *k,
                                const ccmem_cache_rows *v) {
    cache_layer *of;
    /* Above it sizes and numbers could wrap. */
    const uint64_t most = (uint64_t)1 << 40;
    ccmem_status status = cache_enter(cache, layer, 1, &of);
    if (status != CCMEM_OK)
        return status;
    const uint64_t has = of->n;
    if (tokens > most || sequence > has || sequences > has - sequence ||
        !type_allowed(&of->layout, k->dtype) || !type_allowed(&of->layout, v->dtype) ||
        (tokens && sequences && (!k->data || !v->data))) {
        status = CCMEM_ERR_ARGUMENT;
    } else if (tokens && sequences) {
        const ccmem_cache_rows in[2] = {*k, *v};
        append a = {.pool = cache->pool,
                    .layer = of,
                    .in = in,
                    .tokens = tokens,
                    .from = sequence,
                    .n = sequences};
        status = append_all(&a);
    }
    cache_leave(cache);
    return status;
}
