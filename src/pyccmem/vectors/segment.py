# SPDX-License-Identifier: Apache-2.0
"""Segments: where the rows of an index lie as ciphertext, and what a snapshot sees of them.

Rows are appended to a segment and never change. What a reader sees is a View, which says how many
rows there are and which were removed; the writer makes new views, and readers keep those that they
have. So neither waits for the other.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ..binding import TENSOR_PAGE_SIZE, wiped
from ..buffer import EncryptedBuffer
from ..core.runs import gather
from ..keys import Key
from .bitmaps import Bitmap, has, mask_of
from .encoding import Encoded, decode
from .form import Form
from .ids import IdColumn, Ids, Integers, ids_of

__all__ = ["Column", "Segment", "View", "capacity_for"]

#: Bytes of the rows of a segment: the first ones are small, and each at most as large as all before
#: it, up to the largest; but rows that are added together may lie together.
_SMALLEST, _LARGEST, _TOGETHER = 1 << 20, 64 << 20, 256 << 20

#: The types that rows are copied as.
_TYPES = {"float32": np.float32, "float16": np.float16, "bfloat16": np.uint16, "int8": np.int8}


class Column(NamedTuple):
    """A float32 for each row, from byte `offset` of a buffer on."""

    buffer: EncryptedBuffer
    offset: int


class Runs(NamedTuple):
    """Runs of rows: the first of each, how many there are, and whose list they are of."""

    first: Integers
    total: Integers
    list: npt.NDArray[np.uint32]


def capacity_for(form: Form, total: int, coming: int) -> int:
    """Returns for how many rows a new segment is, when there are `total` and `coming` are added."""
    row = form.row_bytes + (0 if form.fine is None else form.fine.row_bytes)
    nbytes = max(_SMALLEST, min(total * row, _LARGEST), min(coming * row, _TOGETHER))
    return max(-(-nbytes // row), 1)


class Segment:
    """Rows of one form, the columns beside them, and their ids. `fine` has the rows by which
    candidates are ranked again, where there are such."""

    __slots__ = (
        "_runs",
        "buffer",
        "capacity",
        "columns",
        "fine",
        "form",
        "ids",
        "lists",
        "writable",
    )

    #: The list of each row, where there are lists; behind the rows that are seen, anything.
    lists: npt.NDArray[np.uint32] | None

    def __init__(
        self,
        form: Form,
        capacity: int,
        buffer: EncryptedBuffer,
        columns: dict[str, Column],
        writable: bool,
        fine: Segment | None = None,
    ) -> None:
        self.form, self.capacity, self.buffer = form, capacity, buffer
        self.columns, self.writable, self.fine = columns, writable, fine
        self.ids = Ids(capacity)
        self.lists = None
        self._runs: tuple[int, Runs] | None = None

    @classmethod
    def new(cls, form: Form, capacity: int, key: Key, name: str) -> Segment:
        """Returns an empty segment in memory. Raises OutOfMemoryError, LockedMemoryError,
        ClosedError, ForkError."""
        buffer = EncryptedBuffer(
            capacity * form.row_bytes,
            key=key,
            page_size=TENSOR_PAGE_SIZE,
            tweak_cache=0,
            name=f"{name}, rows",
        )
        columns = {}
        if form.columns:
            step = -(-capacity * 4 // TENSOR_PAGE_SIZE) * TENSOR_PAGE_SIZE
            beside = EncryptedBuffer(
                step * len(form.columns),
                key=key,
                page_size=TENSOR_PAGE_SIZE,
                tweak_cache=0,
                name=f"{name}, norms",
            )
            columns = {column: Column(beside, at * step) for at, column in enumerate(form.columns)}
        fine = None if form.fine is None else cls.new(form.fine, capacity, key, f"{name}, fine")
        return cls(form, capacity, buffer, columns, True, fine)

    def of(self, form: Form) -> Segment:
        """Returns what has the rows of a form: this one, or the fine ones."""
        return self if self.fine is None or form == self.form else self.fine

    def put(self, at: int, part: Encoded, first: int, count: int) -> None:
        """Writes `count` rows of a part, from its row `first` on, as those from `at` on, which
        nobody sees yet. Raises IntegrityError for a page that other rows lie in as well,
        VersionExhaustedError, ClosedError, ForkError."""
        rows = part.rows[first : first + count]
        self.buffer.write(rows.reshape(-1).view(np.uint8), at * self.form.row_bytes)
        for name, (buffer, offset) in self.columns.items():
            buffer.write(part.columns[name][first : first + count], offset + at * 4)
        if self.fine is not None and part.fine is not None:
            self.fine.put(at, part.fine, first, count)

    def stored(self, rows: Integers) -> Encoded:
        """Returns rows as they are stored, with all that is beside them, in memory that is wiped.
        Raises what raw() raises."""
        columns = {name: self.column(name, rows) for name in self.columns}
        fine = None if self.fine is None else self.fine.stored(rows)
        return Encoded(0, len(rows), self.raw(rows), columns, fine)

    def raw(self, rows: Integers) -> npt.NDArray[Any]:
        """Returns rows as they are stored, in memory that is wiped. Raises IntegrityError,
        ClosedError, ForkError."""
        form = self.form
        memory = _opened(self.buffer, 0, form.row_bytes, rows)
        found: npt.NDArray[Any] = np.ndarray((len(rows), form.dim), _TYPES[form.dtype], memory)
        return found

    def column(self, name: str, rows: Integers) -> npt.NDArray[np.float32]:
        """Returns what a column has for some rows, in memory that is wiped."""
        buffer, offset = self.columns[name]
        memory = _opened(buffer, offset, 4, rows)
        found: npt.NDArray[np.float32] = np.ndarray(len(rows), np.float32, memory)
        return found

    def vectors(self, rows: Integers) -> npt.NDArray[np.float32]:
        """Returns rows as vectors of float32, the fine ones if there are such, in memory that is
        wiped."""
        if self.fine is not None:
            return self.fine.vectors(rows)
        scale = self.form.scale
        raw = self.raw(rows)
        try:
            return decode(raw, self.form, None if scale is None else self.column(scale, rows))
        finally:
            raw.fill(0)

    def runs(self, total: int) -> Runs:
        """Returns the runs of rows of one list among the first `total` rows."""
        kept = self._runs  # those of another snapshot, or these
        if kept is None or kept[0] != total:
            lists = self.lists
            assert lists is not None, "rows were added after train()"
            seen = lists[:total]
            first = np.concatenate(([0], np.flatnonzero(seen[1:] != seen[:-1]) + 1))
            kept = self._runs = total, Runs(first, np.diff(np.append(first, total)), seen[first])
        return kept[1]

    def buffers(self) -> list[EncryptedBuffer]:
        """Returns the buffers that it has, each once."""
        return [
            self.buffer,
            *{id(one.buffer): one.buffer for one in self.columns.values()}.values(),
            *([] if self.fine is None else self.fine.buffers()),
        ]

    def damaged(self, count: int) -> npt.NDArray[np.bool_]:
        """Returns which of the first `count` rows lie in pages that were changed."""
        mask = np.zeros(count, np.bool_)
        items = [(self.buffer, 0, self.form.row_bytes)]
        items += [(buffer, offset, 4) for buffer, offset in self.columns.values()]
        for buffer, offset, size in items:
            for page in buffer.verify():
                first = (page * buffer.page_size - offset) // size
                last = -(-((page + 1) * buffer.page_size - offset) // size)
                mask[max(first, 0) : max(min(last, count), 0)] = True
        return mask if self.fine is None else mask | self.fine.damaged(count)

    def nbytes(self, count: int) -> int:
        """Returns the bytes of memory that it takes for `count` rows."""
        total = self.ids.overhead() + (0 if self.lists is None else 4 * count)
        for buffer in self.buffers():
            used = buffer.nbytes * count // max(self.capacity, 1)
            pages = -(-used // buffer.page_size)
            total += pages * (buffer.page_size + 24)
        return total

    def close(self) -> None:
        """Closes the buffers. May be repeated."""
        for buffer in self.buffers():
            buffer.close()


def _opened(buffer: EncryptedBuffer, offset: int, size: int, rows: Integers) -> Any:
    """Returns memory that is wiped with the items of `size` bytes that some rows have from `offset`
    on."""
    pointer, memory = wiped.block(max(len(rows) * size, 1))
    if len(rows) and rows[-1] - rows[0] == len(rows) - 1 and (np.diff(rows) == 1).all():
        buffer.read_into(memory, offset + int(rows[0]) * size)  # each page once
    elif len(rows):
        gather(buffer, rows * size + offset, size, pointer)
    return memory


class View(NamedTuple):
    """What a snapshot sees of a segment: the first `total` rows, of which `live` has those that
    were not removed."""

    segment: Segment
    total: int
    ids: IdColumn
    live: Bitmap | None
    alive: int

    @property
    def room(self) -> int:
        """How many rows may be appended."""
        return self.segment.capacity - self.total if self.segment.writable else 0

    def mask(self) -> npt.NDArray[np.bool_]:
        """Returns which of the rows were not removed."""
        return mask_of(self.live, self.total)

    def ids_of(self, rows: Integers) -> Integers:
        """Returns the ids of some rows."""
        return ids_of(self.ids, rows)

    def rows_of(self, ids: Integers) -> Integers:
        """Returns the rows of the ids that it has, -1 for others. For the thread that holds the
        index's lock."""
        self.segment.ids.forget(self.total)
        rows = self.segment.ids.rows(ids, self.mask)
        rows[rows >= self.total] = -1
        there = np.flatnonzero(rows >= 0)
        rows[there[~has(self.live, rows[there])]] = -1
        return rows
