/* SPDX-License-Identifier: Apache-2.0
 * Runs of an encrypted matrix's elements, opened and converted by one thread. */
#ifndef CCMEM_FETCH_H
#define CCMEM_FETCH_H

#include "ccmem.h"

enum { FETCH_SLACK = 128 }; /* bytes after the pages that a conversion may read */

typedef struct fetch {
    ccmem_store *store;
    uint8_t *pages; /* the caller's, aligned to 64 */
    uint64_t most;  /* pages that may be opened at a time for fetch_run() */
    int apart;      /* runs do not follow each other */
    uint64_t first; /* the pages that are open now */
    uint64_t count;
    size_t element; /* bytes of one */
    void (*convert)(void *to, const uint8_t *from, size_t n);
    size_t converted; /* bytes of one */
} fetch;

/* How many pages are best opened at a time. */
uint64_t fetch_most(const ccmem_store *store);

/* With fetch_most() pages, and without a conversion. Every other fetch is made from this one. */
fetch fetch_from(ccmem_store *store, uint8_t *pages);

/* Bytes that f->pages must have for fetch_run() with fetch_most() pages, and for fetch_whole() of
 * up to n bytes. */
size_t fetch_room(const ccmem_store *store);
size_t fetch_room_whole(const ccmem_store *store, size_t n);

/* How many rows are best taken at a time: `least` times a power of two, at most `most`, so that
 * they take whole pages, as others are opened once more for the next rows; `least` where none do.
 */
uint64_t fetch_step(const ccmem_store *store, uint64_t row_bytes, uint64_t least, uint64_t most);

/* Opens n elements from byte `at` of the store on and converts them to `to`, where up to a vector
 * more is written. Pages up to byte `end`, of which more will be asked for, may be opened with
 * them. The errors of store_open_pages(). */
ccmem_status fetch_run(fetch *f, void *to, uint64_t at, size_t n, uint64_t end);

/* Opens pages from byte `at` on, up to `end` and as many as are opened at a time: *have > 0 bytes
 * lie at *out, as they are, until the next call. */
ccmem_status fetch_some(fetch *f, uint64_t at, uint64_t end, const uint8_t **out, size_t *have);

/* Opens n bytes from byte `at` on; *out is where they lie, as they are, until the next call. */
ccmem_status fetch_whole(fetch *f, uint64_t at, size_t n, const uint8_t **out);

#endif
