/* SPDX-License-Identifier: Apache-2.0
 * Counts generations of processes, so that objects of a parent are told from one's own. */
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

/* ---- handlers -------------------------------------------------------------------------------- */

static fork_handlers handlers[FORK_PLACES];
static unsigned known; /* atomic; one bit a place */

/* Those of the fork that this thread is in: others may come while it is under way, and another
 * thread may fork as well. */
static _Thread_local unsigned called __attribute__((tls_model("initial-exec")));

void fork_handle(fork_place place, fork_handlers own) {
    if (__atomic_load_n(&known, __ATOMIC_ACQUIRE) >> place & 1)
        return;
    handlers[place] = own;
    __atomic_fetch_or(&known, 1u << place, __ATOMIC_RELEASE);
}

static void before_fork(void) {
    called = __atomic_load_n(&known, __ATOMIC_ACQUIRE);
    for (int i = FORK_PLACES - 1; i >= 0; i--)
        if ((called >> i & 1) && handlers[i].before)
            handlers[i].before();
}

static void in_parent(void) {
    for (int i = 0; i < FORK_PLACES; i++)
        if ((called >> i & 1) && handlers[i].in_parent)
            handlers[i].in_parent();
}

/* Kernels before 4.14 and some sandboxes refuse MADV_WIPEONFORK. This then does the same for every
 * fork(2) through the C library, though not for a bare clone(2). */
static int page_stays; /* atomic */

static void in_child(void) {
    if (__atomic_load_n(&page_stays, __ATOMIC_RELAXED))
        __atomic_store_n((uint64_t *)fork_page, 0, __ATOMIC_RELAXED);
    for (int i = 0; i < FORK_PLACES; i++)
        if ((called >> i & 1) && handlers[i].in_child)
            handlers[i].in_child();
}

static int registered; /* 1: done; -1: refused */

static void register_handlers(void) {
    registered = pthread_atfork(before_fork, in_parent, in_child) ? -1 : 1;
}

/* ---- the guard page -------------------------------------------------------------------------- */

ccmem_status fork_init(void) {
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    const volatile uint64_t *expected = &before_init;
    long size = sysconf(_SC_PAGESIZE);
    uint64_t *page;

    if (__atomic_load_n(&fork_page, __ATOMIC_ACQUIRE) != &before_init)
        return CCMEM_OK;
    pthread_once(&once, register_handlers);
    if (size <= 0 || registered < 0)
        return CCMEM_ERR_NOMEM;
    page = mmap(NULL, (size_t)size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (page == MAP_FAILED)
        return CCMEM_ERR_NOMEM;
    if (madvise(page, (size_t)size, MADV_WIPEONFORK))
        __atomic_store_n(&page_stays, 1, __ATOMIC_RELAXED);
    /* The page stays 0: the first fork_generation() numbers this process as it would a child. */
    if (!__atomic_compare_exchange_n(&fork_page, &expected, page, 0, __ATOMIC_ACQ_REL,
                                     __ATOMIC_ACQUIRE))
        munmap(page, (size_t)size); /* another thread's page won; none has seen this one */
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
