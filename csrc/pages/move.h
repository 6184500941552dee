/* SPDX-License-Identifier: Apache-2.0
 * Moves a page from one key to another while it is changed. */
#ifndef CCMEM_PAGE_MOVE_H
#define CCMEM_PAGE_MOVE_H

#include "pages/page.h"

/* Does what page_ops' modify() does, for a page that was sealed with `was` under the version
 * `from`, which is not 0, and is to be sealed with `is`, of the same suite and size, under `to`. */
page_result page_move(const page_context *was, const page_context *is, uint8_t *ct,
                      const uint8_t *data, uint64_t page, uint64_t from, uint64_t to, uint8_t *tag,
                      const uint64_t *offsets, size_t count, uint32_t n);

#endif
