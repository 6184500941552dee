/* SPDX-License-Identifier: Apache-2.0
 * Changes pages of the suites that have a tag: as wholes. */
#ifndef CCMEM_PAGE_WHOLE_H
#define CCMEM_PAGE_WHOLE_H

#include "pages/page.h"

/* page_ops.modify by the open and seal of the same suite. */
page_result page_modify_whole(const page_context *ctx, uint8_t *ct, const uint8_t *data,
                              uint64_t page, uint64_t from, uint64_t to, uint8_t *tag,
                              const uint64_t *offsets, size_t count, uint32_t n);

#endif
