/* SPDX-License-Identifier: Apache-2.0
 * Memory for ciphertext and for tables, in slots of a few sizes: mapped in chunks that grow with
 * what is in use, shared by counting, given back chunk by chunk. What is known of a slot lies in
 * memory of its own, not beside ciphertext. */
#ifndef CCMEM_CACHE_SLOTS_H
#define CCMEM_CACHE_SLOTS_H

#include <pthread.h>

#include "ccmem.h"

typedef struct slot_chunk slot_chunk;

typedef struct cache_slot {
    uint8_t *data;
    slot_chunk *chunk;
    struct cache_slot *next; /* of the chunk's free ones */
    uint64_t refs;           /* atomic */
} cache_slot;

typedef enum slot_kind {
    SLOT_CIPHERTEXT,
    SLOT_TABLE /* neither dumped nor inherited; locked, as far as the system lets that be */
} slot_kind;

/* The slots of one size. */
typedef struct slot_class {
    struct slot_class *next;
    size_t size; /* bytes of a slot */
    slot_kind kind;
    slot_chunk *chunks; /* those with a free slot first */
} slot_class;

typedef struct cache_slots {
    pthread_mutex_t lock; /* for all that follows */
    slot_class *classes;
    uint64_t mapped; /* bytes of all chunks, with what is known of their slots */
} cache_slots;

/* Makes it ready; 0 or an error number. */
int slots_begin(cache_slots *slots);

/* Gives all memory back; in a forked child (`alien`), what it inherited. */
void slots_end(cache_slots *slots, int alien);

/* A slot of at least n bytes with one reference; NULL when there is no memory. A table's is zeros.
 */
cache_slot *slots_take(cache_slots *slots, slot_kind kind, size_t n);

/* Another reference, and one less: the last one gives the slot back, and the result is 1. NULL is
 * allowed. */
cache_slot *slots_share(cache_slot *slot);
int slots_drop(cache_slots *slots, cache_slot *slot);

#endif
