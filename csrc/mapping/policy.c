/* SPDX-License-Identifier: Apache-2.0 */
#include "mapping/policy.h"

#include <string.h>

#include "mapping/patience.h"

enum {
    AHEAD_MAX = 6, /* blocks opened ahead of a stream at most */
    BEHIND = 8     /* how far behind it, beside twice these, its old blocks are looked for */
};

void policy_init(window *w, size_t nframes, int read_ahead) {
    w->ahead = nframes / 2 < AHEAD_MAX ? nframes / 2 : AHEAD_MAX;
    if (!read_ahead)
        w->ahead = 0;
    w->stride = w->ahead > 3 ? w->ahead / 2 : 1;
    memset(w->recent, 0xff, sizeof w->recent);
}

void policy_note_recent(window *w, size_t block) {
    size_t i = 0;
    while (i < CCMEM_WINDOW_BLOCKS - 1 && w->recent[i] != block)
        i++;
    memmove(w->recent + 1, w->recent, i * sizeof *w->recent);
    w->recent[0] = block;
}

stream *policy_note_fault(window *w, size_t block) {
    stream *s = w->streams;
    for (int i = 0; i < STREAMS; i++) {
        stream *t = &w->streams[i];
        if (t->order && block == t->last)
            return t;
        if (t->order && block > t->last && block <= t->end) {
            t->last = block;
            t->end = block < t->end ? t->end : block + 1;
            t->run++;
            t->order = ++w->clock;
            return t;
        }
        if (t->order < s->order)
            s = t;
    }
    *s = (stream){.last = block, .end = block + 1, .order = ++w->clock};
    return s;
}

frame *policy_empty_frame(const window *w) {
    for (size_t i = 0; i < w->space.nframes; i++)
        if (w->frames[i].state == EMPTY)
            return &w->frames[i];
    return NULL;
}

/* Returns 1 if the frame may be taken from the threads that use it. */
static int evictable(const window *w, const frame *f) {
    for (size_t i = 0; i < CCMEM_WINDOW_BLOCKS; i++)
        if (w->recent[i] == f->block)
            return 0;
    return !f->pins && f->state > OPENING;
}

frame *policy_left_behind(const window *w, const stream *s) {
    const size_t far = 2 * w->ahead + BEHIND;
    if (!s || !s->run)
        return NULL;
    for (size_t back = 2; back <= far && back <= s->last; back++) {
        frame *f = frame_of(w, s->last - back);
        if (f && f->state == PLACED && evictable(w, f))
            return f;
    }
    return NULL;
}

/* Returns 1 if a stream is coming to the block. */
static int expected(const window *w, const frame *f) {
    for (int i = 0; i < STREAMS; i++) {
        const stream *s = &w->streams[i];
        if (s->run && f->block >= s->last && f->block < s->end)
            return 1;
    }
    return 0;
}

frame *policy_oldest(const window *w, int force) {
    frame *found = NULL;
    for (size_t i = 0; i < w->space.nframes; i++) {
        frame *f = &w->frames[i];
        if (!evictable(w, f) || (found && f->order >= found->order))
            continue;
        if (force || !expected(w, f))
            found = f;
    }
    return found;
}

int policy_in_grace(const window *w, const frame *f) {
    return f->state == PLACED && !w->ops->waits && now_ns() - f->since < GRACE_NS;
}

stream *policy_next_ahead(window *w) {
    stream *s = &w->streams[0];
    for (int i = 1; i < STREAMS; i++)
        if (w->streams[i].order > s->order)
            s = &w->streams[i];
    if (!s->run || !w->ahead)
        return NULL;
    while (s->end < w->space.nblocks && s->end <= s->last + w->ahead && frame_of(w, s->end))
        s->end++;
    return s->end < w->space.nblocks && s->end <= s->last + w->ahead ? s : NULL;
}
