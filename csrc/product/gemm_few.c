/* SPDX-License-Identifier: Apache-2.0
 *
 * Products of an encrypted matrix with few rows of x, summed along k. Each thread takes groups of
 * W's rows, opens them into memory of its own, which its cache holds, and multiplies them by all
 * rows of x before it takes the next; no thread waits for another. What is added to what, and in
 * which order, depends on in_features and on the tier alone. */
#include <string.h>

#include "memory/secret.h"
#include "platform/float_env.h"
#include "platform/round.h"
#include "platform/threads.h"
#include "product/gemm_call.h"

enum {
    LINE = GEMM_LINE_WORDS * GEMM_WORD,
    SET_BYTES = 4096 /* words so far apart share the few places of one set of an L1 */
};

typedef struct few_call {
    gemm_call *c;
    size_t blocks;    /* of rows of x */
    size_t piece;     /* words of a row of W and of x that are multiplied at a time, */
    size_t kept;      /* and of the sums of pieces */
    const uint8_t *x; /* its rows, ldx words apart */
    size_t ldx;
    int as_is;      /* rows of W are multiplied where they were opened */
    uint64_t group; /* rows of W that are taken at a time */
    uint64_t part;  /* elements of a row that are */
    size_t ldw;     /* words */
    uint64_t next;  /* atomic; the first row of W that no thread has taken */
} few_call;

/* Words of the sums of a block of x with GEMM_DOT_HEIGHT rows of W. */
static size_t block_sums(const few_call *l) {
    return GEMM_DOT_HEIGHT * l->c->ops->dot_rows * l->c->ops->lanes;
}

static size_t rows_words(const few_call *l) { return l->as_is ? 0 : l->group * l->ldw; }

static size_t pages_bytes(const few_call *l) {
    const gemm_call *c = l->c;
    const size_t bytes = (size_t)(l->group * c->p.in_features) * c->element;
    return l->as_is ? fetch_room_whole(c->p.store, bytes) : fetch_room(c->p.store);
}

/* Opens n elements from number `first` on of h rows from `row` on: at `room`, or at *w. */
static ccmem_status fetch_rows(const few_call *l, fetch *f, float *room, uint64_t row, size_t h,
                               uint64_t first, size_t n, const float **w) {
    const gemm_call *c = l->c;
    const uint64_t row_bytes = c->p.in_features * c->element;
    const int whole = n == c->p.in_features;
    if (l->as_is)
        return fetch_whole(f, c->p.offset + row * row_bytes, (size_t)(h * row_bytes),
                           (const uint8_t **)(const void *)w);
    *w = room;
    for (size_t i = 0; i < h; i++) {
        const uint64_t at = c->p.offset + (row + i) * row_bytes + first * c->element;
        const uint64_t end = whole ? at + (h - i) * row_bytes : at + n * c->element;
        uint8_t *to = (uint8_t *)(room + i * l->ldw);
        ccmem_status status = fetch_run(f, to, at, n, end);
        if (status != CCMEM_OK)
            return status;
        memset(to + n * c->unit, 0, l->ldw * GEMM_WORD - n * c->unit);
    }
    return CCMEM_OK;
}

/* What becomes of the sums of the rows of W from `row` on and those of x from r on. */
static gemm_epilogue epilogue_of(const gemm_call *c, uint64_t row, size_t r, uint64_t first,
                                 size_t n) {
    const int last = first + n == c->p.in_features;
    return (gemm_epilogue){.scale = last && c->p.scale ? c->p.scale + row : NULL,
                           .bias = last && c->p.bias ? c->p.bias + row : NULL,
                           .y = gemm_y(c, r, row),
                           .halves = c->p.halves,
                           .ldy = (size_t)c->p.ldy,
                           .add = first > 0};
}

static void multiply(const few_call *l, const float *w, float *kept, uint64_t row, size_t h,
                     uint64_t first, size_t n) {
    const gemm_call *c = l->c;
    const size_t lanes = c->ops->lanes, words = round_up(gemm_words(c, n), lanes);
    const uint8_t *x = l->x + first * c->unit;
    for (size_t k = 0; k < words; k += l->piece) {
        const size_t some = words - k < l->piece ? words - k : l->piece;
        float *sums = kept;
        for (size_t i = 0; i < h; i += GEMM_DOT_HEIGHT)
            for (size_t b = 0; b < l->blocks; b++, sums += block_sums(l)) {
                const size_t r = c->p.nrows * b / l->blocks;
                const size_t rows = c->p.nrows * (b + 1) / l->blocks - r;
                const gemm_epilogue end = epilogue_of(c, row + i, r, first, n);
                c->ops->dot[rows - 1](w + i * l->ldw + k, l->ldw,
                                      h - i < GEMM_DOT_HEIGHT ? h - i : GEMM_DOT_HEIGHT,
                                      x + (r * l->ldx + k) * GEMM_WORD, l->ldx, some / lanes, sums,
                                      k > 0, k + some < words ? NULL : &end);
            }
    }
}

static void multiply_groups(few_call *l, fetch *f, float *room, float *kept) {
    gemm_call *c = l->c;
    while (!outcome_stopped(&c->end)) {
        const uint64_t row = __atomic_fetch_add(&l->next, l->group, __ATOMIC_RELAXED);
        if (row >= c->p.out_features)
            return;
        const uint64_t left = c->p.out_features - row;
        const size_t h = (size_t)(left < l->group ? left : l->group);
        for (uint64_t first = 0, n; first < c->p.in_features; first += n) {
            n = c->p.in_features - first < l->part ? c->p.in_features - first : l->part;
            const float *w;
            ccmem_status status = fetch_rows(l, f, room, row, h, first, (size_t)n, &w);
            if (status != CCMEM_OK) {
                outcome_stop(&c->end, status);
                return;
            }
            multiply(l, w, kept, row, h, first, (size_t)n);
        }
    }
}

static void run_thread(void *arg, uint64_t begin, uint64_t end) {
    few_call *l = arg;
    gemm_call *c = l->c;
    const size_t pages = round_up(pages_bytes(l), LINE);
    const size_t rows = round_up(rows_words(l) * GEMM_WORD, LINE);
    uint8_t *block;
    (void)begin;
    (void)end;
    if (__atomic_load_n(&l->next, __ATOMIC_RELAXED) >= c->p.out_features)
        return;
    ccmem_status status = ccmem_plain_alloc(pages + rows + l->kept * GEMM_WORD, &block);
    if (status != CCMEM_OK) {
        outcome_stop(&c->end, status);
        return;
    }
    fetch f = gemm_fetch(c, block);
    const float_env env = float_env_default();
    multiply_groups(l, &f, (float *)(block + pages), (float *)(block + pages + rows));
    float_env_restore(env);
    burn_stack_of_kernels();
    ccmem_plain_free(block);
}

/* So many rows of W at a time that they take up to `limit` bytes; and whole pages where that can
 * be, as others are opened once more for the next. */
static uint64_t group_of(const few_call *l, size_t limit) {
    const uint64_t row_bytes = l->c->p.in_features * l->c->element;
    uint64_t most = limit / (l->ldw * GEMM_WORD);
    const uint64_t step = fetch_step(l->c->p.store, row_bytes, GEMM_DOT_HEIGHT, most);
    most = most / step * step;
    return most < GEMM_DOT_HEIGHT ? GEMM_DOT_HEIGHT : most;
}

/* Rows of W and of x in pieces of one length, so that those of a block stay in an L1. Their sums
 * are kept meanwhile, where there is more than one. */
static void choose_piece(few_call *l) {
    const gemm_call *c = l->c;
    const size_t lanes = c->ops->lanes, words = round_up(gemm_words(c, l->part), lanes);
    const size_t pieces = (words + c->sizes->few_piece - 1) / c->sizes->few_piece;
    l->piece = round_up((words + pieces - 1) / pieces, lanes);
    if (l->piece < words)
        l->kept = l->group / GEMM_DOT_HEIGHT * l->blocks * block_sums(l);
}

/* Which rows and elements of W are taken at a time. */
static few_call few_of(gemm_call *c) {
    few_call l = {.c = c};
    const uint64_t part = c->sizes->rows_max / (GEMM_DOT_HEIGHT * c->unit) / 64 * 64;
    const uint64_t n = c->p.in_features;
    l.part = n < part ? n : part;
    l.as_is =
        l.part == n && c->element == c->unit && n * c->unit % (c->ops->lanes * GEMM_WORD) == 0;
    if (l.as_is) {
        l.ldw = gemm_words(c, n);
    } else {
        /* An odd number of cache lines, so that equal places of rows are in different sets. */
        l.ldw = round_up(gemm_words(c, l.part), GEMM_LINE_WORDS) + GEMM_LINE_WORDS;
        if (l.ldw / GEMM_LINE_WORDS % 2 == 0)
            l.ldw += GEMM_LINE_WORDS;
    }
    l.group = group_of(&l, c->sizes->few_group);
    if (l.group > c->p.out_features)
        l.group = round_up((size_t)c->p.out_features, GEMM_DOT_HEIGHT);
    l.blocks = (c->p.nrows + c->ops->dot_rows - 1) / c->ops->dot_rows;
    choose_piece(&l);
    return l;
}

int gemm_few_whole(const gemm_call *call) {
    gemm_call c = *call;
    return few_of(&c).part == c.p.in_features;
}

/* Rows of x that are not whole vectors, or lie so that they share sets of an L1, are copied. */
static ccmem_status place_x(few_call *l, uint8_t **copy) {
    const gemm_call *c = l->c;
    const size_t bytes = (size_t)c->p.in_features * c->unit, stride = (size_t)c->p.ldx * c->unit;
    *copy = NULL;
    l->x = c->p.x;
    l->ldx = stride / GEMM_WORD;
    if (bytes % (c->ops->lanes * GEMM_WORD) == 0 && stride % GEMM_WORD == 0 && stride % SET_BYTES)
        return CCMEM_OK;
    l->ldx = round_up(gemm_words(c, c->p.in_features), GEMM_LINE_WORDS) + GEMM_LINE_WORDS;
    ccmem_status status = ccmem_plain_alloc(c->p.nrows * l->ldx * GEMM_WORD, copy);
    if (status != CCMEM_OK)
        return status;
    for (size_t r = 0; r < c->p.nrows; r++)
        memcpy(*copy + r * l->ldx * GEMM_WORD, gemm_x(c, r), bytes);
    l->x = *copy;
    return CCMEM_OK;
}

ccmem_status gemm_few(gemm_call *c) {
    few_call l = few_of(c);
    uint8_t *copy;
    ccmem_status status = place_x(&l, &copy);
    if (status != CCMEM_OK)
        return status;
    const uint64_t groups = (c->p.out_features + l.group - 1) / l.group;
    parallel_for(gemm_threads(c, c->p.nrows, groups), 1, run_thread, &l);
    ccmem_plain_free(copy);
    return outcome_end(&c->end);
}
