# SPDX-License-Identifier: Apache-2.0
"""Which row of a segment an id has, and the other way round."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

__all__ = ["IdColumn", "Ids", "ids_of"]

Integers = npt.NDArray[np.int64]

#: What a snapshot has of the ids of its rows: them, or the first one if each is one more than that
#: of the row before.
IdColumn = Integers | int

#: Rows that are looked up one by one until they are sorted in with the others.
_RECENT = 4096


def ids_of(column: IdColumn, rows: Integers) -> Integers:
    """Returns the ids of some rows."""
    return column + rows if isinstance(column, int) else column[rows]


class Ids:
    """The ids of a segment's rows, which follow each other without a gap where nothing else was
    asked for, and then take no memory. What is seen in a snapshot never changes. The methods are
    for one thread at a time."""

    __slots__ = ("_array", "_base", "_capacity", "_count", "_order", "_recent", "_sorted")

    def __init__(self, capacity: int) -> None:
        self._capacity, self._count = capacity, 0
        self._base: int | None = None
        self._array: Integers | None = None
        self._sorted: Integers | None = None
        self._order: npt.NDArray[np.uint32] | None = None
        self._recent: dict[int, int] = {}

    def put(self, at: int, ids: Integers) -> None:
        """Sets the ids of the rows from `at` on, all that are seen being before it."""
        self.forget(at)
        if self._array is None:
            if at == 0:
                self._base = int(ids[0])
            base = self._base
            assert base is not None, "the first row has an id"
            if ids[0] == base + at and np.array_equal(ids, np.arange(len(ids)) + ids[0]):
                self._count = at + len(ids)
                return
            # Memory that is not touched is not there.
            array = np.empty(self._capacity, np.int64)
            array[:at] = np.arange(base, base + at)
            self._array = array
        self._array[at : at + len(ids)] = ids
        self._count = at + len(ids)
        if self._sorted is not None and len(ids) <= _RECENT:
            self._recent.update(zip(ids.tolist(), range(at, at + len(ids)), strict=True))
        else:
            self._sorted = self._order = None
            self._recent = {}

    def forget(self, at: int) -> None:
        """Forgets rows from `at` on, which were put and never seen: a change was interrupted."""
        if at >= self._count:
            return
        self._count = at
        self._sorted = self._order = None
        self._recent = {}
        if at == 0:
            self._base = self._array = None

    def column(self) -> IdColumn:
        """Returns what a snapshot keeps."""
        if self._array is not None:
            return self._array
        return 0 if self._base is None else self._base

    def rows(self, ids: Integers, live: Callable[[], npt.NDArray[np.bool_]]) -> Integers:
        """Returns the row of each id that is there, -1 for others; rows that were removed may be
        among them. `live` gives which of the rows that are seen were not."""
        if self._array is None:
            base = 0 if self._base is None else self._base
            rows = ids - base
            rows[(ids < base) | (rows >= self._count)] = -1
            return rows
        if self._sorted is None or len(self._recent) > max(_RECENT, self._count // 8):
            self._sort(live())
        assert self._sorted is not None and self._order is not None, "they are sorted"
        rows = np.full(len(ids), -1, np.int64)
        if len(self._sorted):
            places = np.minimum(np.searchsorted(self._sorted, ids), len(self._sorted) - 1)
            same = self._sorted[places] == ids
            rows[same] = self._order[places[same]]
        if self._recent:
            recent = self._recent
            for at, one in enumerate(ids.tolist()):
                found = recent.get(one)
                if found is not None:
                    rows[at] = found
        return rows

    def _sort(self, live: npt.NDArray[np.bool_]) -> None:
        """Sorts the ids of the rows that were not removed, among which each is once."""
        assert self._array is not None, "ids are stored"
        rows = np.flatnonzero(live)
        ids = self._array[rows]
        order = np.argsort(ids, kind="stable")
        self._sorted, self._order = ids[order], rows[order].astype(np.uint32)
        self._recent = {}

    def overhead(self) -> int:
        """Returns the bytes of memory that they take."""
        if self._array is None:
            return 0
        sorted_bytes = 0 if self._sorted is None else 12 * len(self._sorted)
        return 8 * self._count + sorted_bytes + 100 * len(self._recent)
