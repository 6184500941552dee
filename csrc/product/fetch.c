/* SPDX-License-Identifier: Apache-2.0
 * Runs of an encrypted matrix's elements, opened and converted by one thread. */
#include "product/fetch.h"

#include "memory/secret.h"
#include "store/store.h"
#include "tiers/tiers.h"

uint64_t fetch_most(const ccmem_store *store) {
    uint64_t n = tier_active_sizes()->open / store_page_size(store);
    return n < 1 ? 1 : n > STORE_OPEN_MAX ? STORE_OPEN_MAX : n;
}

fetch fetch_from(ccmem_store *store, uint8_t *pages) {
    return (fetch){.store = store, .pages = pages, .most = fetch_most(store)};
}

size_t fetch_room(const ccmem_store *store) {
    return (size_t)(fetch_most(store) * store_page_size(store)) + FETCH_SLACK;
}

size_t fetch_room_whole(const ccmem_store *store, size_t n) {
    return n + 2 * store_page_size(store);
}

uint64_t fetch_step(const ccmem_store *store, uint64_t row_bytes, uint64_t least, uint64_t most) {
    const uint64_t size = store_page_size(store);
    uint64_t step = least;
    while (step * 2 <= most && step * row_bytes % size)
        step *= 2;
    return step * row_bytes % size ? least : step;
}

/* Has the page of byte `at` open, and returns how many bytes from there on are. 0: *status says
 * why. */
static size_t opened(fetch *f, uint64_t at, uint64_t end, ccmem_status *status) {
    const uint64_t size = store_page_size(f->store), page = at / size;
    if (page < f->first || page >= f->first + f->count) {
        const uint64_t left = (end - 1) / size + 1 - page, most = f->most;
        f->first = page;
        f->count = 0;
        *status = (f->apart ? store_open_apart : store_open_pages)(f->store, page, f->pages,
                                                                   left < most ? left : most);
        if (*status != CCMEM_OK)
            return 0;
        f->count = left < most ? left : most;
    }
    return (size_t)((f->first + f->count) * size - at);
}

/* One element that lies in pages which are not open at once. */
static ccmem_status fetch_cut(fetch *f, void *to, uint64_t at, size_t have, uint64_t end) {
    uint8_t edge[8 + FETCH_SLACK];
    ccmem_status status = CCMEM_OK;
    copy_secret(edge, f->pages + (at - f->first * store_page_size(f->store)), have);
    if (opened(f, at + have, end, &status)) {
        copy_secret(edge + have, f->pages, f->element - have);
        f->convert(to, edge, 1);
    }
    ccmem_wipe(edge, sizeof edge);
    return status;
}

ccmem_status fetch_run(fetch *f, void *to, uint64_t at, size_t n, uint64_t end) {
    uint8_t *out = to;
    while (n) {
        ccmem_status status = CCMEM_OK;
        size_t have = opened(f, at, end, &status), whole = have / f->element;
        if (!have)
            return status;
        if (whole > n)
            whole = n;
        if (whole) {
            f->convert(out, f->pages + (at - f->first * store_page_size(f->store)), whole);
        } else {
            whole = 1;
            status = fetch_cut(f, out, at, have, end);
            if (status != CCMEM_OK)
                return status;
        }
        at += whole * f->element;
        out += whole * f->converted;
        n -= whole;
    }
    return CCMEM_OK;
}

ccmem_status fetch_some(fetch *f, uint64_t at, uint64_t end, const uint8_t **out, size_t *have) {
    ccmem_status status = CCMEM_OK;
    const size_t n = opened(f, at, end, &status);
    *out = f->pages + (at - f->first * store_page_size(f->store));
    *have = n < end - at ? n : (size_t)(end - at);
    return n ? CCMEM_OK : status;
}

ccmem_status fetch_whole(fetch *f, uint64_t at, size_t n, const uint8_t **out) {
    const uint64_t size = store_page_size(f->store), first = at / size;
    const uint64_t count = (at + n - 1) / size + 1 - first, most = fetch_most(f->store);
    for (uint64_t i = 0; i < count; i += most) {
        ccmem_status status = store_open_pages(f->store, first + i, f->pages + i * size,
                                               count - i < most ? count - i : most);
        if (status != CCMEM_OK)
            return status;
    }
    *out = f->pages + at % size;
    return CCMEM_OK;
}
