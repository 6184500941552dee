/* SPDX-License-Identifier: Apache-2.0 */
#include "mapping/frames.h"

#include <string.h>

#include "mapping/fatal.h"
#include "mapping/patience.h"
#include "mapping/registry.h"
#include "mapping/wipe.h"
#include "memory/budget.h"
#include "memory/secret.h"
#include "store/store.h"

enum { BUSY_AGAIN = 50 }; /* tries for the next frame, after one for which all were in vain */

/* Counts a frame that holds plaintext from now on. */
static void expose(window *w) {
    budget_expose(w->space.block);
    w->count.resident += w->space.block;
    if (w->count.resident > w->count.peak)
        w->count.peak = w->count.resident;
}

/* Counts one that does no longer. */
static void hide(window *w) {
    budget_hide(w->space.block);
    w->count.resident -= w->space.block;
}

/* Returns how many bytes of a block belong to the window; *offset is where they begin in the store,
 * *skip in the block. */
static size_t extent(const window *w, size_t block, uint64_t *offset, size_t *skip) {
    uint64_t first = w->origin + (uint64_t)block * w->space.block, last = first + w->space.block;
    *offset = first < w->from ? w->from : first;
    *skip = (size_t)(*offset - first);
    return (size_t)((last < w->to ? last : w->to) - *offset);
}

static ccmem_status seal(window *w, size_t block, const uint8_t *data) {
    uint64_t offset;
    size_t skip, n = extent(w, block, &offset, &skip);
    COUNT(w, write_backs);
    return store_write_present(w->store, offset, data + skip, n, w->ops->waits);
}

ccmem_status frame_open(window *w, size_t block, frame *f, int reused, int alone) {
    uint64_t offset;
    size_t skip, n = extent(w, block, &offset, &skip);
    uint8_t *to = frame_at(w, f);
    *f = (frame){.state = OPENING, .filling = 1, .block = block, .order = ++w->clock};
    w->where[block] = (uint32_t)(f - w->frames);
    COUNT(w, fills);
    if (!reused)
        expose(w);
    pthread_mutex_unlock(&w->lock);
    if (skip)
        memset(to, 0, skip);
    if (skip + n < w->space.block)
        memset(to + skip + n, 0, w->space.block - skip - n);
    ccmem_status status = alone ? store_read_alone(w->store, offset, to + skip, n)
                                : ccmem_store_read(w->store, offset, to + skip, n);
    ccmem_failure failure = ccmem_last_failure();
    if (status != CCMEM_OK) {
        ccmem_wipe(to, w->space.block);
        store_set_failure(failure);
    }
    __atomic_store_n(&f->filling, 0, __ATOMIC_RELEASE);
    pthread_mutex_lock(&w->lock);
    w->waiting -= f->wanted != 0;
    f->state = status == CCMEM_OK ? OPENED : EMPTY;
    if (status != CCMEM_OK) {
        w->where[block] = NO_FRAME;
        hide(w);
        if (f->wanted) /* by a thread that no other will answer */
            window_die(w, block, status);
    }
    pthread_cond_broadcast(&w->changed);
    return status;
}

int frame_insist(window *w, int (*step)(window *, frame *, int), frame *f, int argument) {
    const uint64_t since = now_ns();
    for (int i = 0; patient(i, since); i++) {
        if (step(w, f, argument)) {
            w->refused = 0;
            return 1;
        }
        if (w->refused && i >= BUSY_AGAIN)
            break;
        wait_ns(BUSY_WAIT_NS);
    }
    w->refused = 1;
    return 0;
}

/* Ends the process: the frame's memory is neither at its place nor in the frame, or protected for
 * good. It counts as EMPTY, since an attempt to wipe it would be a fault of its own. */
static _Noreturn void break_off(window *w, frame *f) {
    f->state = EMPTY;
    window_die(w, f->block, CCMEM_ERR_FAULT);
}

int frame_place(window *w, frame *f, int write) {
    int writable = w->writable && (write || !w->ops->tracks);
    int done = w->ops->place(w->mechanism, f->block, (size_t)(f - w->frames), writable);
    if (done < 0)
        break_off(w, f);
    if (!done)
        return 0;
    f->state = PLACED;
    f->written |= writable;
    f->since = now_ns();
    return 1;
}

int frame_take(window *w, frame *f, int unused) {
    (void)unused;
    if (f->state == PLACED) {
        int done = w->ops->take(w->mechanism, f->block, (size_t)(f - w->frames), f->written);
        if (done < 0)
            break_off(w, f);
        if (!done)
            return 0;
        f->state = OPENED;
    }
    return 1;
}

int frame_evict(window *w, frame *f, ccmem_status *status) {
    int placed = f->state == PLACED;
    if (!frame_take(w, f, 0))
        return 0;
    if (f->written) {
        *status = seal(w, f->block, frame_at(w, f));
        if (*status != CCMEM_OK) {
            if (placed)
                (void)frame_insist(w, frame_place, f, 1);
            return 0;
        }
    }
    COUNT(w, evictions);
    w->where[f->block] = NO_FRAME;
    return 1;
}

ccmem_status frame_flush(window *w, frame *f) {
    /* A pinned block may be in a system call's hands, and must not be away for a moment. */
    const int placed = f->state == PLACED, stays = placed && (f->pins || !frame_take(w, f, 0));
    ccmem_status status = seal(w, f->block, stays ? block_at(w, f->block) : frame_at(w, f));
    if (!stays) {
        f->written = status != CCMEM_OK;
        if (placed && !frame_insist(w, frame_place, f, f->written))
            window_die(w, f->block, CCMEM_ERR_NOMEM);
    }
    return status;
}

ccmem_status frame_empty(window *w, frame *f) {
    ccmem_status status = CCMEM_OK;
    /* If the kernel still holds it, it is sealed and wiped where it is. */
    int taken = frame_insist(w, frame_take, f, 0);
    uint8_t *data = taken ? frame_at(w, f) : block_at(w, f->block);
    if (f->written)
        status = seal(w, f->block, data);
    if (taken)
        ccmem_wipe(data, w->space.block);
    else
        wipe_placed(w, f);
    hide(w);
    w->where[f->block] = NO_FRAME;
    f->state = EMPTY;
    return status;
}
