/* SPDX-License-Identifier: Apache-2.0
 * A table of address ranges that is searched without a lock, by the handler of a signal too, and
 * has room for as many as there is memory for. */
#ifndef CCMEM_SPANS_H
#define CCMEM_SPANS_H

#include <pthread.h>
#include <stddef.h>
#include <stdint.h>

/* Bytes begin to end - 1. In use when `end` is not 0, which is set last and cleared first. */
typedef struct span {
    uintptr_t begin, end; /* atomic */
    void *owner;          /* atomic */
    unsigned users;    /* atomic; calls of span_ask() that may be in the owner, of this span alone:
                        * others may be busy for ever */
    struct span *next; /* of those that are free */
} span;

enum { SPANS_FIRST = 64, SPAN_SEGMENTS = 24 };

/* Entries never move: each segment is as large as all before it together. */
typedef struct span_table {
    pthread_mutex_t lock;
    span first[SPANS_FIRST];
    span *segment[SPAN_SEGMENTS]; /* atomic; those after the first */
    size_t used;                  /* atomic; entries that ever were in use */
    span *free;
} span_table;

#define SPAN_TABLE {.lock = PTHREAD_MUTEX_INITIALIZER}

/* Enters the n > 0 bytes at p. Returns NULL when there is no memory. */
span *span_enter(span_table *table, const void *p, size_t n, void *owner);

/* Takes a span out, and waits until no span_ask() is in its owner any more. Not from within one. */
void span_leave(span_table *table, span *which);

/* Takes out the span that begins at p, if there is one. */
void span_leave_at(span_table *table, const void *p);

/* Asks the owners of the spans that hold the address until one answers other than 0, and returns
 * that. */
int span_ask(span_table *table, uintptr_t address,
             int (*ask)(void *owner, uintptr_t address, int how), int how);

/* Returns 1 when some byte of [p, p + n) lies in one. */
int span_touch(span_table *table, const void *p, uint64_t n);

/* In a forked child, which has none of what its parent entered. */
void span_forget(span_table *table);

#endif
