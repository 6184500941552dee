/* SPDX-License-Identifier: Apache-2.0 */
#include "pages/move.h"

#include "memory/secret.h"

static page_result move_in(uint8_t *scratch, const page_context *was, const page_context *is,
                           uint8_t *ct, const uint8_t *data, uint64_t page, uint64_t from,
                           uint64_t to, uint8_t *tag, const uint64_t *offsets, size_t count,
                           uint32_t n) {
    page_result result = PAGE_GOOD;

    if (was->ops->open(was, scratch, ct, page, &from, (const page_tag *)tag, 1, 0)) {
        result = PAGE_BAD;
    } else {
        page_place(scratch, 0, is->size, data, offsets, count, is->size - 1, n);
        is->ops->seal(is, ct, scratch, page, &to, (page_tag *)tag, 1, PAGE_LAST);
    }
    ccmem_wipe(scratch, is->size);
    return result;
}

/* A frame of its own for large pages, as in page_aegis.c. */
static __attribute__((noinline)) page_result move_large(const page_context *was,
                                                        const page_context *is, uint8_t *ct,
                                                        const uint8_t *data, uint64_t page,
                                                        uint64_t from, uint64_t to, uint8_t *tag,
                                                        const uint64_t *offsets, size_t count,
                                                        uint32_t n) {
    _Alignas(64) uint8_t scratch[CCMEM_PAGE_SIZE_MAX];
    return move_in(scratch, was, is, ct, data, page, from, to, tag, offsets, count, n);
}

page_result page_move(const page_context *was, const page_context *is, uint8_t *ct,
                      const uint8_t *data, uint64_t page, uint64_t from, uint64_t to, uint8_t *tag,
                      const uint64_t *offsets, size_t count, uint32_t n) {
    enum { USUAL = 4 * CCMEM_PAGE_SIZE_MIN };
    _Alignas(64) uint8_t scratch[USUAL];
    if (is->size > USUAL)
        return move_large(was, is, ct, data, page, from, to, tag, offsets, count, n);
    return move_in(scratch, was, is, ct, data, page, from, to, tag, offsets, count, n);
}
