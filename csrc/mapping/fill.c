/* SPDX-License-Identifier: Apache-2.0 */
#include "mapping/fill.h"

#include "mapping/fatal.h"
#include "mapping/frames.h"
#include "mapping/patience.h"
#include "mapping/policy.h"
#include "mapping/registry.h"

/* Returns a frame to be filled at once. *reused: it still holds the plaintext of another block.
 * With `wanted` for a block that a thread waits for; else never evicts a block in use. NULL when
 * there is none: *status is why, and CCMEM_OK when there may be one in a moment. */
static frame *acquire(window *w, const stream *s, int wanted, int *reused, ccmem_status *status) {
    *status = CCMEM_OK;
    frame *f = policy_empty_frame(w);
    *reused = !f;
    if (f)
        return f;
    f = policy_left_behind(w, s);
    if (f && frame_evict(w, f, status))
        return f;
    for (size_t tries = 0; tries < w->space.nframes && *status == CCMEM_OK; tries++) {
        f = policy_oldest(w, 0);
        if (!f && wanted)
            f = policy_oldest(w, 1);
        if (!f || policy_in_grace(w, f))
            break;
        if (frame_evict(w, f, status))
            return f;
        f->order = ++w->clock; /* the kernel holds it: others first */
    }
    return NULL;
}

void fill_wait(window *w) {
    struct timespec until;
    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_nsec += GRACE_NS;
    if (until.tv_nsec >= 1000000000) {
        until.tv_nsec -= 1000000000;
        until.tv_sec++;
    }
    (void)pthread_cond_timedwait(&w->changed, &w->lock, &until);
}

frame *fill_block(window *w, const stream *s, size_t block, int alone, ccmem_status *status) {
    uint64_t since = 0; /* asking the clock costs more than a block that is there */
    int reused;
    for (int waits = 0; !w->closing && (waits < BUSY_WAITS || patient(waits, since)); waits++) {
        frame *f = frame_of(w, block);
        *status = CCMEM_OK;
        policy_note_recent(w, block); /* again, after others: a frame must be left for it */
        if (f && f->state >= OPENED)
            return f;
        if (!f && (f = acquire(w, s, 1, &reused, status))) {
            *status = frame_open(w, block, f, reused, alone);
            return *status == CCMEM_OK ? f : NULL;
        }
        if (*status != CCMEM_OK)
            return NULL;
        /* Another thread is opening it. This one opens the next meanwhile, if it would only wait.
         */
        if (!(w->ops->waits && s && fill_ahead(w)))
            fill_wait(w);
        if (!since)
            since = now_ns();
    }
    *status = w->closing ? CCMEM_ERR_ARGUMENT : CCMEM_ERR_NOMEM;
    return NULL;
}

int fill_ahead(window *w) {
    stream *s = policy_next_ahead(w);
    ccmem_status status;
    int reused;
    if (!s)
        return 0;
    size_t block = s->end;
    frame *f = acquire(w, s, 0, &reused, &status);
    if (!f)
        return 0;
    s->end++;
    COUNT(w, read_ahead);
    status = frame_open(w, block, f, reused, 1);
    if (status != CCMEM_OK) {
        s->run = 0; /* the thread that touches it will be told */
        return 0;
    }
    if (f->wanted) {
        if (!frame_insist(w, frame_place, f, f->wanted & 2))
            window_die(w, block, CCMEM_ERR_NOMEM);
    } else if (block % w->stride) {
        (void)frame_place(w, f, 0); /* else its fault places it */
    }
    return 1;
}
