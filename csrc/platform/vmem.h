/* SPDX-License-Identifier: Apache-2.0
 * Anonymous mappings for what a store keeps besides secrets, zeroed and lazily backed. */
#ifndef CCMEM_VMEM_H
#define CCMEM_VMEM_H

#include "ccmem.h"

#define HUGE_PAGE ((size_t)2 << 20) /* x86-64; where pages are larger it is only an alignment */

/* `size` bytes (whole system pages) from a multiple of `align` (a power of two, at least a system
 * page) on, zeroed, left out of core dumps; huge pages where `align` is at least one and the system
 * gives them on request. NULL when there is no memory. Given back with munmap(2). */
void *vmem_map_aligned(size_t size, size_t align);

/* n > 0 bytes for ciphertext: huge pages where the system gives them on request, left out of core
 * dumps (which stay small), inherited by a fork copy-on-write (so a view of it never dangles).
 * CCMEM_ERR_NOMEM. */
ccmem_status vmem_map_pages(uint64_t n, void **out);

/* n > 0 bytes for bookkeeping: neither dumped nor inherited by a fork. CCMEM_ERR_NOMEM, and
 * CCMEM_ERR_SECRETMEM when the system will not promise that. */
ccmem_status vmem_map_private(uint64_t n, void **out);

/* Addresses for n > 0 bytes, aligned as those of vmem_map_pages(), without memory behind them: it
 * counts against no limit of memory. Given back with vmem_unmap(). CCMEM_ERR_NOMEM. */
ccmem_status vmem_reserve(uint64_t n, void **out);

/* Zeroed memory for n > 0 bytes at p, whole system pages of a reservation that have none.
 * CCMEM_ERR_NOMEM. */
ccmem_status vmem_commit(void *p, uint64_t n);

/* Undoes vmem_commit(): the addresses stay reserved. */
void vmem_release(void *p, uint64_t n);

/* Lets go of the system pages that lie within n bytes at p, in a mapping of a file that is never
 * written: they no longer count as this process's, and a later touch finds them again. */
void vmem_forget(void *p, uint64_t n);

/* Undoes vmem_map_*(), vmem_reserve() and filemap_pages(); n as it was given. */
void vmem_unmap(void *p, uint64_t n);

#endif
