/* SPDX-License-Identifier: Apache-2.0
 * Attention over a cache: checked, the records opened, one of two ways chosen, zeros on failure. */
#include "cache/attend.h"

#include <math.h>
#include <string.h>

#include "memory/secret.h"
#include "platform/dtype.h"
#include "platform/float_env.h"
#include "platform/threads.h"

/* ---- what a row sees ------------------------------------------------------------------------- */

static uint64_t length_of(const attend *a, uint64_t i) {
    return sequence_length(&a->sequence[i], a->l);
}

void attend_range(const attend *a, uint64_t i, uint64_t r, uint64_t *from, uint64_t *to) {
    const ccmem_attention *w = a->w;
    const uint64_t length = length_of(a, i), first = sequence_first(&a->sequence[i], a->l);
    /* One past the row's position; 0 for a row before the first token. */
    const uint64_t end = length + r + 1 > w->rows ? length + r + 1 - w->rows : 0;
    uint64_t low = first, high = w->causal ? end : length;
    if (w->window && end > w->window && end - w->window > low)
        low = end - w->window;
    if (w->from && w->from[i] > low)
        low = w->from[i];
    if (w->to && w->to[i] < high)
        high = w->to[i];
    if (w->mask && w->mask_tokens < high)
        high = w->mask_tokens;
    *from = low < high ? low : high;
    *to = high;
}

uint64_t attend_pieces(const attend *a, uint64_t i) {
    return a->sequence[i].groups + (a->sequence[i].records != 0);
}

uint64_t attend_piece_at(const attend *a, uint64_t i, uint64_t token) {
    const uint64_t number = (token - sequence_first(&a->sequence[i], a->l)) / a->l->tokens;
    return number < a->sequence[i].groups ? number : a->sequence[i].groups;
}

attend_piece attend_piece_of(const attend *a, uint64_t i, uint64_t number) {
    const cache_sequence *s = &a->sequence[i];
    const uint64_t first = sequence_first(s, a->l) + number * a->l->tokens;
    if (number < s->groups)
        return (attend_piece){first, a->l->tokens, &sequence_groups(s)[number], NULL};
    return (attend_piece){first, (size_t)s->records, NULL, a->tails + i * a->tail};
}

int attend_open(attend *a, const attend_piece *piece, int which, size_t head, uint8_t *block,
                float *scale, const uint8_t **rows, size_t *stride, const float **scales) {
    const cache_layout *l = a->l;
    *scales = l->dtype == CCMEM_I8 ? scale : NULL;
    if (piece->group) {
        /* A cache for measuring has nothing to open. */
        const int plain = a->pool->plain;
        *rows = plain ? piece->group->slot->data + layout_block(l, which, head) : block;
        *stride = l->row[which];
        if (l->dtype == CCMEM_I8)
            *scales = (const float *)(*rows + layout_block_scales(l, which));
        if (plain || group_open(a->pool, l, piece->group, which, head, block))
            return 1;
        outcome_stop(&a->end, CCMEM_ERR_INTEGRITY);
        return 0;
    }
    *rows = piece->tail + layout_record_row(l, which, head);
    *stride = l->record;
    for (size_t t = 0; *scales && t < piece->tokens; t++)
        copy_secret(scale + t, piece->tail + t * l->record + layout_record_scale(l, which, head),
                    sizeof *scale);
    return 1;
}

static void open_tails(void *arg, uint64_t begin, uint64_t end) {
    attend *a = arg;
    for (uint64_t i = begin; i < end; i++) {
        const cache_sequence *s = &a->sequence[i];
        for (uint64_t r = 0; r < s->records; r++)
            if (!record_open(a->pool, a->l, &sequence_records(s)[r],
                             a->tails + i * a->tail + r * a->l->record)) {
                outcome_stop(&a->end, CCMEM_ERR_INTEGRITY);
                return;
            }
    }
}

/* ---- rows of q, of scores, of the result ----------------------------------------------------- */

void attend_query(const attend *a, uint64_t i, uint64_t query_head, uint64_t r, float *to) {
    const ccmem_attention *w = a->w;
    const int64_t at =
        (int64_t)i * w->q_sequence + (int64_t)query_head * w->q_head + (int64_t)r * w->q_row;
    const size_t element = dtype_size(w->q_dtype), n = a->l->size[CACHE_K];
    uint8_t raw[CCMEM_CACHE_ROW_MAX * sizeof(float) + 64];
    /* A conversion reads a vector at a time, and the caller's memory may end with the row. */
    copy_secret(raw, (const uint8_t *)w->q + at * (int64_t)element, n * element);
    a->gemm->convert[w->q_dtype](to, raw, n);
    ccmem_wipe(raw, n * element);
}

CLEAR_REGISTERS void attend_mask(const attend *a, uint64_t i, uint64_t query_head, uint64_t r,
                                 float *scores, uint64_t first, size_t n) {
    const ccmem_attention *w = a->w;
    uint64_t from, to;
    attend_range(a, i, r, &from, &to);
    if (w->softcap != 0)
        a->ops->soften(scores, n, w->softcap);
    if (w->mask) {
        const float *mask = w->mask + (int64_t)i * w->mask_sequence +
                            (int64_t)query_head * w->mask_head + (int64_t)r * w->mask_row + first;
        for (size_t t = 0; t < n && first + t < to; t++)
            scores[t] += mask[t];
    }
    for (size_t t = 0; t < n && first + t < from; t++)
        scores[t] = -INFINITY;
    for (size_t t = to > first ? (size_t)(to - first) : 0; t < n; t++)
        scores[t] = -INFINITY;
}

CLEAR_REGISTERS float attend_softmax(const attend *a, float *scores, size_t n, float *most,
                                     float *total) {
    float both[2] = {*most, a->ops->highest(scores, n)}, factor = *most;
    const float now = a->ops->highest(both, 2);
    (void)a->ops->exponentials(&factor, 1, now);
    *total = *total * factor + a->ops->exponentials(scores, n, now);
    *most = now;
    return factor;
}

CLEAR_REGISTERS float attend_share(const attend *a, uint64_t query_head, float most, float total) {
    float factor = 1;
    if (a->w->sinks) {
        float sink = a->w->sinks[query_head];
        factor = attend_softmax(a, &sink, 1, &most, &total);
    }
    const float none = (float)(total == 0); /* that a row sees nothing is no secret */
    return factor * (1 - none) / (total + none);
}

void attend_put(const attend *a, uint64_t i, uint64_t query_head, uint64_t r, const float *values,
                size_t n) {
    const ccmem_attention *w = a->w;
    const int64_t at =
        (int64_t)i * w->out_sequence + (int64_t)query_head * w->out_head + (int64_t)r * w->out_row;
    a->ops->store[w->q_dtype]((uint8_t *)w->out + at * (int64_t)dtype_size(w->q_dtype), values, n);
}

/* ---- the call -------------------------------------------------------------------------------- */

static int sensible(const ccmem_attention *w, const cache_layer *layer) {
    const size_t heads = layer->layout.heads;
    return w->sequence <= layer->n && w->sequences <= layer->n - w->sequence && w->query_heads &&
           w->query_heads % heads == 0 && w->rows <= (uint64_t)1 << 40 &&
           (w->q_dtype == CCMEM_F32 || w->q_dtype == CCMEM_F16 || w->q_dtype == CCMEM_BF16) &&
           (!w->rows || !w->sequences || (w->q && w->out)) && isfinite(w->scale) &&
           isfinite(w->softcap) && w->softcap >= 0;
}

static void zero_out(const attend *a) {
    const ccmem_attention *w = a->w;
    const size_t element = dtype_size(w->q_dtype), n = a->l->size[CACHE_V] * element;
    for (uint64_t i = 0; i < w->sequences; i++)
        for (uint64_t h = 0; h < w->query_heads; h++)
            for (uint64_t r = 0; r < w->rows; r++)
                ccmem_wipe((uint8_t *)w->out +
                               ((int64_t)i * w->out_sequence + (int64_t)h * w->out_head +
                                (int64_t)r * w->out_row) *
                                   (int64_t)element,
                           n);
}

static ccmem_status attend_all(attend *a) {
    const ccmem_attention *w = a->w;
    uint64_t records = 0;
    for (uint64_t i = 0; i < w->sequences; i++)
        if (a->sequence[i].records > records)
            records = a->sequence[i].records;
    /* What follows the last row is read by vectors, not used. */
    a->tail = (size_t)records * a->l->record;
    ccmem_status status = ccmem_plain_alloc(a->tail * w->sequences + 4096, &a->tails);
    if (status != CCMEM_OK)
        return status;
    parallel_for(w->sequences,
                 a->tail && a->tail < a->sizes->open ? a->sizes->open / a->tail + 1 : 1, open_tails,
                 a);
    if (!outcome_stopped(&a->end)) {
        if (w->rows * a->share > a->sizes->attention_few)
            attend_blocks(a);
        else
            attend_rows(a);
    }
    ccmem_plain_free(a->tails);
    return outcome_end(&a->end);
}

ccmem_status ccmem_cache_attend(ccmem_cache *cache, const ccmem_attention *what) {
    cache_layer *layer;
    ccmem_status status = cache_enter(cache, what->layer, 0, &layer);
    if (status != CCMEM_OK)
        return status;
    if (!sensible(what, layer)) {
        cache_leave(cache);
        return CCMEM_ERR_ARGUMENT;
    }
    const tier_kernels kernels = tier_active_kernels();
    attend a = {.w = what,
                .pool = cache->pool,
                .l = &layer->layout,
                .sequence = layer->sequence + what->sequence,
                .ops = kernels.attention,
                .gemm = kernels.gemm,
                .sizes = tier_active_sizes(),
                .share = what->query_heads / layer->layout.heads};
    if (what->rows && what->sequences) {
        status = attend_all(&a);
        if (status != CCMEM_OK)
            zero_out(&a);
        burn_stack();
    }
    cache_leave(cache);
    return status;
}
