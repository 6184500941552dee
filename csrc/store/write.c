/* SPDX-License-Identifier: Apache-2.0
 * Writes any range of bytes, whole pages by several threads: the writer's side of store/lock.h. A
 * write that is refused changes nothing. A store over pages that others may have as well is never
 * written: two processes that write the same page would use a nonce twice. */
#include <string.h>

#include "memory/ranges.h"
#include "pages/move.h"
#include "store/bulk.h"
#include "store/open.h"
#include "store/version.h"

enum { STAGING_BYTES = 1 << 20 }; /* a multiple of every page size */

/* page_ops' modify() of a locked page, which it may move to the key that pages are sealed under. */
static page_result change(ccmem_store *s, uint64_t page, const uint8_t *data, uint64_t from,
                          uint64_t to, const uint64_t *offsets, size_t count, uint32_t n) {
    const store_core *c = s->core;
    const page_context *with = core_sealing(c);
    uint8_t *ct = s->ct + (page << c->page_shift);
    if (from && __builtin_expect(core_before(c, from), 0))
        return page_move(core_page(c, from), with, ct, data, s->first + page, from, to,
                         tag_of(s, page), offsets, count, n);
    return with->ops->modify(with, ct, data, s->first + page, from, to, tag_of(s, page), offsets,
                             count, n);
}

/* Writes `count` runs of n bytes each into one page, as one version. `anew`: the runs are all that
 * the page is to hold, whatever became of it, and the rest zeros. */
static ccmem_status write_parts(ccmem_store *s, shard *sh, uint64_t page, const uint64_t *offsets,
                                size_t count, const uint8_t *data, uint32_t n, int anew) {
    const store_core *c = s->core;
    uint64_t v;
    if (!lock_to_write(s, page, 1, &v, anew))
        return store_damaged(sh, page, v);
    uint64_t used = used_version(s, page, v), next = core_next_version(c, used);
    ccmem_status status = writes_ended(c);
    if (used >= core_version_limit(c))
        status = CCMEM_ERR_VERSION;
    else if (status == CCMEM_OK &&
             ((v == 0 && !anew && !never_written(s, page)) ||
              change(s, page, data, anew ? 0 : v, next, offsets, count, n) == PAGE_BAD))
        status = store_damaged(sh, page, v);
    if (status == CCMEM_OK) {
        v = next;
        __atomic_store_n(store_sealed(s, page), v, __ATOMIC_RELAXED);
    }
    publish(s, page, &v, 1);
    if (status == CCMEM_OK)
        add(&sh->count.pages_sealed, 1);
    return status;
}

static ccmem_status write_part(ccmem_store *s, shard *sh, uint64_t page, uint64_t offset,
                               const uint8_t *data, uint32_t n, int anew) {
    return write_parts(s, sh, page, &offset, 1, data, n, anew);
}

ccmem_status store_clear(ccmem_store *s, uint64_t n) {
    const uint8_t zero = 0;
    shard *sh = my_shard(s->core);
    ccmem_status status = CCMEM_OK;
    for (uint64_t page = 0; page < n && status == CCMEM_OK; page++)
        status = write_part(s, sh, page, 0, &zero, 1, 1);
    return status;
}

/* Seals pages first + [0, n), which are locked at the versions v, and publishes them. */
static ccmem_status write_locked(ccmem_store *s, shard *sh, uint64_t first, const uint8_t *data,
                                 uint64_t *v, uint64_t n, unsigned flags) {
    const store_core *c = s->core;
    ccmem_status status = writes_ended(c);
    uint64_t next[PAGE_BATCH];
    for (uint64_t i = 0; i < n; i++) {
        const uint64_t used = used_version(s, first + i, v[i]);
        next[i] = core_next_version(c, used);
        if (used >= core_version_limit(c))
            status = CCMEM_ERR_VERSION;
    }
    if (status == CCMEM_OK) {
        for (uint64_t i = 0; i < n; i++) {
            v[i] = next[i];
            __atomic_store_n(store_sealed(s, first + i), v[i], __ATOMIC_RELAXED);
        }
        const page_context *with = core_sealing(c);
        with->ops->seal(with, s->ct + (first << c->page_shift), data, s->first + first, v,
                        s->tag ? s->tag + first : NULL, n, flags);
        add(&sh->count.pages_sealed, n);
    }
    publish(s, first, v, n);
    return status;
}

static ccmem_status write_batch(ccmem_store *s, shard *sh, uint64_t first, const uint8_t *data,
                                uint64_t n, unsigned flags) {
    ccmem_status status = CCMEM_OK;
    for (uint64_t i = 0, locked; i < n && status == CCMEM_OK; i += locked) {
        uint64_t v[PAGE_BATCH];
        locked = lock_to_write(s, first + i, n - i, v, 1);
        const uint8_t *from = data + (i << s->core->page_shift);
        status = write_locked(s, sh, first + i, from, v, locked, flags);
    }
    return status;
}

static void write_pages(void *arg, uint64_t begin, uint64_t end) {
    bulk *b = arg;
    ccmem_store *s = b->store;
    shard *sh = my_shard(s->core);
    uint64_t most = batch_pages(s);
    for (uint64_t i = begin, n; i < end && !outcome_stopped(&b->end); i += n) {
        /* Locks end with their group. */
        uint64_t left = PAGE_BATCH - (s->first + b->first + i) % PAGE_BATCH;
        n = end - i < most ? end - i : most;
        n = n < left ? n : left;
        ccmem_status status =
            write_batch(s, sh, b->first + i, b->data + (i << s->core->page_shift), n, b->flags);
        if (status != CCMEM_OK)
            outcome_stop(&b->end, status);
    }
}

/* Looks for a version left in all pages before the first is touched, so that a refused write
 * changes nothing.
 */
static ccmem_status check_versions(ccmem_store *s, uint64_t offset, uint64_t n) {
    uint64_t last = (offset + n - 1) >> s->core->page_shift, v, used;
    for (uint64_t p = offset >> s->core->page_shift; p <= last; p++) {
        do {
            v = stable_version(s, p);
            used = used_version(s, p, v);
        } while (used >= core_version_limit(s->core) && !unchanged(&s->version[p], v));
        if (used >= core_version_limit(s->core))
            return CCMEM_ERR_VERSION;
    }
    return CCMEM_OK;
}

/* A page that is covered in part has to be opened first. All of them are looked at before any page
 * changes, so that a refused write changes nothing. */
static ccmem_status check_parts(ccmem_store *s, shard *sh, const store_range *r) {
    ccmem_status status = CCMEM_OK;
    if (!s->tag || (r->head != 0) + (r->pages != 0) + (r->tail != 0) < 2)
        return CCMEM_OK;
    if (r->head)
        status = store_read_part(s, sh, r->first - 1, 0, NULL, 0);
    if (status == CCMEM_OK && r->tail && !r->ends)
        status = store_read_part(s, sh, r->first + r->pages, 0, NULL, 0);
    return status;
}

ccmem_status store_write_present(ccmem_store *s, uint64_t offset, const void *data, uint64_t n,
                                 int alone) {
    ccmem_status status = check_call(s, s->core, offset, n);
    const uint8_t *from = data;
    if (status != CCMEM_OK)
        return status;
    if ((status = store_refuses(s)) != CCMEM_OK)
        return status;
    shard *sh = my_shard(s->core);
    if (n)
        status = check_versions(s, offset, n);
    if (status != CCMEM_OK)
        return status;
    store_range r = bulk_split(s, offset, n);
    status = check_parts(s, sh, &r);
    if (status == CCMEM_OK && r.head)
        status = write_part(s, sh, r.first - 1, r.head_offset, from, r.head,
                            r.ends && !r.head_offset && r.head == n);
    if (status == CCMEM_OK && r.pages) {
        bulk b = {.store = s, .first = r.first, .data = from + r.head};
        status = bulk_run(&b, r.pages, write_pages, alone);
    }
    if (status == CCMEM_OK && r.tail)
        status = write_part(s, sh, r.first + r.pages, 0, from + (n - r.tail), r.tail, r.ends);
    if (status != CCMEM_OK)
        return status;
    add(&sh->count.writes, 1);
    add(&sh->count.bytes_written, n);
    return CCMEM_OK;
}

/* Copies a source inside a mapped range first: reading it under a page lock could deadlock. */
static ccmem_status write_staged(ccmem_store *s, uint64_t offset, const uint8_t *data, uint64_t n) {
    uint8_t *staging;
    uint64_t piece;
    ccmem_status status = check_versions(s, offset, n);
    if (status == CCMEM_OK)
        status = ccmem_plain_alloc(n < STAGING_BYTES ? n : STAGING_BYTES, &staging);
    if (status != CCMEM_OK)
        return status;
    for (; n && status == CCMEM_OK; offset += piece, data += piece, n -= piece) {
        piece = STAGING_BYTES - offset % STAGING_BYTES; /* no page is written in two parts */
        piece = piece < n ? piece : n;
        memcpy(staging, data, piece);
        status = store_write_present(s, offset, staging, piece, 0);
    }
    ccmem_plain_free(staging);
    return status;
}

ccmem_status ccmem_store_write(ccmem_store *s, uint64_t offset, const void *data, uint64_t n) {
    ccmem_status status = check_call(s, s->core, offset, n);
    if (status == CCMEM_OK && n && ranges_touch(data, n))
        return (status = store_refuses(s)) != CCMEM_OK ? status : write_staged(s, offset, data, n);
    return store_write_present(s, offset, data, n, 0);
}

ccmem_status store_write_in_page(ccmem_store *s, const uint64_t *offsets, size_t count,
                                 const void *data, uint32_t n) {
    ccmem_status status = store_refuses(s);
    if (status != CCMEM_OK)
        return status;
    shard *sh = my_shard(s->core);
    uint8_t *staging = NULL;
    if (ranges_touch(data, (uint64_t)count * n)) {
        status = ccmem_plain_alloc((uint64_t)count * n, &staging);
        if (status != CCMEM_OK)
            return status;
        memcpy(staging, data, (size_t)count * n);
        data = staging;
    }
    status = write_parts(s, sh, offsets[0] >> s->core->page_shift, offsets, count, data, n, 0);
    ccmem_plain_free(staging);
    if (status == CCMEM_OK) {
        add(&sh->count.writes, 1);
        add(&sh->count.bytes_written, (uint64_t)count * n);
    }
    return status;
}
