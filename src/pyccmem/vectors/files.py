# SPDX-License-Identifier: Apache-2.0
"""An index as a sealed file, and back.

The file has a tensor "rows" of shape [n, dim], of the index's type, one for each column beside them
(form.py), "ids" where these are not one after the other, and "payloads" with "payload_lengths" (-1:
none) where there are any. Rows by which candidates are ranked again are in "fine_rows", with
columns whose names begin likewise. Names, shapes and the metadata are sealed as well.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from .. import errors
from ..binding import TENSOR_PAGE_SIZE, wiped
from ..buffer import EncryptedBuffer
from ..core.dtypes import DTYPES
from ..safetensors import Progress, SealedFile
from ..safetensors._progress import check_progress
from ..safetensors._reader import expected, open_sealed
from ..safetensors._sources import ArraySource, Source
from ..safetensors._tensor_file import buffer_of
from ..safetensors._writer import write_sealed
from ..safetensors.providers import AnyKey, check_key
from .form import Form, checked_form
from .ids import Integers
from .payloads import Chunk, Places, read
from .segment import Column, Segment, View

__all__ = ["Loaded", "load", "save"]

#: What a file says that it is, and the version of what follows: 2 has fine rows.
_MARK, _VERSION, _FINE_VERSION = "pyccmem vector index", "1", "2"

#: What the names of the tensors of fine rows begin with.
_FINE = "fine_"

Block = npt.NDArray[np.uint8]


class _Part(NamedTuple):
    """What is saved of a view: all its rows (None), or some."""

    view: View
    places: Places | None
    rows: Integers | None

    @property
    def total(self) -> int:
        return self.view.total if self.rows is None else len(self.rows)

    def some(self, first: int, end: int) -> Integers:
        """Returns the rows from number `first` of those that are saved up to `end`."""
        return np.arange(first, end) if self.rows is None else self.rows[first:end]


@dataclass(frozen=True)
class _Items:
    """Items of `size` bytes, one for each row, for the writer of sealed files. `opened` gives them
    for some rows of a view, in memory that is wiped."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    size: int
    parts: Sequence[_Part]
    opened: Callable[[Segment, Integers], npt.NDArray[Any]]

    @property
    def nbytes(self) -> int:
        return self.shape[0] * self.size

    def read(self, part: Block, at: int) -> None:
        """Opens the items that the bytes lie in."""
        first, end = at // self.size, -(-(at + len(part)) // self.size)
        scratch = wiped.empty((end - first) * self.size, np.uint8)
        try:
            done, before = 0, 0
            for one in self.parts:
                low, high = max(first - before, 0), min(end - before, one.total)
                if low < high:
                    items = self.opened(one.view.segment, one.some(low, high))
                    flat = items.reshape(-1).view(np.uint8)
                    scratch[done : done + len(flat)] = flat
                    items.fill(0)
                    done += len(flat)
                before += one.total
            start = at - first * self.size
            np.copyto(part, scratch[start : start + len(part)])
        finally:
            scratch.fill(0)


class _Payloads:
    """All payloads, one after the other."""

    name, dtype = "payloads", "U8"

    def __init__(self, chunks: Sequence[Chunk], start: Integers, length: Integers) -> None:
        there = length > 0
        self._chunks, self._start, self._length = chunks, start[there], length[there]
        self._place = np.concatenate(([0], np.cumsum(self._length)))
        self.nbytes = int(self._place[-1])
        self.shape = (self.nbytes,)

    def read(self, part: Block, at: int) -> None:
        end = at + len(part)
        number = int(np.searchsorted(self._place, at, side="right")) - 1
        while at < end:
            inside = at - int(self._place[number])
            count = min(int(self._length[number]) - inside, end - at)
            found = read(self._chunks, int(self._start[number]) + inside, count)
            begin = len(part) - (end - at)
            part[begin : begin + count] = np.frombuffer(found, np.uint8)
            wiped.wipe_bytes(found)
            at += count
            number += 1


def save(
    path: str | os.PathLike[str],
    form: Form,
    views: Sequence[tuple[View, Places | None]],
    chunks: Sequence[Chunk],
    *,
    centroids: npt.NDArray[np.float32] | None,
    next_id: int,
    key: AnyKey,
    progress: bool | Progress | None,
    context: Any,
) -> str:
    """Writes a file of the vectors that were not removed. Returns its pin."""
    check_progress(progress)
    check_key(key)
    parts = [_Part(view, places, _rows_to_save(view)) for view, places in views]
    parts = [one for one in parts if one.total]
    count = sum(one.total for one in parts)
    sources: list[Source] = [*_items(form, form, "", count, parts)]
    if form.fine is not None:
        sources += _items(form, form.fine, _FINE, count, parts)
    metadata = {
        "format": _MARK,
        "version": _VERSION if form.fine is None else _FINE_VERSION,
        "dim": str(form.dim),
        "metric": form.metric,
        "dtype": form.dtype,
        "count": str(count),
        "next_id": str(next_id),
    }
    if form.rerank is not None:
        metadata["rerank"] = form.rerank
    ids = _joined([one.view.ids_of(one.some(0, one.total)) for one in parts])
    if count and np.array_equal(ids, np.arange(count) + ids[0]):
        metadata["first_id"] = str(int(ids[0]))
    else:
        sources.append(ArraySource("ids", "I64", (count,), ids))
    if centroids is not None:
        sources.append(ArraySource("centroids", "F32", centroids.shape, centroids))
        lists = [
            one.view.segment.lists[one.some(0, one.total)]
            for one in parts
            if one.view.segment.lists is not None
        ]
        numbers = np.concatenate(lists) if lists else np.empty(0, np.uint32)
        sources.append(ArraySource("lists", "U32", (count,), numbers))
    if any(one.places is not None for one in parts):
        start = _joined([_place(one, 0) for one in parts])
        length = _joined([_place(one, 1) for one in parts])
        length[start < 0] = -1
        sources.append(ArraySource("payload_lengths", "I64", (count,), length))
        sources.append(_Payloads(chunks, start, length))
    header = write_sealed(
        path,
        sources,
        metadata,
        key=key,
        page_size=TENSOR_PAGE_SIZE,
        seal_names=True,
        progress=progress,
        context=context,
    )
    return f"{header.file_id.hex()}:{header.generation}"


def _rows_to_save(view: View) -> Integers | None:
    """Returns the rows that were not removed, None for all; those of a list together."""
    lists = view.segment.lists
    if lists is None:
        return None if view.live is None else np.flatnonzero(view.mask())
    rows = np.flatnonzero(view.mask())
    ordered: Integers = rows[np.argsort(lists[rows], kind="stable")]
    return ordered


def _items(
    form: Form, mine: Form, prefix: str, count: int, parts: Sequence[_Part]
) -> Iterator[_Items]:
    """Yields the rows of one form of a segment, and its columns."""
    kind = DTYPES[mine.dtype].safetensors or ""
    yield _Items(
        f"{prefix}rows",
        kind,
        (count, mine.dim),
        mine.row_bytes,
        parts,
        lambda segment, rows: segment.of(mine).raw(rows),
    )
    for column in mine.columns:
        yield _Items(f"{prefix}{column}", "F32", (count,), 4, parts, _column_reader(mine, column))


def _column_reader(mine: Form, name: str) -> Callable[[Segment, Integers], npt.NDArray[Any]]:
    return lambda segment, rows: segment.of(mine).column(name, rows)


def _joined(parts: list[Integers]) -> Integers:
    return np.concatenate(parts) if parts else np.empty(0, np.int64)


def _place(part: _Part, which: int) -> Integers:
    """Returns the payloads' starts (0) or lengths (1) of the rows that are saved."""
    if part.places is None:
        return np.full(part.total, -1, np.int64)
    return part.places[which][part.some(0, part.total)].astype(np.int64)


# ---- and back ------------------------------------------------------------------------------------


class Loaded(NamedTuple):
    """What a file holds, over its pages."""

    form: Form
    views: tuple[View, ...]
    places: tuple[Places | None, ...]
    chunks: tuple[Chunk, ...]
    total: int
    next_id: int
    payload_bytes: int
    centroids: npt.NDArray[np.float32] | None

    def close(self) -> None:
        """Closes what lies over the file."""
        for view in self.views:
            view.segment.close()
        for chunk in self.chunks:
            chunk.buffer.close()


def load(path: str | os.PathLike[str], *, key: AnyKey, expect: Any, context: Any) -> Loaded:
    """Opens a file. Raises FileFormatError for another kind of sealed file, and what safe_open()
    raises."""
    with open_sealed(path, key=key, expect=expected(expect), context=context) as file:
        metadata = file.metadata() or {}
        if metadata.get("format") != _MARK:
            raise errors.FileFormatError(
                f"{os.fspath(path)!a} is a sealed file, but not of a vector index; name one that "
                f"EncryptedIndex.save() wrote, or use safetensors.load_file()."
            )
        if metadata.get("version") not in (_VERSION, _FINE_VERSION):
            raise errors.FileFormatError(
                f"{os.fspath(path)!a} is a vector index of version {metadata.get('version')!a}, "
                f"and this pyccmem knows {_VERSION} and {_FINE_VERSION}; use the one that wrote it."
            )
        opened: list[EncryptedBuffer] = []
        try:
            return _loaded(file, metadata, opened)
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            for buffer in opened:
                buffer.close()
            if isinstance(error, errors.PyccmemError) and not isinstance(
                error, errors.ArgumentError
            ):
                raise
            raise errors.FileFormatError(
                f"{os.fspath(path)!a} says of itself what no vector index can be "
                f"({type(error).__name__}: {str(error)[:200]}); use a file that "
                f"EncryptedIndex.save() wrote."
            ) from None
        except BaseException:
            for buffer in opened:
                buffer.close()
            raise


def _loaded(file: SealedFile, metadata: dict[str, str], opened: list[EncryptedBuffer]) -> Loaded:
    dim, rerank = int(metadata["dim"]), metadata.get("rerank")
    form = checked_form(dim, metadata["metric"], metadata["dtype"], rerank)
    count, next_id = int(metadata["count"]), int(metadata["next_id"])
    if count < 0 or not 0 <= next_id < 2**63:
        raise ValueError(f"{count} vectors, and the next id is {next_id}")
    _check_tensors(file, form, count)

    def buffer(name: str) -> EncryptedBuffer:
        opened.append(buffer_of(file, name))
        return opened[-1]

    centroids: npt.NDArray[np.float32] | None = None
    if "centroids" in file:
        centroids = wiped.empty(file.info("centroids").shape, np.float32)
        _fill(file, "centroids", centroids)
    if not count:
        return Loaded(form, (), (), (), 0, next_id, 0, centroids)

    def segment_of(mine: Form, prefix: str) -> Segment:
        columns = {name: Column(buffer(prefix + name), 0) for name in mine.columns}
        fine = None if mine.fine is None else segment_of(mine.fine, _FINE)
        return Segment(mine, count, buffer(f"{prefix}rows"), columns, False, fine)

    segment = segment_of(form, "")
    if "first_id" in metadata:
        first = int(metadata["first_id"])
        ids = np.arange(first, first + count)
    else:
        ids = _numbers(file, "ids", count)
    if ids.min() < 0 or ids.max() >= max(next_id, 1) or len(np.unique(ids)) != count:
        raise ValueError("ids that cannot be")
    segment.ids.put(0, ids)
    if centroids is not None:
        segment.lists = np.empty(count, np.uint32)
        _fill(file, "lists", segment.lists)
        if segment.lists.max() >= len(centroids):
            raise ValueError("lists that are not there")
    views = (View(segment, count, segment.ids.column(), None, count),)
    if "payload_lengths" not in file:
        return Loaded(form, views, (None,), (), count, next_id, 0, centroids)
    length = _numbers(file, "payload_lengths", count)
    total = file.info("payloads").nbytes
    there = np.maximum(length, 0)
    if length.min() < -1 or length.max() >= 2**32 or int(there.sum()) != total:
        raise ValueError("payloads of other lengths")
    start = np.cumsum(there) - there
    start[length < 0] = -1
    places = Places(start, there.astype(np.uint32))
    chunks = (Chunk(0, buffer("payloads")),) if total else ()
    return Loaded(form, views, (places,), chunks, count, next_id, total, centroids)


def _check_tensors(file: SealedFile, form: Form, count: int) -> None:
    wanted: dict[str, Any] = {}
    for mine, prefix in ((form, ""), (form.fine, _FINE)):
        if mine is not None:
            wanted[f"{prefix}rows"] = DTYPES[mine.dtype].safetensors, (count, form.dim)
            wanted |= {prefix + name: ("F32", (count,)) for name in mine.columns}
    wanted |= {name: ("I64", (count,)) for name in ("ids", "payload_lengths") if name in file}
    if "centroids" in file:
        shape = file.info("centroids").shape
        if len(shape) != 2 or not shape[0] or shape[1] != form.dim:
            raise ValueError("centroids of another shape")
        wanted |= {"centroids": ("F32", shape), "lists": ("U32", (count,))}
    if "payloads" in file:
        wanted["payloads"] = ("U8", (file.info("payloads").nbytes,))
    found = {name: (file.info(name).dtype, file.info(name).shape) for name in file.offset_keys()}
    if found != wanted or ("payloads" in found) != ("payload_lengths" in found):
        raise ValueError("its tensors are not those of an index")


def _numbers(file: SealedFile, name: str, count: int) -> Integers:
    found = np.empty(count, np.int64)
    _fill(file, name, found)
    return found


def _fill(file: SealedFile, name: str, out: npt.NDArray[Any]) -> None:
    buffer = buffer_of(file, name)
    try:
        if out.size:
            buffer.read_into(out)
    finally:
        buffer.close()
