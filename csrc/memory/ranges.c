/* SPDX-License-Identifier: Apache-2.0 */
#include "memory/ranges.h"

#include "platform/spans.h"

static span_table ranges = SPAN_TABLE;

int ranges_enter(const void *p, size_t n) { return span_enter(&ranges, p, n, NULL) != NULL; }

void ranges_leave(const void *p) { span_leave_at(&ranges, p); }

void ranges_forget(void) { span_forget(&ranges); }

int ranges_touch(const void *p, uint64_t n) { return span_touch(&ranges, p, n); }
