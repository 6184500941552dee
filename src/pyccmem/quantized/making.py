# SPDX-License-Identifier: Apache-2.0
"""Floats become blocks: of arrays in plain memory, and, a part at a time, for encrypted tensors."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from .. import errors
from ..binding import Call, check, ffi, lib, wiped
from ..binding.arguments import plain_array
from ..core.block_formats import BlockFormat
from ..core.runs import flat_parts

__all__ = ["Packed", "checked_source", "in_parts", "packed_rows"]

Array = npt.NDArray[Any]

#: The most bytes of float32 in the clear at a time, beside what the caller has; at least a block,
#: of "int8_row" a row.
STAGING_BYTES = 1 << 20


def checked_source(array: Any) -> Array:
    """Returns what NumPy makes of `array`, if that is an array of real numbers. Raises
    ArgumentTypeError."""
    source = plain_array("array", array)
    if source.dtype.kind not in "fiub" and source.dtype.name not in ("bfloat16",):
        raise errors.ArgumentTypeError(
            f"array is of {source.dtype}; only real numbers can be quantised."
        )
    return source


def _refuse(kind: BlockFormat, floats: Array, shape: tuple[int, ...], first: int) -> None:
    """Raises ArgumentError that names the first float which is infinite or not a number. `first`:
    the place of floats[0] in an array of the shape."""
    bad = np.flatnonzero(~np.isfinite(floats.reshape(-1)))
    at = int(bad[0]) if len(bad) else 0
    where = ", ".join(map(str, np.unravel_index(first + at, shape)))
    what = "NaN" if np.isnan(floats.reshape(-1)[at]) else "infinite"
    raise errors.ArgumentError(
        f"The element at [{where}] is {what}, and {kind} blocks hold finite numbers alone (of "
        f"float32, where all are converted first); replace it before you quantise."
    )


def quantize(kind: BlockFormat, floats: Array, out: Array, scale: Array | None = None) -> bool:
    """Writes the blocks of C-contiguous floats to `out`, of "int8_row" the rows' scales to `scale`.
    Returns False when one of them is infinite or not a number."""
    source = ffi.cast("float *", floats.ctypes.data)
    target = ffi.cast("uint8_t *", out.ctypes.data)
    if kind.scaled_rows:
        assert scale is not None
        rows = scale.size
        status = lib.ccmem_rows_quantize(
            source,
            rows,
            floats.size // max(rows, 1),
            target,
            ffi.cast("float *", scale.ctypes.data),
        )
    else:
        count = floats.size // kind.elements
        status = lib.ccmem_blocks_quantize(kind.native, source, count, target)
    if status == lib.CCMEM_ERR_ARGUMENT:
        return False
    check(status, Call(f"{floats.size} numbers as {kind}"))
    return True


def in_parts(
    kind: BlockFormat, source: Array, begin: int, end: int
) -> Iterator[tuple[int, Array, Array | None]]:
    """Yields the blocks of the elements `begin` to `end` of an array in C order, whole rows: the
    place of the first of their bytes, an array of them, and of "int8_row" the scales of the rows.
    The next part overwrites both, and the end wipes them. Raises ArgumentError for what is not
    finite."""
    unit = source.shape[-1] if kind.scaled_rows else kind.elements
    total = end - begin
    if not total:
        return
    step = min(max(STAGING_BYTES // 4 // unit, 1) * unit, total)
    floats = wiped.empty(step, np.float32)
    packed = wiped.empty(step // kind.elements * kind.nbytes, np.uint8)
    scale = wiped.empty(step // unit, np.float32) if kind.scaled_rows else None
    try:
        for at in range(0, total, step):
            n = min(step, total - at)
            for place, part in flat_parts(source, source.shape, begin + at, n):
                some = floats[place : place + part.size].reshape(part.shape)
                with np.errstate(over="ignore"):  # what is too large is refused below
                    np.copyto(some, part, casting="unsafe")
            blocks = packed[: n // kind.elements * kind.nbytes]
            scales = None if scale is None else scale[: n // unit]
            if not quantize(kind, floats[:n], blocks, scales):
                _refuse(kind, floats[:n], source.shape, begin + at)
            yield at // kind.elements * kind.nbytes, blocks, scales
    finally:
        floats.fill(0)
        packed.fill(0)
        if scale is not None:
            scale.fill(0)


def packed_rows(kind: BlockFormat, source: Array) -> tuple[Array, Array | None]:
    """Returns the blocks of an array, of shape (..., row bytes), and of "int8_row" the scales of
    the rows, of shape (...), in memory that is wiped."""
    row_bytes = kind.packed_shape(source.shape)[1]
    packed = wiped.empty((*source.shape[:-1], row_bytes), np.uint8)
    scale = wiped.empty(source.shape[:-1], np.float32) if kind.scaled_rows else None
    _fill(kind, source, 0, source.size, packed, scale)
    return packed, scale


def _fill(
    kind: BlockFormat, source: Array, begin: int, end: int, packed: Array, scale: Array | None
) -> None:
    """Writes the blocks of some elements of an array, and the scales of their rows."""
    flat = packed.reshape(-1)
    done = 0
    for at, blocks, scales in in_parts(kind, source, begin, end):
        flat[at : at + len(blocks)] = blocks
        if scale is not None and scales is not None:
            scale.reshape(-1)[done : done + len(scales)] = scales
            done += len(scales)


class Packed:
    """The packed rows of an array of shape (..., cols), each made when it is asked for: what an
    arena takes as a source."""

    def __init__(self, kind: BlockFormat, source: Array) -> None:
        self._kind, self._source, self._cols = kind, source, source.shape[-1]
        rows = math.prod(source.shape[:-1])
        #: Of "int8_row": the scales of the rows that were made.
        self.scale = wiped.empty(rows, np.float32) if kind.scaled_rows else None

    def __getitem__(self, index: Any) -> Array:
        whole = isinstance(index, slice)
        begin, end = (index.start, index.stop) if whole else (index, index + 1)
        packed = wiped.empty((end - begin, self._kind.row_bytes(self._cols)), np.uint8)
        scale = None if self.scale is None else self.scale[begin:end]
        _fill(self._kind, self._source, begin * self._cols, end * self._cols, packed, scale)
        return packed if whole else packed[0]
