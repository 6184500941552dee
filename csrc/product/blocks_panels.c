/* SPDX-License-Identifier: Apache-2.0
 *
 * Groups of rows of W times panels of x: for many rows. A thread takes a group from a counter and
 * opens its rows a few at a time; taking their blocks apart is the packing step. What is apart, and
 * a panel, stay in an L2 while they are multiplied. The kernels add the same numbers in the same
 * order as those for a few rows. */
#include "memory/secret.h"
#include "platform/float_env.h"
#include "platform/round.h"
#include "product/blocks.h"
#include "product/fetch.h"

enum {
    LINE = 64,
    MOST = 512 /* rows of a group: of short ones */
};

/* Bytes from a row that is taken apart to the next: an odd number of cache lines. */
static size_t row_apart(const blocks_call *l) {
    const size_t bytes = (size_t)l->blocks * l->panels->unpacked(l->x.format);
    return (round_up(bytes, LINE) / LINE | 1) * LINE;
}

uint64_t blocks_panel_rows(const blocks_call *l) {
    enum { PAST_L2 = 4 }; /* the fewest rows may take so many times what a group has */
    if (!l->panels)
        return 0;
    const uint64_t height = l->panels->height, least = height * row_apart(l);
    const uint64_t most = l->sizes->blocks_tile / least * height;
    if (least > (uint64_t)l->sizes->blocks_tile * PAST_L2)
        return 0;
    return most < height ? height : most > MOST ? MOST / height * height : most;
}

/* What a thread has of its own, and where in its block. */
typedef struct room {
    size_t lanes, sums, apart, pages; /* bytes */
} room;

static room room_of(const blocks_call *l) {
    const blocks_panels *ops = l->panels;
    const size_t tile = (size_t)ops->height * ops->width * sizeof(float);
    return (room){.lanes = (BLOCKS_LANES + 1) * tile,
                  .sums = tile,
                  .apart = (size_t)blocks_panel_rows(l) * row_apart(l),
                  .pages = fetch_room_whole(l->store, ops->height * (size_t)l->row_bytes)};
}

/* Opens h rows of W, and takes them apart. */
static ccmem_status open_rows(const blocks_call *l, fetch *f, uint8_t *to, uint64_t row, size_t h) {
    const size_t height = l->panels->height, apart = row_apart(l);
    for (size_t i = 0; i < h; i += height) {
        const size_t rows = h - i < height ? h - i : height;
        const uint8_t *w;
        ccmem_status status =
            fetch_whole(f, l->offset + (row + i) * l->row_bytes, rows * (size_t)l->row_bytes, &w);
        if (status != CCMEM_OK)
            return status;
        for (size_t j = 0; j < rows; j++, w += l->row_bytes)
            l->panels->unpack[l->x.format](to + (i + j) * apart, w, (size_t)l->blocks,
                                           l->format->elements / BLOCKS_RUN);
    }
    return CCMEM_OK;
}

static void put(const blocks_call *l, const float *sums, uint64_t row, size_t h, size_t r,
                size_t rows) {
    for (size_t j = 0; j < rows; j++)
        for (size_t i = 0; i < h; i++)
            blocks_put(l, r + j, row + i, sums[i * l->panels->width + j]);
}

static void multiply(const blocks_call *l, blocks_panel *p, const uint8_t *w, uint64_t row,
                     size_t h) {
    const size_t width = l->panels->width, height = l->panels->height;
    for (size_t r = 0; r < l->rows; r += width) {
        const size_t rows = l->rows - r < width ? l->rows - r : width;
        p->x = l->columns + r * (l->x.at.bytes / sizeof *p->x);
        for (size_t i = 0; i < h; i += height) {
            p->w = w + i * p->ldw;
            l->panels->multiply[l->x.format][rows > l->panels->lanes](p);
            put(l, p->sums, row + i, h - i < height ? h - i : height, r, rows);
        }
    }
}

static void multiply_groups(blocks_call *l, uint8_t *block, const room *room) {
    const uint64_t group = blocks_panel_rows(l);
    uint8_t *w = block + room->lanes + room->sums;
    fetch f = fetch_from(l->store, w + room->apart);
    blocks_panel p = {.ldw = row_apart(l),
                      .at = l->x.at,
                      .lanes = (float *)(void *)block,
                      .sums = (float *)(void *)(block + room->lanes)};
    p.at.scale /= sizeof *p.x;
    p.at.sums /= sizeof *p.x;
    p.at.more /= sizeof *p.x;
    while (!outcome_stopped(&l->end)) {
        const uint64_t row = __atomic_fetch_add(&l->next, group, __ATOMIC_RELAXED);
        if (row >= l->out_features)
            return;
        const uint64_t left = l->out_features - row;
        const size_t h = (size_t)(left < group ? left : group);
        ccmem_status status = open_rows(l, &f, w, row, h);
        if (status != CCMEM_OK) {
            outcome_stop(&l->end, status);
            return;
        }
        multiply(l, &p, w, row, h);
    }
}

void blocks_panel_groups(void *call, uint64_t begin, uint64_t end) {
    blocks_call *l = call;
    const room room = room_of(l);
    uint8_t *block;
    (void)begin;
    (void)end;
    if (__atomic_load_n(&l->next, __ATOMIC_RELAXED) >= l->out_features)
        return;
    ccmem_status status =
        ccmem_plain_alloc(room.lanes + room.sums + room.apart + room.pages, &block);
    if (status != CCMEM_OK) {
        outcome_stop(&l->end, status);
        return;
    }
    const float_env env = float_env_default();
    multiply_groups(l, block, &room);
    float_env_restore(env);
    burn_stack_of_kernels();
    ccmem_plain_free(block);
}
