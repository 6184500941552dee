# SPDX-License-Identifier: Apache-2.0
"""Claim 4: 64 bytes at a random place, the unit of a lookup in a table or an index.

In cache the time is the cipher's; from DRAM it is what the cipher adds to the wait for memory, so
it is given over the same walk that copies 64 plain bytes. A dependent walk takes each place from
the bytes just read and shows the latency; an independent one shows the throughput.

An authenticated cipher must open the whole page for any of its bytes. That has no target; it is
measured for two page sizes to show its cost.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from time import perf_counter
from typing import Any

import numpy as np

from .. import measure
from ..buffer import EncryptedBuffer
from ..keys import Key
from . import common
from .rounds import (
    Figure,
    Plan,
    Samples,
    Summary,
    Target,
    interleave,
    random_bytes,
    repeats_for,
)

GROUP = "64 random bytes"

#: Ciphertext that fits the L2 of any target processor, together with its tweaks.
CACHED = 256 * 1024

TARGET_CACHED = 30.0  # ns
TARGET_DRAM = 40.0  # ns over a plain copy
TARGET_TWEAKS = 1.4  # times as fast as without the tweak cache
TARGET_PYTHON = 1.2  # us a call

#: Page sizes of the authenticated ciphers' rows.
PAGE_SIZES = (4096, 16384)

WALKS = {"dependent": True, "independent": False}


def dram_size(plan: Plan) -> int:
    """Returns the bytes of the store read from DRAM: many times the last-level cache."""
    return (256 if plan.quick else 1024) << 20


class Random64:
    """A filled buffer and the plain bytes it holds, for walks over both."""

    def __init__(
        self,
        cipher: str,
        nbytes: int,
        *,
        tweak_cache: int = 4096,
        page_size: int = common.PAGE,
    ) -> None:
        self.plain = random_bytes(nbytes)
        with Key.generate() as key:
            self.buffer = EncryptedBuffer.from_data(
                self.plain, key=key, cipher=cipher, page_size=page_size, tweak_cache=tweak_cache
            )
        self.out = bytearray(64)
        places = np.random.default_rng(7).integers(0, nbytes // 64, 4096)
        self.offsets: list[int] = (places * 64).tolist()

    def reads(self, dependent: bool, count: int) -> float:
        return measure.random_reads(self.buffer, count, dependent=dependent)

    def copies(self, dependent: bool, count: int) -> float:
        return measure.random_copies(self.plain, count, dependent=dependent)

    def python_reads(self, count: int) -> float:
        """Returns the time of `count` calls of read_into for 64 bytes, loop included."""
        read_into, out, offsets = self.buffer.read_into, self.out, self.offsets
        full, rest = divmod(count, len(offsets))
        start = perf_counter()
        for _ in range(full):
            for offset in offsets:
                read_into(out, offset)
        for offset in offsets[:rest]:
            read_into(out, offset)
        return perf_counter() - start

    def check(self) -> None:
        """Checks that reads at every place of the Python walk give the source's bytes."""
        for offset in self.offsets:
            self.buffer.read_into(self.out, offset)
            common.must_equal(self.out, self.plain[offset : offset + 64], "64 bytes at random")

    def close(self) -> None:
        self.buffer.close()


def figures(plan: Plan) -> Iterator[Figure]:
    with common.threads(1):
        for cipher in plan.ciphers:
            yield from (_whole_pages if cipher in common.TAGGED else _cached)(plan, cipher)
        # One cipher of either kind shows the effect of memory. The others add the same few
        # nanoseconds as in cache, and filling the store takes a while.
        for cipher in common.representatives(plan):
            if cipher not in common.TAGGED:
                yield from _dram(plan, cipher)


def _cached(plan: Plan, cipher: str) -> Iterator[Figure]:
    title = f"{GROUP} in cache, {cipher}"
    plan.progress(f"{title}: checking")
    cached, uncached = Random64(cipher, CACHED), Random64(cipher, CACHED, tweak_cache=0)
    try:
        cached.check()
        uncached.check()
        series: dict[str, Callable[[], float]] = {
            "python": _each(plan, cached.python_reads),
        }
        for walk, dependent in WALKS.items():
            series[f"on {walk}"] = _each(plan, partial(cached.reads, dependent))
            series[f"off {walk}"] = _each(plan, partial(uncached.reads, dependent))
            series[f"plain {walk}"] = _each(plan, partial(cached.copies, dependent))
        times = interleave(series, plan.rounds, progress=plan.progress, title=title)
    finally:
        cached.close()
        uncached.close()
    for walk in WALKS:
        on, off, plain = times[f"on {walk}"], times[f"off {walk}"], times[f"plain {walk}"]
        yield Figure(
            id=f"random64/{cipher}/cache/{walk}",
            group=GROUP,
            label=f"{cipher} in L2, {walk}",
            value=Summary.of(on * 1e9),
            unit="ns",
            reference=_median(plain) * 1e9,
            reference_label="plain copy",
            ratio=Summary.of(on / plain),
            target=Target(TARGET_CACHED, of="value", at_least=False),
        )
        yield Figure(
            id=f"random64/{cipher}/tweak-cache/{walk}",
            group=GROUP,
            label=f"{cipher} in L2, {walk}, tweak cache",
            value=Summary.of(on * 1e9),
            unit="ns",
            reference=_median(off) * 1e9,
            reference_label="tweak cache off",
            ratio=Summary.of(off / on),
            # If reads overlap, the tweak's latency is hidden and the cache only saves its work.
            target=Target(TARGET_TWEAKS) if WALKS[walk] else None,
        )
    yield Figure(
        id=f"random64/{cipher}/python",
        group=GROUP,
        label=f"{cipher} in L2, Python read_into",
        value=Summary.of(times["python"] * 1e6),
        unit="us",
        target=Target(TARGET_PYTHON, of="value", at_least=False),
    )


def _dram(plan: Plan, cipher: str) -> Iterator[Figure]:
    nbytes = dram_size(plan)
    title = f"{GROUP} from DRAM, {cipher}"
    plan.progress(f"{title}: filling {nbytes >> 20} MiB")
    store = Random64(cipher, nbytes)
    try:
        store.check()
        series: dict[str, Callable[[], float]] = {}
        for walk, dependent in WALKS.items():
            series[f"read {walk}"] = _each(plan, partial(store.reads, dependent))
            series[f"plain {walk}"] = _each(plan, partial(store.copies, dependent))
        times = interleave(series, plan.rounds, progress=plan.progress, title=title)
    finally:
        store.close()
    for walk in WALKS:
        read, plain = times[f"read {walk}"], times[f"plain {walk}"]
        yield Figure(
            id=f"random64/{cipher}/dram/{walk}",
            group=GROUP,
            label=f"{cipher} in DRAM, {walk}, over plain",
            value=Summary.of((read - plain) * 1e9),
            unit="ns",
            reference=_median(plain) * 1e9,
            reference_label="plain copy",
            ratio=Summary.of(read / plain),
            target=Target(TARGET_DRAM, of="value", at_least=False),
        )


def _whole_pages(plan: Plan, cipher: str) -> Iterator[Figure]:
    """Yields figures of reads that open a page each, from cache and from DRAM, for each page
    size."""
    for place, nbytes in (("L2", CACHED), ("DRAM", dram_size(plan) // 4)):
        title = f"{GROUP} from {place}, {cipher}"
        plan.progress(f"{title}: filling {nbytes >> 10} KiB")
        stores = {size: Random64(cipher, nbytes, page_size=size) for size in PAGE_SIZES}
        series: dict[tuple[str, int], Callable[[], float]] = {}
        try:
            for size, store in stores.items():
                store.check()
                if place == "L2":
                    series["python", size] = _each(plan, store.python_reads)
                for walk, dependent in WALKS.items():
                    series[walk, size] = _each(plan, partial(store.reads, dependent))
            for walk, dependent in WALKS.items():
                series[walk, 0] = _each(plan, partial(stores[PAGE_SIZES[0]].copies, dependent))
            times = interleave(series, plan.rounds, progress=plan.progress, title=title)
        finally:
            for store in stores.values():
                store.close()
        for size in PAGE_SIZES:
            for walk in WALKS:
                read, plain = times[walk, size], times[walk, 0]
                yield Figure(
                    id=f"random64/{cipher}/{place.lower()}/{size}/{walk}",
                    group=GROUP,
                    label=f"{cipher} in {place}, {walk}, pages of {size >> 10} KiB",
                    value=Summary.of(read * 1e9),
                    unit="ns",
                    reference=_median(plain) * 1e9,
                    reference_label="plain copy",
                    ratio=Summary.of(read / plain),
                )
            if place == "L2":
                yield Figure(
                    id=f"random64/{cipher}/python/{size}",
                    group=GROUP,
                    label=f"{cipher} in L2, Python read_into, pages of {size >> 10} KiB",
                    value=Summary.of(times["python", size] * 1e6),
                    unit="us",
                )


def _each(plan: Plan, seconds: Callable[[int], float]) -> Callable[[], float]:
    """Returns a function that gives the seconds for one operation, of which `seconds(count)` times
    `count`."""
    seconds(4096)
    count = repeats_for(seconds, plan.slice_seconds)
    return lambda: seconds(count) / count


def _median(samples: Samples | Any) -> float:
    return float(np.median(samples))
