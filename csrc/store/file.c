/* SPDX-License-Identifier: Apache-2.0
 *
 * Read-only stores over pages in a file, or in memory where a caller has a file's bytes. Those of
 * one file have a core in common, and their pages lie in few mappings (store/file_pages.c): each
 * takes no more than its subkey's name and what is known of its pages. A process that can write the
 * file, or that memory, can change pages at any moment; each byte of a page is loaded once, and
 * what was loaded is what the tag is checked for. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "pages/page_key.h"
#include "platform/fork.h"
#include "store/file_pages.h"

struct ccmem_file {
    store_core *core;
    file_pages pages;
};

/* How this thread came by the pages of the last store that it made. */
static _Thread_local ccmem_file_way last_way;

ccmem_file_way ccmem_store_map_way(void) { return last_way; }

/* Pages of files need a tag. */
static int tagged_suite(ccmem_cipher cipher) {
    const page_suite *suite = page_suite_of(cipher);
    return suite && suite->is.tag_size;
}

static ccmem_status file_new(const ccmem_key *key, ccmem_cipher cipher, uint32_t page_size,
                             uint64_t begin, uint64_t end, int anonymous, ccmem_file **out) {
    if (!key || !out || !tagged_suite(cipher) || !page_size_allowed(page_size) ||
        begin % CCMEM_PAGE_SIZE_MIN || begin > end || end > INT64_MAX)
        return CCMEM_ERR_ARGUMENT;
    ccmem_status status = ccmem_key_check(key);
    if (status != CCMEM_OK)
        return status;
    ccmem_file *f = calloc(1, sizeof *f);
    if (!f)
        return CCMEM_ERR_NOMEM;
    status = core_new(key, cipher, NULL, page_size, CCMEM_FRESH_NOT, &f->core);
    if (status == CCMEM_OK &&
        (status = file_pages_begin(&f->pages, begin, end, anonymous)) != CCMEM_OK)
        core_release(f->core);
    if (status != CCMEM_OK) {
        free(f);
        return status;
    }
    *out = f;
    return CCMEM_OK;
}

ccmem_status ccmem_file_new(const ccmem_key *key, ccmem_cipher cipher, uint32_t page_size,
                            uint64_t begin, uint64_t end, int anonymous, ccmem_file **out) {
    ccmem_status status = file_new(key, cipher, page_size, begin, end, anonymous, out);
    if (status == CCMEM_OK)
        (*out)->core->shared = 1;
    return status;
}

static uint64_t whole_pages(const store_core *core, uint64_t nbytes) {
    return (nbytes + core->page.size - 1) & ~(uint64_t)(core->page.size - 1);
}

static ccmem_status file_add(ccmem_file *f, int fd, uint64_t offset, uint64_t nbytes,
                             const uint8_t id[16], const void *versions, const void *tags,
                             file_store *store) {
    if (offset % CCMEM_PAGE_SIZE_MIN)
        return CCMEM_ERR_ARGUMENT;
    if (fork_alien(f->core->generation))
        return CCMEM_ERR_FORK;
    if (nbytes > STORE_BYTES_MAX)
        return CCMEM_ERR_NOMEM;
    const uint64_t size = whole_pages(f->core, nbytes);
    if (offset < f->pages.begin || offset > f->pages.end || size > f->pages.end - offset)
        return CCMEM_ERR_ARGUMENT;
    ccmem_mapping *mapping = NULL;
    uint8_t *ct = NULL;
    ccmem_status status = file_pages_get(&f->pages, fd, offset, size, &mapping, &ct, &last_way);
    if (status == CCMEM_OK)
        status = store_over(f->core, id, nbytes, mapping, ct, versions, tags, store);
    ccmem_mapping_release(mapping); /* the store has a reference of its own */
    return status;
}

ccmem_status ccmem_file_add(ccmem_file *f, int fd, uint64_t offset, uint64_t nbytes,
                            const uint8_t id[16], const void *records, void *store) {
    if (!f || !id || !store || (nbytes && !records))
        return CCMEM_ERR_ARGUMENT;
    const uint8_t *versions = records, *tags = versions;
    if (nbytes && nbytes <= STORE_BYTES_MAX)
        tags += (whole_pages(f->core, nbytes) >> f->core->page_shift) * sizeof(uint64_t);
    return file_add(f, fd, offset, nbytes, id, versions, tags, store);
}

/* Vectors of the widest tier are loaded from addresses that are multiples of their size. */
enum { LENT_ALIGN = 64 };

static ccmem_status lent_mapping(const uint8_t *pages, uint64_t size, ccmem_mapping **out) {
    ccmem_status status = mapping_new((void *)pages, size, NULL, out);
    if (status == CCMEM_OK)
        (*out)->lent = 1;
    return status;
}

ccmem_status ccmem_file_add_lent(ccmem_file *f, const uint8_t *pages, uint64_t nbytes,
                                 const uint8_t id[16], const void *records, void *store) {
    if (!f || !id || !store || (nbytes && (!records || !pages)) || (uintptr_t)pages % LENT_ALIGN)
        return CCMEM_ERR_ARGUMENT;
    if (fork_alien(f->core->generation))
        return CCMEM_ERR_FORK;
    if (nbytes > STORE_BYTES_MAX)
        return CCMEM_ERR_NOMEM;
    const uint64_t size = whole_pages(f->core, nbytes);
    const uint8_t *versions = records;
    ccmem_mapping *mapping = NULL;
    ccmem_status status = nbytes ? lent_mapping(pages, size, &mapping) : CCMEM_OK;
    if (status == CCMEM_OK)
        status = store_over(f->core, id, nbytes, mapping, mapping ? mapping->data : NULL, versions,
                            nbytes ? versions + (size >> f->core->page_shift) * sizeof(uint64_t)
                                   : versions,
                            store);
    ccmem_mapping_release(mapping); /* the store has a reference of its own */
    return status;
}

ccmem_status ccmem_file_withhold(ccmem_file *f) {
    if (!f)
        return CCMEM_ERR_ARGUMENT;
    if (fork_alien(f->core->generation))
        return CCMEM_ERR_FORK;
    subkeys_withhold(f->core->late);
    return CCMEM_OK;
}

ccmem_status ccmem_file_restore(ccmem_file *f, const ccmem_key *key) {
    if (!f || !key)
        return CCMEM_ERR_ARGUMENT;
    if (fork_alien(f->core->generation))
        return CCMEM_ERR_FORK;
    ccmem_status status = ccmem_key_check(key);
    if (status == CCMEM_OK) /* the reference is the core's own; other holders have it as const */
        subkeys_restore(f->core->late, (ccmem_key *)key);
    return status;
}

/* For a caller that has to call something. */
static void done(void) {}

ccmem_done ccmem_file_remove(void *store) {
    const ccmem_store *s = store;
    if (s->core && s->core != &store_gone)
        store_over_end(store);
    return done;
}

ccmem_secret_level ccmem_file_level(const ccmem_file *f) { return f->core->level; }

uint64_t ccmem_file_overhead(const ccmem_file *f) {
    return sizeof *f + sizeof *f->core + sizeof *f->core->late + sizeof(ccmem_mapping);
}

void ccmem_file_free(ccmem_file *f) {
    if (!f)
        return;
    file_pages_end(&f->pages);
    core_release(f->core);
    free(f);
}

ccmem_status ccmem_store_map(const ccmem_key *key, ccmem_cipher cipher, const uint8_t id[16],
                             uint64_t nbytes, uint32_t page_size, int fd, uint64_t offset,
                             int anonymous, const uint64_t *versions, const uint8_t *tags,
                             ccmem_store **out) {
    if (!id || !out || !page_size_allowed(page_size) || (nbytes && (!versions || !tags)))
        return CCMEM_ERR_ARGUMENT;
    if (nbytes > STORE_BYTES_MAX)
        return CCMEM_ERR_NOMEM;
    const uint64_t size = (nbytes + page_size - 1) & ~(uint64_t)(page_size - 1);
    const uint64_t npages = size / page_size;
    if (offset > (uint64_t)INT64_MAX || size > (uint64_t)INT64_MAX - offset)
        return CCMEM_ERR_RANGE; /* no file is as long */
    ccmem_file *f;
    ccmem_status status = file_new(key, cipher, page_size, offset, offset + size, anonymous, &f);
    if (status != CCMEM_OK)
        return status;
    file_store *s =
        calloc(1, CCMEM_FILE_STORE_SIZE +
                      (npages > CCMEM_FILE_RECORDS_MAX ? 0 : npages * CCMEM_FILE_RECORD_SIZE));
    status = s ? file_add(f, fd, offset, nbytes, id, versions, tags, s) : CCMEM_ERR_NOMEM;
    const int error = errno;
    ccmem_file_free(f);
    if (status == CCMEM_OK)
        *out = &s->store;
    else
        free(s);
    errno = error;
    return status;
}
