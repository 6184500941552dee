/* SPDX-License-Identifier: Apache-2.0
 * Counted references to the memory that a store's ciphertext lies in, which outlive the store. */
#include <stdlib.h>

#include "platform/lost.h"
#include "platform/vmem.h"
#include "store/core.h"

ccmem_status mapping_new(void *data, uint64_t n, ccmem_mapping *whole, ccmem_mapping **out) {
    ccmem_mapping *m = calloc(1, sizeof *m);
    if (!m)
        return CCMEM_ERR_NOMEM;
    *m = (ccmem_mapping){.refs = 1, .size = n, .data = data, .whole = whole};
    if (whole)
        __atomic_fetch_add(&whole->refs, 1, __ATOMIC_RELAXED);
    *out = m;
    return CCMEM_OK;
}

/* A part of what many stores lie in, or the only store's chunk. */
ccmem_mapping *ccmem_store_mapping(ccmem_store *s) {
    lost_guard(); /* others will touch the pages */
    const store_core *c = s->core;
    ccmem_mapping *whole = c->read_only ? s->pages : s->chunk ? s->chunk->pages : NULL, *part;
    if (!c->shared && !c->read_only) {
        __atomic_fetch_add(&whole->refs, 1, __ATOMIC_RELAXED);
        return whole;
    }
    if (mapping_new(s->ct, store_pages(s) << c->page_shift, whole, &part) != CCMEM_OK)
        return NULL;
    return part;
}

const uint8_t *ccmem_mapping_data(const ccmem_mapping *m) { return m->data; }

uint64_t ccmem_mapping_size(const ccmem_mapping *m) { return m->size; }

void ccmem_mapping_release(ccmem_mapping *m) {
    while (m && __atomic_fetch_sub(&m->refs, 1, __ATOMIC_ACQ_REL) == 1) {
        ccmem_mapping *whole = m->whole;
        if (m->lent)
            ; /* whoever lent it keeps it for as long as there are references */
        else if (!whole)
            vmem_unmap(m->data, m->size); /* of a part without bytes: NULL */
        else if (m->reserved)
            vmem_release(m->data, m->size);
        free(m);
        m = whole;
    }
}
