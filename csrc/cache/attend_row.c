/* SPDX-License-Identifier: Apache-2.0
 * What both ways of computing an attention do with a row: what it sees, what is opened for it, its
 * query, mask, softmax and result. */
#include "cache/attend.h"

#include <math.h>
#include <string.h>

#include "memory/secret.h"
#include "platform/dtype.h"

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
    /* Tokens that were evicted are nowhere, not even as an empty range. */
    high = high < first ? first : high;
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

const uint8_t *attend_block_at(const attend *a, uint64_t i, uint64_t number, uint64_t end,
                               int which, size_t head) {
    const cache_sequence *s = &a->sequence[i];
    if (number >= end || number >= s->groups)
        return NULL;
    return group_block(&sequence_groups(s)[number], a->l, which, head);
}

int attend_open(attend *a, const attend_piece *piece, int which, size_t head, attend_ahead next,
                uint8_t *block, float *scale, const uint8_t **rows, size_t *stride,
                const float **scales) {
    const cache_layout *l = a->l;
    *scales = l->dtype == CCMEM_I8 ? scale : NULL;
    if (piece->group) {
        /* A cache for measuring has nothing to open. */
        const int plain = a->pool->plain;
        *rows = plain ? group_block(piece->group, l, which, head) : block;
        *stride = 0;
        if (l->dtype == CCMEM_I8)
            *scales = (const float *)(*rows + layout_block_scales(l, which));
        if (plain ||
            group_open_next(a->pool, l, piece->group, which, head, block, next.near, next.far))
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

void attend_opened(const attend *a, uint64_t i, uint64_t begin, uint64_t end, size_t heads) {
    const uint64_t groups = a->sequence[i].groups, last = end < groups ? end : groups;
    if (begin < last)
        pool_opened(a->pool, (last - begin) * heads);
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
    /* 1 when the total is 0, without a comparison that could become a branch. */
    uint32_t bits;
    memcpy(&bits, &total, sizeof bits);
    const float none = (float)(1 - ((bits | (0 - bits)) >> 31));
    return factor * (1 - none) / (total + none);
}

void attend_put(const attend *a, uint64_t i, uint64_t query_head, uint64_t r, const float *values,
                size_t n) {
    const ccmem_attention *w = a->w;
    const int64_t at =
        (int64_t)i * w->out_sequence + (int64_t)query_head * w->out_head + (int64_t)r * w->out_row;
    a->ops->store[w->q_dtype]((uint8_t *)w->out + at * (int64_t)dtype_size(w->q_dtype), values, n);
}
