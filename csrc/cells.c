/* SPDX-License-Identifier: Apache-2.0
 *
 * Cells: what owns an object between the call that makes it and the line that keeps it. */
#include "ccmem.h"

#include <errno.h>
#include <unistd.h>

#define CELL(name)                                                                                 \
    void ccmem_##name##_drop(ccmem_##name **cell) {                                                \
        ccmem_##name##_free(ccmem_##name##_take(cell));                                            \
    }                                                                                              \
    ccmem_##name *ccmem_##name##_take(ccmem_##name **cell) {                                       \
        ccmem_##name *object = *cell;                                                              \
        *cell = NULL;                                                                              \
        return object;                                                                             \
    }

CELL(key)
CELL(store)
CELL(sealer)
CELL(samples)
CELL(region)

void ccmem_region_drop_before(ccmem_store *store, ccmem_region **cell) {
    (void)store;
    ccmem_region_drop(cell);
}

void ccmem_region_free_before(ccmem_store *store, ccmem_region *region) {
    (void)store;
    ccmem_region_free(region);
}

void ccmem_nothing(const void *kept, const void *object) {
    (void)kept;
    (void)object;
}

int ccmem_descriptor_close(int *cell) {
    int fd = *cell;
    *cell = -1;
    /* Linux frees the number whatever close() returns. */
    return fd >= 0 && close(fd) ? errno : 0;
}

void ccmem_descriptor_drop(int *cell) { (void)ccmem_descriptor_close(cell); }
