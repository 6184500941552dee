/* SPDX-License-Identifier: Apache-2.0 */
#include "mapping/wipe.h"

#include <sys/mman.h>

#include "mapping/patience.h"
#include "memory/secret.h"

void wipe_placed(window *w, const frame *f) {
    uint8_t *p = block_at(w, f->block);
    if (w->ops->tracks ? w->ops->allow(w->mechanism, f->block) : w->writable)
        ccmem_wipe(p, w->space.block);
    else
        (void)madvise(p, w->space.block, MADV_DONTNEED);
}

/* Waits for the thread that opens a block into the frame, which goes on without the lock; no longer
 * than BUSY_WAITS allow for all frames together, as that thread may never run again. */
static void await_filled(const frame *f, int *waits) {
    while (__atomic_load_n(&f->filling, __ATOMIC_ACQUIRE) && (*waits)++ < BUSY_WAITS)
        wait_ns(BUSY_WAIT_NS);
}

void wipe_window(window *w) {
    int waits = 0;
    for (size_t i = 0; i < w->space.nframes; i++) {
        frame *f = &w->frames[i];
        if (f->state == EMPTY)
            continue;
        if (f->state == OPENING)
            await_filled(f, &waits);
        int taken = f->state != PLACED;
        if (!taken)
            taken = w->ops->take(w->mechanism, f->block, i, f->written);
        if (taken > 0)
            ccmem_wipe(frame_at(w, f), w->space.block);
        else if (!taken)
            wipe_placed(w, f);
    }
}
