/* SPDX-License-Identifier: Apache-2.0
 *
 * Products of an encrypted matrix with many rows of x: the structure of GotoBLAS and BLIS (Goto and
 * van de Geijn 2008; Van Zee and van de Geijn 2015), whose packing step is decryption.
 *
 *   x      in panels (gemm_x.c), each packed once, by the thread that needs it first, for all: as
 *          many rows as a last-level cache holds;
 *   W      each thread takes blocks of rows from a counter, opens a part of their columns at a time
 *          into memory of its own that an L2 holds, and multiplies it by all panels;
 *   depth  so many words of a panel are multiplied by all rows of the block before the next ones;
 *   sums   of parts stay as they are, in the order of the kernels, until the last part. So y is
 *          written once.
 *
 * Meanwhile the kernels fetch what comes next: the panel, and the ciphertext of the next part.
 *
 * A sum is one chain of multiply-adds along k, however rows and columns are cut: its bits depend on
 * the tier alone. */
#include <string.h>

#include "memory/secret.h"
#include "platform/float_env.h"
#include "platform/round.h"
#include "platform/threads.h"
#include "product/gemm_call.h"
#include "product/gemm_x.h"

enum {
    LINE = GEMM_LINE_WORDS * GEMM_WORD,
    STEP = 24,        /* rows of W: whole blocks of every tier's kernels */
    BLOCK_MAX = 96,   /* of any tier */
    SET_BYTES = 4096, /* words so far apart are in one set of an L1 */
};

typedef struct panels_call {
    gemm_call *c;
    float *x;           /* the rows of this pass, in panels */
    uint8_t *packed;    /* atomic, one for each panel: whether it is */
    uint64_t first_row; /* of the pass */
    size_t rows;        /* of it */
    uint64_t block;     /* rows of W that a thread takes at a time, at most */
    uint64_t part;      /* elements of a row that are opened at a time */
    size_t depth;       /* words of a panel that are multiplied at a time: whole cache lines */
    int as_is;          /* rows of W are multiplied where they were opened */
    size_t ldw;         /* words from one row of W's block to the next, */
    size_t piece;       /* and from `depth` words of all rows to the next */
    int keeps;          /* each row of W keeps the page in which its part ends, for the next part */
    unsigned threads;
    unsigned started; /* atomic; threads that have begun */
    uint64_t next;    /* atomic; the first row of W that no thread has taken */
} panels_call;

/* What a thread has for itself. */
typedef struct workspace {
    size_t start; /* its first panel, each thread another: so they pack different ones */
    float *sums, *room;
    const float *w;         /* the block: in `room`, or where it was opened */
    fetch fetch[BLOCK_MAX]; /* one, or one for each row of W */
    /* Ciphertext that will be opened next, in runs: fetched bit by bit meanwhile. */
    struct {
        uint64_t at, n, stride; /* of the first run, bytes */
        uint64_t runs, done;    /* runs that are left, and bytes of the first */
        size_t pause, wait;     /* kernels from one bit to the next */
    } ahead;
} workspace;

static int is_cut(const panels_call *l) { return l->part < l->c->p.in_features; }

/* Elements of the part that begins with number `first`. */
static uint64_t part_at(const panels_call *l, uint64_t first) {
    const uint64_t left = l->c->p.in_features - first;
    return left < l->part ? left : l->part;
}

static size_t panels(const panels_call *l) {
    return (l->rows + l->c->ops->width - 1) / l->c->ops->width;
}

/* Words of the sums of one panel, and of all. Up to 8 rows of W are read at once. */
static size_t panel_sums(const panels_call *l) {
    return round_up(l->block, STEP) * l->c->ops->width;
}

static size_t all_sums(const panels_call *l) { return panel_sums(l) * (is_cut(l) ? panels(l) : 1); }

/* Rows of W in the highest block of a panel. */
static size_t height_max(const gemm_call *c) {
    const uint32_t *height = c->ops->height;
    return height[0] > height[1] ? height[0] : height[1];
}

static size_t block_rows(const panels_call *l) { return round_up(l->block, height_max(l->c)); }

static size_t block_words(const panels_call *l) {
    return l->as_is ? 0 : (gemm_words(l->c, l->part) + l->depth - 1) / l->depth * l->piece;
}

static size_t page_room(const panels_call *l) {
    const ccmem_store *store = l->c->p.store;
    const size_t bytes = l->as_is   ? fetch_room_whole(store, block_rows(l) * l->ldw * GEMM_WORD)
                         : l->keeps ? store_page_size(store) + FETCH_SLACK
                                    : fetch_room(store);
    return round_up(bytes, LINE);
}

/* ---- what comes next ------------------------------------------------------------------------- */

/* Bytes that a kernel fetches of what comes next, while it multiplies `depth` words. */
static size_t ahead_bytes(const panels_call *l) { return l->depth / l->c->ops->ahead_words * LINE; }

/* Says what will be opened after the block of h rows and n elements that is multiplied now: `rows`
 * rows from `row` on, `more` elements from number `first` on. */
static void plan_ahead(const panels_call *l, workspace *own, size_t h, uint64_t n, uint64_t row,
                       size_t rows, uint64_t first, uint64_t more) {
    const gemm_call *c = l->c;
    const uint64_t row_bytes = c->p.in_features * c->element;
    const size_t kernels = panels(l) * ((gemm_words(c, n) + l->depth - 1) / l->depth) *
                           ((h + c->ops->height[1] - 1) / c->ops->height[1]);
    own->ahead.at = c->p.offset + row * row_bytes + first * c->element;
    own->ahead.n = is_cut(l) ? more * c->element : rows * row_bytes;
    own->ahead.stride = row_bytes;
    own->ahead.runs = is_cut(l) ? rows : rows > 0;
    own->ahead.done = 0;
    const size_t bits = (own->ahead.n + ahead_bytes(l) - 1) / ahead_bytes(l) * own->ahead.runs;
    own->ahead.pause = bits ? kernels / bits : 0;
    own->ahead.wait = own->ahead.pause;
}

/* Returns what the next kernel fetches of it; NULL: nothing. */
static const void *go_ahead(const panels_call *l, workspace *own) {
    if (!own->ahead.runs || own->ahead.wait-- > 1)
        return NULL;
    const size_t bit = ahead_bytes(l);
    const void *p = store_prefetch_page(l->c->p.store, own->ahead.at + own->ahead.done);
    own->ahead.wait = own->ahead.pause;
    own->ahead.done += bit;
    if (own->ahead.done >= own->ahead.n) {
        own->ahead.done = 0;
        own->ahead.at += own->ahead.stride;
        own->ahead.runs--;
    }
    return p;
}

/* ---- one block of W -------------------------------------------------------------------------- */

/* Opens n elements from number `first` on of h rows from `row` on. */
static ccmem_status open_block(const panels_call *l, workspace *own, uint64_t row, size_t h,
                               uint64_t first, uint64_t n) {
    const gemm_call *c = l->c;
    const uint64_t row_bytes = c->p.in_features * c->element;
    const uint64_t depth = l->depth * GEMM_WORD / c->unit;
    if (l->as_is)
        return fetch_whole(&own->fetch[0], c->p.offset + row * row_bytes, (size_t)(h * row_bytes),
                           (const uint8_t **)(const void *)&own->w);
    for (size_t i = 0; i < h; i++) {
        const uint64_t at = c->p.offset + (row + i) * row_bytes + first * c->element;
        const uint64_t end = is_cut(l) ? at + n * c->element : at + (h - i) * row_bytes;
        fetch *f = &own->fetch[l->keeps ? i : 0];
        uint8_t *to = (uint8_t *)(own->room + i * l->ldw);
        for (uint64_t k = 0; k < n; k += depth, to += l->piece * GEMM_WORD) {
            const size_t some = (size_t)(n - k < depth ? n - k : depth);
            ccmem_status status = fetch_run(f, to, at + k * c->element, some, end);
            if (status != CCMEM_OK)
                return status;
            if (some * c->unit % GEMM_WORD)
                memset(to + some * c->unit, 0, GEMM_WORD - c->unit);
        }
    }
    return CCMEM_OK;
}

/* Adds to the sums of one panel, of h rows of W, n_words from x on of it. `next` is what will be
 * read after them, and is fetched meanwhile. */
static void multiply_panel(const panels_call *l, workspace *own, float *sums, size_t h, int both,
                           const float *x, const float *next, size_t n_words, int add) {
    const gemm_ops *ops = l->c->ops;
    const size_t width = ops->width, depth = l->depth, bit = ahead_bytes(l);
    const float *w = own->w;
    for (size_t k = 0; k < n_words; k += depth, w += l->piece, x += depth * width) {
        const size_t n = n_words - k < depth ? n_words - k : depth;
        const uint8_t *ahead = (const uint8_t *)(k + n < n_words ? x + n * width : next);
        const uint8_t *end = ahead + n * width * GEMM_WORD;
        for (size_t i = 0; i < h; i += ops->height[both], ahead += bit) {
            const void *go = go_ahead(l, own);
            ops->panel[both](sums + i * width, w + i * l->ldw, l->ldw, x, n, add || k > 0,
                             (gemm_ahead){.x = ahead < end ? (const void *)ahead : x,
                                          .w = go ? go : x});
        }
    }
}

static size_t panel_words(const panels_call *l) {
    return gemm_words(l->c, l->c->p.in_features) * l->c->ops->width;
}

/* Rows of panel i. */
static size_t panel_rows(const panels_call *l, size_t i) {
    const size_t width = l->c->ops->width, left = l->rows - i * width;
    return left < width ? left : width;
}

/* Returns panel i, packed, by this thread if none has begun. */
static const float *packed_panel(const panels_call *l, size_t i) {
    enum { NOT, BEGUN, DONE };
    const gemm_call *c = l->c;
    float *x = l->x + i * panel_words(l);
    uint8_t state = __atomic_load_n(&l->packed[i], __ATOMIC_ACQUIRE);
    if (state == NOT && __atomic_compare_exchange_n(&l->packed[i], &state, BEGUN, 0,
                                                    __ATOMIC_ACQUIRE, __ATOMIC_ACQUIRE)) {
        gemm_x_pack(c, l->first_row + i * c->ops->width, panel_rows(l, i), x);
        __atomic_store_n(&l->packed[i], DONE, __ATOMIC_RELEASE);
    } else if (state != DONE) {
        wait_for_byte(&l->packed[i], DONE);
    }
    return x;
}

static void prefetch_y(const panels_call *l, const gemm_epilogue *end, size_t h, size_t rows) {
    const size_t bytes = gemm_result_bytes(l->c);
    for (size_t r = 0; r < rows; r++)
        for (size_t at = 0; at < h * bytes; at += LINE)
            __builtin_prefetch((uint8_t *)end->y + r * end->ldy * bytes + at, 1);
}

static void multiply(const panels_call *l, workspace *own, uint64_t row, size_t h, uint64_t first,
                     uint64_t n) {
    const gemm_call *c = l->c;
    const size_t width = c->ops->width, count = panels(l);
    const size_t skipped = first * c->unit / GEMM_WORD * width;
    const int last = first + n == c->p.in_features;
    for (size_t j = 0, i = own->start; j < count; j++, i = i + 1 < count ? i + 1 : 0) {
        const size_t rows = panel_rows(l, i), following = i + 1 < count ? i + 1 : 0;
        const float *x = packed_panel(l, i) + skipped;
        float *sums = own->sums + (is_cut(l) ? i * panel_sums(l) : 0);
        const gemm_epilogue end = {.scale = c->p.scale ? c->p.scale + row : NULL,
                                   .bias = c->p.bias ? c->p.bias + row : NULL,
                                   .y = gemm_y(c, l->first_row + i * width, row),
                                   .halves = c->p.halves,
                                   .ldy = (size_t)c->p.ldy};
        if (last)
            prefetch_y(l, &end, h, rows);
        multiply_panel(l, own, sums, h, rows > c->ops->lanes, x,
                       l->x + following * panel_words(l) + skipped, gemm_words(c, n), first > 0);
        if (last)
            c->ops->finish(sums, h, rows, &end);
    }
}

/* ---- threads --------------------------------------------------------------------------------- */

/* Takes the next rows of W: fewer towards the end, so that all threads finish together. Returns how
 * many; 0: none are left. */
static size_t take_rows(panels_call *l, uint64_t *row) {
    const uint64_t out = l->c->p.out_features;
    uint64_t next = __atomic_load_n(&l->next, __ATOMIC_RELAXED), h;
    do {
        if (next >= out)
            return 0;
        const uint64_t left = out - next;
        h = l->block;
        while (l->threads > 1 && h % (2 * STEP) == 0 && left < 2 * l->threads * h)
            h /= 2;
        h = h < left ? h : left;
    } while (!__atomic_compare_exchange_n(&l->next, &next, next + h, 1, __ATOMIC_RELAXED,
                                          __ATOMIC_RELAXED));
    *row = next;
    return (size_t)h;
}

static void multiply_blocks(panels_call *l, workspace *own) {
    gemm_call *c = l->c;
    uint64_t row, next_row = 0;
    size_t h = take_rows(l, &row), next = 0;
    for (; h && !outcome_stopped(&c->end); h = next, row = next_row)
        for (uint64_t first = 0, n; first < c->p.in_features; first += n) {
            n = part_at(l, first);
            ccmem_status status = open_block(l, own, row, h, first, n);
            if (status != CCMEM_OK) {
                outcome_stop(&c->end, status);
                return;
            }
            if (first + n < c->p.in_features) {
                plan_ahead(l, own, h, n, row, h, first + n, part_at(l, first + n));
            } else {
                next = take_rows(l, &next_row);
                plan_ahead(l, own, h, n, next_row, next, 0, part_at(l, 0));
            }
            multiply(l, own, row, h, first, n);
        }
}

static void run_thread(void *arg, uint64_t begin, uint64_t end) {
    panels_call *l = arg;
    gemm_call *c = l->c;
    const size_t sums = round_up(all_sums(l) * GEMM_WORD, LINE);
    const size_t w = round_up(block_words(l) * GEMM_WORD + LINE, LINE);
    const size_t slots = l->keeps ? (size_t)l->block : 1, room = page_room(l);
    uint8_t *memory;
    (void)begin;
    (void)end;
    if (__atomic_load_n(&l->next, __ATOMIC_RELAXED) >= c->p.out_features)
        return;
    ccmem_status status = ccmem_plain_alloc(sums + w + slots * room, &memory);
    if (status != CCMEM_OK) {
        outcome_stop(&c->end, status);
        return;
    }
    const unsigned number = __atomic_fetch_add(&l->started, 1, __ATOMIC_RELAXED);
    workspace own = {.start = panels(l) * (number % l->threads) / l->threads,
                     .sums = (float *)memory,
                     .room = (float *)(memory + sums)};
    own.w = own.room;
    for (size_t i = 0; i < slots; i++) {
        own.fetch[i] = gemm_fetch(c, memory + sums + w + i * room);
        if (l->keeps)
            own.fetch[i].most = 1;
        own.fetch[i].apart = is_cut(l);
    }
    const float_env env = float_env_default();
    multiply_blocks(l, &own);
    float_env_restore(env);
    burn_stack_of_kernels();
    ccmem_plain_free(memory);
}

/* ---- one call -------------------------------------------------------------------------------- */

/* Words as they are; of rows that are not so far apart that they would share the few places of one
 * set of an L1. */
int gemm_panels_as_is(const gemm_call *c) {
    const uint64_t row_bytes = c->p.in_features * c->element;
    return c->element == c->unit && row_bytes % GEMM_WORD == 0 && row_bytes % SET_BYTES &&
           row_bytes <= c->sizes->block_as_is / STEP;
}

/* 1 when they are, in this store: where blocks have so many pages that the two which they share
 * with others, and which are opened for both, cost little. */
static int opens_as_is(const gemm_call *c) {
    const uint64_t row_bytes = c->p.in_features * c->element;
    uint64_t rows = c->sizes->block_as_is / row_bytes;
    rows = rows < c->sizes->block_rows ? rows : c->sizes->block_rows;
    return gemm_panels_as_is(c) && c->p.offset % GEMM_WORD == 0 &&
           rows * row_bytes >= 16 * (uint64_t)store_page_size(c->p.store);
}

/* Rows of W of a block, and columns of a part. Whole rows, if enough of them fit: their pages lie
 * side by side. Else parts of them, and whole pages if these fit, as of others each row has to keep
 * one for the next part. */
static void choose_block(panels_call *l) {
    const gemm_call *c = l->c;
    const size_t height = height_max(c), depth = c->sizes->depth;
    const uint64_t page = store_page_size(c->p.store), row_bytes = c->p.in_features * c->element;
    const size_t bytes = gemm_words(c, c->p.in_features) * GEMM_WORD;
    uint64_t rows;
    l->part = c->p.in_features;
    l->as_is = opens_as_is(c);
    rows = (l->as_is ? c->sizes->block_as_is : c->sizes->block) / bytes / STEP * STEP;
    if (!rows) {
        const uint64_t in_page = page / c->element;
        rows = c->sizes->block_rows;
        l->part = c->sizes->block / (rows * LINE) * LINE / c->unit;
        if (in_page < l->part)
            l->part = l->part / in_page * in_page;
        l->keeps = l->part * c->element % page || row_bytes % page || c->p.offset % page;
        if (l->keeps && rows * page > c->sizes->kept_pages) {
            rows = c->sizes->kept_pages / page / height * height;
            rows = rows < height ? height : rows;
        }
    }
    rows = rows < c->sizes->block_rows ? rows : c->sizes->block_rows;
    l->block = rows < BLOCK_MAX ? rows : BLOCK_MAX;
    if (l->block > c->p.out_features)
        l->block = round_up((size_t)c->p.out_features, height);
    const size_t part = gemm_words(c, l->part), pieces = (part + depth - 1) / depth;
    l->depth = round_up((part + pieces - 1) / pieces, GEMM_LINE_WORDS);
    if (l->as_is) {
        l->ldw = part;
        l->piece = l->depth;
    } else {
        /* Pieces of `depth` words of all rows, so that a kernel finds its rows close together; an
         * odd number of cache lines apart, so that they are in different sets of an L1. */
        l->ldw = (l->depth / GEMM_LINE_WORDS | 1) * GEMM_LINE_WORDS + 2 * GEMM_LINE_WORDS;
        l->piece = block_rows(l) * l->ldw;
    }
}

/* How many rows of x are multiplied at a time: the same number in each pass but the last. */
static uint64_t pass_of(const gemm_call *c) {
    const size_t width = c->ops->width;
    const size_t row_bytes = gemm_words(c, c->p.in_features) * GEMM_WORD;
    uint64_t most = c->sizes->pass / row_bytes;
    if (most < c->sizes->pass_rows)
        most = c->sizes->pass_rows;
    most = most / width * width;
    const uint64_t nrows = c->p.nrows, passes = (nrows + most - 1) / most;
    return passes <= 1 ? nrows : ((nrows + passes - 1) / passes + width - 1) / width * width;
}

ccmem_status gemm_panels(gemm_call *c) {
    panels_call l = {.c = c};
    const uint64_t nrows = c->p.nrows, pass = pass_of(c);
    const uint64_t bytes = gemm_x_bytes(c, pass);
    uint8_t *x;
    choose_block(&l);
    ccmem_status status = ccmem_plain_alloc(bytes + (pass + c->ops->width - 1) / c->ops->width, &x);
    if (status != CCMEM_OK)
        return status;
    l.x = (float *)x;
    l.packed = x + bytes;
    for (; l.first_row < nrows && !outcome_stopped(&c->end); l.first_row += l.rows) {
        l.rows = (size_t)(nrows - l.first_row < pass ? nrows - l.first_row : pass);
        memset(l.packed, 0, panels(&l));
        l.next = 0;
        l.started = 0;
        const uint64_t steps = (c->p.out_features + STEP - 1) / STEP;
        const unsigned worth = gemm_threads(c, l.rows, steps), most = ccmem_threads();
        l.threads = worth < most ? worth : most;
        parallel_for(worth, 1, run_thread, &l);
    }
    ccmem_plain_free(x);
    return outcome_end(&c->end);
}
