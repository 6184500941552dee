/* SPDX-License-Identifier: Apache-2.0
 *
 * Cells: what owns an object between the call that makes it and the line that keeps it. */
#include "ccmem.h"

#include <errno.h>
#include <fcntl.h>
#include <unistd.h>

#include "platform/descriptor.h"

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
CELL(arena)
CELL(file)
CELL(sealer)
CELL(samples)
CELL(region)
CELL(cache)

void ccmem_region_drop_before(ccmem_store *store, ccmem_region **cell) {
    (void)store;
    ccmem_region_drop(cell);
}

void ccmem_region_free_before(ccmem_store *store, ccmem_region *region) {
    (void)store;
    ccmem_region_free(region);
}

ccmem_status ccmem_pin_take(ccmem_region *region, uint64_t offset, uint64_t n, ccmem_pin *pin) {
    ccmem_status status = ccmem_region_pin(region, offset, n);
    if (status == CCMEM_OK)
        *pin = (ccmem_pin){region, offset, n};
    return status;
}

ccmem_status ccmem_pin_release(ccmem_pin *pin) {
    ccmem_pin held = *pin;
    *pin = (ccmem_pin){NULL, 0, 0};
    return held.region ? ccmem_region_unpin(held.region, held.offset, held.n) : CCMEM_OK;
}

void ccmem_pin_drop_before(ccmem_region *region, ccmem_pin *pin) {
    (void)region;
    (void)ccmem_pin_release(pin); /* a region that was closed has no pins */
}

void ccmem_nothing(const void *kept, const void *object) {
    (void)kept;
    (void)object;
}

void ccmem_descriptor_drop(int *cell) {
    int fd = *cell;
    *cell = -1;
    if (fd >= 0)
        (void)close(fd); /* Linux frees the number whatever it returns */
}

int ccmem_kept_file_open(ccmem_kept_file *file, int fd) {
    int number = fcntl(fd, F_DUPFD_CLOEXEC, 3);
    if (number < 0)
        return errno;
    if (!descriptor_own(file, number)) {
        int error = errno;
        (void)close(number);
        return error;
    }
    return 0;
}

int ccmem_kept_file_number(const ccmem_kept_file *file) { return descriptor_number(file); }

void ccmem_kept_file_drop(ccmem_kept_file *file) { descriptor_close(file); }
