/* SPDX-License-Identifier: Apache-2.0
 * How windows begin and end. */
#include "mapping/life.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "mapping/fill.h"
#include "mapping/frames.h"
#include "mapping/policy.h"
#include "mapping/registry.h"
#include "mapping/touch.h"
#include "memory/budget.h"
#include "memory/ranges.h"
#include "platform/fork.h"
#include "platform/lost.h"
#include "platform/signals.h"

ccmem_status window_lock(window *w) {
    if (fork_alien(w->generation))
        return CCMEM_ERR_FORK;
    if (w->ops->waits)
        (void)signals_lead(); /* before a thread touches the blocks in question */
    pthread_mutex_lock(&w->lock);
    if (w->mechanism && !w->closing)
        return CCMEM_OK;
    pthread_mutex_unlock(&w->lock);
    return CCMEM_ERR_ARGUMENT;
}

static void free_memory(window *w) {
    free(w->frames);
    free(w->where);
    free(w);
}

/* The window alone: no range, no budget, in no list. */
static ccmem_status create(const window_options *o, size_t nblocks, window **out) {
    window *w = calloc(1, sizeof *w + strlen(o->name) + 1);
    if (!w)
        return CCMEM_ERR_NOMEM;
    strcpy(w->name, o->name);
    w->generation = fork_generation();
    w->store = o->store;
    w->origin = o->origin;
    w->from = o->from;
    w->to = o->to;
    w->ops = o->ops;
    w->writable = o->writable;
    policy_init(w, o->nframes, o->read_ahead);
    w->frames = calloc(o->nframes, sizeof *w->frames);
    w->where = malloc(nblocks * sizeof *w->where);
    if (w->frames && w->where) {
        memset(w->where, 0xff, nblocks * sizeof *w->where);
        if (!pthread_mutex_init(&w->lock, NULL)) {
            if (!pthread_cond_init(&w->changed, NULL)) {
                *out = w;
                return CCMEM_OK;
            }
            pthread_mutex_destroy(&w->lock);
        }
    }
    free_memory(w);
    return CCMEM_ERR_NOMEM;
}

static void destroy(window *w) {
    pthread_cond_destroy(&w->changed);
    pthread_mutex_destroy(&w->lock);
    free_memory(w);
}

ccmem_status window_new(const window_options *o, window **out) {
    size_t nblocks = (size_t)((o->to - o->origin + o->block - 1) / o->block);
    uint64_t nbytes = (uint64_t)o->nframes * o->block;
    const int number = errno;
    window *w;
    lost_guard(); /* not in the handler of a touch: it may start a thread */
    if (o->nframes >= NO_FRAME || nblocks > SIZE_MAX / sizeof *w->where)
        return CCMEM_ERR_NOMEM;
    ccmem_status status = create(o, nblocks, &w);
    if (status != CCMEM_OK)
        return status;
    status = windows_enter(w);
    if (status != CCMEM_OK) {
        destroy(w);
        return status;
    }
    status = budget_reserve(nbytes);
    if (status == CCMEM_OK) {
        const fault_owner owner = touch_owner(w);
        /* Its threads may ask before `mechanism` is known: under the lock they wait. */
        pthread_mutex_lock(&w->lock);
        status = o->ops->open(&owner, o->block, nblocks, o->nframes, o->writable, &w->mechanism);
        if (status == CCMEM_OK) {
            w->space = w->mechanism->space;
            w->count.window = nbytes;
            w->count.block = o->block;
            w->count.kernel_faults = w->mechanism->system_calls;
            if (!ranges_enter(w->space.base, w->space.nblocks * w->space.block))
                status = CCMEM_ERR_NOMEM;
        }
        pthread_mutex_unlock(&w->lock);
        if (status != CCMEM_OK && w->mechanism) {
            w->ops->close(w->mechanism);
            fault_release(&w->space);
        }
        if (status != CCMEM_OK)
            budget_release(nbytes);
    }
    if (status != CCMEM_OK) {
        int failed = errno;
        windows_leave(w);
        destroy(w);
        errno = failed;
        return status;
    }
    errno = number;
    *out = w;
    return CCMEM_OK;
}

ccmem_status window_close(window *w) {
    ccmem_status status = window_lock(w);
    if (status == CCMEM_ERR_ARGUMENT) /* closed before */
        return CCMEM_OK;
    if (status != CCMEM_OK)
        return status;
    w->closing = 1;
    for (size_t i = 0; i < w->space.nframes; i++)
        while (w->frames[i].state == OPENING)
            fill_wait(w);
    for (size_t i = 0; i < w->space.nframes; i++)
        if (w->frames[i].state != EMPTY) {
            ccmem_status sealed = frame_empty(w, &w->frames[i]);
            if (status == CCMEM_OK)
                status = sealed;
        }
    fault_mechanism *m = w->mechanism;
    w->mechanism = NULL;
    pthread_mutex_unlock(&w->lock);
    ranges_leave(w->space.base);
    w->ops->close(m); /* its thread may be waiting for the lock */
    windows_leave(w);
    budget_release((uint64_t)w->space.nframes * w->space.block);
    return status;
}

void window_free(window *w) {
    if (!w)
        return;
    if (fork_alien(w->generation)) { /* its lock may be held by a thread that is not here */
        free_memory(w);
        return;
    }
    (void)window_close(w);
    fault_release(&w->space);
    destroy(w);
}

ccmem_status window_get_stats(window *w, ccmem_region_stats *out) {
    if (fork_alien(w->generation))
        return CCMEM_ERR_FORK;
    pthread_mutex_lock(&w->lock);
    *out = w->count;
    pthread_mutex_unlock(&w->lock);
    return CCMEM_OK;
}
