/* SPDX-License-Identifier: Apache-2.0
 * Calls on an open window. */
#include "mapping/window.h"

#include "mapping/fill.h"
#include "mapping/frames.h"
#include "mapping/life.h"

enum { SPARE = CCMEM_WINDOW_BLOCKS }; /* frames that pins leave, and prefault() if it can */

uint8_t *window_data(const window *w) { return w->space.base + (w->from - w->origin); }

ccmem_status window_prefault(window *w, size_t first, size_t last) {
    ccmem_status status = window_lock(w);
    if (status != CCMEM_OK)
        return status;
    if (w->space.nframes < w->space.nblocks) {
        /* Of the least window, all that is not pinned: there is always some. */
        size_t free = w->space.nframes - w->pinned;
        size_t most = free > SPARE ? free - SPARE : free;
        if (last - first >= most)
            last = first + most - 1;
    }
    for (size_t b = first; b <= last && status == CCMEM_OK; b++) {
        frame *f = fill_block(w, NULL, b, 0, &status);
        if (f && f->state != PLACED && !frame_insist(w, frame_place, f, 0))
            status = CCMEM_ERR_NOMEM;
    }
    pthread_mutex_unlock(&w->lock);
    return status;
}

static void unpin(window *w, size_t first, size_t last) {
    for (size_t b = first; b <= last; b++) {
        frame *f = frame_of(w, b);
        if (f && f->pins && !--f->pins)
            w->pinned--;
    }
}

/* Places the block for every access that the window allows. */
static ccmem_status pin_block(window *w, size_t block) {
    ccmem_status status;
    frame *f = fill_block(w, NULL, block, 0, &status);
    if (!f)
        return status;
    if (f->state != PLACED && !frame_insist(w, frame_place, f, w->writable))
        return CCMEM_ERR_NOMEM;
    if (w->writable && !f->written) {
        if (w->ops->tracks && !w->ops->allow(w->mechanism, block))
            return CCMEM_ERR_NOMEM;
        f->written = 1;
    }
    if (!f->pins++)
        w->pinned++;
    return CCMEM_OK;
}

ccmem_status window_pin(window *w, size_t first, size_t last) {
    ccmem_status status = window_lock(w);
    if (status != CCMEM_OK)
        return status;
    size_t spare = w->space.nframes < w->space.nblocks ? SPARE : 0, fresh = 0;
    for (size_t b = first; b <= last && fresh <= w->space.nframes; b++) {
        frame *f = frame_of(w, b);
        fresh += !f || !f->pins;
    }
    if (w->pinned + fresh + spare > w->space.nframes)
        status = CCMEM_ERR_PINNED;
    for (size_t b = first; b <= last && status == CCMEM_OK; b++) {
        status = pin_block(w, b);
        if (status != CCMEM_OK && b > first)
            unpin(w, first, b - 1);
    }
    pthread_mutex_unlock(&w->lock);
    return status;
}

ccmem_status window_unpin(window *w, size_t first, size_t last) {
    ccmem_status status = window_lock(w);
    if (status != CCMEM_OK)
        return status;
    unpin(w, first, last);
    pthread_mutex_unlock(&w->lock);
    return CCMEM_OK;
}

ccmem_status window_flush(window *w) {
    ccmem_status status = window_lock(w);
    if (status != CCMEM_OK)
        return status;
    for (size_t i = 0; i < w->space.nframes; i++) {
        frame *f = &w->frames[i];
        if (f->state <= OPENING || !f->written)
            continue;
        ccmem_status sealed = frame_flush(w, f);
        if (status == CCMEM_OK)
            status = sealed;
    }
    pthread_mutex_unlock(&w->lock);
    return status;
}
