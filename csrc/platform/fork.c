/* SPDX-License-Identifier: Apache-2.0 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "platform/fork.h"

#include <pthread.h>
#include <sys/mman.h>
#include <unistd.h>

static uint64_t before_init; /* stays 0: everything is alien until fork_init() */
const volatile uint64_t *fork_page = &before_init;

/* Follows a fork like any memory. Never below the number on the page, so that a fork at any moment
 * leaves the child a number greater than every one in use before. */
static uint64_t last_generation;

/* Kernels before 4.14 and some sandboxes refuse MADV_WIPEONFORK. This handler then does the same
 * for every fork() through the C library, though not for a bare clone(2). */
static void wipe_page(void) { __atomic_store_n((uint64_t *)fork_page, 0, __ATOMIC_RELAXED); }

ccmem_status fork_init(void) {
    const volatile uint64_t *expected = &before_init;
    long size = sysconf(_SC_PAGESIZE);
    uint64_t *page;

    if (__atomic_load_n(&fork_page, __ATOMIC_ACQUIRE) != &before_init)
        return CCMEM_OK;
    if (size <= 0)
        return CCMEM_ERR_NOMEM;
    page = mmap(NULL, (size_t)size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (page == MAP_FAILED)
        return CCMEM_ERR_NOMEM;
    if (madvise(page, (size_t)size, MADV_WIPEONFORK) && pthread_atfork(NULL, NULL, wipe_page)) {
        munmap(page, (size_t)size);
        return CCMEM_ERR_NOMEM;
    }
    /* The page stays 0: the first fork_generation() numbers this process as it would a child. */
    if (!__atomic_compare_exchange_n(&fork_page, &expected, page, 0, __ATOMIC_ACQ_REL,
                                     __ATOMIC_ACQUIRE))
        munmap(page, (size_t)size); /* another thread's page won; nobody has seen this one */
    return CCMEM_OK;
}

uint64_t fork_generation(void) {
    uint64_t *page = (uint64_t *)__atomic_load_n(&fork_page, __ATOMIC_ACQUIRE);
    uint64_t now = __atomic_load_n(page, __ATOMIC_ACQUIRE);

    if (now)
        return now;
    /* The counter first, the page second: see last_generation. Of several threads one wins. */
    uint64_t next = __atomic_add_fetch(&last_generation, 1, __ATOMIC_ACQ_REL);
    if (__atomic_compare_exchange_n(page, &now, next, 0, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE))
        return next;
    return now;
}
