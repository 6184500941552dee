/* SPDX-License-Identifier: Apache-2.0
 * Attention of few rows of q, as while a model writes: each block of K and V is opened into an L1
 * and used for all rows that share it. The scores of a chunk of tokens are computed first, then its
 * softmax, then its sums, so that maxima and factors are computed for hundreds of tokens at once.
 * Blocks are opened in the order in which they lie in memory, all heads of a group before the next
 * group: that is what the prefetching of the ciphers is for. */
#include <string.h>

#include "cache/attend.h"
#include "memory/secret.h"
#include "platform/float_env.h"
#include "platform/round.h"
#include "platform/threads.h"

enum {
    LINE = 64,
    PARTS_A_THREAD = 4 /* for threads that are done early to take over from others */
};

typedef struct rows_call {
    attend *a;
    size_t n;       /* rows of a head: `share` query heads of w->rows each */
    size_t wide;    /* floats of a row of sums */
    size_t packed;  /* floats of a packed row of q */
    size_t chunk;   /* pieces whose scores are computed at a time */
    size_t lds;     /* floats of a row of scores */
    uint64_t parts; /* that the tokens of a sequence are cut into, */
    uint64_t cuts;  /* and the heads */
    float *results; /* of each sequence, part and head */
} rows_call;

/* Some heads of a sequence over some of its pieces. */
typedef struct part {
    uint64_t i, number; /* sequence, and part of its tokens */
    size_t head, heads; /* from `head` on */
    uint64_t begin, end;
} part;

/* What there is of a head's rows: sums, and the softmax that they are of. */
typedef struct result {
    float *sums; /* rows of `wide` floats */
    float *most, *total;
} result;

/* What a thread works with. `packed` and `scores` are of all heads of a part. */
typedef struct work {
    float *q, *packed, *scores, *scale;
    uint8_t *block;
} work;

static size_t lines(size_t n) { return round_up(n, LINE); }

static size_t result_floats(const rows_call *c) { return c->n * c->wide + lines(2 * c->n); }

static result result_of(const rows_call *c, uint64_t i, uint64_t number, size_t head) {
    const uint64_t at = (i * c->parts + number) * c->a->l->heads + head;
    float *sums = c->results + at * result_floats(c);
    return (result){sums, sums + c->n * c->wide, sums + c->n * c->wide + c->n};
}

static part part_of(const rows_call *c, uint64_t number) {
    const attend *a = c->a;
    const uint64_t cut = number % c->cuts, k = number / c->cuts % c->parts;
    part p = {.i = number / c->cuts / c->parts, .number = k};
    p.head = (size_t)(a->l->heads * cut / c->cuts);
    p.heads = (size_t)(a->l->heads * (cut + 1) / c->cuts) - p.head;
    uint64_t from, to, ignored;
    attend_range(a, p.i, 0, &from, &ignored);
    attend_range(a, p.i, a->w->rows - 1, &ignored, &to);
    if (from < to) {
        const uint64_t first = attend_piece_at(a, p.i, from),
                       pieces = attend_piece_at(a, p.i, to - 1) + 1 - first;
        p.begin = first + pieces * k / c->parts;
        p.end = first + pieces * (k + 1) / c->parts;
    }
    return p;
}

static uint64_t query_head(const rows_call *c, size_t head, size_t row) {
    return head * c->a->share + row / c->a->w->rows;
}

/* ---- a chunk --------------------------------------------------------------------------------- */

/* The block that is opened `ahead` blocks after K or V of head h of piece `at`, where a chunk is
 * pieces [begin, end). */
static const uint8_t *block_ahead(const rows_call *c, const part *p, int which, uint64_t begin,
                                  uint64_t end, uint64_t at, size_t h, size_t ahead) {
    for (h += ahead; h >= p->heads; h -= p->heads)
        at++;
    if (at >= end) { /* V of this chunk, or K of the next one */
        at -= which == CACHE_K ? end - begin : 0;
        which = !which;
    }
    return attend_block_at(c->a, p->i, at, p->end, which, p->head + h);
}

static attend_ahead look_ahead(const rows_call *c, const part *p, int which, uint64_t begin,
                               uint64_t end, uint64_t at, size_t h) {
    return (attend_ahead){block_ahead(c, p, which, begin, end, at, h, 1),
                          block_ahead(c, p, which, begin, end, at, h, 2)};
}

/* What the kernels fetch while they multiply: where it opens a block in less time than they need,
 * the cipher alone keeps memory busy, and each line that is asked for twice costs time (Zen 4). */
static const uint8_t *fetched(const attend *a, attend_ahead next, const uint8_t *rows) {
    const int by_cipher = !a->pool->plain && a->products != a->ops;
    return next.far && !by_cipher ? next.far : rows;
}

/* Scores of pieces [begin, end) to w->scores; *n tokens of them. 0: stopped. */
static int add_scores(const rows_call *c, const part *p, work *w, uint64_t begin, uint64_t end,
                      size_t *n) {
    attend *a = c->a;
    const cache_layout *l = a->l;
    *n = 0;
    for (uint64_t at = begin; at < end; at++) {
        const attend_piece piece = attend_piece_of(a, p->i, at);
        for (size_t h = 0; h < p->heads; h++) {
            const uint8_t *rows;
            const float *scales;
            size_t stride;
            const attend_ahead next = look_ahead(c, p, CACHE_K, begin, end, at, h);
            if (!attend_open(a, &piece, CACHE_K, p->head + h, next, w->block, w->scale, &rows,
                             &stride, &scales))
                return 0;
            float *to = w->scores + h * c->n * c->lds + *n;
            const float *q = w->packed + h * c->n * c->packed;
            if (stride)
                a->products->scores[l->dtype](to, c->lds, rows, stride, scales, piece.tokens,
                                              l->padded[CACHE_K], q, c->packed, c->n);
            else
                a->products->block_scores[l->dtype](to, c->lds, rows, fetched(a, next, rows),
                                                    scales, piece.tokens, l->padded[CACHE_K], q,
                                                    c->packed, c->n);
        }
        *n += piece.tokens;
    }
    attend_opened(a, p->i, begin, end, p->heads);
    return 1;
}

static int add_sums(const rows_call *c, const part *p, work *w, uint64_t begin, uint64_t end) {
    attend *a = c->a;
    const cache_layout *l = a->l;
    const float *scores = w->scores;
    for (uint64_t at = begin; at < end; at++) {
        const attend_piece piece = attend_piece_of(a, p->i, at);
        for (size_t h = 0; h < p->heads; h++) {
            const uint8_t *rows;
            const float *scales;
            size_t stride;
            const attend_ahead next = look_ahead(c, p, CACHE_V, begin, end, at, h);
            if (!attend_open(a, &piece, CACHE_V, p->head + h, next, w->block, w->scale, &rows,
                             &stride, &scales))
                return 0;
            float *to = result_of(c, p->i, p->number, p->head + h).sums;
            const float *weights = scores + h * c->n * c->lds;
            if (stride)
                a->ops->sums[l->dtype](to, c->wide, weights, c->lds, rows, stride, scales,
                                       piece.tokens, l->padded[CACHE_V], c->n);
            else
                a->products->block_sums[l->dtype](to, c->wide, weights, c->lds, rows,
                                                  fetched(a, next, rows), scales, piece.tokens,
                                                  l->padded[CACHE_V], c->n);
        }
        scores += piece.tokens;
    }
    attend_opened(a, p->i, begin, end, p->heads);
    return 1;
}

/* The softmax of a head's n scores a row, from token `first` on. */
static void soften_scores(const rows_call *c, const part *p, float *scores, size_t head,
                          uint64_t first, size_t n, int again) {
    const attend *a = c->a;
    const result r = result_of(c, p->i, p->number, head);
    for (size_t row = 0; row < c->n; row++, scores += c->lds) {
        attend_mask(a, p->i, query_head(c, head, row), row % a->w->rows, scores, first, n);
        const float factor = attend_softmax(a, scores, n, &r.most[row], &r.total[row]);
        if (again)
            a->ops->scale(r.sums + row * c->wide, c->wide, factor);
    }
}

/* ---- parts ----------------------------------------------------------------------------------- */

static void begin_part(const rows_call *c, const part *p, work *w) {
    const attend *a = c->a;
    for (size_t h = 0; h < p->heads; h++)
        for (size_t row = 0; row < c->n; row++) {
            attend_query(a, p->i, query_head(c, p->head + h, row), row % a->w->rows, w->q);
            a->products->pack[a->l->dtype](w->packed + (h * c->n + row) * c->packed, w->q,
                                           a->l->size[CACHE_K], a->w->scale);
            result_of(c, p->i, p->number, p->head + h).most[row] = -__builtin_inff();
        }
}

static void attend_part(const rows_call *c, const part *p, work *w) {
    const attend *a = c->a;
    begin_part(c, p, w);
    for (uint64_t at = p->begin; at < p->end && !outcome_stopped(&a->end); at += c->chunk) {
        const uint64_t end = at + c->chunk < p->end ? at + c->chunk : p->end;
        const uint64_t first = attend_piece_of(a, p->i, at).first;
        size_t n;
        if (!add_scores(c, p, w, at, end, &n))
            return;
        for (size_t h = 0; h < p->heads; h++)
            soften_scores(c, p, w->scores + h * c->n * c->lds, p->head + h, first, n,
                          at != p->begin);
        if (!add_sums(c, p, w, at, end))
            return;
    }
}

CLEAR_REGISTERS static void run_parts(void *arg, uint64_t begin, uint64_t end) {
    rows_call *c = arg;
    attend *a = c->a;
    const cache_layout *l = a->l;
    const size_t block = l->block[0] > l->block[1] ? l->block[0] : l->block[1];
    const size_t rows = (l->heads + c->cuts - 1) / c->cuts * c->n;
    const size_t q = attend_floats(l->padded[CACHE_K]);
    uint8_t *scratch;
    ccmem_status status =
        ccmem_plain_alloc(lines(block) +
                              (rows * (c->packed + c->lds) + q + lines(l->tokens)) * sizeof(float),
                          &scratch);
    if (status != CCMEM_OK) {
        outcome_stop(&a->end, status);
        return;
    }
    work w = {.block = scratch};
    w.packed = (float *)(scratch + lines(block));
    w.scores = w.packed + rows * c->packed;
    w.q = w.scores + rows * c->lds;
    w.scale = w.q + q;
    const float_env env = float_env_default();
    for (uint64_t number = begin; number < end && !outcome_stopped(&a->end); number++) {
        const part p = part_of(c, number);
        attend_part(c, &p, &w);
    }
    float_env_restore(env);
    ccmem_plain_free(scratch);
    burn_stack_of_kernels(); /* see pool_open_next() */
}

/* Puts together what the parts have of a row, and hands it out. */
CLEAR_REGISTERS static void finish_row(const rows_call *c, uint64_t i, size_t head, size_t row) {
    const attend *a = c->a;
    const result all = result_of(c, i, 0, head);
    float *sums = all.sums + row * c->wide;
    for (uint64_t k = 1; k < c->parts; k++) {
        const result r = result_of(c, i, k, head);
        /* exp(most - the higher one) of each, without a branch on which it is. */
        float factor[2] = {all.most[row], r.most[row]}, *more = r.sums + row * c->wide;
        const float now = a->ops->highest(factor, 2);
        (void)a->ops->exponentials(factor, 2, now);
        a->ops->scale(sums, c->wide, factor[0]);
        a->ops->scale(more, c->wide, factor[1]);
        for (size_t e = 0; e < c->wide; e++)
            sums[e] += more[e];
        all.total[row] = all.total[row] * factor[0] + r.total[row] * factor[1];
        all.most[row] = now;
    }
    const uint64_t h = query_head(c, head, row);
    a->ops->scale(sums, c->wide, attend_share(a, h, all.most[row], all.total[row]));
    attend_put(a, i, h, row % a->w->rows, sums, a->l->size[CACHE_V]);
}

/* Cuts sequences into parts where there are fewer than threads; where they are too short for that,
 * their heads. */
static void cut(rows_call *c) {
    const attend *a = c->a;
    const uint64_t threads = ccmem_threads();
    uint64_t longest = 0;
    c->parts = c->cuts = 1;
    if (threads == 1 || a->w->sequences >= PARTS_A_THREAD * threads)
        return;
    for (uint64_t i = 0; i < a->w->sequences; i++) {
        const uint64_t n = sequence_length(&a->sequence[i], a->l);
        longest = n > longest ? n : longest;
    }
    c->parts = longest / a->sizes->attention_part;
    if (c->parts > PARTS_A_THREAD * threads)
        c->parts = PARTS_A_THREAD * threads;
    if (c->parts < threads) {
        c->parts = 1;
        c->cuts = a->l->heads < threads ? a->l->heads : threads;
    }
}

void attend_rows(attend *a) {
    rows_call c = {.a = a,
                   .n = a->share * (size_t)a->w->rows,
                   .wide = attend_floats(a->l->padded[CACHE_V]),
                   .packed = attend_floats(a->l->padded[CACHE_K])};
    c.chunk = a->sizes->attention_chunk / a->l->tokens;
    if (!c.chunk)
        c.chunk = 1;
    c.lds = c.chunk * a->l->tokens + ATTENTION_FLOATS;
    cut(&c);
    const size_t results = (size_t)(a->w->sequences * c.parts) * a->l->heads * result_floats(&c);
    uint8_t *block;
    ccmem_status status = ccmem_plain_alloc(results * sizeof(float), &block);
    if (status != CCMEM_OK) {
        outcome_stop(&a->end, status);
        return;
    }
    c.results = (float *)block;
    const uint64_t units = a->w->sequences * c.parts * c.cuts;
    uint64_t bytes = 0;
    for (uint64_t i = 0; i < a->w->sequences; i++)
        bytes += attend_pieces(a, i) * a->l->group;
    const uint64_t each = bytes / units + 1;
    parallel_for(units, each < a->sizes->attention_grain ? a->sizes->attention_grain / each : 1,
                 run_parts, &c);
    if (!outcome_stopped(&a->end)) {
        const float_env env = float_env_default();
        for (uint64_t i = 0; i < a->w->sequences; i++)
            for (size_t head = 0; head < a->l->heads; head++)
                for (size_t row = 0; row < c.n; row++)
                    finish_row(&c, i, head, row);
        float_env_restore(env);
    }
    ccmem_plain_free(block);
}
