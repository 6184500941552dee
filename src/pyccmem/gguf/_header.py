# SPDX-License-Identifier: Apache-2.0
"""Reads the header of a GGUF file, and checks it before anything relies on it.

The format (github.com/ggml-org/ggml, docs/gguf.md), versions 2 and 3, little-endian:

    "GGUF", version (u32), number of tensors (u64), number of metadata (u64)
    for each of the metadata: key, type (u32), value
    for each tensor: name, number of dimensions (u32), dimensions (u64 each, the innermost first),
        type (u32), offset of its data (u64)
    zeros up to a multiple of the alignment; then the data, to which offsets count

A text is its length in bytes (u64) and UTF-8; an array is its type (u32), its length (u64) and its
values. `general.alignment` (u32) is the alignment, if it is there, else 32.

What is refused although some programs read it: names or keys that come twice, tensors that overlap,
values of a bool other than 0 and 1, offsets that are not aligned, texts that are not UTF-8, more
than four dimensions, more than 65,536 tensors or metadata, and arrays within arrays deeper than
MOST_LEVELS. Bytes between the tensors and behind them may be any.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt

from .. import errors
from ..binding import wiped
from ..files.safetensors_header import MAX_ELEMENTS, shown
from ._cursor import Cursor, decoded
from ._metadata import ARRAY, BOOL, MOST_LEVELS, SCALARS, STRING, UINT32, Metadata, wrong
from ._types import TYPES, GGMLType

__all__ = ["MAGIC", "Header", "TensorInfo", "parse"]

Bytes = npt.NDArray[np.uint8]

MAGIC = b"GGUF"

#: Alignment of the data, for a file that names none.
_ALIGNMENT = 32
_ALIGNMENT_KEY = "general.alignment"

_MOST_DIMENSIONS = 4

#: The most tensors, and the most metadata, that are read. Models of today have some 2,000 and 100.
_MOST = 1 << 16

#: Bytes of the shortest value of each type without a fixed size.
_LEAST = {STRING: 8, ARRAY: 12}


@dataclass(frozen=True)
class TensorInfo:
    """One tensor: its data are bytes `start` to `end` (end excluded) of the file. `shape` counts
    elements, rows before columns as NumPy does (the file has them the other way round)."""

    name: str
    type: GGMLType
    shape: tuple[int, ...]
    start: int
    end: int

    @property
    def nbytes(self) -> int:
        """Bytes of data."""
        return self.end - self.start

    @property
    def row_bytes(self) -> int:
        """Bytes of one row, which is what lies along the last axis."""
        cols = self.shape[-1] if self.shape else 1
        return cols // self.type.elements * self.type.nbytes


@dataclass(frozen=True)
class Header:
    """Everything before the data of a file of `size` bytes."""

    version: int
    alignment: int
    metadata: Metadata
    tensors: dict[str, TensorInfo]  # in the order of the header
    raw: Bytes  # the header, from the magic to the last tensor's description
    data_start: int  # to which the offsets count
    size: int

    def in_order(self) -> list[TensorInfo]:
        """Returns the tensors in the order of their data."""
        return sorted(self.tensors.values(), key=lambda tensor: (tensor.start, tensor.end))

    def gaps(self) -> list[tuple[int, int]]:
        """Returns begin and end of each run of bytes that belongs neither to the header nor to a
        tensor, in order."""
        found, at = [], len(self.raw)
        for tensor in self.in_order():
            if tensor.start > at:
                found.append((at, tensor.start))
            at = max(at, tensor.end)
        if self.size > at:
            found.append((at, self.size))
        return found


def parse(size: int, read: Callable[[Bytes, int], None], there: int | None = None) -> Header:
    """Returns the header of a file of `size` bytes; `read` is as for Cursor. Reads no more than
    twice the header. `there`: the number of bytes that can be read, if the header is kept apart
    from the rest. Raises FileFormatError with what is wrong, OutOfMemoryError,
    PlaintextBudgetError, and what `read` raises."""
    cursor = Cursor(size if there is None else there, read)
    try:
        return _parse(cursor, size)
    except BaseException:
        cursor.data.fill(0)
        raise


def _named(text: str) -> Callable[[], str]:
    return lambda: text


def _parse(cursor: Cursor, size: int) -> Header:
    what = _named("its beginning")
    if cursor.need(min(4, cursor.size), what)[:4] != MAGIC:
        raise wrong(f"it does not begin with {MAGIC.decode()!r}")
    cursor.at = 4
    version = cursor.u32(what)
    if version not in (2, 3):
        raise _other_version(version)
    ntensors = cursor.u64(_named("the number of its tensors"))
    npairs = cursor.u64(_named("the number of its metadata"))
    for count, noun in ((ntensors, "tensors"), (npairs, "metadata")):
        if count > _MOST:
            raise wrong(f"the number of its {noun} is {count}; {_MOST} are the most")
    places: dict[str, tuple[int, int]] = {}
    for number in range(npairs):
        key = cursor.text(_named(f"key {number} of its metadata"))
        if key in places:
            raise wrong(f"it has the metadata {shown(key)} twice")
        called = partial(_called, key)
        kind = cursor.u32(called)
        places[key] = (kind, cursor.at)
        _pass_value(cursor, kind, called, 0)
    described = [_description(cursor, number) for number in range(ntensors)]
    raw: Bytes = wiped.empty((cursor.at,), np.uint8)
    raw[:] = cursor.data[: cursor.at]
    cursor.data.fill(0)  # there is a part of a tensor in it, too
    metadata = Metadata(raw, places)
    alignment = _alignment(metadata, places)
    data_start = -(-cursor.at // alignment) * alignment
    tensors: dict[str, TensorInfo] = {}
    for name, kind_of, shape, offset in described:
        if name in tensors:
            raise wrong(f"it has the tensor {shown(name)} twice")
        tensors[name] = _placed(name, kind_of, shape, offset, alignment, data_start, size)
    header = Header(version, alignment, metadata, tensors, raw, data_start, size)
    _check_overlaps(header)
    return header


def _called(key: str) -> str:
    return f"the metadata {shown(key)}"


def _other_version(version: int) -> errors.FileFormatError:
    if version & 0xFFFF == 0 and version:
        return errors.FileFormatError(
            "This GGUF file is big-endian, and this version of pyccmem reads little-endian ones; "
            "convert it with gguf_convert_endian of the package gguf."
        )
    if version > 3:
        return errors.FileFormatError(
            f"This GGUF file is of version {version}, and this version of pyccmem reads 2 and 3; "
            f"upgrade pyccmem."
        )
    return errors.FileFormatError(
        f"This GGUF file is of version {version}, which no model of today has; convert the "
        f"original model again."
    )


def _pass_value(cursor: Cursor, kind: int, what: Callable[[], str], level: int) -> None:
    """Checks a value, and goes behind it."""
    if kind in SCALARS:
        _pass_numbers(cursor, kind, 1, what)
    elif kind == STRING:
        cursor.text(what)
    elif kind == ARRAY:
        inner = cursor.u32(what)
        if inner not in SCALARS and inner not in _LEAST:
            raise wrong(f"{what()} is an array of type {inner}, which the format does not have")
        least = SCALARS[inner][2] if inner in SCALARS else _LEAST[inner]
        count = cursor.count(least, lambda: f"the length of {what()}")
        if inner in SCALARS:
            _pass_numbers(cursor, inner, count, what)
        elif inner == STRING:
            _pass_texts(cursor, count, what)
        elif level + 1 >= MOST_LEVELS:
            raise wrong(f"{what()} has arrays within arrays deeper than {MOST_LEVELS}")
        else:
            for _ in range(count):
                _pass_value(cursor, ARRAY, what, level + 1)
    else:
        raise wrong(f"{what()} is of type {kind}, which the format does not have")


def _pass_numbers(cursor: Cursor, kind: int, count: int, what: Callable[[], str]) -> None:
    data = cursor.array_of_numbers(count, SCALARS[kind][2], what)
    if kind == BOOL and count and np.frombuffer(data, np.uint8).max() > 1:
        raise wrong(f"{what()} has a bool that is neither 0 nor 1")


def _pass_texts(cursor: Cursor, count: int, what: Callable[[], str]) -> None:
    """Does what cursor.text() does, `count` times: vocabularies have 250,000 texts."""
    size, at, view = cursor.size, cursor.at, cursor.view
    for _ in range(count):
        begin = at + 8
        if begin > len(view):
            view = cursor.need(begin, what)
        end = begin + int.from_bytes(view[at:begin], "little")
        if end > len(view):
            view = cursor.need(min(end, size + 1), what)
        decoded(view, begin, end, what)
        at = end
    cursor.at = at


def _description(cursor: Cursor, number: int) -> tuple[str, GGMLType, tuple[int, ...], int]:
    """Reads name, type, shape and offset of a tensor."""
    name = cursor.text(_named(f"the name of tensor {number}"))
    what = _named(f"the description of tensor {shown(name)}")
    count = cursor.u32(what)
    if count > _MOST_DIMENSIONS:
        raise wrong(f"tensor {shown(name)} has {count} dimensions; {_MOST_DIMENSIONS} are the most")
    dims = [cursor.u64(what) for _ in range(count)]
    kind = cursor.u32(what)
    found = TYPES.get(kind)
    if found is None:
        raise wrong(
            f"tensor {shown(name)} is of type {kind}, which this version of pyccmem does not know"
        )
    elements = 1
    for extent in dims:
        elements *= extent
        if elements > MAX_ELEMENTS or extent > MAX_ELEMENTS:
            raise wrong(f"the shape of tensor {shown(name)} has more than 2^63 - 1 elements")
    cols = dims[0] if dims else 1
    if cols % found.elements:
        raise wrong(
            f"a row of tensor {shown(name)} has {cols} elements, and blocks of {found} have "
            f"{found.elements}"
        )
    return name, found, tuple(reversed(dims)), cursor.u64(what)


def _alignment(metadata: Metadata, places: dict[str, tuple[int, int]]) -> int:
    if _ALIGNMENT_KEY not in places:
        return _ALIGNMENT
    kind, _ = places[_ALIGNMENT_KEY]
    found = metadata[_ALIGNMENT_KEY]
    if kind != UINT32 or found < 1 or found & (found - 1):
        raise wrong(
            f"its {_ALIGNMENT_KEY} is {shown(found)} of type {kind}; it must be a power of two of "
            f"type {UINT32}"
        )
    return int(found)


def _placed(
    name: str,
    kind: GGMLType,
    shape: tuple[int, ...],
    offset: int,
    alignment: int,
    data_start: int,
    size: int,
) -> TensorInfo:
    elements = 1
    for extent in shape:
        elements *= extent
    nbytes = elements // kind.elements * kind.nbytes
    start = data_start + offset
    if offset % alignment:
        raise wrong(
            f"the offset of tensor {shown(name)} is {offset}, no multiple of the alignment "
            f"{alignment}"
        )
    if start + nbytes > size:
        raise wrong(
            f"tensor {shown(name)} ends at byte {start + nbytes}, and the file has {size}; the "
            f"file is cut short or damaged"
        )
    return TensorInfo(name, kind, shape, start, start + nbytes)


def _check_overlaps(header: Header) -> None:
    end = header.data_start
    for tensor in header.in_order():
        if tensor.nbytes and tensor.start < end:
            raise wrong(f"the data of tensor {shown(tensor.name)} overlap those of another tensor")
        end = max(end, tensor.end)
