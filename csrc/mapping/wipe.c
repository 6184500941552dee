/* SPDX-License-Identifier: Apache-2.0 */
#include "mapping/wipe.h"

#include <sys/mman.h>

#include "memory/secret.h"

void wipe_placed(window *w, const frame *f) {
    uint8_t *p = block_at(w, f->block);
    if (w->ops->tracks ? w->ops->allow(w->mechanism, f->block) : w->writable)
        ccmem_wipe(p, w->space.block);
    else
        (void)madvise(p, w->space.block, MADV_DONTNEED);
}

void wipe_window(window *w) {
    for (size_t i = 0; i < w->space.nframes; i++) {
        frame *f = &w->frames[i];
        if (f->state <= OPENING) /* what is being opened is not verified: its opener wipes it */
            continue;
        int taken = f->state != PLACED;
        if (!taken)
            taken = w->ops->take(w->mechanism, f->block, i, f->written);
        if (taken > 0)
            ccmem_wipe(frame_at(w, f), w->space.block);
        else if (!taken)
            wipe_placed(w, f);
    }
}
