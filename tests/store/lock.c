/* SPDX-License-Identifier: Apache-2.0
 * The lock of csrc/store/lock.c alone, with readers and writers of plain words in place of pages.
 * Prints what was wrong, and ends with status 1 then. */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>

#include "store/lock.h"

enum {
    PAGES = 4,
    WORDS = 64,
    WRITES = 300000,
    WRITERS = 2,
    READERS = 2,
    SEIZERS = 3,
    ROUNDS = 1000
};

static store_core core;
static uint64_t versions[PAGES];
static ccmem_store store = {.core = &core, .version = versions};
static volatile uint64_t page[PAGES][WORDS];        /* all words are the version */
static uint64_t written, torn, doubted, taken_over; /* atomic */
static pthread_barrier_t together;
static int writing = WRITERS; /* atomic */

static void *writer(void *seed) {
    uint64_t v[PAGES], random = (uintptr_t)seed;
    for (int i = 0; i < WRITES; i++) {
        random = random * 6364136223846793005u + 1;
        const uint64_t first = random >> 62, n = lock_pages(&store, first, PAGES - first, v, 0);
        if (!n) {
            __atomic_fetch_add(&doubted, 1, __ATOMIC_RELAXED);
            continue;
        }
        for (uint64_t p = 0; p < n; p++) {
            v[p]++;
            for (int w = 0; w < WORDS; w++)
                page[first + p][w] = v[p];
        }
        publish(&store, first, v, n);
        __atomic_fetch_add(&written, n, __ATOMIC_RELAXED);
    }
    __atomic_fetch_sub(&writing, 1, __ATOMIC_RELAXED);
    return NULL;
}

static void *reader(void *unused) {
    while (__atomic_load_n(&writing, __ATOMIC_RELAXED))
        for (uint64_t p = 0; p < PAGES; p++) {
            const uint64_t v = stable_version(&store, p);
            uint64_t differ = 0;
            for (int w = 0; w < WORDS; w++)
                differ |= page[p][w] ^ v;
            if (unchanged(&versions[p], v) && differ)
                __atomic_fetch_add(&torn, 1, __ATOMIC_RELAXED);
        }
    return unused;
}

/* Writes a page whose lock no thread will ever drop, at the same time as others. */
static void *seizer(void *number) {
    uint64_t v;
    for (int i = 0; i < ROUNDS; i++) {
        if (pthread_barrier_wait(&together) == PTHREAD_BARRIER_SERIAL_THREAD)
            versions[0] |= LOCK; /* damage */
        pthread_barrier_wait(&together);
        if (lock_pages(&store, 0, 1, &v, 1) != 1)
            abort();
        __atomic_fetch_add(&taken_over, v >> 63, __ATOMIC_RELAXED);
        v = (v & VERSION_MAX) + 1;
        publish(&store, 0, &v, 1);
    }
    return number;
}

static int expect(const char *what, uint64_t found, uint64_t wanted) {
    if (found == wanted)
        return 0;
    printf("%s: %llu, not %llu\n", what, (unsigned long long)found, (unsigned long long)wanted);
    return 1;
}

static void start(pthread_t *thread, void *(*body)(void *), uintptr_t argument) {
    if (pthread_create(thread, NULL, body, (void *)argument))
        abort();
}

int main(void) {
    pthread_t thread[WRITERS + READERS > SEIZERS ? WRITERS + READERS : SEIZERS];
    uint64_t sum = 0, v = 0, slots = 0;
    int wrong = 0;
    for (int i = 0; i < WRITERS + READERS; i++)
        start(&thread[i], i < WRITERS ? writer : reader, (uintptr_t)i + 1);
    for (int i = 0; i < WRITERS + READERS; i++)
        pthread_join(thread[i], NULL);
    for (int p = 0; p < PAGES; p++)
        sum += versions[p];
    wrong |= expect("pages that readers saw torn", torn, 0);
    wrong |= expect("locks of writers taken for stale", doubted, 0);
    wrong |= expect("the sum of versions", sum, written);

    const uint64_t before = versions[0];
    versions[0] |= LOCK; /* damage */
    wrong |= expect("a reader's look at a stale lock", stable_version(&store, 0), before | LOCK);
    wrong |= expect("pages locked in spite of it", lock_pages(&store, 0, 1, &v, 0), 0);
    versions[0] = before;
    if (pthread_barrier_init(&together, NULL, SEIZERS))
        abort();
    for (int i = 0; i < SEIZERS; i++)
        start(&thread[i], seizer, 0);
    for (int i = 0; i < SEIZERS; i++)
        pthread_join(thread[i], NULL);
    wrong |= expect("threads that took the lock over", taken_over, ROUNDS);
    wrong |= expect("the version after all have written", versions[0], before + SEIZERS * ROUNDS);
    for (int i = 0; i < SLOTS; i++)
        slots += (uint32_t)core.slots[i];
    wrong |= expect("writers left in slots", slots, 0);
    return wrong;
}
