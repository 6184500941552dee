/* SPDX-License-Identifier: Apache-2.0
 *
 * Seals the pages of a file that is being written. There is no record of what each page was sealed
 * under, as a store has it; that no nonce comes twice follows from the order: pages only go up, all
 * at version 1. */
#include <stdlib.h>

#include "memory/secret.h"
#include "pages/page_key.h"
#include "platform/fork.h"
#include "platform/threads.h"

enum { GRAIN_BYTES = 512 << 10 }; /* the least that is worth another thread */

struct ccmem_sealer {
    page_context page;
    uint64_t next; /* atomic: the first page that was not sealed yet */
    uint64_t generation;
    void *key; /* expanded, in secret memory */
};

ccmem_status ccmem_sealer_new(const ccmem_key *key, ccmem_cipher cipher, const uint8_t id[16],
                              uint32_t page_size, ccmem_sealer **out) {
    const page_suite *suite = page_suite_of(cipher);
    if (!key || !id || !out || !suite || !suite->is.tag_size || !page_size_allowed(page_size))
        return CCMEM_ERR_ARGUMENT;
    ccmem_status status = ccmem_key_check(key);
    if (status != CCMEM_OK)
        return status;
    ccmem_sealer *s = calloc(1, sizeof *s);
    if (!s)
        return CCMEM_ERR_NOMEM;
    s->generation = fork_generation();
    status = page_key_new(&s->page, key, cipher, id, page_size, &s->key, NULL);
    if (status != CCMEM_OK) {
        free(s);
        return status;
    }
    *out = s;
    return CCMEM_OK;
}

typedef struct job {
    const ccmem_sealer *sealer;
    uint64_t first;
    const uint8_t *in;
    uint8_t *out;
    page_tag *tags;
} job;

static void seal_pages(void *arg, uint64_t begin, uint64_t end) {
    const job *j = arg;
    const page_context *page = &j->sealer->page;
    uint64_t version[PAGE_BATCH];
    for (int i = 0; i < PAGE_BATCH; i++)
        version[i] = 1;
    for (uint64_t i = begin, n; i < end; i += n) {
        n = end - i < PAGE_BATCH ? end - i : PAGE_BATCH;
        page->ops->seal(page, j->out + i * page->size, j->in + i * page->size, j->first + i,
                        version, j->tags + i, n, 0);
    }
}

ccmem_status ccmem_sealer_seal(ccmem_sealer *s, uint64_t first_page, uint64_t npages,
                               const uint8_t *in, uint8_t *out, uint8_t *tags) {
    if (!s)
        return CCMEM_ERR_ARGUMENT;
    if (fork_alien(s->generation))
        return CCMEM_ERR_FORK;
    if (npages > PAGE_NUMBERS || first_page > PAGE_NUMBERS - npages ||
        (npages && (!in || !out || !tags)))
        return CCMEM_ERR_ARGUMENT;
    /* The pages are this call's, or no call's, before the first of them is sealed. */
    uint64_t next = __atomic_load_n(&s->next, __ATOMIC_RELAXED);
    do {
        if (first_page < next)
            return CCMEM_ERR_ARGUMENT;
    } while (!__atomic_compare_exchange_n(&s->next, &next, first_page + npages, 0, __ATOMIC_RELAXED,
                                          __ATOMIC_RELAXED));
    job j = {s, first_page, in, out, (page_tag *)tags};
    if (npages)
        parallel_for(npages, GRAIN_BYTES / s->page.size, seal_pages, &j);
    return CCMEM_OK;
}

void ccmem_sealer_free(ccmem_sealer *s) {
    if (!s)
        return;
    if (!fork_alien(s->generation))
        secret_free(s->key);
    free(s);
}
