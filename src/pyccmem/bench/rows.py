# SPDX-License-Identifier: Apache-2.0
"""Claim 6: 256 rows of 1536 bytes at random places, as a batch is looked up in an embedding table.

The table is larger than an L2, so rows come from the last-level cache or from memory. The reference
is numpy's take of the same rows from the plain table. An authenticated cipher opens every page that
a row touches, so its page size matters. There is no target: the figures show what a choice costs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from time import perf_counter

import numpy as np

from .. import measure
from ..buffer import EncryptedBuffer
from ..keys import Key
from . import common
from .rounds import Figure, Plan, Summary, aligned, interleave, random_bytes, repeats_for

GROUP = "rows of 1536 random bytes"

#: 384 numbers of 4 bytes, the width of small embedding models.
ROW = 1536

#: Rows of the table, 48 MiB, and rows of a batch.
LENGTH = 32768
BATCH = 256

#: Batches are used in turn, so that a batch does not find its rows in the cache from the last time.
BATCHES = 64


def page_sizes(cipher: str) -> tuple[int, ...]:
    return (4096, 16384) if cipher in common.TAGGED else (4096,)


class Rows:
    """A table, plain and encrypted under each page size, and batches of row numbers."""

    def __init__(self, cipher: str, length: int = LENGTH) -> None:
        self.plain = random_bytes(length * ROW).reshape(length, ROW)
        self.out = aligned(BATCH * ROW).reshape(BATCH, ROW)
        self.out[:] = 0
        self.batches = np.random.default_rng(11).integers(0, length, (BATCHES, BATCH))
        self.offsets = (self.batches * ROW).astype(np.uint64)
        self._turn = 0
        with Key.generate() as key:
            self.buffers = {
                size: EncryptedBuffer.from_data(self.plain, key=key, cipher=cipher, page_size=size)
                for size in page_sizes(cipher)
            }

    def gather(self, page_size: int, count: int) -> float:
        """Returns the seconds for `count` batches decrypted, a native call each."""
        buffer, out = self.buffers[page_size], self.out
        start = perf_counter()
        for batch in self._next(count):
            measure.gather(buffer, self.offsets[batch], ROW, out)
        return perf_counter() - start

    def take(self, count: int) -> float:
        """Returns the seconds for `count` batches copied by numpy."""
        start = perf_counter()
        for batch in self._next(count):
            # With any other mode numpy copies through a buffer.
            self.plain.take(self.batches[batch], axis=0, out=self.out, mode="clip")
        return perf_counter() - start

    def _next(self, count: int) -> Iterator[int]:
        for _ in range(count):
            self._turn = (self._turn + 1) % BATCHES
            yield self._turn

    def check(self) -> None:
        """Checks that gathered rows are the table's, and numpy's too."""
        for size in self.buffers:
            self.gather(size, 1)
            expected = self.plain[self.batches[self._turn]]
            common.must_equal(self.out, expected, f"rows, pages of {size} bytes")
        self.out[:] = 0
        self.take(1)
        common.must_equal(self.out, self.plain[self.batches[self._turn]], "numpy's rows")

    def close(self) -> None:
        for buffer in self.buffers.values():
            buffer.close()


def figures(plan: Plan) -> Iterator[Figure]:
    with common.threads(1):
        for cipher in plan.ciphers:
            plan.progress(f"{GROUP}, {cipher}: filling")
            rows = Rows(cipher)
            try:
                yield from _figures(plan, cipher, rows)
            finally:
                rows.close()


def _figures(plan: Plan, cipher: str, rows: Rows) -> Iterator[Figure]:
    rows.check()
    series: dict[int, Callable[[], float]] = {0: _each(plan, rows.take)}
    for size in rows.buffers:
        series[size] = _each(plan, partial(rows.gather, size))
    times = interleave(series, plan.rounds, progress=plan.progress, title=f"{GROUP}, {cipher}")
    for size in rows.buffers:
        yield Figure(
            id=f"rows/{cipher}/{size}",
            group=GROUP,
            label=f"{cipher}, pages of {size >> 10} KiB",
            value=Summary.of(times[size] * 1e9),
            unit="ns",
            reference=float(np.median(times[0])) * 1e9,
            reference_label="numpy's take",
            ratio=Summary.of(times[size] / times[0]),
        )


def _each(plan: Plan, seconds: Callable[[int], float]) -> Callable[[], float]:
    """Returns the seconds for one row."""
    count = repeats_for(seconds, plan.slice_seconds)
    return lambda: seconds(count) / (count * BATCH)
