/* SPDX-License-Identifier: Apache-2.0
 * Rows of K or V in the clear, for a caller that has an attention of its own. */
#include "cache/cache.h"
#include "cache/stage.h"
#include "memory/secret.h"
#include "platform/dtype.h"
#include "platform/float_env.h"
#include "platform/threads.h"
#include "store/store.h"

enum { GRAIN = 256 << 10 }; /* bytes that are worth another thread */

typedef struct reading {
    cache_pool *pool;
    const cache_layout *l;
    const cache_sequence *s;
    const ccmem_cache_rows *out;
    size_t element; /* of these */
    uint64_t first, tokens;
    int which;
    outcome end;
} reading;

static void *out_row(const reading *r, size_t head, uint64_t token) {
    return (void *)rows_at(r->out, r->element, 0, head, token - r->first);
}

/* What is asked for of group number g. 0: a block was changed. */
static int read_group(const reading *r, uint64_t g, uint8_t *plain, uint8_t *row, float *floats) {
    const cache_layout *l = r->l;
    const uint64_t at = sequence_first(r->s, l) + g * l->tokens;
    const uint64_t from = at < r->first ? r->first : at, last = r->first + r->tokens;
    const uint64_t to = at + l->tokens < last ? at + l->tokens : last;
    for (size_t h = 0; h < l->heads; h++) {
        if (!group_open(r->pool, l, &sequence_groups(r->s)[g], r->which, h, plain))
            return 0;
        for (uint64_t t = from; t < to; t++) {
            stage_row_of_block(l, r->which, row, plain, t - at);
            stage_out(l, r->which, out_row(r, h, t), row,
                      plain + layout_block_scales(l, r->which) + (t - at) * sizeof(float), floats);
        }
    }
    pool_opened(r->pool, l->heads);
    return 1;
}

static int read_record(const reading *r, uint64_t i, uint8_t *plain, float *floats) {
    const cache_layout *l = r->l;
    const uint64_t at = sequence_length(r->s, l) - r->s->records + i;
    if (at < r->first || at >= r->first + r->tokens)
        return 1;
    if (!record_open(r->pool, l, &sequence_records(r->s)[i], plain))
        return 0;
    pool_opened(r->pool, 1);
    for (size_t h = 0; h < l->heads; h++)
        stage_out(l, r->which, out_row(r, h, at), plain + layout_record_row(l, r->which, h),
                  plain + layout_record_scale(l, r->which, h), floats);
    return 1;
}

/* Items [begin, end): groups, and after the last of them the records as one. */
static void read_items(void *arg, uint64_t begin, uint64_t end) {
    reading *r = arg;
    const cache_layout *l = r->l;
    const size_t room = l->block[r->which] > l->record ? l->block[r->which] : l->record;
    const uint64_t skip = r->first - sequence_first(r->s, l);
    uint8_t *plain;
    ccmem_status status = ccmem_plain_alloc(room + l->row[r->which] + stage_floats(l), &plain);
    if (status != CCMEM_OK) {
        outcome_stop(&r->end, status);
        return;
    }
    uint8_t *row = plain + room;
    float *floats = (float *)(row + l->row[r->which]);
    const float_env env = float_env_default();
    for (uint64_t i = begin; i < end && !outcome_stopped(&r->end); i++) {
        const uint64_t g = skip / l->tokens + i;
        int good = 1;
        if (g < r->s->groups)
            good = read_group(r, g, plain, row, floats);
        else
            for (uint64_t record = 0; good && record < r->s->records; record++)
                good = read_record(r, record, plain, floats);
        if (!good)
            outcome_stop(&r->end, CCMEM_ERR_INTEGRITY);
    }
    float_env_restore(env);
    ccmem_plain_free(plain);
}

static ccmem_status read_rows(reading *r) {
    const cache_layout *l = r->l;
    const uint64_t start = sequence_first(r->s, l), length = sequence_length(r->s, l);
    if (r->first < start || r->tokens > length || r->first > length - r->tokens)
        return CCMEM_ERR_RANGE;
    if (!r->tokens)
        return CCMEM_OK;
    const uint64_t g0 = (r->first - start) / l->tokens,
                   g1 = (r->first + r->tokens - 1 - start) / l->tokens;
    /* The last item is the records', which lie behind the groups as if they were one more. */
    const uint64_t items =
        (g1 < r->s->groups ? g1 : r->s->groups) - (g0 < r->s->groups ? g0 : r->s->groups) + 1;
    const size_t bytes = l->heads * l->block[r->which];
    parallel_for(items, bytes < GRAIN ? GRAIN / bytes : 1, read_items, r);
    const ccmem_status status = outcome_end(&r->end);
    if (status != CCMEM_OK)
        for (size_t h = 0; h < l->heads; h++)
            for (uint64_t t = 0; t < r->tokens; t++)
                ccmem_wipe(out_row(r, h, r->first + t), l->size[r->which] * r->element);
    return status;
}

ccmem_status ccmem_cache_read(ccmem_cache *cache, uint32_t layer, uint32_t sequence, int which,
                              uint64_t first, uint64_t tokens, const ccmem_cache_rows *out) {
    cache_layer *of;
    ccmem_status status = cache_enter(cache, layer, 0, &of);
    if (status != CCMEM_OK)
        return status;
    const ccmem_dtype wanted = of->layout.dtype == CCMEM_I8 ? CCMEM_F32 : of->layout.dtype;
    if (sequence >= of->n || (which != CACHE_K && which != CACHE_V) || out->dtype != wanted ||
        (tokens && !out->data)) {
        status = CCMEM_ERR_ARGUMENT;
    } else {
        reading r = {.pool = cache->pool,
                     .l = &of->layout,
                     .s = &of->sequence[sequence],
                     .out = out,
                     .element = dtype_size(wanted),
                     .first = first,
                     .tokens = tokens,
                     .which = which};
        status = read_rows(&r);
    }
    cache_leave(cache);
    return status;
}
