/* SPDX-License-Identifier: Apache-2.0
 * What a cache and its forks have in common: the key, the numbers, the memory. */
#include "cache/pool.h"

#include <stdlib.h>

#include "memory/secret.h"
#include "platform/fork.h"
#include "platform/random.h"
#include "store/store.h"

enum {
    KEY_SIZE = 16, /* of AEGIS-128X2 */
    ONCE = 1       /* the version of all that is sealed: none is sealed twice */
};

/* Far above what any machine seals, far below where a sum of numbers would wrap. */
static const uint64_t NUMBERS_MAX = PAGE_NUMBERS;

static ccmem_status key_new(cache_pool *pool, ccmem_secret_level require) {
    ccmem_status status = secret_alloc(KEY_SIZE, require, &pool->key, &pool->level);
    if (status != CCMEM_OK)
        return status;
    status = random_bytes(pool->key, KEY_SIZE);
    if (status != CCMEM_OK) {
        secret_free(pool->key);
        pool->key = NULL;
    }
    return status;
}

ccmem_status pool_new(ccmem_secret_level require, int plain, cache_pool **out) {
    ccmem_status status = CCMEM_ERR_NOMEM;
    cache_pool *pool = calloc(1, sizeof *pool);
    if (!pool)
        return status;
    page_context page;
    page_init_keyless(&page, CCMEM_AEGIS_128X2, ccmem_tier_active(), CCMEM_PAGE_SIZE_MIN);
    pool->pages = page.ops;
    pool->kernels = page.kernels;
    pool->plain = plain;
    pool->generation = fork_generation();
    pool->refs = 1;
    if (slots_begin(&pool->slots))
        goto no_slots;
    if (pthread_rwlock_init(&pool->alive, NULL))
        goto no_lock;
    status = key_new(pool, require);
    if (status == CCMEM_OK) {
        *out = pool;
        return status;
    }
    (void)pthread_rwlock_destroy(&pool->alive);
no_lock:
    slots_end(&pool->slots, 0);
no_slots:
    free(pool);
    return status;
}

cache_pool *pool_retain(cache_pool *pool) {
    (void)__atomic_fetch_add(&pool->refs, 1, __ATOMIC_RELAXED);
    return pool;
}

void pool_release(cache_pool *pool) {
    if (__atomic_sub_fetch(&pool->refs, 1, __ATOMIC_ACQ_REL))
        return;
    const int alien = fork_alien(pool->generation);
    if (!alien) {
        secret_free(pool->key);
        (void)pthread_rwlock_destroy(&pool->alive);
    }
    slots_end(&pool->slots, alien);
    free(pool);
}

ccmem_status pool_enter(cache_pool *pool) {
    if (fork_alien(pool->generation))
        return CCMEM_ERR_FORK;
    (void)pthread_rwlock_rdlock(&pool->alive);
    if (pool->key)
        return CCMEM_OK;
    (void)pthread_rwlock_unlock(&pool->alive);
    return CCMEM_ERR_CLOSED;
}

void pool_leave(cache_pool *pool) { (void)pthread_rwlock_unlock(&pool->alive); }

void pool_erase(cache_pool *pool) {
    (void)pthread_rwlock_wrlock(&pool->alive);
    secret_free(pool->key);
    pool->key = NULL;
    (void)pthread_rwlock_unlock(&pool->alive);
}

ccmem_status pool_numbers(cache_pool *pool, uint64_t n, uint64_t *first) {
    uint64_t seen = __atomic_load_n(&pool->numbers, __ATOMIC_RELAXED);
    do {
        if (n > NUMBERS_MAX - seen)
            return CCMEM_ERR_VERSION;
    } while (!__atomic_compare_exchange_n(&pool->numbers, &seen, seen + n, 1, __ATOMIC_RELAXED,
                                          __ATOMIC_RELAXED));
    *first = seen;
    return CCMEM_OK;
}

static page_context context(const cache_pool *pool, size_t size) {
    return (page_context){.ops = pool->pages,
                          .kernels = pool->kernels,
                          .key = pool->key,
                          .size = (uint32_t)size};
}

void pool_seal(const cache_pool *pool, uint8_t *to, const uint8_t *from, uint64_t number,
               uint8_t (*tags)[PAGE_TAG], size_t n, size_t size) {
    uint64_t version[PAGE_BATCH];
    const page_context page = context(pool, size);
    if (pool->plain) {
        copy_secret(to, from, n * size);
        return;
    }
    for (size_t i = 0; i < PAGE_BATCH; i++)
        version[i] = ONCE;
    while (n) {
        const size_t some = n < PAGE_BATCH ? n : PAGE_BATCH;
        page.ops->seal(&page, to, from, number, version, tags, some, PAGE_LAST);
        to += some * size;
        from += some * size;
        number += some;
        tags += some;
        n -= some;
    }
}

/* 0, and what is told of it: a page was changed. */
static int failed(cache_pool *pool, uint64_t number) {
    (void)__atomic_fetch_add(&pool->failures, 1, __ATOMIC_RELAXED);
    store_set_failure((ccmem_failure){.page = number, .version = ONCE});
    return 0;
}

int pool_open(cache_pool *pool, uint8_t *to, const uint8_t *from, uint64_t number,
              const uint8_t *tag, size_t size, unsigned flags) {
    const uint64_t version = ONCE;
    const page_context page = context(pool, size);
    if (pool->plain) {
        copy_secret(to, from, size);
        return 1;
    }
    return !page.ops->open(&page, to, from, number, &version, (const page_tag *)tag, 1, flags) ||
           failed(pool, number);
}

int pool_open_next(cache_pool *pool, uint8_t *to, const uint8_t *from, uint64_t number,
                   const uint8_t *tag, size_t size, const uint8_t *near, const uint8_t *far) {
    const page_context page = context(pool, size);
    return page.ops->open_next(&page, to, from, number, ONCE, (const page_tag *)tag, near, far) ||
           failed(pool, number);
}

void pool_opened(cache_pool *pool, uint64_t n) {
    (void)__atomic_fetch_add(&pool->opened, n, __ATOMIC_RELAXED);
}
