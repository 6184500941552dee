/* SPDX-License-Identifier: Apache-2.0
 * Attention of many rows of q, as of a prompt: a block of rows of q stays in an L2 with a chunk of
 * K and V, each of which is opened once for all of them. Both products are those of kernels/gemm.h:
 *
 *   scores = Q K^T   Q in the place of W; a panel is K transposed, as packing does it
 *   sums   = P V     P, the exponentials, in the place of W; a panel is some columns of V
 *
 * so scores of a row lie side by side for the softmax. */
#include <math.h>
#include <string.h>

#include "cache/attend.h"
#include "memory/secret.h"
#include "platform/float_env.h"
#include "platform/round.h"
#include "platform/threads.h"

enum { LINE = 64, AT_ONCE = 8 /* rows that gemm's transpose() takes */ };

typedef struct blocks_call {
    attend *a;
    size_t width, height; /* of the kernels' blocks */
    size_t rows;          /* of q in a block, whole heights */
    size_t chunk;         /* tokens of K and V at a time: whole pieces, whole widths */
    size_t packed;        /* floats of a row of q */
    size_t wide;          /* and of V, whole widths */
    uint64_t blocks;      /* of a head */
} blocks_call;

/* What a thread works with. */
typedef struct work {
    float *q;      /* [rows][packed] */
    float *k;      /* [chunk / width] panels of [padded K][width] */
    float *v;      /* [wide / width] panels of [chunk][width] */
    float *tile;   /* [height][width] scores as they come */
    float *scores; /* [rows][chunk] */
    float *sums;   /* [rows / height][wide / width] tiles of [height][width] */
    float *most, *total;
    float *row; /* [AT_ONCE][floats of a row] */
    float *scale;
    uint8_t *block;
} work;

/* A block of rows of q: number x of a head is row x / share of its query head x % share. */
typedef struct rows_block {
    uint64_t i;
    size_t head;
    uint64_t first; /* number */
    size_t n;
} rows_block;

/* n floats, whole vectors, by a kernel that leaves none of them in a register. */
static void copy(const attend *a, float *to, const float *from, size_t n) {
    a->gemm->convert[CCMEM_F32](to, (const uint8_t *)from, n);
}

static uint64_t query_head(const blocks_call *c, const rows_block *b, size_t x) {
    return b->head * c->a->share + (b->first + x) % c->a->share;
}

static uint64_t query_row(const blocks_call *c, const rows_block *b, size_t x) {
    return (b->first + x) / c->a->share;
}

static float *tile_of(const blocks_call *c, const work *w, size_t row, size_t panel) {
    return w->sums + (row / c->height * (c->wide / c->width) + panel) * c->height * c->width;
}

/* ---- packing: opened rows as panels ---------------------------------------------------------- */

/* Puts K's rows of a piece at columns [at, at + tokens) of the panels. */
static void pack_k(const blocks_call *c, work *w, const uint8_t *rows, size_t stride,
                   const float *scales, size_t at, size_t tokens) {
    const attend *a = c->a;
    const size_t n = a->l->padded[CACHE_K], floats = attend_floats(n);
    if (!stride) {
        const size_t word = attention_pair(a->l->dtype) * a->l->element;
        for (size_t t = 0, some; t < tokens; t += some) {
            const size_t column = (at + t) % c->width;
            some = c->width - column < tokens - t ? c->width - column : tokens - t;
            a->ops->columns[a->l->dtype](w->k + (at + t) / c->width * n * c->width + column,
                                         c->width, rows + t * word, scales ? scales + t : NULL,
                                         tokens, some, n);
        }
        return;
    }
    for (size_t t = 0; t < tokens; t += AT_ONCE) {
        for (size_t j = 0; j < AT_ONCE; j++) {
            float *row = w->row + j * floats;
            if (t + j >= tokens) {
                memset(row, 0, n * sizeof *row);
                continue;
            }
            a->gemm->convert[a->l->dtype](row, rows + (t + j) * stride, n);
            if (scales)
                a->ops->scale(row, n, scales[t + j]);
        }
        float *panel = w->k + (at + t) / c->width * n * c->width;
        a->gemm->transpose(panel + (at + t) % c->width, (const uint8_t *)w->row,
                           floats * sizeof(float), n);
    }
}

/* Puts V's rows of a piece at rows [at, at + tokens) of the panels. What is read behind a row's end
 * becomes columns that are not used. */
static void pack_v(const blocks_call *c, work *w, const uint8_t *rows, size_t stride,
                   const float *scales, size_t at, size_t tokens) {
    const attend *a = c->a;
    const size_t n = a->l->padded[CACHE_V], pair = attention_pair(a->l->dtype);
    for (size_t e = 0; e < c->wide; e += c->width) {
        float *to = w->v + e * c->chunk + at * c->width;
        if (!stride && pair > 1) {
            a->ops->columns[a->l->dtype](to, c->width, rows + e * pair * a->l->element, NULL, n,
                                         c->width < n - e ? c->width : n - e, tokens);
        } else {
            const size_t step = stride ? stride : a->l->row[CACHE_V];
            for (size_t t = 0; t < tokens; t++)
                a->gemm->convert[a->l->dtype](to + t * c->width,
                                              rows + t * step + e * a->l->element, c->width);
        }
        for (size_t t = 0; t < tokens && scales; t++)
            a->ops->scale(to + t * c->width, c->width, scales[t]);
    }
}

/* Opens pieces [begin, end) of K or V and packs them; *n tokens. 0: stopped. */
static int pack(const blocks_call *c, const rows_block *b, work *w, int which, uint64_t begin,
                uint64_t end, size_t *n) {
    attend *a = c->a;
    *n = 0;
    for (uint64_t at = begin; at < end; at++) {
        const attend_piece piece = attend_piece_of(a, b->i, at);
        const uint8_t *rows;
        const float *scales;
        size_t stride;
        const attend_ahead next = {attend_block_at(a, b->i, at + 1, end, which, b->head),
                                   attend_block_at(a, b->i, at + 2, end, which, b->head)};
        if (!attend_open(a, &piece, which, b->head, next, w->block, w->scale, &rows, &stride,
                         &scales))
            return 0;
        (which ? pack_v : pack_k)(c, w, rows, stride, scales, *n, piece.tokens);
        *n += piece.tokens;
    }
    attend_opened(a, b->i, begin, end, 1);
    return 1;
}

/* ---- products -------------------------------------------------------------------------------- */

/* Scores of a block with n packed tokens. What stands behind the last token is -infinity. */
static void compute_scores(const blocks_call *c, const rows_block *b, work *w, uint64_t first,
                           size_t n) {
    const attend *a = c->a;
    const size_t k = a->l->padded[CACHE_K];
    for (size_t at = 0; at < n; at += c->width)
        for (size_t x = 0; x < b->n; x += c->height) {
            a->gemm->panel[1](w->tile, w->q + x * c->packed, c->packed, w->k + at * k, k, 0,
                              (gemm_ahead){w->k, w->k});
            for (size_t j = 0; j < c->height; j++)
                copy(a, w->scores + (x + j) * c->chunk + at, w->tile + j * c->width, c->width);
        }
    for (size_t x = 0; x < b->n; x++) {
        float *scores = w->scores + x * c->chunk;
        attend_mask(a, b->i, query_head(c, b, x), query_row(c, b, x), scores, first, n);
        const float factor = attend_softmax(a, scores, n, &w->most[x], &w->total[x]);
        for (size_t e = 0; e < c->wide; e += c->width)
            a->ops->scale(tile_of(c, w, x, e / c->width) + x % c->height * c->width, c->width,
                          factor);
    }
}

static void add_sums(const blocks_call *c, const rows_block *b, work *w, size_t n) {
    for (size_t e = 0; e < c->wide; e += c->width)
        for (size_t x = 0; x < b->n; x += c->height)
            c->a->gemm->panel[1](tile_of(c, w, x, e / c->width), w->scores + x * c->chunk, c->chunk,
                                 w->v + e * c->chunk, n, 1, (gemm_ahead){w->v, w->v});
}

static void put_rows(const blocks_call *c, const rows_block *b, work *w) {
    const attend *a = c->a;
    for (size_t x = 0; x < b->n; x++) {
        const uint64_t h = query_head(c, b, x);
        const float share = attend_share(a, h, w->most[x], w->total[x]);
        for (size_t e = 0; e < c->wide; e += c->width)
            copy(a, w->row + e, tile_of(c, w, x, e / c->width) + x % c->height * c->width,
                 c->width);
        a->ops->scale(w->row, c->wide, share);
        attend_put(a, b->i, h, query_row(c, b, x), w->row, a->l->size[CACHE_V]);
    }
}

/* ---- blocks ---------------------------------------------------------------------------------- */

static void begin_block(const blocks_call *c, const rows_block *b, work *w) {
    const attend *a = c->a;
    const size_t d = a->l->size[CACHE_K];
    memset(w->q, 0, c->rows * c->packed * sizeof(float));
    memset(w->sums, 0, c->rows * c->wide * sizeof(float));
    memset(w->total, 0, c->rows * sizeof(float));
    for (size_t x = 0; x < b->n; x++) {
        attend_query(a, b->i, query_head(c, b, x), query_row(c, b, x), w->row);
        a->ops->scale(w->row, d, a->w->scale);
        copy_secret(w->q + x * c->packed, w->row, d * sizeof(float));
        w->most[x] = -INFINITY;
    }
}

static void attend_block(const blocks_call *c, const rows_block *b, work *w) {
    attend *a = c->a;
    uint64_t from, to, ignored;
    begin_block(c, b, w);
    attend_range(a, b->i, query_row(c, b, 0), &from, &ignored);
    attend_range(a, b->i, query_row(c, b, b->n - 1), &ignored, &to);
    const uint64_t begin = from < to ? attend_piece_at(a, b->i, from) : 0,
                   end = from < to ? attend_piece_at(a, b->i, to - 1) + 1 : 0;
    const uint64_t pieces = c->chunk / a->l->tokens;
    for (uint64_t at = begin; at < end && !outcome_stopped(&a->end); at += pieces) {
        const uint64_t next = at + pieces < end ? at + pieces : end;
        const uint64_t first = attend_piece_of(a, b->i, at).first;
        size_t n;
        if (!pack(c, b, w, CACHE_K, at, next, &n))
            return;
        compute_scores(c, b, w, first, n);
        if (!pack(c, b, w, CACHE_V, at, next, &n))
            return;
        add_sums(c, b, w, n);
    }
    if (!outcome_stopped(&a->end))
        put_rows(c, b, w);
}

static size_t most_of(size_t a, size_t b) { return a > b ? a : b; }

CLEAR_REGISTERS static void run_blocks(void *arg, uint64_t begin, uint64_t end) {
    blocks_call *c = arg;
    attend *a = c->a;
    const cache_layout *l = a->l;
    const size_t k = l->padded[CACHE_K], row = attend_floats(most_of(k, c->wide)) + c->width;
    const size_t floats[] = {c->rows * c->packed,
                             c->chunk * k + c->width,
                             c->chunk * c->wide,
                             c->height * c->width,
                             c->rows * c->chunk,
                             c->rows * c->wide,
                             c->rows,
                             c->rows,
                             AT_ONCE * row,
                             l->tokens};
    const size_t count = sizeof floats / sizeof *floats;
    float *at[sizeof floats / sizeof *floats];
    size_t total = 0;
    for (size_t i = 0; i < count; i++)
        total += round_up(floats[i], LINE);
    uint8_t *scratch;
    ccmem_status status = ccmem_plain_alloc(
        total * sizeof(float) + most_of(l->block[0], l->block[1]) + LINE * sizeof(float), &scratch);
    if (status != CCMEM_OK) {
        outcome_stop(&a->end, status);
        return;
    }
    at[0] = (float *)scratch;
    for (size_t i = 1; i < count; i++)
        at[i] = at[i - 1] + round_up(floats[i - 1], LINE);
    work w = {at[0],
              at[1],
              at[2],
              at[3],
              at[4],
              at[5],
              at[6],
              at[7],
              at[8],
              at[9],
              (uint8_t *)(at[count - 1] + round_up(floats[count - 1], LINE))};
    const float_env env = float_env_default();
    for (uint64_t number = begin; number < end && !outcome_stopped(&a->end); number++) {
        const uint64_t rows = a->w->rows * a->share, block = number % c->blocks;
        const uint64_t first = block * c->rows;
        const rows_block b = {.i = number / c->blocks / l->heads,
                              .head = (size_t)(number / c->blocks % l->heads),
                              .first = first,
                              .n = (size_t)(rows - first < c->rows ? rows - first : c->rows)};
        attend_block(c, &b, &w);
    }
    float_env_restore(env);
    ccmem_plain_free(scratch);
    burn_stack_of_kernels(); /* see pool_open_next() */
}

void attend_blocks(attend *a) {
    const size_t width = a->gemm->width, height = a->gemm->height[1];
    blocks_call c = {.a = a,
                     .width = width,
                     .height = height,
                     .packed = attend_floats(a->l->padded[CACHE_K]),
                     .wide = round_up(a->l->size[CACHE_V], width)};
    const uint64_t rows = a->w->rows * a->share;
    c.rows =
        round_up(rows < a->sizes->attention_rows ? (size_t)rows : a->sizes->attention_rows, height);
    c.blocks = (rows + c.rows - 1) / c.rows;
    c.chunk = round_up(a->sizes->attention_tokens, a->l->tokens);
    while (c.chunk % width)
        c.chunk += a->l->tokens;
    const uint64_t items = a->w->sequences * a->l->heads * c.blocks;
    parallel_for(items, 1, run_blocks, &c);
}
