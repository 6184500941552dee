# SPDX-License-Identifier: Apache-2.0
"""What becomes blocks a few rows at a time: quantised weights of checkpoints, and floating numbers
that are quantised now."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from .. import errors
from ..binding import wiped
from ..core.block_formats import format_named
from ..core.maker import TensorMaker, in_order
from ..core.operand import place_of
from ..keys import Key
from ..quantized import QuantizedTensor, quantize_blocks, quantize_rows
from ..tensor import EncryptedTensor
from .parts import Part, as_float32
from .weight import ROW_FORMAT

__all__ = ["FALLBACKS", "Floats", "Packing", "encrypted_blocks", "fitting_format"]

Bytes = npt.NDArray[np.uint8]

#: Bytes of blocks, and of the numbers they are made of, that lie in the clear at a time.
_AT_ONCE = 1 << 20

#: The formats to take, in this order, where rows are no whole number of blocks.
FALLBACKS = ("q8_0", ROW_FORMAT)


class Packing(Protocol):
    """A matrix that becomes blocks. `order`: see Weight."""

    @property
    def format(self) -> str: ...
    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def packed_shape(self) -> tuple[int, int]: ...
    @property
    def order(self) -> npt.NDArray[np.int32] | None: ...

    def fill(self, first: int, last: int, out: Bytes) -> None:
        """Writes the blocks of rows to `out`, of shape (rows, row bytes)."""
        ...

    def scales(self) -> npt.NDArray[np.float32]:
        """Returns the scale of each row, of "int8_row"."""
        ...


def fitting_format(format: str, columns: int) -> str:
    """Returns `format` if rows of so many columns are whole blocks, else the first of FALLBACKS of
    which they are. Raises ArgumentError for an unknown format."""
    for name in (format_named(format).name, *FALLBACKS):
        if columns and not columns % format_named(name).elements:
            return name
    return ROW_FORMAT


class Floats:
    """Floating numbers, of shape (..., columns), that are quantised."""

    order = None

    def __init__(self, source: Part, format: str) -> None:
        """Raises ArgumentError for rows that are no whole number of blocks."""
        self._source, self._kind = source, format_named(format)
        self.format, self.shape = self._kind.name, tuple(source.shape)
        self.packed_shape = self._kind.packed_shape(self.shape)

    def _rows(self, first: int, last: int) -> npt.NDArray[np.float32]:
        found = as_float32(self._source.read(slice(first, last), slice(None)), self._source.dtype)
        return found.reshape(last - first, self.shape[-1])

    def fill(self, first: int, last: int, out: Bytes) -> None:
        """Quantises rows. Raises ArgumentError for numbers that are infinite or none,
        FileReadError, FileFormatError."""
        for at, rows in self._steps(first, last):
            target = out[at - first : at - first + len(rows)]
            if self.format == ROW_FORMAT:
                np.copyto(target.view(np.int8), _finite(quantize_rows, rows)[0])
            else:
                np.copyto(target, _finite(quantize_blocks, rows, self._kind))

    def scales(self) -> npt.NDArray[np.float32]:
        out: npt.NDArray[np.float32] = wiped.empty((self.packed_shape[0],), np.float32)
        for at, rows in self._steps(0, len(out)):
            np.copyto(out[at : at + len(rows)], _finite(quantize_rows, rows)[1])
        return out

    def _steps(self, first: int, last: int) -> Iterator[tuple[int, npt.NDArray[np.float32]]]:
        """Yields rows as float32, as many as fit in _AT_ONCE: the number of the first, and them."""
        step = max(_AT_ONCE // (4 * max(self.shape[-1], 1)), 1)
        for at in range(first, last, step):
            yield at, self._rows(at, min(at + step, last))


def _finite(make: Any, rows: npt.NDArray[np.float32], *options: Any) -> Any:
    """Returns what `make` gives. It names the place of what is no number within `rows`, which says
    nothing to a user."""
    try:
        return make(rows, *options)
    except errors.ArgumentError:
        raise errors.ArgumentError(
            "A tensor to be quantised has numbers that are infinite or not a number; leave it as "
            "it is."
        ) from None


# ---- encrypted -----------------------------------------------------------------------------------


class _Rows:
    """Stands for the bytes of all blocks where an array is expected."""

    def __init__(
        self, packing: Packing, first: int, last: int, inside: slice | None = None
    ) -> None:
        self._packing, self._first, self._last = packing, first, last
        self._inside = inside  # the bytes of one row; None for some rows

    def __getitem__(self, index: int | slice) -> _Rows:
        if isinstance(index, int):
            return _Rows(self._packing, index, index + 1, slice(None))
        if self._inside is not None:
            return _Rows(self._packing, self._first, self._last, index)
        return _Rows(self._packing, index.start, index.stop)

    def put(self, memory: Any, offset: int) -> None:
        count, size = self._last - self._first, self._packing.packed_shape[1]
        if self._inside is None:
            out = np.ndarray((count, size), np.uint8, memory, offset)
            self._packing.fill(self._first, self._last, out)
            return
        row = wiped.empty((1, size), np.uint8)
        self._packing.fill(self._first, self._last, row)
        part = row[0, self._inside]
        np.ndarray(part.shape, np.uint8, memory, offset)[...] = part


def _put(memory: Any, offset: int, part: _Rows) -> None:
    part.put(memory, offset)


def encrypted_blocks(
    packing: Packing,
    *,
    key: Key | None = None,
    arena: TensorMaker | None = None,
    cipher: str | None = None,
    name: str | None = None,
) -> tuple[QuantizedTensor, EncryptedTensor | None]:
    """Returns the blocks in an encrypted tensor of their own, or in an arena, and the order of the
    columns if they have one. Some rows at a time are in the clear, in memory that is wiped.

    Raises ArgumentError for numbers that are infinite or none, FileReadError, FileFormatError, and
    what EncryptedTensor raises.
    """
    made: list[EncryptedTensor] = []
    try:
        raw = _raw(packing, key, arena, cipher, name)
        made.append(raw)
        scale = order = None
        options: dict[str, Any] = {"arena": arena} if arena else {"key": key, "cipher": cipher}
        if packing.format == ROW_FORMAT:
            scale = EncryptedTensor.from_numpy(
                packing.scales(), name=None if name is None else f"{name}.scale", **options
            )
            made.append(scale)
        if packing.order is not None:
            order = EncryptedTensor.from_numpy(
                packing.order, name=None if name is None else f"{name}.order", **options
            )
            made.append(order)
        return QuantizedTensor.from_blocks(raw, packing.format, packing.shape, scale), order
    except BaseException:
        for tensor in made:
            tensor.close()
        raise


def _raw(
    packing: Packing,
    key: Key | None,
    arena: TensorMaker | None,
    cipher: str | None,
    name: str | None,
) -> EncryptedTensor:
    rows, size = packing.packed_shape
    if arena is not None:
        source = _Rows(packing, 0, rows)
        made: EncryptedTensor = in_order(
            arena, (rows, size), np.dtype(np.uint8), source, _put, name
        )
        return made
    raw = EncryptedTensor.zeros((rows, size), np.uint8, key=key, cipher=cipher, name=name)
    try:
        step = max(_AT_ONCE // max(size, 1) // 32 * 32, 32)
        if rows and size:
            block = wiped.empty((min(step, rows), size), np.uint8)
            for at in range(0, rows, step):
                part = block[: min(step, rows - at)]
                packing.fill(at, at + len(part), part)
                raw.buffer.write(part, place_of(raw)[1] + at * size)
            block.fill(0)
    except BaseException:
        raw.close()
        raise
    return raw
