/* SPDX-License-Identifier: Apache-2.0
 *
 * Rows of W one after the other. A thread opens its pages in order into a tile of its own, which
 * its L2 holds, and multiplies from there with each row of x. Blocks and pages have nothing to do
 * with each other: a block that the end of a page cuts waits, in front of where the next pages will
 * be opened, for its rest. */
#include <string.h>

#include "memory/secret.h"
#include "platform/float_env.h"
#include "product/blocks.h"

enum { BEFORE = (BLOCK_BYTES_MAX + 63) / 64 * 64 };

/* All that a thread has of the plaintext: the beginning of a block, pages, and sums behind them. */
typedef struct tile {
    _Alignas(64) uint8_t before[BEFORE];
    uint8_t pages[];
} tile;

/* Where a thread is. */
typedef struct position {
    uint64_t row;  /* of W */
    uint64_t done; /* blocks of it */
} position;

static size_t pages_at_once(const blocks_call *l) {
    const size_t size = store_page_size(l->store), n = l->sizes->blocks_open / size;
    return n < 1 ? 1 : n > STORE_OPEN_MAX ? STORE_OPEN_MAX : n;
}

/* Rows of W that one call of a kernel takes, so long as they are whole. */
static size_t rows_at_once(const blocks_call *l) {
    enum { MOST = 16 };
    return l->room <= BLOCKS_ROWS && l->row_bytes <= l->sizes->blocks_open ? MOST : 1;
}

static size_t sums_apart(const blocks_call *l) { return l->room * BLOCKS_LANES; }

/* Multiplies what n bytes at w hold of W's rows up to `end`. Returns how many bytes at their end
 * are the beginning of a block. */
static size_t multiply(const blocks_call *l, float *sums, position *at, uint64_t end,
                       const uint8_t *w, size_t n) {
    const size_t most = rows_at_once(l), apart = sums_apart(l);
    while (at->row < end) {
        const uint64_t left = l->blocks - at->done;
        const size_t have = n / l->format->bytes;
        blocks_w rows = {.first = w,
                         .number = (size_t)at->done,
                         .n = have < left ? have : (size_t)left,
                         .rows = 1,
                         .bytes = (size_t)l->row_bytes,
                         .apart = apart};
        if (!at->done && n >= l->row_bytes) {
            const uint64_t whole = n / l->row_bytes, more = end - at->row;
            rows.rows = (size_t)(whole < more ? whole : more);
            if (rows.rows > most)
                rows.rows = most;
        }
        const size_t bytes = rows.rows * rows.n * l->format->bytes;
        if (rows.n)
            blocks_add(l, sums, &rows, 0, l->room);
        at->done += rows.n;
        w += bytes;
        n -= bytes;
        if (at->done < l->blocks)
            return n;
        blocks_finish(l, sums, apart, at->row, rows.rows, 0, l->room);
        at->row += rows.rows;
        at->done = 0;
    }
    return 0;
}

static void multiply_rows(blocks_call *l, tile *t, uint64_t begin, uint64_t end) {
    const uint64_t size = store_page_size(l->store), most = pages_at_once(l);
    const uint64_t last = l->offset + end * l->row_bytes;
    uint64_t from = l->offset + begin * l->row_bytes;
    float *sums = (float *)(void *)(t->pages + most * size);
    size_t cut = 0; /* bytes of a block that wait in front of the pages */
    position at = {begin, 0};

    memset(sums, 0, rows_at_once(l) * sums_apart(l) * sizeof *sums);
    while (from < last && !outcome_stopped(&l->end)) {
        const uint64_t page = from / size, left = (last - 1) / size + 1 - page;
        const uint64_t n = left < most ? left : most;
        const uint64_t to = (page + n) * size < last ? (page + n) * size : last;
        ccmem_status status = store_open_pages(l->store, page, t->pages, n);
        if (status != CCMEM_OK) {
            outcome_stop(&l->end, status);
            return;
        }
        const uint8_t *w = t->pages + from % size - cut;
        const size_t have = (size_t)(to - from) + cut;
        cut = multiply(l, sums, &at, end, w, have);
        if (cut)
            copy_secret(t->pages - cut, w + have - cut, cut);
        from = to;
    }
}

void blocks_stream(void *call, uint64_t begin, uint64_t end) {
    blocks_call *l = call;
    const size_t pages = pages_at_once(l) * store_page_size(l->store);
    uint8_t *block;
    ccmem_status status =
        ccmem_plain_alloc(sizeof(tile) + pages + rows_at_once(l) * sums_apart(l) * sizeof(float),
                          &block);
    if (status != CCMEM_OK) {
        outcome_stop(&l->end, status);
        return;
    }
    const float_env env = float_env_default();
    multiply_rows(l, (tile *)(void *)block, begin, end);
    float_env_restore(env);
    burn_stack_of_kernels();
    ccmem_plain_free(block);
}
