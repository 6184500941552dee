/* SPDX-License-Identifier: Apache-2.0
 * What a window is made of. For the files that make up a window only; each calls those above it:
 *
 *   registry.c  all windows of the process, and their totals
 *   wipe.c      wipes frames wherever the kernel keeps their memory
 *   fatal.c     ends the process when a touch cannot be answered
 *   frames.c    moves one frame from state to state
 *   policy.c    chooses which block goes and which comes next; touches no memory of a frame
 *   fill.c      gets a block into a frame
 *   touch.c     answers touches, and the mechanism's idle threads
 *   window.c    calls on an open window: prefault, pin, unpin, flush
 *   life.c      makes, closes and frees windows
 *
 * A block is absent; or being opened by some thread; or opened, in a frame but not at its address;
 * or placed at its address, where threads use it. A block that is to go is first taken from its
 * address, at once for every thread, and then sealed if it was written: no write is lost, and a
 * thread that touches it waits for the lock.
 *
 * There is one lock, dropped while a block is opened, so that several threads open at once. A
 * thread that holds it touches no byte of the range but in blocks that are placed, so a fault never
 * waits for itself. */
#ifndef CCMEM_WINDOW_STATE_H
#define CCMEM_WINDOW_STATE_H

#include <pthread.h>

#include "ccmem.h"
#include "mapping/fault.h"
#include "mapping/window.h"

enum { STREAMS = 8 };

static const uint32_t NO_FRAME = UINT32_MAX;

typedef enum frame_state { EMPTY = 0, OPENING, OPENED, PLACED } frame_state;

typedef struct frame {
    frame_state state;
    int written; /* may differ from what is stored */
    int wanted;  /* being opened, and some thread waits for it: 1; to write there: 2 */
    int filling; /* atomic; a thread that does not hold the lock writes to its memory */
    uint32_t pins;
    size_t block;
    uint64_t order; /* the lowest goes first */
    uint64_t since; /* when it was placed, in nanoseconds */
} frame;

/* A reader that went from block to block. */
typedef struct stream {
    size_t last;  /* the block of its last fault */
    size_t end;   /* the first block not opened ahead */
    unsigned run; /* faults in a row; 0: perhaps not a stream */
    uint64_t order;
} stream;

struct window {
    pthread_mutex_t lock;
    window *next, *previous; /* of all windows of the process */
    uint64_t generation;
    ccmem_store *store;
    uint64_t origin, from, to; /* see window_options */
    const fault_ops *ops;
    fault_mechanism *mechanism; /* NULL when closed */
    fault_space space;
    int writable;
    int closing;
    int refused;                        /* frame_insist() gave up, and has not succeeded since */
    pthread_cond_t changed;             /* a frame's state, other than by the thread that waits */
    size_t ahead;                       /* the most blocks that are opened ahead of a stream */
    size_t stride;                      /* of these, one in so many is not placed */
    size_t pinned;                      /* frames */
    size_t waiting;                     /* frames that are being opened, and wanted */
    size_t recent[CCMEM_WINDOW_BLOCKS]; /* the blocks that faulted last, the last one first */
    uint64_t clock;                     /* counts what happens, for `order` */
    ccmem_region_stats count;
    stream streams[STREAMS];
    frame *frames;
    uint32_t *where; /* the frame of each block, or NO_FRAME */
    char name[];
};

/* Where a frame's memory is while it is not placed. */
static inline uint8_t *frame_at(const window *w, const frame *f) {
    return w->space.frames + (size_t)(f - w->frames) * w->space.block;
}

/* Where it is while it is placed. */
static inline uint8_t *block_at(const window *w, size_t block) {
    return w->space.base + block * w->space.block;
}

/* The frame that holds the block, or is being filled with it; NULL when it is absent. */
static inline frame *frame_of(const window *w, size_t block) {
    return w->where[block] == NO_FRAME ? NULL : &w->frames[w->where[block]];
}

#endif
