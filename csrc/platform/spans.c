/* SPDX-License-Identifier: Apache-2.0
 * A growing table of address ranges that is searched without a lock. */
#include "platform/spans.h"

#include <sched.h>
#include <stdlib.h>

/* Segment k begins with entry SPANS_FIRST * 2^k. The entries below `used` are there. */
static span *entry(span_table *t, size_t i) {
    if (i < SPANS_FIRST)
        return &t->first[i];
    const int k = __builtin_clzl(SPANS_FIRST) - __builtin_clzl((unsigned long)i);
    return __atomic_load_n(&t->segment[k], __ATOMIC_ACQUIRE) + (i - ((size_t)SPANS_FIRST << k));
}

/* One that is not in use; with the lock held. */
static span *fresh(span_table *t) {
    span *s = t->free;
    if (s) {
        t->free = s->next;
        return s;
    }
    size_t i = t->used;
    if (i >= SPANS_FIRST && !(i & (i - 1))) { /* the first of its segment */
        const int k = __builtin_ctzl((unsigned long)i) - __builtin_ctzl(SPANS_FIRST);
        if (k >= SPAN_SEGMENTS)
            return NULL;
        span *segment = t->segment[k]; /* there already in a child that forgot what was in it */
        if (!segment && !(segment = calloc(i, sizeof *segment)))
            return NULL;
        __atomic_store_n(&t->segment[k], segment, __ATOMIC_RELEASE);
    }
    s = entry(t, i);
    __atomic_store_n(&t->used, i + 1, __ATOMIC_RELEASE);
    return s;
}

span *span_enter(span_table *t, const void *p, size_t n, void *owner) {
    pthread_mutex_lock(&t->lock);
    span *s = fresh(t);
    if (s) {
        __atomic_store_n(&s->begin, (uintptr_t)p, __ATOMIC_RELAXED);
        __atomic_store_n(&s->owner, owner, __ATOMIC_SEQ_CST);
        __atomic_store_n(&s->end, (uintptr_t)p + n, __ATOMIC_SEQ_CST);
    }
    pthread_mutex_unlock(&t->lock);
    return s;
}

void span_leave(span_table *t, span *s) {
    __atomic_store_n(&s->end, 0, __ATOMIC_SEQ_CST);
    __atomic_store_n(&s->owner, NULL, __ATOMIC_SEQ_CST);
    while (__atomic_load_n(&s->users, __ATOMIC_SEQ_CST))
        sched_yield();
    pthread_mutex_lock(&t->lock);
    s->next = t->free;
    t->free = s;
    pthread_mutex_unlock(&t->lock);
}

void span_leave_at(span_table *t, const void *p) {
    size_t used = __atomic_load_n(&t->used, __ATOMIC_ACQUIRE);
    for (size_t i = 0; i < used; i++) {
        span *s = entry(t, i);
        if (__atomic_load_n(&s->end, __ATOMIC_ACQUIRE) &&
            __atomic_load_n(&s->begin, __ATOMIC_RELAXED) == (uintptr_t)p) {
            span_leave(t, s);
            return;
        }
    }
}

static int holds(const span *s, uintptr_t address) {
    return address < __atomic_load_n(&s->end, __ATOMIC_SEQ_CST) &&
           address >= __atomic_load_n(&s->begin, __ATOMIC_RELAXED);
}

int span_ask(span_table *t, uintptr_t address, int (*ask)(void *owner, uintptr_t address, int how),
             int how) {
    size_t used = __atomic_load_n(&t->used, __ATOMIC_ACQUIRE);
    int answer = 0;
    for (size_t i = 0; i < used && !answer; i++) {
        span *s = entry(t, i);
        if (!holds(s, address))
            continue;
        __atomic_fetch_add(&s->users, 1, __ATOMIC_SEQ_CST);
        void *owner = __atomic_load_n(&s->owner, __ATOMIC_SEQ_CST);
        if (owner && holds(s, address)) /* another may have come in its place */
            answer = ask(owner, address, how);
        __atomic_fetch_sub(&s->users, 1, __ATOMIC_SEQ_CST);
    }
    return answer;
}

int span_touch(span_table *t, const void *p, uint64_t n) {
    const uintptr_t first = (uintptr_t)p;
    size_t used = __atomic_load_n(&t->used, __ATOMIC_ACQUIRE);
    for (size_t i = 0; i < used; i++) {
        const span *s = entry(t, i);
        uintptr_t end = __atomic_load_n(&s->end, __ATOMIC_ACQUIRE);
        if (end > first && __atomic_load_n(&s->begin, __ATOMIC_RELAXED) < first + n)
            return 1;
    }
    return 0;
}

void span_forget(span_table *t) {
    for (size_t i = 0; i < t->used; i++)
        *entry(t, i) = (span){0};
    t->used = 0;
    t->free = NULL;
    pthread_mutex_init(&t->lock, NULL);
}
