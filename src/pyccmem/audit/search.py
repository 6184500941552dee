# SPDX-License-Identifier: Apache-2.0
"""Looks for samples in memory that comes in chunks, also where it is written wider than they are.

Text and numbers of tokens lie in memory in several widths: UTF-8 or UTF-16, int32 or int64, and
most of their wider forms are too full of zeros to be samples. So memory is narrowed instead: of
64-bit numbers that fit 32 bits the lower halves are put side by side, and so on, and searched for
the same samples. What does not fit is filled with a byte that no sample has so
often in a row.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..binding import Call, check, ffi, lib
from ..binding.closing import Closing
from .samples import SAMPLE_BYTES, Samples
from .scratch import Scratch

__all__ = ["CHUNK", "Found", "Search"]

CHUNK = 4 << 20  # bytes read at once
_MARGIN = 64  # bytes before a chunk, for the end of the chunk before it
_HITS = 1 << 12  # hits taken from the native scan at once
_SCAN = Call("the scan")

_HIT_TYPE = np.dtype([("offset", np.uint64), ("sample", np.uint32), ("", np.uint32)])
assert _HIT_TYPE.itemsize == ffi.sizeof("ccmem_scan_hit")


@dataclass(frozen=True)
class _View:
    """Numbers of `wide` bytes, of which those that fit are read as numbers of `narrow` bytes."""

    wide: int
    narrow: int
    upper: bool = False  # the upper half is what is read, where the lower one is zero

    @property
    def reach(self) -> int:
        """The most bytes of a sample that lie before a border of chunks."""
        return (SAMPLE_BYTES - 1) // self.narrow * self.wide


#: 64-bit numbers of tokens; UTF-16; 32-bit characters beyond Latin 1, and Latin 1 in 32 bits;
#: bfloat16 numbers that were widened to float32.
_VIEWS = (_View(8, 4), _View(2, 1), _View(4, 2), _View(4, 1), _View(4, 2, upper=True))


assert all(view.reach <= _MARGIN for view in _VIEWS)


@dataclass(frozen=True)
class Found:
    """Addresses at which samples lie, and the samples' numbers."""

    addresses: npt.NDArray[np.int64]
    samples: npt.NDArray[np.uint32]


class Search(Closing):
    """Searches chunk after chunk; a sample across the border of two chunks that follow each other
    is found too."""

    def __init__(self, samples: Samples, *, wide: bool = False) -> None:
        self._samples = samples
        self._views = _VIEWS if wide else ()
        self._reach = max([SAMPLE_BYTES - 1, *(view.reach for view in self._views)])
        #: Wiped memory; a chunk of up to `room` bytes is read into it at offset `at`.
        self.room, self.at = CHUNK, _MARGIN
        size = self._narrowed = _MARGIN + CHUNK
        self.scratch = Scratch(size + size // 2 if wide else size)
        self._next_address = -1
        self._carried = 0  # bytes before a chunk that precede it in memory
        self._hits = ffi.new("ccmem_scan_hit[]", _HITS)
        self._count = ffi.new("uint32_t *")
        self._next = ffi.new("uint64_t *")

    def close(self) -> None:
        """Wipes the memory."""
        self.scratch.close()

    def __call__(self, address: int, got: int) -> Iterator[Found]:
        """Searches the `got` bytes that were read, which lie at `address`."""
        carried = self._carried if address == self._next_address else 0
        end = _MARGIN + got
        before = min(carried, SAMPLE_BYTES - 1)
        yield from self._scan(_MARGIN - before, before + got, address - before, 1)
        for view in self._views:
            before = min(carried, view.reach)
            first = address - before
            skipped = -first % view.wide
            begin = _MARGIN - before + skipped
            count = max(0, (end - begin) // view.wide)
            self._narrow(view, begin, count)
            yield from self._scan(
                self._narrowed, count * view.narrow, first + skipped, view.wide, view.narrow
            )
        self._next_address = address + got
        self._carried = min(self._reach, carried + got)
        self.scratch.move(_MARGIN - self._carried, end - self._carried, self._carried)

    def _narrow(self, view: _View, begin: int, count: int) -> None:
        native = self.scratch.native
        out = native + self._narrowed
        status = lib.ccmem_narrow(
            native + begin, count, view.wide, view.narrow, int(view.upper), out
        )
        check(status, _SCAN)

    def _scan(
        self, begin: int, length: int, base: int, wide: int, narrow: int = 1
    ) -> Iterator[Found]:
        at = 0
        while at < length:
            status = lib.ccmem_scan(
                self._samples.native,
                self.scratch.native + begin,
                length,
                at,
                self._hits,
                _HITS,
                self._count,
                self._next,
            )
            check(status, _SCAN)
            count = int(self._count[0])
            if count:
                raw = np.frombuffer(ffi.buffer(self._hits), dtype=_HIT_TYPE, count=count)
                offsets = raw["offset"].astype(np.int64)
                yield Found(base + offsets // narrow * wide, raw["sample"].copy())
            at = int(self._next[0])
