# SPDX-License-Identifier: Apache-2.0
"""Metadata: the values of a GGUF file by key, made into Python objects when they are asked for.

The header of a model of 250,000 words has some 10 MiB. Its values are checked once, and stay where
they lie; a value becomes an object when it is looked up, and is not kept.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from .. import errors

__all__ = [
    "ARRAY",
    "BOOL",
    "MOST_LEVELS",
    "SCALARS",
    "STRING",
    "UINT32",
    "Metadata",
    "wrong",
]

Bytes = npt.NDArray[np.uint8]

UINT32, BOOL, STRING, ARRAY = 4, 7, 8, 9

#: Types of values with a fixed size, by number: struct's letter, NumPy's type, bytes.
SCALARS: dict[int, tuple[str, str, int]] = {
    0: ("B", "u1", 1),
    1: ("b", "i1", 1),
    2: ("H", "<u2", 2),
    3: ("h", "<i2", 2),
    4: ("I", "<u4", 4),
    5: ("i", "<i4", 4),
    6: ("f", "<f4", 4),
    7: ("?", "?", 1),
    10: ("Q", "<u8", 8),
    11: ("q", "<i8", 8),
    12: ("d", "<f8", 8),
}

#: Arrays within arrays that are read. Files in use have one level.
MOST_LEVELS = 16


def wrong(what: str) -> errors.FileFormatError:
    """Returns the exception for a file that breaks the format's rules."""
    return errors.FileFormatError(f"This is not a valid GGUF file: {what}.")


class Metadata(Mapping[str, Any]):
    """The metadata of a GGUF file by key, in the order of the file. A value is an int, a float, a
    bool, a str, or a list of these (also of lists). It is made when it is looked up, and the caller
    has the only reference to it.

    Values of a sealed file lie in memory that is wiped, until the file is closed; then a look-up
    raises ClosedFileError.
    """

    def __init__(self, data: Bytes, places: dict[str, tuple[int, int]]) -> None:
        """Takes the bytes of the header, and of each key its type and the offset of its value. All
        of it was checked."""
        self._data: Bytes | None = data
        self._places = places

    def __getitem__(self, key: str) -> Any:
        kind, at = self._places[key]
        return _value(self._opened().data, kind, at)[0]

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)

    def __repr__(self) -> str:
        return f"<Metadata, {len(self._places)} keys>"

    def forget(self) -> None:
        """Wipes the header. May be repeated."""
        data, self._data = self._data, None
        if data is not None:
            data.fill(0)

    def array(self, key: str) -> Any:
        """Returns the value of an array of numbers as a NumPy array, which is one object where a
        list is many; any other value as looking it up does. Raises KeyError, ClosedFileError."""
        kind, at = self._places[key]
        if kind == ARRAY:
            data = self._opened()
            inner, count = struct.unpack_from("<IQ", data.data, at)
            if inner in SCALARS:
                _, dtype, size = SCALARS[inner]
                return data[at + 12 : at + 12 + count * size].view(dtype).copy()
        return self[key]

    def is_text_array(self, key: str) -> bool:
        """Returns True for an array of texts, such as a vocabulary. Raises KeyError,
        ClosedFileError."""
        kind, at = self._places[key]
        if kind != ARRAY:
            return False
        inner, _ = struct.unpack_from("<IQ", self._opened().data, at)
        return bool(inner == STRING)

    def count(self, key: str) -> int:
        """Returns the number of elements of an array; 1 for another value. Raises KeyError,
        ClosedFileError."""
        kind, at = self._places[key]
        if kind != ARRAY:
            return 1
        return int(struct.unpack_from("<Q", self._opened().data, at + 4)[0])

    def _opened(self) -> Bytes:
        if self._data is None:
            raise errors.ClosedFileError(
                "The GGUF file is closed; open it again with pyccmem.gguf.open_sealed()."
            )
        return self._data


def _value(data: memoryview, kind: int, at: int) -> tuple[Any, int]:
    """Returns a value that was checked, and the offset behind it."""
    if kind in SCALARS:
        letter, _, size = SCALARS[kind]
        return struct.unpack_from(f"<{letter}", data, at)[0], at + size
    if kind == STRING:
        (count,) = struct.unpack_from("<Q", data, at)
        return str(data[at + 8 : at + 8 + count], "utf-8"), at + 8 + count
    inner, count = struct.unpack_from("<IQ", data, at)
    at += 12
    if inner in SCALARS:
        _, dtype, size = SCALARS[inner]
        end = at + count * size
        return np.frombuffer(data[at:end], dtype).tolist(), end
    found = []
    for _ in range(count):
        value, at = _value(data, inner, at)
        found.append(value)
    return found, at
