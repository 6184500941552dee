/* SPDX-License-Identifier: Apache-2.0
 * Attention over a cache: checked, the records opened, one of two ways chosen, zeros on failure. */
#include "cache/attend.h"

#include <math.h>

#include "memory/secret.h"
#include "platform/dtype.h"
#include "platform/threads.h"

static void open_tails(void *arg, uint64_t begin, uint64_t end) {
    attend *a = arg;
    for (uint64_t i = begin; i < end; i++) {
        const cache_sequence *s = &a->sequence[i];
        for (uint64_t r = 0; r < s->records; r++)
            if (!record_open(a->pool, a->l, &sequence_records(s)[r],
                             a->tails + i * a->tail + r * a->l->record)) {
                outcome_stop(&a->end, CCMEM_ERR_INTEGRITY);
                return;
            }
        pool_opened(a->pool, s->records);
    }
}

/* ---- the call -------------------------------------------------------------------------------- */

static int sensible(const ccmem_attention *w, const cache_layer *layer) {
    const size_t heads = layer->layout.heads;
    return w->sequence <= layer->n && w->sequences <= layer->n - w->sequence && w->query_heads &&
           w->query_heads % heads == 0 && w->rows <= (uint64_t)1 << 40 &&
           (w->q_dtype == CCMEM_F32 || w->q_dtype == CCMEM_F16 || w->q_dtype == CCMEM_BF16) &&
           (!w->rows || !w->sequences || (w->q && w->out)) && isfinite(w->scale) &&
           isfinite(w->softcap) && w->softcap >= 0;
}

static void zero_out(const attend *a) {
    const ccmem_attention *w = a->w;
    const size_t element = dtype_size(w->q_dtype), n = a->l->size[CACHE_V] * element;
    for (uint64_t i = 0; i < w->sequences; i++)
        for (uint64_t h = 0; h < w->query_heads; h++)
            for (uint64_t r = 0; r < w->rows; r++)
                ccmem_wipe((uint8_t *)w->out +
                               ((int64_t)i * w->out_sequence + (int64_t)h * w->out_head +
                                (int64_t)r * w->out_row) *
                                   (int64_t)element,
                           n);
}

static ccmem_status attend_all(attend *a) {
    const ccmem_attention *w = a->w;
    uint64_t records = 0;
    for (uint64_t i = 0; i < w->sequences; i++)
        if (a->sequence[i].records > records)
            records = a->sequence[i].records;
    /* What follows the last row is read by vectors, not used. */
    a->tail = (size_t)records * a->l->record;
    ccmem_status status = ccmem_plain_alloc(a->tail * w->sequences + 4096, &a->tails);
    if (status != CCMEM_OK)
        return status;
    parallel_for(w->sequences,
                 a->tail && a->tail < a->sizes->open ? a->sizes->open / a->tail + 1 : 1, open_tails,
                 a);
    if (!outcome_stopped(&a->end)) {
        if (w->rows * a->share > a->sizes->attention_few)
            attend_blocks(a);
        else
            attend_rows(a);
    }
    ccmem_plain_free(a->tails);
    return outcome_end(&a->end);
}

ccmem_status ccmem_cache_attend(ccmem_cache *cache, const ccmem_attention *what) {
    cache_layer *layer;
    ccmem_status status = cache_enter(cache, what->layer, 0, &layer);
    if (status != CCMEM_OK)
        return status;
    if (!sensible(what, layer)) {
        cache_leave(cache);
        return CCMEM_ERR_ARGUMENT;
    }
    const tier_kernels kernels = tier_active_kernels();
    const int bfloats = what->q_dtype == CCMEM_BF16 && layer->layout.dtype == CCMEM_BF16;
    attend a = {.w = what,
                .pool = cache->pool,
                .l = &layer->layout,
                .sequence = layer->sequence + what->sequence,
                .ops = kernels.attention,
                .products =
                    bfloats && kernels.attention_bf16 ? kernels.attention_bf16 : kernels.attention,
                .gemm = kernels.gemm,
                .sizes = tier_active_sizes(),
                .share = what->query_heads / layer->layout.heads};
    if (what->rows && what->sequences) {
        status = attend_all(&a);
        if (status != CCMEM_OK)
            zero_out(&a);
        burn_stack_of_kernels();
    }
    cache_leave(cache);
    return status;
}
