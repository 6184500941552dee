/* SPDX-License-Identifier: Apache-2.0
 * A sequence's lists of groups and records: made, shared, dropped. */
#include <string.h>

#include "cache/cache.h"
#include "platform/round.h"

/* ---- entries --------------------------------------------------------------------------------- */

/* Bytes of slots, which begin at a multiple of 64. */
static size_t group_bytes(const cache_layout *l) {
    return round_up(l->group + 2 * l->heads * PAGE_TAG, 64);
}

static size_t record_bytes(const cache_layout *l) { return round_up(l->record + PAGE_TAG, 64); }

static void count(uint64_t *counter, uint64_t n) {
    (void)__atomic_fetch_add(counter, n, __ATOMIC_RELAXED);
}

static void uncount(uint64_t *counter, uint64_t n) {
    (void)__atomic_fetch_sub(counter, n, __ATOMIC_RELAXED);
}

cache_entry group_new(cache_pool *pool, const cache_layout *l) {
    cache_entry e = {0, slots_take(&pool->slots, SLOT_CIPHERTEXT, group_bytes(l))};
    if (e.slot) {
        count(&pool->blocks, 2 * l->heads);
        count(&pool->ciphertext_bytes, l->group);
    }
    return e;
}

cache_entry record_new(cache_pool *pool, const cache_layout *l) {
    cache_entry e = {0, slots_take(&pool->slots, SLOT_CIPHERTEXT, record_bytes(l))};
    if (e.slot) {
        count(&pool->records, 1);
        count(&pool->ciphertext_bytes, l->record);
    }
    return e;
}

void group_drop(cache_pool *pool, const cache_layout *l, cache_entry *e) {
    if (slots_drop(&pool->slots, e->slot)) {
        uncount(&pool->blocks, 2 * l->heads);
        uncount(&pool->ciphertext_bytes, l->group);
    }
    *e = (cache_entry){0, NULL};
}

void record_drop(cache_pool *pool, const cache_layout *l, cache_entry *e) {
    if (slots_drop(&pool->slots, e->slot)) {
        uncount(&pool->records, 1);
        uncount(&pool->ciphertext_bytes, l->record);
    }
    *e = (cache_entry){0, NULL};
}

int group_open(cache_pool *pool, const cache_layout *l, const cache_entry *group, int which,
               size_t head, uint8_t *to) {
    const size_t block = (which ? l->heads : 0) + head, at = layout_block(l, which, head);
    /* The next group is somewhere else. */
    const unsigned flags = l->group - at - l->block[which] < PAGE_AHEAD ? PAGE_LAST : 0;
    return pool_open(pool, to, group->slot->data + at, group->number + block,
                     group_tags(group, l)[block], l->block[which], flags);
}

int group_open_next(cache_pool *pool, const cache_layout *l, const cache_entry *group, int which,
                    size_t head, uint8_t *to, const uint8_t *near, const uint8_t *far) {
    const size_t block = (which ? l->heads : 0) + head;
    const uint8_t *from = group_block(group, l, which, head);
    return pool_open_next(pool, to, from, group->number + block, group_tags(group, l)[block],
                          l->block[which], near ? near : from, far ? far : from);
}

int record_open(cache_pool *pool, const cache_layout *l, const cache_entry *record, uint8_t *to) {
    return pool_open(pool, to, record->slot->data, record->number, *record_tag(record, l),
                     l->record, PAGE_LAST);
}

/* ---- lists ----------------------------------------------------------------------------------- */

void sequence_drop_records(cache_pool *pool, const cache_layout *l, cache_sequence *s,
                           uint64_t from) {
    while (s->records > from)
        record_drop(pool, l, &sequence_records(s)[--s->records]);
}

void sequence_drop_groups(cache_pool *pool, const cache_layout *l, cache_sequence *s,
                          uint64_t from) {
    while (s->groups > from)
        group_drop(pool, l, &sequence_groups(s)[--s->groups]);
}

void sequence_clear(cache_pool *pool, const cache_layout *l, cache_sequence *s) {
    sequence_drop_records(pool, l, s, 0);
    sequence_drop_groups(pool, l, s, 0);
    (void)slots_drop(&pool->slots, s->table);
    (void)slots_drop(&pool->slots, s->records_table);
    memset(s, 0, sizeof *s);
}

ccmem_status sequence_room(cache_pool *pool, const cache_layout *l, cache_sequence *s,
                           uint64_t groups) {
    if (!s->records_table) {
        s->records_table = slots_take(&pool->slots, SLOT_TABLE, l->tokens * sizeof(cache_entry));
        if (!s->records_table)
            return CCMEM_ERR_NOMEM;
    }
    if (groups <= s->room)
        return CCMEM_OK;
    uint64_t room = s->room ? s->room * 2 : 16;
    while (room < groups)
        room *= 2;
    if (room > SIZE_MAX / sizeof(cache_entry) / 2)
        return CCMEM_ERR_NOMEM;
    cache_slot *table = slots_take(&pool->slots, SLOT_TABLE, room * sizeof(cache_entry));
    if (!table)
        return CCMEM_ERR_NOMEM;
    if (s->groups)
        memcpy(table->data, s->table->data, s->groups * sizeof(cache_entry));
    (void)slots_drop(&pool->slots, s->table);
    s->table = table;
    s->room = room;
    return CCMEM_OK;
}

ccmem_status sequence_share(cache_pool *pool, const cache_layout *l, const cache_sequence *from,
                            cache_sequence *to) {
    *to = (cache_sequence){.gone = from->gone};
    ccmem_status status = sequence_room(pool, l, to, from->groups);
    if (status != CCMEM_OK) {
        sequence_clear(pool, l, to);
        return status;
    }
    for (; to->groups < from->groups; to->groups++) {
        const cache_entry *e = &sequence_groups(from)[to->groups];
        sequence_groups(to)[to->groups] = (cache_entry){e->number, slots_share(e->slot)};
    }
    for (; to->records < from->records; to->records++) {
        const cache_entry *e = &sequence_records(from)[to->records];
        sequence_records(to)[to->records] = (cache_entry){e->number, slots_share(e->slot)};
    }
    return CCMEM_OK;
}
