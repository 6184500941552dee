/* SPDX-License-Identifier: Apache-2.0
 *
 * A pool of plaintext blocks. Small ones are slots of a 64 KiB slab, large ones have a mapping of
 * their own; both begin at a multiple of 64 KiB with a header, so that a block's address alone
 * leads to it. Freed blocks are wiped and kept, up to a bound, since fresh memory is zeroed by the
 * kernel page by page.
 *
 * The memory is left out of dumps, and a forked child finds zeros in it: it must not have the
 * plaintext, and an array it inherited must not be a fault. */
#include "memory/plain.h"

#include <string.h>
#include <sys/mman.h>

#include "memory/budget.h"
#include "memory/process.h"
#include "platform/cpu.h"
#include "platform/threads.h"
#include "platform/vmem.h"

#if CCMEM_X86
#include <immintrin.h>
#endif

enum {
    UNIT = 64 << 10, /* alignment of slabs and of large mappings */
    HEADER = 4096,   /* before the first block: keeps blocks aligned to system pages */
    CLASSES = 8,     /* of slots, see slot_size */
    SLOTS_MAX = (UNIT - HEADER) / 64,
    BINS = 8 * 48,        /* sizes of large mappings, eight to each power of two */
    WIPE_GRAIN = 1 << 20, /* the least that is worth another thread */
    WIPE_STREAM = 4 << 20 /* from here on wiping goes around the caches */
};

static const uint32_t slot_size[CLASSES] = {64, 256, 512, 1024, 2048, 4096, 8192, 16384};

typedef struct header {
    uint64_t generation;            /* of the process that made it; 0 in a child */
    size_t mapped;                  /* bytes, header included */
    size_t length;                  /* large block: bytes asked for */
    struct header *next, *previous; /* large: in the list of kept blocks; slab: in its class */
    struct header *bin_next, *bin_previous; /* large: among the kept blocks of its size */
    uint32_t class;                         /* CLASSES for a large block */
    uint32_t used;                          /* slots handed out */
    uint16_t free_count;
    uint16_t free_slot[SLOTS_MAX];
} header;

_Static_assert(sizeof(header) <= HEADER, "the header must fit before the first block");

typedef struct pool {
    process_owned own;      /* its lock is for all that follows */
    header *slabs[CLASSES]; /* with at least one free slot */
    header *kept;           /* large blocks, most recently freed first */
    header *kept_last;
    header *bins[BINS]; /* the same, by size */
    ccmem_plain_stats count;
} pool;

static process_owned *current;

static pool *get_pool(void) { return (pool *)process_object(&current, sizeof(pool)); }

/* `size` bytes from a multiple of UNIT on (of a huge page where they fill some). */
static header *map(size_t size, uint64_t generation) {
    header *h = vmem_map_aligned(size, size >= 2 * HUGE_PAGE ? HUGE_PAGE : UNIT);
    if (!h)
        return NULL;
    /* Kernels before 4.14 refuse this. The child then has a copy, and the promise about it is lost;
     * MADV_DONTFORK would make every array it inherited a fault. The generation in the header keeps
     * the child from using the block either way. */
    (void)madvise(h, size, MADV_WIPEONFORK);
    h->generation = generation;
    h->mapped = size;
    return h;
}

static uint8_t *slot_address(header *h, unsigned slot) {
    return (uint8_t *)h + HEADER + (size_t)slot * slot_size[h->class];
}

static void unlink_from(header **list, header *h) {
    if (h->previous)
        h->previous->next = h->next;
    else
        *list = h->next;
    if (h->next)
        h->next->previous = h->previous;
    h->next = h->previous = NULL;
}

static void push(header **list, header *h) {
    h->previous = NULL;
    h->next = *list;
    if (*list)
        (*list)->previous = h;
    *list = h;
}

static void *take_slot(pool *pl, unsigned class) {
    header *h = pl->slabs[class];
    if (!h) {
        h = map(UNIT, pl->own.generation);
        if (!h)
            return NULL;
        h->class = class;
        unsigned slots = (UNIT - HEADER) / slot_size[class];
        for (unsigned i = slots; i > 0; i--)
            h->free_slot[h->free_count++] = (uint16_t)(i - 1);
        push(&pl->slabs[class], h);
    }
    unsigned slot = h->free_slot[--h->free_count];
    h->used++;
    if (!h->free_count)
        unlink_from(&pl->slabs[class], h);
    return slot_address(h, slot);
}

static void give_slot(pool *pl, header *h, const uint8_t *p) {
    size_t slot = (size_t)(p - (uint8_t *)h - HEADER) / slot_size[h->class];
    if (!h->free_count)
        push(&pl->slabs[h->class], h);
    h->free_slot[h->free_count++] = (uint16_t)slot;
    /* One empty slab a class stays, so that a loop of small reads does not map and unmap. */
    if (--h->used == 0 && (h->next || h->previous)) {
        unlink_from(&pl->slabs[h->class], h);
        munmap(h, h->mapped);
    }
}

/* Sizes of large mappings: an eighth of a power of two apart, so that similar sizes share blocks.
 */
static size_t large_size(size_t n) {
    size_t size = n + HEADER, step = UNIT;
    while (step * 16 < size)
        step *= 2;
    return (size + step - 1) & ~(step - 1);
}

/* Which bin a size that large_size() gave belongs to: sizes are eighths of a power of two apart. */
static unsigned bin_of(size_t size) {
    unsigned top = 63 - (unsigned)__builtin_clzll(size), log = top < 16 ? 16 : top;
    size_t eighth = (size >> (log - 3)) & 7;
    unsigned bin = (log - 16) * 8 + (unsigned)eighth;
    return bin < BINS ? bin : BINS - 1;
}

static void keep(pool *pl, header *h) {
    header **bin = &pl->bins[bin_of(h->mapped)];
    push(&pl->kept, h);
    if (!pl->kept_last)
        pl->kept_last = h;
    h->bin_previous = NULL;
    h->bin_next = *bin;
    if (*bin)
        (*bin)->bin_previous = h;
    *bin = h;
    pl->count.kept += h->mapped;
}

static void drop_kept(pool *pl, header *h) {
    if (pl->kept_last == h)
        pl->kept_last = h->previous;
    unlink_from(&pl->kept, h);
    if (h->bin_previous)
        h->bin_previous->bin_next = h->bin_next;
    else
        pl->bins[bin_of(h->mapped)] = h->bin_next;
    if (h->bin_next)
        h->bin_next->bin_previous = h->bin_previous;
    h->bin_next = h->bin_previous = NULL;
    pl->count.kept -= h->mapped;
}

/* The most recently freed one, which the caches may still hold. */
static header *take_kept(pool *pl, size_t size) {
    header *h = pl->bins[bin_of(size)];
    while (h && h->mapped != size) /* other sizes share the last bin only */
        h = h->bin_next;
    if (h)
        drop_kept(pl, h);
    return h;
}

static void wipe_part(void *arg, uint64_t begin, uint64_t end) {
    uint8_t *p = (uint8_t *)arg + begin;
    size_t n = (size_t)(end - begin);
#if CCMEM_X86
    /* Around the caches: a block of this size is not in them any more, and an ordinary store would
     * first read what it overwrites. Blocks begin at multiples of 64, pieces too. */
    __m128i zero = _mm_setzero_si128();
    for (; n >= 64; n -= 64, p += 64)
        for (int i = 0; i < 4; i++)
            _mm_stream_si128((__m128i *)p + i, zero);
    _mm_sfence();
#endif
    ccmem_wipe(p, n);
}

static void wipe_block(uint8_t *p, size_t n) {
    if (n >= WIPE_STREAM)
        parallel_for(n, WIPE_GRAIN, wipe_part, p);
    else
        ccmem_wipe(p, n);
}

ccmem_status ccmem_plain_alloc(uint64_t n, uint8_t **out) {
    unsigned class = 0;
    pool *pl = get_pool();
    void *p = NULL;
    if (!out)
        return CCMEM_ERR_ARGUMENT;
    if (!pl || n > SIZE_MAX / 4)
        return CCMEM_ERR_NOMEM;
    while (class < CLASSES && slot_size[class] < n)
        class ++;
    if (class < CLASSES)
        n = slot_size[class];
    ccmem_status status = budget_reserve(n);
    if (status != CCMEM_OK)
        return status;
    pthread_mutex_lock(&pl->own.lock);
    if (class < CLASSES) {
        p = take_slot(pl, class);
    } else {
        size_t size = large_size((size_t)n);
        header *h = take_kept(pl, size);
        if (!h) {
            pthread_mutex_unlock(&pl->own.lock);
            h = map(size, pl->own.generation);
            if (h)
                h->class = CLASSES;
            pthread_mutex_lock(&pl->own.lock);
        }
        if (h) {
            h->length = (size_t)n;
            p = (uint8_t *)h + HEADER;
        }
    }
    if (p) {
        pl->count.in_use += n;
        pl->count.blocks++;
        if (pl->count.in_use > pl->count.peak)
            pl->count.peak = pl->count.in_use;
    }
    pthread_mutex_unlock(&pl->own.lock);
    if (!p) {
        budget_release(n);
        return CCMEM_ERR_NOMEM;
    }
    budget_expose(n);
    *out = p;
    return CCMEM_OK;
}

static _Thread_local ccmem_status refusal;

uint8_t *ccmem_plain_take(size_t n) {
    uint8_t *p = NULL;
    refusal = ccmem_plain_alloc(n, &p);
    return p;
}

ccmem_status ccmem_plain_refusal(void) { return refusal; }

void ccmem_plain_free(uint8_t *p) {
    if (!p)
        return;
    header *h = (header *)((uintptr_t)p & ~(uintptr_t)(UNIT - 1));
    pool *pl = get_pool();
    if (!pl || h->generation != pl->own.generation)
        return;
    size_t n = h->class < CLASSES ? slot_size[h->class] : h->length;
    wipe_block(p, n);
    budget_hide(n);
    budget_release(n);
    pthread_mutex_lock(&pl->own.lock);
    pl->count.in_use -= n;
    pl->count.blocks--;
    if (h->class < CLASSES) {
        give_slot(pl, h, p);
    } else if (h->mapped <= PLAIN_KEEP_BYTES) {
        keep(pl, h);
        while (pl->count.kept > PLAIN_KEEP_BYTES) {
            header *oldest = pl->kept_last;
            drop_kept(pl, oldest);
            munmap(oldest, oldest->mapped);
        }
    } else {
        munmap(h, h->mapped);
    }
    pthread_mutex_unlock(&pl->own.lock);
}

ccmem_status ccmem_plain_get_stats(ccmem_plain_stats *out) {
    pool *pl = get_pool();
    if (!pl)
        return CCMEM_ERR_NOMEM;
    pthread_mutex_lock(&pl->own.lock);
    *out = pl->count;
    pthread_mutex_unlock(&pl->own.lock);
    return CCMEM_OK;
}
