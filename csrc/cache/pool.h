/* SPDX-License-Identifier: Apache-2.0
 * What a cache and its forks have in common: the key, the numbers, the memory. Seals and opens
 * blocks and records, and knows nothing of layers. */
#ifndef CCMEM_CACHE_POOL_H
#define CCMEM_CACHE_POOL_H

#include <pthread.h>

#include "cache/slots.h"
#include "pages/page.h"

typedef struct cache_pool {
    cache_slots slots;
    uint64_t generation;
    uint64_t refs; /* atomic: caches */
    /* Held for reading by what uses the key; for writing while it is destroyed. */
    pthread_rwlock_t alive;
    void *key; /* in secret memory; NULL: erased */
    ccmem_secret_level level;
    const page_ops *pages;
    const void *kernels;
    uint64_t numbers; /* atomic: how many are used, from 0 on */
    uint64_t blocks, records, ciphertext_bytes, opened, failures; /* atomic */
    int plain; /* 1: nothing is encrypted; for measuring alone, see tools/ */
} cache_pool;

/* A pool with one reference. The errors of ccmem_cache_new(). */
ccmem_status pool_new(ccmem_secret_level require, int plain, cache_pool **out);

cache_pool *pool_retain(cache_pool *pool);
void pool_release(cache_pool *pool);

/* CCMEM_OK: the key is there, and stays until pool_leave(). CCMEM_ERR_FORK, _CLOSED. */
ccmem_status pool_enter(cache_pool *pool);
void pool_leave(cache_pool *pool);

/* Waits until nothing uses the key, and wipes it. */
void pool_erase(cache_pool *pool);

/* Takes n numbers that were never taken before; *first is the lowest. CCMEM_ERR_VERSION when there
 * are not so many left. */
ccmem_status pool_numbers(cache_pool *pool, uint64_t n, uint64_t *first);

/* Seals n pieces of `size` bytes (whole 64 bytes) that lie side by side, under numbers from
 * `number` on, each of which is used once in the life of a key. */
void pool_seal(const cache_pool *pool, uint8_t *to, const uint8_t *from, uint64_t number,
               uint8_t (*tags)[PAGE_TAG], size_t n, size_t size);

/* Opens one; `flags` of pages/page.h. 0 when it was changed: `to` is zeros then, and this thread's
 * last failure is the number. */
int pool_open(cache_pool *pool, uint8_t *to, const uint8_t *from, uint64_t number,
              const uint8_t *tag, size_t size, unsigned flags);

/* The same while as many bytes are fetched from `near`, which is opened next, and from `far`. Not
 * of a pool without encryption. The caller overwrites the stack in the end, by
 * burn_stack_of_kernels(). */
int pool_open_next(cache_pool *pool, uint8_t *to, const uint8_t *from, uint64_t number,
                   const uint8_t *tag, size_t size, const uint8_t *near, const uint8_t *far);

/* Counts blocks and records that were opened. Not for each of them: threads would wait for each
 * other. */
void pool_opened(cache_pool *pool, uint64_t n);

#endif
