# SPDX-License-Identifier: Apache-2.0
"""The native search over the rows of segments."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ..binding import OK, check, ffi, lib
from ..binding.owned import pointer_to
from ..core.indexing import address
from ..core.store import fail, handle
from .bitmaps import Bitmap
from .encoding import Floats
from .form import BIAS, FACTOR, Form
from .ids import Integers
from .segment import View

__all__ = ["Part", "best"]

_search = lib.ccmem_search
_PARTS = ffi.typeof("ccmem_search_part[]")

#: Queries of one pass at most, and entries of their lists.
_QUERIES, _ENTRIES = 256, 1 << 20


class Part(NamedTuple):
    """Rows [first, first + total) of a view that are searched. `live` has those of the view that
    may be found, None all; `queries` the numbers of the queries that they are for, None all."""

    view: View
    first: int
    total: int
    live: Bitmap | None
    queries: npt.NDArray[np.uint32] | None = None


def best(form: Form, parts: Sequence[Part], queries: Floats, k: int) -> tuple[Floats, Integers]:
    """Returns the k largest ranks of each query, and their ids, the largest first, of equal ones
    the smaller id first; -infinity and -1 where there are no more rows. Raises IntegrityError, and
    returns nothing then; ClosedError, ForkError, OutOfMemoryError, PlaintextBudgetError."""
    count = len(queries)
    scores = np.empty((count, k), np.float32)
    ids = np.empty((count, k), np.int64)
    step = max(min(_QUERIES, _ENTRIES // k), 1)
    for first in range(0, count, step):
        end = min(first + step, count)
        chosen = parts
        if step < count:
            chosen = [one for one in map(lambda part: _within(part, first, end), parts) if one]
        _pass(form, chosen, queries[first:end], k, scores[first:end], ids[first:end])
    return scores, ids


def _within(part: Part, first: int, end: int) -> Part | None:
    """Returns a part for the queries from `first` up to `end` alone; None if it is for none."""
    if part.queries is None:
        return part
    mine = part.queries[(part.queries >= first) & (part.queries < end)] - np.uint32(first)
    return part._replace(queries=mine) if len(mine) else None


def _pass(
    form: Form, parts: Sequence[Part], queries: Floats, k: int, scores: Floats, ids: Integers
) -> None:
    native = ffi.new(_PARTS, max(len(parts), 1))
    kept: list[Any] = []  # what the native parts point to
    for at, part in enumerate(parts):
        _fill(native[at], part, form, kept)
    failed = ffi.new("uint64_t *")
    status = _search(
        native,
        len(parts),
        form.native,
        form.dim,
        ffi.cast("float *", address(queries)),
        len(queries),
        k,
        ffi.cast("float *", address(scores)),
        ffi.cast("int64_t *", address(ids)),
        failed,
    )
    if status != OK:
        _fail(status, int(failed[0]), parts, form)


def _fill(native: Any, part: Part, form: Form, kept: list[Any]) -> None:
    segment, first = part.view.segment, part.first
    native.rows = _native(segment.buffer, kept)
    native.offset = first * form.row_bytes
    native.count = part.total
    if FACTOR in segment.columns:
        buffer, offset = segment.columns[FACTOR]
        native.factors, native.factor_offset = _native(buffer, kept), offset + 4 * first
    if BIAS in segment.columns:
        buffer, offset = segment.columns[BIAS]
        native.biases, native.bias_offset = _native(buffer, kept), offset + 4 * first
    ids = part.view.ids
    if isinstance(ids, int):
        native.first_id = ids + first
    else:
        kept.append(ids)
        native.ids = ffi.cast("int64_t *", address(ids) + 8 * first)
    if part.live is not None:
        kept.append(part.live)
        native.live, native.live_first = ffi.cast("uint8_t *", address(part.live)), first
    if part.queries is not None:
        kept.append(part.queries)
        native.queries = ffi.cast("uint32_t *", address(part.queries))
        native.nqueries = len(part.queries)


def _native(buffer: Any, kept: list[Any]) -> Any:
    store = handle(buffer)
    kept.append(store)
    return pointer_to(store)


def _fail(status: int, failed: int, parts: Sequence[Part], form: Form) -> None:
    at, which = divmod(failed, 3)
    segment = parts[min(at, len(parts) - 1)].view.segment if parts else None
    if segment is None:
        check(status)
        return
    column = segment.columns.get((FACTOR, BIAS)[which - 1]) if which else None
    buffer = segment.buffer if column is None else column.buffer
    fail(buffer, status, 0, buffer.nbytes)
