/* SPDX-License-Identifier: Apache-2.0
 * Anonymous mappings. */
#include "platform/vmem.h"

#include <errno.h>
#include <stdint.h>
#include <sys/mman.h>
#include <unistd.h>

#include "platform/lost.h"

/* Mappings are whole system pages; the largest size that rounds up without overflow. */
static int rounded(uint64_t n, size_t *size) {
    size_t unit = (size_t)sysconf(_SC_PAGESIZE);
    if (n == 0 || n > (SIZE_MAX >> 1) - HUGE_PAGE)
        return 0;
    *size = ((size_t)n + unit - 1) & ~(unit - 1);
    return 1;
}

static void *map_anonymous(size_t size) {
    void *p = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    return p == MAP_FAILED ? NULL : p;
}

void *vmem_map_aligned(size_t size, size_t align) {
    uint8_t *p = map_anonymous(size + align);
    if (!p)
        return NULL;
    size_t skip = (0 - (uintptr_t)p) & (align - 1);
    if (skip && munmap(p, skip)) {
        munmap(p, size + align);
        return NULL;
    }
    p += skip; /* what lay before may already be another thread's */
    if (munmap(p + size, align - skip)) {
        munmap(p, size + align - skip);
        return NULL;
    }
    if (madvise(p, size, MADV_DONTDUMP)) {
        munmap(p, size);
        return NULL;
    }
    if (align >= HUGE_PAGE)
        (void)madvise(p, size, MADV_HUGEPAGE); /* a refusal costs speed only */
    return p;
}

ccmem_status vmem_map_pages(uint64_t n, void **out) {
    size_t size;
    if (!rounded(n, &size))
        return CCMEM_ERR_NOMEM;
    /* On a huge-page boundary the kernel can use huge pages from the first byte: a random read then
     * misses the TLB far less often. */
    void *p = vmem_map_aligned(size, size >= HUGE_PAGE ? HUGE_PAGE : (size_t)sysconf(_SC_PAGESIZE));
    if (!p)
        return CCMEM_ERR_NOMEM;
    *out = p;
    return CCMEM_OK;
}

ccmem_status vmem_map_private(uint64_t n, void **out) {
    size_t size;
    if (!rounded(n, &size))
        return CCMEM_ERR_NOMEM;
    void *p = map_anonymous(size);
    if (!p)
        return CCMEM_ERR_NOMEM;
    if (madvise(p, size, MADV_DONTDUMP) || madvise(p, size, MADV_DONTFORK)) {
        /* EAGAIN (madvise(2) makes it of ENOMEM): the mapping would have to be split, and
         * vm.max_map_count allows no more. */
        int error = errno;
        munmap(p, size);
        return error == ENOMEM || error == EAGAIN ? CCMEM_ERR_NOMEM : CCMEM_ERR_SECRETMEM;
    }
    *out = p;
    return CCMEM_OK;
}

/* As vmem_map_aligned() has it. Neither is needed for the mapping to be used. */
static void advise(void *p, size_t size) {
    (void)madvise(p, size, MADV_DONTDUMP);
    (void)madvise(p, size, MADV_HUGEPAGE);
}

ccmem_status vmem_reserve(uint64_t n, void **out) {
    size_t size, align = (size_t)sysconf(_SC_PAGESIZE);
    if (!rounded(n, &size))
        return CCMEM_ERR_NOMEM;
    if (size >= HUGE_PAGE)
        align = HUGE_PAGE;
    uint8_t *p = mmap(NULL, size + align, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED)
        return CCMEM_ERR_NOMEM;
    size_t skip = (0 - (uintptr_t)p) & (align - 1);
    if ((skip && munmap(p, skip)) || munmap(p + skip + size, align - skip)) {
        munmap(p, size + align);
        return CCMEM_ERR_NOMEM;
    }
    advise(p + skip, size);
    *out = p + skip;
    return CCMEM_OK;
}

ccmem_status vmem_commit(void *p, uint64_t n) {
    size_t size;
    /* EACCES is for mappings of files alone: what is left is no memory, or no mapping more. */
    if (!rounded(n, &size) || mprotect(p, size, PROT_READ | PROT_WRITE))
        return CCMEM_ERR_NOMEM;
    return CCMEM_OK;
}

void vmem_release(void *p, uint64_t n) {
    size_t size;
    if (!p || !rounded(n, &size))
        return;
    if (mmap(p, size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) != MAP_FAILED)
        advise(p, size); /* as its neighbours, so that they become one mapping */
    else
        (void)madvise(p, size, MADV_DONTNEED); /* no mapping more: the memory goes all the same */
}

void vmem_forget(void *p, uint64_t n) {
    const uintptr_t unit = (uintptr_t)sysconf(_SC_PAGESIZE), at = (uintptr_t)p;
    const uintptr_t begin = (at + unit - 1) & ~(unit - 1), end = (at + n) & ~(unit - 1);
    if (begin < end)
        (void)madvise((void *)begin, end - begin, MADV_DONTNEED); /* a refusal costs memory only */
}

void vmem_unmap(void *p, uint64_t n) {
    size_t size;
    if (!p || !rounded(n, &size))
        return;
    lost_unwatch(p); /* before something else can lie there */
    munmap(p, size);
}
