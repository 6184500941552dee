# SPDX-License-Identifier: Apache-2.0
"""Cursor: reads numbers and texts from the beginning of a file, no more of it than is asked for."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from .. import errors
from ..binding import wiped
from ..files.safetensors_header import MAX_HEADER_BYTES
from ._metadata import wrong

__all__ = ["Cursor"]

Bytes = npt.NDArray[np.uint8]

#: Bytes that are read first; then as many again as there are, until all that is asked for is there.
_FIRST = 1 << 16

_U32, _U64 = struct.Struct("<I"), struct.Struct("<Q")


class Cursor:
    """A place in a file of `size` bytes, whose beginning `read` brings to memory that is wiped:
    read(part, at) fills `part` with the bytes from `at` on. `what` methods name what is read, for
    errors; they are called only then."""

    def __init__(self, size: int, read: Callable[[Bytes, int], None]) -> None:
        self.size, self._read = size, read
        self.at = 0
        self.data: Bytes = wiped.empty((0,), np.uint8)
        self.view = self.data.data

    def need(self, end: int, what: Callable[[], str]) -> memoryview:
        """Returns the bytes of the file, at least those before `end`. Raises FileFormatError for a
        file that is shorter, or a header that is too long; what reading raises."""
        have = len(self.data)
        if end <= have:
            return self.view
        if end > self.size:
            raise wrong(
                f"it ends within {what()}: {end} bytes are needed, and the file has {self.size}"
            )
        if end > MAX_HEADER_BYTES:
            raise errors.FileFormatError(
                f"This GGUF file has more before its tensors than is read: {what()} reaches byte "
                f"{end}, and {MAX_HEADER_BYTES} are the most."
            )
        room = min(max(end, 2 * have, _FIRST), self.size, MAX_HEADER_BYTES)
        grown: Bytes = wiped.empty((room,), np.uint8)
        grown[:have] = self.data
        self._read(grown[have:], have)
        self.data.fill(0)
        self.data, self.view = grown, grown.data
        return self.view

    def left(self) -> int:
        """Returns how many bytes of the file lie behind this place."""
        return self.size - self.at

    def u32(self, what: Callable[[], str]) -> int:
        """Reads a number of 4 bytes."""
        return self._number(_U32, 4, what)

    def u64(self, what: Callable[[], str]) -> int:
        """Reads a number of 8 bytes."""
        return self._number(_U64, 8, what)

    def _number(self, form: struct.Struct, size: int, what: Callable[[], str]) -> int:
        view = self.need(self.at + size, what)
        (found,) = form.unpack_from(view, self.at)
        self.at += size
        return int(found)

    def count(self, least: int, what: Callable[[], str]) -> int:
        """Reads how many of something there are, each of at least `least` bytes. Raises
        FileFormatError if the file has no room for them."""
        found = self.u64(what)
        if found > self.left() // least:
            raise wrong(f"{what()} is {found}, and only {self.left()} bytes follow")
        return found

    def text(self, what: Callable[[], str]) -> str:
        """Reads a text: its length in bytes, and UTF-8."""
        length = self.u64(what)
        begin = self.at
        view = self.need(begin + length, what)
        self.at = begin + length
        return decoded(view, begin, self.at, what)

    def array_of_numbers(self, count: int, size: int, what: Callable[[], str]) -> memoryview:
        """Passes numbers of `size` bytes each, and returns their bytes."""
        begin = self.at
        view = self.need(begin + count * size, what)
        self.at = begin + count * size
        return view[begin : self.at]


def decoded(view: Any, begin: int, end: int, what: Callable[[], str]) -> str:
    """Returns the text of these bytes. Raises FileFormatError."""
    try:
        return str(view[begin:end], "utf-8")
    except UnicodeDecodeError as error:
        at = error.start
    # Raised outside the except block, because the UnicodeError holds the bytes.
    raise wrong(f"byte {at} of {what()} is not UTF-8")
