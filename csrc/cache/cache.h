/* SPDX-License-Identifier: Apache-2.0
 * What a cache is made of; for the files of cache/ alone. A layer has sequences; a sequence is a
 * list of groups and then a list of records (docs/design/kv-cache.md). Entries of lists are never
 * changed, only added and dropped. */
#ifndef CCMEM_CACHE_H
#define CCMEM_CACHE_H

#include "cache/layout.h"
#include "cache/pool.h"

/* A group or a record: its ciphertext, then its tags. */
typedef struct cache_entry {
    uint64_t number; /* a group's first block; the others follow */
    cache_slot *slot;
} cache_entry;

typedef struct cache_sequence {
    uint64_t gone;   /* groups that were evicted */
    uint64_t groups; /* and those that are there */
    uint64_t room;   /* of the table */
    uint64_t records;
    cache_slot *table;         /* the groups' entries; NULL: no room */
    cache_slot *records_table; /* room for layout.tokens of them */
} cache_sequence;

typedef struct cache_layer {
    cache_layout layout;
    uint32_t n;
    cache_sequence *sequence;
} cache_layer;

struct ccmem_cache {
    cache_pool *pool;
    pthread_rwlock_t lock; /* read by attend; taken before the pool's */
    uint32_t sequences;    /* of a new layer */
    uint32_t nlayers, room;
    cache_layer *layer;
};

static inline cache_entry *sequence_groups(const cache_sequence *s) {
    return (cache_entry *)(s->table ? s->table->data : NULL);
}

static inline cache_entry *sequence_records(const cache_sequence *s) {
    return (cache_entry *)(s->records_table ? s->records_table->data : NULL);
}

static inline uint64_t sequence_first(const cache_sequence *s, const cache_layout *l) {
    return s->gone * l->tokens;
}

static inline uint64_t sequence_length(const cache_sequence *s, const cache_layout *l) {
    return (s->gone + s->groups) * l->tokens + s->records;
}

/* Tags of a group's blocks, in the order of the blocks; the tag of a record. */
static inline uint8_t (*group_tags(const cache_entry *e, const cache_layout *l))
    [PAGE_TAG] { return (uint8_t (*)[PAGE_TAG])(e->slot->data + l->group); }

static inline uint8_t (*record_tag(const cache_entry *e, const cache_layout *l))
    [PAGE_TAG] { return (uint8_t (*)[PAGE_TAG])(e->slot->data + l->record); }

/* Where the block of a head lies. */
static inline const uint8_t *group_block(const cache_entry *e, const cache_layout *l, int which,
                                         size_t head) {
    return e->slot->data + layout_block(l, which, head);
}

/* Opens the block of a head into `to`, of l->block[which] bytes. 0: it was changed. */
int group_open(cache_pool *pool, const cache_layout *l, const cache_entry *group, int which,
               size_t head, uint8_t *to);

/* The same while the blocks at `near` and `far` are fetched from memory, which are opened next and
 * some blocks later (NULL: none). For pool_open_next(). */
int group_open_next(cache_pool *pool, const cache_layout *l, const cache_entry *group, int which,
                    size_t head, uint8_t *to, const uint8_t *near, const uint8_t *far);

/* Opens a record into `to`, of l->record bytes. 0: it was changed. */
int record_open(cache_pool *pool, const cache_layout *l, const cache_entry *record, uint8_t *to);

/* Drops the references of a sequence, and leaves it empty. */
void sequence_clear(cache_pool *pool, const cache_layout *l, cache_sequence *s);

/* Makes *to a copy of `from` that shares all its entries. CCMEM_ERR_NOMEM. */
ccmem_status sequence_share(cache_pool *pool, const cache_layout *l, const cache_sequence *from,
                            cache_sequence *to);

/* Has the table of groups have room for so many, and the one of records be there.
 * CCMEM_ERR_NOMEM. */
ccmem_status sequence_room(cache_pool *pool, const cache_layout *l, cache_sequence *s,
                           uint64_t groups);

/* Drops the last records, or groups from number `from` of those that are there on. */
void sequence_drop_records(cache_pool *pool, const cache_layout *l, cache_sequence *s,
                           uint64_t from);
void sequence_drop_groups(cache_pool *pool, const cache_layout *l, cache_sequence *s,
                          uint64_t from);

/* Takes a slot for a new group or record; `number` is to be filled in. slot is NULL when there is
 * no memory. */
cache_entry group_new(cache_pool *pool, const cache_layout *l);
cache_entry record_new(cache_pool *pool, const cache_layout *l);
void group_drop(cache_pool *pool, const cache_layout *l, cache_entry *e);
void record_drop(cache_pool *pool, const cache_layout *l, cache_entry *e);

/* CCMEM_OK, the layer, the lock for reading or (`write`) writing, and the key (pool_enter()) until
 * cache_leave(). CCMEM_ERR_ARGUMENT, _FORK, _CLOSED. */
ccmem_status cache_enter(ccmem_cache *cache, uint32_t layer, int write, cache_layer **out);
void cache_leave(ccmem_cache *cache);

#endif
