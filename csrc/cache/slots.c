/* SPDX-License-Identifier: Apache-2.0
 * Memory for ciphertext and for tables, in slots of a few sizes. */
#include "cache/slots.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "platform/vmem.h"

enum {
    CHUNK_MIN = 256 << 10,
    CHUNK_MAX = 8 << 20,
    CHUNK_SHARE =
        32, /* a chunk is at most this part of what is in use, of which half may be empty */
    CHUNK_WASTE = 64, /* and whole huge pages where that leaves less than this part without a slot:
                         from 64 or 128 MiB on */
    TABLE_CHUNK = 64 << 10,
    TABLE_MIN = 256 /* bytes of the smallest table; others are twice as large, and so on */
};

struct slot_chunk {
    slot_chunk *next, *previous; /* of its class */
    slot_class *class;
    uint8_t *data;
    uint64_t bytes;  /* of data */
    uint64_t mapped; /* of this struct and its slots, in a mapping of their own */
    size_t count, used;
    cache_slot *free; /* given back */
    size_t fresh;     /* slots from here on were never used */
    cache_slot slot[];
};

int slots_begin(cache_slots *slots) {
    *slots = (cache_slots){.classes = NULL};
    return pthread_mutex_init(&slots->lock, NULL);
}

static void chunk_unmap(slot_chunk *chunk) {
    vmem_unmap(chunk->data, chunk->bytes);
    vmem_unmap(chunk, chunk->mapped);
}

/* In a child the chunks' own records and the tables were not inherited. What it has of ciphertext
 * cannot be found without them, and goes with the process. */
void slots_end(cache_slots *slots, int alien) {
    slot_class *next;
    for (slot_class *c = slots->classes; c; c = next) {
        slot_chunk *after;
        next = c->next;
        for (slot_chunk *chunk = alien ? NULL : c->chunks; chunk; chunk = after) {
            after = chunk->next;
            chunk_unmap(chunk);
        }
        free(c);
    }
    slots->classes = NULL;
    if (!alien) /* a thread that is not in the child may have held it */
        (void)pthread_mutex_destroy(&slots->lock);
}

/* ---- classes and chunks, under the lock ------------------------------------------------------ */

static slot_class *class_of(cache_slots *slots, slot_kind kind, size_t size) {
    slot_class *c;
    for (c = slots->classes; c; c = c->next)
        if (c->size == size && c->kind == kind)
            return c;
    c = calloc(1, sizeof *c);
    if (!c)
        return NULL;
    c->size = size;
    c->kind = kind;
    c->next = slots->classes;
    slots->classes = c;
    return c;
}

static void put_first(slot_chunk *chunk) {
    slot_class *c = chunk->class;
    chunk->previous = NULL;
    chunk->next = c->chunks;
    if (c->chunks)
        c->chunks->previous = chunk;
    c->chunks = chunk;
}

static void put_last(slot_chunk *chunk) {
    slot_class *c = chunk->class;
    slot_chunk *last = c->chunks;
    if (!last) {
        put_first(chunk);
        return;
    }
    while (last->next)
        last = last->next;
    last->next = chunk;
    chunk->previous = last;
    chunk->next = NULL;
}

static void take_out(slot_chunk *chunk) {
    if (chunk->previous)
        chunk->previous->next = chunk->next;
    else
        chunk->class->chunks = chunk->next;
    if (chunk->next)
        chunk->next->previous = chunk->previous;
}

/* Bytes of the next chunk, which may end with less than a slot. */
static uint64_t chunk_bytes(const cache_slots *slots, const slot_class *c) {
    uint64_t bytes = TABLE_CHUNK;
    if (c->kind == SLOT_CIPHERTEXT) {
        bytes = slots->mapped / CHUNK_SHARE;
        if (bytes < CHUNK_MIN)
            bytes = CHUNK_MIN;
        if (bytes > CHUNK_MAX)
            bytes = CHUNK_MAX;
    }
    const uint64_t huge = bytes & ~(uint64_t)(HUGE_PAGE - 1);
    if (huge % c->size < huge / CHUNK_WASTE)
        return huge;
    return bytes < c->size ? c->size : bytes / c->size * c->size;
}

static slot_chunk *chunk_new(cache_slots *slots, slot_class *c) {
    const uint64_t bytes = chunk_bytes(slots, c);
    const size_t count = (size_t)(bytes / c->size);
    const uint64_t known = sizeof(slot_chunk) + count * sizeof(cache_slot);
    void *chunk_at = NULL, *data = NULL;
    ccmem_status status = vmem_map_private(known, &chunk_at);
    if (status == CCMEM_OK)
        status = c->kind == SLOT_CIPHERTEXT ? vmem_map_pages(bytes, &data)
                                            : vmem_map_private(bytes, &data);
    if (status != CCMEM_OK) {
        if (chunk_at)
            vmem_unmap(chunk_at, known);
        return NULL;
    }
    /* Numbers of blocks are no secrets; locking keeps them out of a swap file where somebody could
     * change them. A small RLIMIT_MEMLOCK must not make a cache impossible. */
    if (c->kind == SLOT_TABLE)
        (void)mlock(data, bytes);
    slot_chunk *chunk = chunk_at;
    chunk->class = c;
    chunk->data = data;
    chunk->bytes = bytes;
    chunk->mapped = known;
    chunk->count = count;
    slots->mapped += bytes + known;
    put_first(chunk);
    return chunk;
}

static int full(const slot_chunk *chunk) { return !chunk->free && chunk->fresh == chunk->count; }

/* ---- slots ----------------------------------------------------------------------------------- */

static size_t table_size(size_t n) {
    size_t size = TABLE_MIN;
    while (size < n)
        size *= 2;
    return size;
}

cache_slot *slots_take(cache_slots *slots, slot_kind kind, size_t n) {
    const size_t size = kind == SLOT_TABLE ? table_size(n) : n;
    cache_slot *slot = NULL;
    (void)pthread_mutex_lock(&slots->lock);
    slot_class *c = class_of(slots, kind, size);
    slot_chunk *chunk = c ? c->chunks : NULL;
    if (c && (!chunk || full(chunk)))
        chunk = chunk_new(slots, c);
    if (chunk) {
        slot = chunk->free;
        if (slot) {
            chunk->free = slot->next;
        } else {
            slot = &chunk->slot[chunk->fresh];
            slot->data = chunk->data + chunk->fresh * size;
            slot->chunk = chunk;
            chunk->fresh++;
        }
        chunk->used++;
        slot->refs = 1;
        if (full(chunk) && chunk->next) {
            take_out(chunk);
            put_last(chunk);
        }
    }
    (void)pthread_mutex_unlock(&slots->lock);
    if (slot && kind == SLOT_TABLE)
        memset(slot->data, 0, size);
    return slot;
}

cache_slot *slots_share(cache_slot *slot) {
    (void)__atomic_fetch_add(&slot->refs, 1, __ATOMIC_RELAXED);
    return slot;
}

int slots_drop(cache_slots *slots, cache_slot *slot) {
    slot_chunk *gone = NULL;
    if (!slot || __atomic_sub_fetch(&slot->refs, 1, __ATOMIC_ACQ_REL))
        return 0;
    (void)pthread_mutex_lock(&slots->lock);
    slot_chunk *chunk = slot->chunk;
    slot->next = chunk->free;
    chunk->free = slot;
    chunk->used--;
    take_out(chunk);
    /* An empty chunk goes when another one has room, so that a slot that comes and goes does not
     * map a chunk each time. */
    if (!chunk->used && chunk->class->chunks && !full(chunk->class->chunks)) {
        slots->mapped -= chunk->bytes + chunk->mapped;
        gone = chunk;
    } else {
        put_first(chunk);
    }
    (void)pthread_mutex_unlock(&slots->lock);
    if (gone)
        chunk_unmap(gone);
    return 1;
}
