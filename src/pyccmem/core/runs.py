# SPDX-License-Identifier: Apache-2.0
"""Moves the bytes of a selection between a store and plain memory, many runs in one native call."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from ..binding import OK, ffi, lib, wiped
from ..core.store import Store, fail, handle
from .indexing import Offsets, Selection

__all__ = ["Layout", "flat_bytes", "flat_parts", "gather", "read", "scatter", "write"]

# Looked up once, because these lookups are most of what one small read costs in Python.
_from_buffer = ffi.from_buffer
_store_gather = lib.ccmem_store_gather
_store_scatter = lib.ccmem_store_scatter
_WORDS = ffi.typeof("uint64_t[]")

#: Items less than this many bytes apart are read together with the bytes between them; items
#: farther apart are read one by one. At about this distance one more small read costs as much as
#: decrypting the bytes that it skips. It is below every page size, so no page without wanted bytes
#: is decrypted.
SPAN_STRIDE = 512

#: The most bytes of staging for such rows at a time, and the most offsets in one call.
STAGING_BYTES = 1 << 20
OFFSETS = 1 << 17

#: The types that numpy copies fastest, by size in bytes.
_ITEMS = {1: "u1", 2: "u2", 4: "u4", 8: "u8", 16: "c16"}

Dims = list[tuple[int, int]]


class Layout:
    """The bytes of a selection in C order: runs of `run` bytes, one at each point of the lattice
    that `dims` (count and distance in bytes of each dimension) spans from each offset of `outer`.
    """

    __slots__ = ("dims", "nbytes", "outer", "run")

    def __init__(self, chosen: Selection) -> None:
        run = chosen.dtype.itemsize
        dims: Dims = []
        for n, stride in zip(reversed(chosen.shape), reversed(chosen.strides), strict=True):
            if n == 1:
                continue
            if not dims and stride == run:
                run *= n
            elif dims and stride == dims[0][0] * dims[0][1]:
                dims[0] = (dims[0][0] * n, dims[0][1])
            else:
                dims.insert(0, (n, stride))
        self.outer, self.dims, self.run = chosen.outer, dims, run
        self.nbytes = chosen.nbytes


def _pieces(outer: Offsets, dims: Dims, most: int) -> Iterator[Offsets]:
    """Yields the points of the lattice in C order, at most `most` at a time."""
    inner = 1
    for n, _ in dims:
        inner *= n
    if inner <= most or not dims:
        step = max(most // inner, 1)
        for at in range(0, len(outer), step):
            points = outer[at : at + step]
            for n, stride in dims:
                points = points[..., None] + np.arange(n, dtype=np.int64) * stride
            yield points.reshape(-1)
        return
    n, stride = dims[0]
    for start in outer:
        for at in range(0, n, most):
            along = start + np.arange(at, min(at + most, n), dtype=np.int64) * stride
            yield from _pieces(along, dims[1:], most)


def _many(store: Store, offsets: Offsets, run: int, memory: Any, call: Any) -> None:
    if not offsets.flags.c_contiguous:
        offsets = np.ascontiguousarray(offsets)
    status = call(handle(store), _from_buffer(_WORDS, offsets), offsets.size, run, memory)
    if status != OK:
        fail(store, status, int(offsets.flat[0]), run)


def gather(store: Store, offsets: Offsets, run: int, target: Any) -> None:
    """Decrypts `run` bytes from each of the offsets in `store` to the pointer `target`, in one
    native call. Raises ClosedError, ForkError, IntegrityError."""
    _many(store, offsets, run, target, _store_gather)


def scatter(store: Store, offsets: Offsets, run: int, source: Any) -> None:
    """Encrypts `run` bytes from the pointer `source` to each of the offsets in `store`, in their
    order. Raises ClosedError, ForkError, IntegrityError, VersionExhaustedError."""
    _many(store, offsets, run, source, _store_scatter)


def read(store: Store, base: int, layout: Layout, target: Any) -> None:
    """Decrypts the selection of a tensor at offset `base` of `store` to the pointer `target`,
    which has room for layout.nbytes bytes, at least 1, and is all zeros when this raises.
    Raises ClosedError, ForkError, IntegrityError."""
    outer, dims, run = layout.outer, layout.dims, layout.run
    if not dims and len(outer) == 1:
        offset = int(outer[0]) + base
        status = lib.ccmem_store_read(handle(store), offset, target, run)
        if status != OK:
            fail(store, status, offset, run)
        return
    try:
        if dims and abs(dims[-1][1]) < SPAN_STRIDE:
            _read_spans(store, base, layout, target)
            return
        place = target
        for points in _pieces(outer, dims, OFFSETS):
            gather(store, points + base, run, place)
            place += len(points) * run
    except BaseException:
        # Pieces before the one that failed were read, and a traceback would keep them alive.
        lib.ccmem_wipe(target, layout.nbytes)
        raise


def _read_spans(store: Store, base: int, layout: Layout, target: Any) -> None:
    """Reads rows of items with gaps between them: decrypts the gaps too, to staging, and copies the
    items."""
    run = layout.run
    count, stride = layout.dims[-1]
    distance = abs(stride)
    item = np.dtype(_ITEMS.get(run, f"V{run}"))
    out = np.ndarray(layout.nbytes // run, item, ffi.buffer(target, layout.nbytes))
    part = min(count, max(STAGING_BYTES // distance, 1))  # items taken from a row at a time
    rows = max(STAGING_BYTES // (part * distance), 1) if part == count else 1
    staging: Any = None
    memory: Any = None
    done = 0
    try:
        for starts in _pieces(layout.outer, layout.dims[:-1], rows):
            for first in range(0, count, part):
                n = min(part, count - first)
                span = (n - 1) * distance + run
                if staging is None or len(starts) * span > len(memory):
                    staging, memory = wiped.block(len(starts) * span)
                lowest = first if stride > 0 else first + n - 1
                gather(store, starts + (base + lowest * stride), span, staging)
                rows_read = np.ndarray((len(starts), n), item, memory, 0, (span, distance))
                copied = out[done : done + len(starts) * n].reshape(len(starts), n)
                copied[...] = rows_read if stride > 0 else rows_read[:, ::-1]
                done += len(starts) * n
    except BaseException:
        if staging is not None:
            lib.ccmem_wipe(staging, len(memory))
        raise


def write(store: Store, base: int, layout: Layout, source: Any) -> None:
    """Encrypts layout.nbytes bytes, at least 1, from the pointer `source` to the selection; where
    runs overlap the last one stays. Raises ClosedError, ForkError, IntegrityError,
    VersionExhaustedError."""
    outer, dims, run = layout.outer, layout.dims, layout.run
    if not dims and len(outer) == 1:
        offset = int(outer[0]) + base
        status = lib.ccmem_store_write(handle(store), offset, source, run)
        if status != OK:
            fail(store, status, offset, run)
        return
    for points in _pieces(outer, dims, OFFSETS):
        scatter(store, points + base, run, source)
        source += len(points) * run


def flat_bytes(array: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    """Returns the bytes of a C-contiguous array of any dtype as an array of uint8."""
    return array.reshape(-1).view(np.uint8)


def flat_parts(
    source: Any, shape: tuple[int, ...], first: int, count: int, at: int = 0
) -> Iterator[tuple[int, Any]]:
    """Yields views of parts of an array of any library, each with its place, that together are its
    elements `first` to `first + count` in C order. `at` is the place of the first."""
    row = math.prod(shape[1:])
    if not shape:
        yield at, source
        return
    while count:
        line, inside = divmod(first, row)
        if inside or count < row:
            n = min(row - inside, count)
            yield from flat_parts(source[line], shape[1:], inside, n, at)
        else:
            n = count // row * row
            yield at, source[line : line + n // row]
        first, count, at = first + n, count - n, at + n
