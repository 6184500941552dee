/* SPDX-License-Identifier: Apache-2.0
 *
 * Chunks of locked memory cut into slots of one size each, found first-fit. All bookkeeping lives
 * in an arena that each process has its own of (memory/process.h): a child never looks at its
 * parent's chunks, which MADV_DONTFORK has unmapped there. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "memory/secret.h"

#include "memory/process.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#ifndef SYS_memfd_secret
#define SYS_memfd_secret 447 /* the same number on every architecture; Linux 5.14 */
#endif

enum {
    CHUNK_MAX = 65536,
    CLASSES = 3,
    SLOT_MIN = 256,
    MAP_WORDS = CHUNK_MAX / SLOT_MIN / 64,
    /* No chunk takes more than this share of RLIMIT_MEMLOCK, so that a limit of 64 KiB, the
     * default before Linux 5.16, has room for every class. */
    LIMIT_SHARE = 16
};

static const size_t slot_size[CLASSES] = {SLOT_MIN, 1024, SECRET_SLOT_MAX};

typedef struct chunk {
    struct chunk *next;
    uint8_t *base;
    size_t size;
    ccmem_secret_level level;
    int chosen;                /* of a lower level than there may be, for callers that ask for it */
    unsigned used;             /* slots handed out */
    uint64_t taken[MAP_WORDS]; /* one bit a slot */
} chunk;

typedef struct arena {
    process_owned own; /* its lock is for all that follows */
    size_t used;       /* slots handed out, of all chunks */
    chunk *chunks[CLASSES];
} arena;

static process_owned *current;

/* ---- wiping and comparing -------------------------------------------------------------------- */

void ccmem_wipe(void *p, size_t n) {
    if (!n)
        return;
    memset(p, 0, n);
    /* The compiler must assume that this reads *p, so the memset cannot be dropped as dead. */
    __asm__ volatile("" : : "r"(p) : "memory");
}

__attribute__((noinline)) void burn_stack(void) {
    uint8_t below[1024]; /* compiled with optimisation, ciphers need less */
    ccmem_wipe(below, sizeof below);
}

__attribute__((noinline)) void burn_stack_of_kernels(void) {
    uint8_t deep[6 << 10];
    ccmem_wipe(deep, sizeof deep);
}

int ccmem_equal(const void *a, const void *b, size_t n) {
    const uint8_t *x = a, *y = b;
    unsigned differ = 0;

    for (size_t i = 0; i < n; i++) {
        differ |= x[i] ^ y[i];
        /* Hides the value, so that no compiler leaves the loop at the first difference. */
        __asm__("" : "+r"(differ));
    }
    differ = (differ - 1) >> 8 & 1;
    /* One bit, which every caller reports to its own: whether a tag, or half of a key, was the
     * same. Where they differ stays secret. */
    DECLASSIFY(differ);
    return (int)differ;
}

/* ---- mapping --------------------------------------------------------------------------------- */

static size_t system_page(void) {
    long size = sysconf(_SC_PAGESIZE);
    return size > 0 ? (size_t)size : 4096;
}

static int memlock_is_limited(rlim_t *limit) {
    struct rlimit r;
    if (getrlimit(RLIMIT_MEMLOCK, &r) || r.rlim_cur == RLIM_INFINITY)
        return 0;
    *limit = r.rlim_cur;
    return 1;
}

/* Tells after a refused mlock or mmap whether it ran into the limit or into the end of memory. */
static ccmem_status refused(int error) {
    rlim_t limit;
    if (error == EAGAIN || error == ENOMEM || error == EPERM)
        return memlock_is_limited(&limit) ? CCMEM_ERR_MEMLOCK : CCMEM_ERR_NOMEM;
    return CCMEM_ERR_NOMEM;
}

static ccmem_status map_memfd(size_t size, uint8_t **out) {
    int fd = (int)syscall(SYS_memfd_secret, O_CLOEXEC);
    void *p;
    int error;

    if (fd < 0) {
        if (errno == ENOMEM || errno == EMFILE || errno == ENFILE)
            return CCMEM_ERR_NOMEM;
        return CCMEM_ERR_SECRETMEM; /* ENOSYS: old kernel or not enabled; EPERM: a sandbox */
    }
    p = MAP_FAILED;
    if (!ftruncate(fd, (off_t)size))
        p = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    error = errno;
    /* Another process could take the descriptor by pidfd_getfd(2) and map the pages. Linux frees
     * the number whatever close() returns. */
    (void)close(fd);
    if (p == MAP_FAILED)
        return error == EAGAIN   ? refused(error) /* the limit, in mmap(2) of locked memory */
               : error == ENOMEM ? CCMEM_ERR_NOMEM
                                 : CCMEM_ERR_SECRETMEM;
    if (madvise(p, size, MADV_DONTFORK) || madvise(p, size, MADV_DONTDUMP)) {
        error = errno;
        munmap(p, size);
        return error == ENOMEM || error == EAGAIN ? CCMEM_ERR_NOMEM : CCMEM_ERR_SECRETMEM;
    }
    *out = p;
    return CCMEM_OK;
}

static ccmem_status map_mlock(size_t size, uint8_t **out) {
    void *p = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    ccmem_status status;

    if (p == MAP_FAILED)
        return CCMEM_ERR_NOMEM;
    if (madvise(p, size, MADV_DONTFORK) || madvise(p, size, MADV_DONTDUMP))
        status = errno == ENOMEM || errno == EAGAIN ? CCMEM_ERR_NOMEM : CCMEM_ERR_SECRETMEM;
    else if (syscall(SYS_mlock, p, size)) /* sanitizers turn the library's mlock() into nothing */
        status = refused(errno);
    else {
        *out = p;
        return CCMEM_OK;
    }
    munmap(p, size);
    return status;
}

/* Where both ways fail, the limit is the reason worth reporting: it can be raised. */
static ccmem_status map_locked(size_t size, ccmem_secret_level require, uint8_t **out,
                               ccmem_secret_level *level) {
    ccmem_status by_memfd = CCMEM_ERR_SECRETMEM, by_mlock;

    if (require != CCMEM_SECRET_MLOCK_ONLY)
        by_memfd = map_memfd(size, out);
    *level = CCMEM_SECRET_MEMFD;
    if (by_memfd == CCMEM_OK || require == CCMEM_SECRET_MEMFD)
        return by_memfd;
    *level = CCMEM_SECRET_MLOCK;
    by_mlock = map_mlock(size, out);
    return by_mlock && by_memfd == CCMEM_ERR_MEMLOCK ? by_memfd : by_mlock;
}

ccmem_status secret_map(size_t size, ccmem_secret_level require, void **out,
                        ccmem_secret_level *level) {
    const size_t page = system_page();
    uint8_t *p;
    if (size > SIZE_MAX - page)
        return CCMEM_ERR_NOMEM;
    ccmem_status status = map_locked((size + page - 1) & ~(page - 1), require, &p, level);
    if (status == CCMEM_OK)
        *out = p;
    return status;
}

void secret_unmap(void *p, size_t size) {
    const size_t page = system_page();
    if (p)
        munmap(p, (size + page - 1) & ~(page - 1));
}

/* ---- arenas ---------------------------------------------------------------------------------- */

static arena *arena_get(void) { return (arena *)process_object(&current, sizeof(arena)); }

static void chunk_release(chunk **link) {
    chunk *c = *link;
    *link = c->next;
    munmap(c->base, c->size); /* all slots were wiped when they were freed */
    free(c);
}

static int release_empty(arena *a) {
    int any = 0;
    for (int class = 0; class < CLASSES; class ++)
        for (chunk **link = &a->chunks[class]; *link;)
            if ((*link)->used)
                link = &(*link)->next;
            else {
                chunk_release(link);
                any = 1;
            }
    return any;
}

static size_t chunk_goal(void) {
    size_t page = system_page(), size = CHUNK_MAX;
    rlim_t limit;

    if (memlock_is_limited(&limit) && limit / LIMIT_SHARE < size)
        size = (size_t)limit / LIMIT_SHARE;
    size -= size % page;
    return size < page ? page : size;
}

static ccmem_status chunk_add(arena *a, int class, ccmem_secret_level require) {
    size_t page = system_page(), size = chunk_goal();
    chunk *c = calloc(1, sizeof *c);
    ccmem_status status;

    if (!c)
        return CCMEM_ERR_NOMEM;
    while ((status = map_locked(size, require, &c->base, &c->level)) == CCMEM_ERR_MEMLOCK) {
        if (size > page) {
            size = size / 2 - size / 2 % page;
            if (size < page)
                size = page;
        } else if (!release_empty(a)) {
            break;
        }
    }
    if (status) {
        free(c);
        return status;
    }
    c->size = size;
    c->chosen = require == CCMEM_SECRET_MLOCK_ONLY;
    c->next = a->chunks[class];
    a->chunks[class] = c;
    return CCMEM_OK;
}

static uint8_t *chunk_take(chunk *c, int class) {
    size_t slots = c->size / slot_size[class];
    if (slots > MAP_WORDS * 64)
        slots = MAP_WORDS * 64; /* system pages larger than a chunk */
    if (c->used == slots)
        return NULL;
    for (unsigned w = 0; w < MAP_WORDS; w++) {
        if (!~c->taken[w])
            continue;
        unsigned bit = (unsigned)__builtin_ctzll(~c->taken[w]);
        size_t slot = w * 64 + bit;
        if (slot >= slots)
            return NULL;
        c->taken[w] |= UINT64_C(1) << bit;
        c->used++;
        return c->base + slot * slot_size[class];
    }
    return NULL;
}

static int fits(const chunk *c, ccmem_secret_level require) {
    return require == CCMEM_SECRET_MLOCK_ONLY ? c->level == CCMEM_SECRET_MLOCK
                                              : c->level >= require && !c->chosen;
}

static uint8_t *take(arena *a, int class, ccmem_secret_level require, ccmem_secret_level *level) {
    for (chunk *c = a->chunks[class]; c; c = c->next) {
        uint8_t *slot = fits(c, require) ? chunk_take(c, class) : NULL;
        if (slot) {
            a->used++;
            *level = c->level;
            return slot;
        }
    }
    return NULL;
}

ccmem_status secret_alloc(size_t n, ccmem_secret_level require, void **out,
                          ccmem_secret_level *level) {
    ccmem_status status = CCMEM_OK;
    ccmem_secret_level reached = CCMEM_SECRET_NONE;
    uint8_t *slot;
    int class = 0;
    arena *a;

    if (!n || n > SECRET_SLOT_MAX || require < CCMEM_SECRET_NONE ||
        require > CCMEM_SECRET_MLOCK_ONLY)
        return CCMEM_ERR_ARGUMENT;
    while (slot_size[class] < n)
        class ++;
    a = arena_get();
    if (!a)
        return CCMEM_ERR_NOMEM;
    pthread_mutex_lock(&a->own.lock);
    slot = take(a, class, require, &reached);
    if (!slot && !(status = chunk_add(a, class, require)))
        slot = take(a, class, require, &reached);
    pthread_mutex_unlock(&a->own.lock);
    if (!slot)
        return status;
    *out = slot;
    if (level)
        *level = reached;
    return CCMEM_OK;
}

/* Keeps one empty chunk a class, so that making and freeing one key does not map every time; but
 * none when the last slot has come back, since a system that has secret memory does not hibernate.
 */
static void give_back(arena *a, int class, chunk **link, size_t slot) {
    chunk *c = *link;
    a->used--;
    ccmem_wipe(c->base + slot * slot_size[class], slot_size[class]);
    c->taken[slot / 64] &= ~(UINT64_C(1) << slot % 64);
    if (--c->used)
        return;
    if (!a->used) {
        (void)release_empty(a);
        return;
    }
    for (chunk *other = a->chunks[class]; other; other = other->next)
        if (other != c && !other->used) {
            chunk_release(link);
            return;
        }
}

void secret_free(void *slot) {
    arena *a = slot ? arena_get() : NULL;

    if (!a)
        return;
    pthread_mutex_lock(&a->own.lock);
    for (int class = 0; class < CLASSES; class ++)
        for (chunk **link = &a->chunks[class]; *link; link = &(*link)->next) {
            size_t at = (uintptr_t)slot - (uintptr_t)(*link)->base;
            if (at < (*link)->size) {
                give_back(a, class, link, at / slot_size[class]);
                goto done;
            }
        }
done:
    pthread_mutex_unlock(&a->own.lock);
}

ccmem_secret_level ccmem_secret_probe(void) {
    arena *a;

    for (int level = CCMEM_SECRET_MEMFD; level > CCMEM_SECRET_NONE; level--) {
        void *slot;
        if (secret_alloc(SLOT_MIN, (ccmem_secret_level)level, &slot, NULL))
            continue;
        secret_free(slot);
        a = arena_get();
        if (a) {
            pthread_mutex_lock(&a->own.lock);
            release_empty(a);
            pthread_mutex_unlock(&a->own.lock);
        }
        return (ccmem_secret_level)level;
    }
    return CCMEM_SECRET_NONE;
}

uint64_t ccmem_secret_slots(void) {
    arena *a = arena_get();
    uint64_t slots = 0;

    if (!a)
        return 0;
    pthread_mutex_lock(&a->own.lock);
    for (int class = 0; class < CLASSES; class ++)
        for (const chunk *c = a->chunks[class]; c; c = c->next)
            slots += c->used;
    pthread_mutex_unlock(&a->own.lock);
    return slots;
}
