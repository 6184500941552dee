# SPDX-License-Identifier: Apache-2.0
"""The native search over the rows of segments."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

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

__all__ = ["Parts", "best", "candidates", "queries_at_once"]

_search = lib.ccmem_search
_NONE: npt.NDArray[np.uint64] = np.zeros(1, np.uint64)

#: ccmem_search_part, whose pointers are numbers.
_PART = np.dtype(
    [
        ("rows", "u8"),
        ("offset", "u8"),
        ("count", "u8"),
        ("factors", "u8"),
        ("factor_offset", "u8"),
        ("biases", "u8"),
        ("bias_offset", "u8"),
        ("ids", "u8"),
        ("first_id", "i8"),
        ("live", "u8"),
        ("live_first", "u8"),
        ("queries", "u8"),
        ("nqueries", "u4"),
        ("", "u4"),
    ]
)
assert _PART.itemsize == ffi.sizeof("ccmem_search_part"), "the fields are those of ccmem.h"

#: Queries of one pass at most, and entries of their lists.
_QUERIES, _ENTRIES = 256, 1 << 20


def queries_at_once(k: int) -> int:
    """Returns for how many queries rows are opened once."""
    return max(min(_QUERIES, _ENTRIES // k), 1)


class Parts:
    """Rows that are searched: runs of rows of views, those of one form."""

    def __init__(self, form: Form) -> None:
        self.form = form
        self._native: list[npt.NDArray[Any]] = []
        self._views: list[View] = []
        self._kept: list[Any] = []  # what the native parts point to

    def add(
        self,
        view: View,
        live: Bitmap | None,
        first: Integers,
        total: Integers,
        queries: tuple[npt.NDArray[np.uint32], Integers, Integers] | None = None,
        *,
        positions: int | None = None,
    ) -> None:
        """Adds runs of total[i] rows of a view from first[i] on. `live` has those of the view's
        rows that may be found, None all. `queries`: numbers of queries, and for each run where
        those that it is for begin among them, and how many they are; None: all queries.
        `positions`: rows are called by their numbers, from this one on, not by their ids."""
        form = self.form
        segment = view.segment.of(form)
        part = np.zeros(len(first), _PART)
        part["rows"] = self._store(segment.buffer)
        part["offset"], part["count"] = first * form.row_bytes, total
        for column, store, where in (
            (FACTOR, "factors", "factor_offset"),
            (BIAS, "biases", "bias_offset"),
        ):
            if column in segment.columns:
                buffer, start = segment.columns[column]
                part[store], part[where] = self._store(buffer), start + 4 * first
        if positions is not None:
            part["first_id"] = positions + first
        elif isinstance(view.ids, int):
            part["first_id"] = view.ids + first
        else:
            self._kept.append(view.ids)
            part["ids"] = address(view.ids) + 8 * first
        if live is not None:
            self._kept.append(live)
            part["live"], part["live_first"] = address(live), first
        if queries is not None:
            numbers, begin, count = queries
            self._kept.append(numbers)
            part["queries"], part["nqueries"] = address(numbers) + 4 * begin, count
        self._native.append(part)
        self._views.append(view)

    def _store(self, buffer: Any) -> int:
        store = handle(buffer)
        self._kept.append(store)
        return int(ffi.cast("uintptr_t", pointer_to(store)))

    def native(self) -> npt.NDArray[Any]:
        """Returns all parts."""
        return np.concatenate(self._native) if self._native else np.zeros(0, _PART)

    def view(self, number: int) -> View | None:
        """Returns the view of a part."""
        for part, view in zip(self._native, self._views, strict=True):
            if number < len(part):
                return view
            number -= len(part)
        return None


def candidates(form: Form, views: Sequence[View], numbers: Integers) -> Parts:
    """Returns the rows that were found for some queries, of shape [queries, n], to be searched by
    their fine rows. `numbers` counts rows through all views; -1 is none."""
    there = numbers >= 0
    rows, asking = numbers[there], np.nonzero(there)[0].astype(np.uint32)
    order = np.argsort(rows, kind="stable")
    queries = asking[order]
    rows, begin, many = np.unique(rows[order], return_index=True, return_counts=True)
    parts, before = Parts(form), 0
    for view in views:
        low, high = np.searchsorted(rows, (before, before + view.total))
        if low < high:
            asked = None if len(numbers) == 1 else (queries, begin[low:high], many[low:high])
            ones = np.ones(high - low, np.int64)
            parts.add(view, None, rows[low:high] - before, ones, asked)
        before += view.total
    return parts


def best(parts: Parts, queries: Floats, k: int) -> tuple[Floats, Integers]:
    """Returns the k largest ranks of each query, and their ids, the largest first, of equal ones
    the smaller id first; -infinity and -1 where there are no more rows. Raises IntegrityError, and
    returns nothing then; ClosedError, ForkError, OutOfMemoryError, PlaintextBudgetError."""
    form = parts.form
    scores = np.empty((len(queries), k), np.float32)
    ids = np.empty((len(queries), k), np.int64)
    native = parts.native()
    failed = ffi.new("uint64_t *")
    status = _search(
        ffi.cast("ccmem_search_part *", address(native if len(native) else _NONE)),
        len(native),
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
        _fail(status, int(failed[0]), parts)
    return scores, ids


def _fail(status: int, failed: int, parts: Parts) -> None:
    number, which = divmod(failed, 3)
    view = parts.view(number)
    if view is None:
        check(status)
        return
    segment = view.segment.of(parts.form)
    column = segment.columns.get((FACTOR, BIAS)[which - 1]) if which else None
    buffer = segment.buffer if column is None else column.buffer
    fail(buffer, status, 0, buffer.nbytes)
