/* SPDX-License-Identifier: Apache-2.0 */
#include "mapping/fault.h"

#include <errno.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

#include "platform/vmem.h"

/* One more at the end, so that no other mapping begins where the range ends and the kernel merges
 * the two, or a loop that runs over the end of an array reads another's. */
static size_t range_size(const fault_space *s) { return s->nblocks * s->block + s->block; }

static size_t frames_size(const fault_space *s) { return s->nframes * s->block; }

/* Of memory from vmem_map_aligned(), which is left out of dumps already. */
static int private(void *p, size_t size, size_t block) {
    if (madvise(p, size, MADV_DONTFORK))
        return 0;
    /* A refusal costs speed only: frames smaller than a huge page are moved out of one piece by
     * piece. */
    if (block < HUGE_PAGE)
        (void)madvise(p, size, MADV_NOHUGEPAGE);
    return 1;
}

static int in_a_hurry; /* atomic */

void fault_hurry(void) { __atomic_store_n(&in_a_hurry, 1, __ATOMIC_RELEASE); }

int fault_again(int tries) {
    struct timespec t = {.tv_nsec = 200000};
    if (tries >= FAULT_TRIES || __atomic_load_n(&in_a_hurry, __ATOMIC_ACQUIRE))
        return 0;
    nanosleep(&t, NULL);
    return 1;
}

int fault_protect(uint8_t *p, size_t n, int access) {
    for (int tries = 0; mprotect(p, n, access); tries++)
        if (!fault_again(tries))
            return 0;
    return 1;
}

ccmem_status fault_map(fault_space *s, size_t block, size_t nblocks, size_t nframes, int closed) {
    s->block = block;
    s->nblocks = nblocks;
    s->nframes = nframes;
    if (nblocks > (SIZE_MAX >> 2) / block)
        return CCMEM_ERR_NOMEM;
    s->base = vmem_map_aligned(range_size(s), HUGE_PAGE);
    if (!s->base)
        return CCMEM_ERR_NOMEM;
    s->frames = vmem_map_aligned(frames_size(s), HUGE_PAGE);
    if (!s->frames) {
        munmap(s->base, range_size(s));
        return CCMEM_ERR_NOMEM;
    }
    if (!private(s->base, range_size(s), block) || !private(s->frames, frames_size(s), block) ||
        mprotect(s->base + nblocks * block, block, PROT_NONE) ||
        (closed && mprotect(s->base, nblocks * block, PROT_NONE))) {
        /* EAGAIN (madvise(2) makes it of ENOMEM): vm.max_map_count allows no more. */
        const int number = errno;
        munmap(s->base, range_size(s));
        munmap(s->frames, frames_size(s));
        return number == ENOMEM || number == EAGAIN ? CCMEM_ERR_NOMEM : CCMEM_ERR_SECRETMEM;
    }
    memset(s->frames, 0, frames_size(s)); /* memory of their own, before faults are asked about */
    return CCMEM_OK;
}

void fault_unmap(fault_space *s) {
    munmap(s->frames, frames_size(s));
    /* If the system cannot even do this, the range must not be left to others: what a view of it
     * then reads is zeros. */
    if (mmap(s->base, s->nblocks * s->block, PROT_NONE,
             MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE, -1, 0) == MAP_FAILED)
        (void)mprotect(s->base, s->nblocks * s->block, PROT_NONE);
}

void fault_release(fault_space *s) { munmap(s->base, range_size(s)); }

void fault_reserve_in_child(const fault_space *s) {
    /* Where that fails the address is taken already, or there are too many mappings: nothing to be
     * done. */
    (void)mmap(s->base, range_size(s), PROT_NONE,
               MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE | MAP_NORESERVE, -1, 0);
}
