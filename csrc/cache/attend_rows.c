/* SPDX-License-Identifier: Apache-2.0
 * Attention of few rows of q, as while a model writes: each block of K and V is opened into an L1
 * and used for all rows that share it. The scores of a chunk of tokens are computed first, then its
 * softmax, then its sums, so that maxima and factors are computed for hundreds of tokens at once.
 */
#include <string.h>

#include "cache/attend.h"
#include "memory/secret.h"
#include "platform/float_env.h"
#include "platform/threads.h"

enum { LINE = 64 };

/* The rows of one head of a sequence over some of its pieces. */
typedef struct part {
    uint64_t i;
    size_t head;
    uint64_t begin, end; /* pieces */
    float *most, *total; /* of each row */
    float *sums;         /* rows of `wide` floats */
} part;

typedef struct rows_call {
    attend *a;
    size_t n;       /* rows of a head: `share` query heads of w->rows each */
    size_t wide;    /* floats of a row of sums */
    size_t packed;  /* floats of a packed row of q */
    size_t chunk;   /* pieces whose scores are computed at a time */
    size_t lds;     /* floats of a row of scores */
    uint64_t parts; /* of a head */
    float *results; /* of all parts */
} rows_call;

/* What a thread works with. */
typedef struct work {
    float *q, *packed, *scores, *scale;
    uint8_t *block;
} work;

static size_t lines(size_t n) { return (n + LINE - 1) / LINE * LINE; }

static size_t result_floats(const rows_call *c) { return c->n * c->wide + lines(2 * c->n); }

static part part_of(const rows_call *c, uint64_t number) {
    const attend *a = c->a;
    const uint64_t each = c->parts, head = number / each % a->l->heads;
    float *at = c->results + number * result_floats(c);
    part p = {.i = number / each / a->l->heads,
              .head = (size_t)head,
              .sums = at,
              .most = at + c->n * c->wide,
              .total = at + c->n * c->wide + c->n};
    uint64_t from, to, ignored;
    attend_range(a, p.i, 0, &from, &ignored);
    attend_range(a, p.i, a->w->rows - 1, &ignored, &to);
    if (from < to) {
        const uint64_t first = attend_piece_at(a, p.i, from),
                       pieces = attend_piece_at(a, p.i, to - 1) + 1 - first;
        p.begin = first + pieces * (number % each) / each;
        p.end = first + pieces * (number % each + 1) / each;
    }
    return p;
}

/* Has the block that is opened next on its way from memory: blocks of a head lie a group apart,
 * which no prefetcher of a processor foresees. */
static void prefetch(const rows_call *c, const part *p, int which, uint64_t number, int half) {
    const attend *a = c->a;
    if (number >= p->end || number >= a->sequence[p->i].groups)
        return;
    const cache_entry *group = &sequence_groups(&a->sequence[p->i])[number];
    const uint8_t *block = group->slot->data + layout_block(a->l, which, p->head);
    const size_t middle = a->l->block[which] / 2 / LINE * LINE;
    const size_t end = half ? a->l->block[which] : middle;
    for (size_t at = half ? middle : 0; at < end; at += LINE)
        __builtin_prefetch(block + at, 0, 3);
}

static uint64_t query_head(const rows_call *c, const part *p, size_t row) {
    return p->head * c->a->share + row / c->a->w->rows;
}

/* Scores of pieces [begin, end) to w->scores; *n tokens of them. 0: stopped. */
static int add_scores(const rows_call *c, const part *p, work *w, uint64_t begin, uint64_t end,
                      size_t *n) {
    attend *a = c->a;
    const cache_layout *l = a->l;
    *n = 0;
    for (uint64_t at = begin; at < end; at++) {
        const attend_piece piece = attend_piece_of(a, p->i, at);
        const uint8_t *rows;
        const float *scales;
        size_t stride;
        const int then = at + 1 < end ? CACHE_K : CACHE_V;
        const uint64_t next = at + 1 < end ? at + 1 : begin;
        prefetch(c, p, then, next, 0);
        if (!attend_open(a, &piece, CACHE_K, p->head, w->block, w->scale, &rows, &stride, &scales))
            return 0;
        prefetch(c, p, then, next, 1);
        a->ops->scores[l->dtype](w->scores + *n, c->lds, rows, stride, scales, piece.tokens,
                                 l->padded[CACHE_K], w->packed, c->packed, c->n);
        *n += piece.tokens;
    }
    return 1;
}

static int add_sums(const rows_call *c, const part *p, work *w, uint64_t begin, uint64_t end) {
    attend *a = c->a;
    const cache_layout *l = a->l;
    const float *scores = w->scores;
    for (uint64_t at = begin; at < end; at++) {
        const attend_piece piece = attend_piece_of(a, p->i, at);
        const uint8_t *rows;
        const float *scales;
        size_t stride;
        const int then = at + 1 < end ? CACHE_V : CACHE_K;
        prefetch(c, p, then, at + 1, 0);
        if (!attend_open(a, &piece, CACHE_V, p->head, w->block, w->scale, &rows, &stride, &scales))
            return 0;
        prefetch(c, p, then, at + 1, 1);
        a->ops->sums[l->dtype](p->sums, c->wide, scores, c->lds, rows, stride, scales, piece.tokens,
                               l->padded[CACHE_V], c->n);
        scores += piece.tokens;
    }
    return 1;
}

static void attend_part(const rows_call *c, const part *p, work *w) {
    const attend *a = c->a;
    const size_t d = a->l->size[CACHE_K];
    for (size_t row = 0; row < c->n; row++) {
        attend_query(a, p->i, query_head(c, p, row), row % a->w->rows, w->q);
        a->ops->pack[a->l->dtype](w->packed + row * c->packed, w->q, d, a->w->scale);
        p->most[row] = -__builtin_inff();
    }
    for (uint64_t at = p->begin; at < p->end && !outcome_stopped(&a->end); at += c->chunk) {
        const uint64_t end = at + c->chunk < p->end ? at + c->chunk : p->end;
        const uint64_t first = attend_piece_of(a, p->i, at).first;
        size_t n;
        if (!add_scores(c, p, w, at, end, &n))
            return;
        for (size_t row = 0; row < c->n; row++) {
            float *scores = w->scores + row * c->lds;
            attend_mask(a, p->i, query_head(c, p, row), row % a->w->rows, scores, first, n);
            const float factor = attend_softmax(a, scores, n, &p->most[row], &p->total[row]);
            if (at != p->begin)
                a->ops->scale(p->sums + row * c->wide, c->wide, factor);
        }
        if (!add_sums(c, p, w, at, end))
            return;
    }
}

CLEAR_REGISTERS static void run_parts(void *arg, uint64_t begin, uint64_t end) {
    rows_call *c = arg;
    attend *a = c->a;
    const cache_layout *l = a->l;
    const size_t block = l->block[0] > l->block[1] ? l->block[0] : l->block[1];
    const size_t floats =
        attend_floats(l->padded[CACHE_K]) + c->n * c->packed + c->n * c->lds + lines(l->tokens);
    uint8_t *scratch;
    ccmem_status status = ccmem_plain_alloc(floats * sizeof(float) + block + LINE, &scratch);
    if (status != CCMEM_OK) {
        outcome_stop(&a->end, status);
        return;
    }
    work w = {.block = scratch};
    w.packed = (float *)(scratch + lines(block));
    w.scores = w.packed + c->n * c->packed;
    w.q = w.scores + c->n * c->lds;
    w.scale = w.q + attend_floats(l->padded[CACHE_K]);
    const float_env env = float_env_default();
    for (uint64_t number = begin; number < end && !outcome_stopped(&a->end); number++) {
        const part p = part_of(c, number);
        attend_part(c, &p, &w);
    }
    float_env_restore(env);
    ccmem_plain_free(scratch);
}

/* Puts together what the parts of a head have of a row, and hands it out. */
CLEAR_REGISTERS static void finish_row(const rows_call *c, uint64_t i, size_t head, size_t row,
                                       float *values) {
    const attend *a = c->a;
    const uint64_t first = (i * a->l->heads + head) * c->parts;
    part all = part_of(c, first);
    for (uint64_t k = 1; k < c->parts; k++) {
        const part p = part_of(c, first + k);
        /* exp(most - the higher one) of each, without a branch on which it is. */
        float factor[2] = {all.most[row], p.most[row]};
        const float now = a->ops->highest(factor, 2);
        (void)a->ops->exponentials(factor, 2, now);
        float *sums = all.sums + row * c->wide, *more = p.sums + row * c->wide;
        a->ops->scale(sums, c->wide, factor[0]);
        a->ops->scale(more, c->wide, factor[1]);
        for (size_t e = 0; e < c->wide; e++)
            sums[e] += more[e];
        all.total[row] = all.total[row] * factor[0] + p.total[row] * factor[1];
        all.most[row] = now;
    }
    const uint64_t h = query_head(c, &all, row);
    a->ops->unpack[a->l->dtype](values, all.sums + row * c->wide, a->l->size[CACHE_V],
                                attend_share(a, h, all.most[row], all.total[row]));
    attend_put(a, i, h, row % a->w->rows, values, a->l->size[CACHE_V]);
}

/* Into how many parts a head is cut: for each thread to have some, of at least part_tokens. */
static uint64_t parts_of(const attend *a) {
    const uint64_t heads = a->w->sequences * a->l->heads, threads = ccmem_threads();
    uint64_t longest = 0, parts;
    for (uint64_t i = 0; i < a->w->sequences; i++) {
        const uint64_t n = sequence_length(&a->sequence[i], a->l);
        longest = n > longest ? n : longest;
    }
    parts = longest / a->sizes->attention_part;
    if (heads % threads == 0 || heads >= 4 * threads || !parts)
        return 1;
    return parts < threads ? parts : threads;
}

void attend_rows(attend *a) {
    rows_call c = {.a = a,
                   .n = a->share * (size_t)a->w->rows,
                   .wide = attend_floats(a->l->padded[CACHE_V]),
                   .packed = attend_floats(a->l->padded[CACHE_K]),
                   .parts = parts_of(a)};
    c.chunk = a->sizes->attention_chunk / a->l->tokens;
    if (!c.chunk)
        c.chunk = 1;
    c.lds = c.chunk * a->l->tokens + ATTENTION_FLOATS;
    const uint64_t parts = a->w->sequences * a->l->heads * c.parts;
    const size_t results = (size_t)parts * result_floats(&c);
    uint8_t *block;
    ccmem_status status = ccmem_plain_alloc((results + c.wide) * sizeof(float), &block);
    if (status != CCMEM_OK) {
        outcome_stop(&a->end, status);
        return;
    }
    c.results = (float *)block;
    uint64_t bytes = 0;
    for (uint64_t i = 0; i < a->w->sequences; i++)
        bytes += attend_pieces(a, i) * a->l->group;
    const uint64_t each = bytes / parts + 1;
    parallel_for(parts, each < a->sizes->attention_grain ? a->sizes->attention_grain / each : 1,
                 run_parts, &c);
    if (!outcome_stopped(&a->end)) {
        const float_env env = float_env_default();
        for (uint64_t i = 0; i < a->w->sequences; i++)
            for (size_t head = 0; head < a->l->heads; head++)
                for (size_t row = 0; row < c.n; row++)
                    finish_row(&c, i, head, row, c.results + results);
        float_env_restore(env);
    }
    ccmem_plain_free(block);
}
