/* SPDX-License-Identifier: Apache-2.0 */
#include "mapping/touch.h"

#include "mapping/fatal.h"
#include "mapping/fill.h"
#include "mapping/frames.h"
#include "mapping/policy.h"
#include "mapping/registry.h"
#include "platform/fork.h"

/* Answers a touch of a block that is placed. */
static int touch_placed(window *w, frame *f, int write) {
    if (write && !w->writable) {
        if (w->ops->waits)
            return 0;
        /* Its thread waits for an answer, and there is none. */
        window_die(w, f->block, CCMEM_ERR_READONLY);
    }
    if (w->ops->tracks && write && !f->written) {
        if (!w->ops->allow(w->mechanism, f->block))
            window_die(w, f->block, CCMEM_ERR_NOMEM);
        f->written = 1;
    }
    policy_note_recent(w, f->block);
    if (!w->ops->wake(w->mechanism, f->block))
        window_die(w, f->block, CCMEM_ERR_FAULT);
    return 1;
}

static int answer(window *w, size_t block, int write) {
    frame *f = frame_of(w, block);
    ccmem_status status;
    if (f && f->state == PLACED)
        return touch_placed(w, f, write);
    COUNT(w, faults);
    stream *s = policy_note_fault(w, block);
    if (s->run)
        w->ops->poke(w->mechanism);
    if (f && f->state == OPENING && !w->ops->waits) {
        policy_note_recent(w, block);
        w->waiting += !f->wanted;
        f->wanted |= 1 + write; /* the thread that opens it places it, too */
        return 1;
    }
    f = fill_block(w, s, block, w->ops->waits || s->run, &status);
    if (!f) {
        if (status == CCMEM_ERR_ARGUMENT)
            return 0;
        window_die(w, block, status);
    }
    if (f->state == PLACED) /* by another thread, while this one waited */
        return touch_placed(w, f, write);
    if (!frame_insist(w, frame_place, f, write || (f->wanted & 2)))
        window_die(w, block, CCMEM_ERR_NOMEM);
    pthread_cond_broadcast(&w->changed);
    return 1;
}

static int on_fault(void *self, size_t offset, int write) {
    window *w = self;
    int done = 0;
    if (fork_alien(w->generation) || window_dying_here())
        return 0;
    pthread_mutex_lock(&w->lock);
    if (w->mechanism && !w->closing && offset < w->space.nblocks * w->space.block)
        done = answer(w, offset / w->space.block, write);
    pthread_mutex_unlock(&w->lock);
    return done;
}

static int on_idle(void *self, int spare) {
    window *w = self;
    int done = 0;
    pthread_mutex_lock(&w->lock);
    if (w->mechanism && !w->closing && (spare || w->waiting))
        done = fill_ahead(w);
    pthread_mutex_unlock(&w->lock);
    return done;
}

static void on_broken(void *self) {
    window *w = self;
    pthread_mutex_lock(&w->lock);
    if (w->mechanism && !w->closing)
        window_die(w, 0, CCMEM_ERR_FAULT);
    pthread_mutex_unlock(&w->lock);
}

fault_owner touch_owner(window *w) {
    return (fault_owner){.fault = on_fault, .idle = on_idle, .broken = on_broken, .self = w};
}
