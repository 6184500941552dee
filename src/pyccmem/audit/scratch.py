# SPDX-License-Identifier: Apache-2.0
"""Native memory for bytes of other processes, which is wiped."""

from __future__ import annotations

import os
from typing import Any

from ..binding import ffi, wiped
from ..binding.closing import Closing

__all__ = ["Scratch"]


class Scratch(Closing):
    """`nbytes` bytes of memory that is left out of core dumps and wiped by close().

    Bytes read into it never pass through an object of the interpreter, which would leave copies.
    """

    def __init__(self, nbytes: int) -> None:
        self.nbytes = nbytes
        self.native: Any
        self.native, memory = wiped.block(nbytes)
        self._view = memoryview(memory)

    @property
    def address(self) -> int:
        """The address of its first byte."""
        return int(ffi.cast("uintptr_t", self.native))

    def read(self, descriptor: int, position: int, at: int, count: int) -> int:
        """Reads up to `count` bytes from `position` of a file to offset `at`. Returns how many it
        got."""
        with self._view[at : at + count] as part:
            return os.preadv(descriptor, [part], position)

    def move(self, to: int, at: int, count: int) -> None:
        """Copies `count` bytes from offset `at` to offset `to`."""
        ffi.memmove(self.native + to, self.native + at, count)

    def close(self) -> None:
        """Wipes and frees."""
        self._view.release()
        ffi.release(self.native)
