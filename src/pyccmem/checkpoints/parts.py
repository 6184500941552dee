# SPDX-License-Identifier: Apache-2.0
"""The tensors that a quantised weight of a checkpoint is made of, read a rectangle at a time into
memory that is wiped."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from typing import Any, BinaryIO, Protocol

import numpy as np
import numpy.typing as npt

from .. import errors
from ..binding import wiped
from ..files.safetensors_header import Entry, open_file, read_all

__all__ = [
    "ArrayPart",
    "FilePart",
    "Part",
    "Parts",
    "as_float32",
    "file_parts",
    "matrix",
    "refused",
]

Array = npt.NDArray[Any]

#: NumPy's types for those of the format that quantised checkpoints use. BF16 is read as its bits.
_DTYPES = {
    "F64": "<f8",
    "F32": "<f4",
    "F16": "<f2",
    "BF16": "<u2",
    "I64": "<i8",
    "I32": "<i4",
    "I16": "<i2",
    "I8": "i1",
    "U8": "u1",
}


class Part(Protocol):
    """A tensor of a checkpoint. `dtype` is spelt as in safetensors."""

    @property
    def dtype(self) -> str: ...
    @property
    def shape(self) -> tuple[int, ...]: ...

    def read(self, rows: slice, columns: slice) -> Array:
        """Returns a rectangle of a tensor of two dimensions; of one with fewer, all as one row.
        BF16 comes as uint16. Raises FileReadError, FileFormatError."""
        ...


#: The tensors of a checkpoint by their names.
Parts = Mapping[str, Part]


def refused(name: str, why: str) -> errors.FileFormatError:
    """Returns the exception for a quantised weight that cannot be taken over."""
    return errors.FileFormatError(
        f"The quantised weight {name!a} cannot be taken over: {why}. Load the model with the "
        f"library that made it, and encrypt it from there."
    )


def as_float32(values: Array, dtype: str) -> npt.NDArray[np.float32]:
    """Returns numbers of a floating or integer type as float32, in memory that is wiped."""
    out = wiped.empty(values.shape, np.float32)
    if dtype == "BF16":
        np.left_shift(values, 16, out=out.view(np.uint32), dtype=np.uint32, casting="unsafe")
    else:
        np.copyto(out, values, casting="unsafe")
    return out


def _flat(shape: tuple[int, ...]) -> tuple[int, int]:
    """Returns a shape as one of two dimensions."""
    return (math.prod(shape[:-1]), shape[-1]) if len(shape) > 1 else (1, math.prod(shape))


def matrix(weight: str, parts: Parts, name: str, dtype: str | None) -> Part:
    """Returns a tensor of two dimensions, of a floating type without `dtype`. Raises
    FileFormatError with the name of the weight that it is a part of."""
    part = parts.get(name)
    if part is None:
        raise refused(weight, f"{name!a} is not there")
    if len(part.shape) != 2 or (dtype is not None and part.dtype != dtype):
        raise refused(weight, f"{name!a} is of {part.dtype} and shape {part.shape}")
    if dtype is None and part.dtype not in ("F16", "BF16", "F32"):
        raise refused(weight, f"{name!a} is of {part.dtype}")
    return part


class ArrayPart:
    """A tensor that lies in memory."""

    def __init__(self, array: Array, dtype: str) -> None:
        self._array = array.reshape(_flat(array.shape))
        self.dtype, self.shape = dtype, array.shape

    def read(self, rows: slice, columns: slice) -> Array:
        found = self._array[rows, columns]
        out = wiped.empty(found.shape, found.dtype)
        np.copyto(out, found)
        return out


class FilePart:
    """A tensor of a plain file. Rows are read one after the other, so that no more than what is
    asked for is in memory."""

    def __init__(self, file: BinaryIO, entry: Entry) -> None:
        self._file, self._entry = file, entry
        self.dtype, self.shape = entry.dtype, entry.shape

    @property
    def name(self) -> str:
        """Its name in the file."""
        return self._entry.name

    def read(self, rows: slice, columns: slice) -> Array:
        code = _DTYPES.get(self.dtype)
        if code is None:
            raise refused(self.name, f"its elements are of dtype {self.dtype}")
        height, width = _flat(self.shape)
        first, last, _ = rows.indices(height)
        left, right, _ = columns.indices(width)
        out = wiped.empty((max(last - first, 0), max(right - left, 0)), code)
        if not out.size:
            return out
        size = out.itemsize
        if out.shape[1] == width:
            self._fill(out.reshape(-1).view(np.uint8), first * width * size)
        else:
            for at, row in enumerate(out):
                self._fill(row.view(np.uint8), ((first + at) * width + left) * size)
        return out

    def _fill(self, out: npt.NDArray[np.uint8], at: int) -> None:
        view, done = memoryview(out.data), 0
        while done < len(view):
            try:
                count = os.preadv(self._file.fileno(), [view[done:]], self._entry.start + at + done)
            except (OSError, ValueError) as error:
                raise errors.FileReadError(
                    f"Tensor {self.name!a} of {getattr(self._file, 'name', '')!a} cannot be read: "
                    f"{getattr(error, 'strerror', None) or error}; check the disk, and that "
                    f"nothing has closed the file."
                ).of_system(getattr(error, "errno", None), None) from None
            if not count:
                raise errors.FileFormatError(
                    f"The file {getattr(self._file, 'name', '')!a} became shorter while it was "
                    f"read: it ends within tensor {self.name!a}; load it again when nothing writes "
                    f"to it."
                )
            done += count


def file_parts(path: str | os.PathLike[str]) -> tuple[dict[str, FilePart], dict[str, str]]:
    """Returns the tensors of a plain file by name, and its metadata. The file stays open as long as
    one of them lives. Raises FileReadError, FileFormatError."""
    file = open_file(path)
    header = read_all(file)
    return {entry.name: FilePart(file, entry) for entry in header.entries}, header.metadata
