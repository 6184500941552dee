# SPDX-License-Identifier: Apache-2.0
"""Memory between two pages that fault on any access."""

from __future__ import annotations

import ctypes
import mmap

from support import ffi

PAGE = mmap.PAGESIZE
PROT_NONE = 0

libc = ctypes.CDLL(None, use_errno=True)
libc.mprotect.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)


class Guarded:
    """`nbytes` (whole pages) of memory between two pages that fault on any access."""

    def __init__(self, nbytes: int) -> None:
        self.nbytes = -(-nbytes // PAGE) * PAGE
        self.map = mmap.mmap(-1, self.nbytes + 2 * PAGE, flags=mmap.MAP_PRIVATE)
        self.whole = ffi.from_buffer("uint8_t[]", self.map, require_writable=True)
        self.start = int(ffi.cast("uintptr_t", self.whole))
        self.protect(PROT_NONE)

    def protect(self, protection: int) -> None:
        for page in (self.start, self.start + PAGE + self.nbytes):
            assert libc.mprotect(page, PAGE, protection) == 0, ctypes.get_errno()

    def at_start(self, n: int) -> object:
        """The first n bytes: one byte before them faults."""
        assert n <= self.nbytes
        return self.whole + PAGE

    def at_end(self, n: int) -> object:
        """The last n bytes: one byte after them faults."""
        assert n <= self.nbytes
        return self.whole + PAGE + self.nbytes - n

    def view(self, pointer: object, n: int) -> memoryview:
        """A memoryview of n bytes at pointer, made without touching the guard pages."""
        return memoryview(ffi.buffer(pointer, n)).cast("B")

    def close(self) -> None:
        self.protect(mmap.PROT_READ | mmap.PROT_WRITE)
        ffi.release(self.whole)
        self.map.close()
