# SPDX-License-Identifier: Apache-2.0
"""The method: paired samples in rounds, medians of the ratios, and the figure they make.

A shared or virtual machine changes speed from one second to the next (frequency, neighbours), so a
subject and its reference are timed side by side in every round, and the median over the rounds of
their ratio is judged. Every other round reverses the order, so that neither always follows the
other. A short loop's sample is the fastest of a few tries, because an interruption only makes a try
slower. The spread given with a median is the first and the third quartile.
"""

from __future__ import annotations

import contextlib
import gc
import math
from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
import numpy.typing as npt

Samples = npt.NDArray[np.float64]
Series = TypeVar("Series", bound=Hashable)


class CheckError(Exception):
    """A benchmark's result was wrong, so its speed means nothing."""


@dataclass(frozen=True)
class Summary:
    """Median and quartiles of one quantity over the rounds."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, samples: Samples | float) -> Summary:
        low, median, high = np.quantile(np.atleast_1d(samples), (0.25, 0.5, 0.75))
        return cls(float(median), float(low), float(high))


@dataclass(frozen=True)
class Target:
    """A limit on a figure: at least or at most `limit`, of its `ratio` or of its `value`.

    Above `credible` the reference must be wrong, so the target does not count as reached.
    """

    limit: float
    of: str = "ratio"
    at_least: bool = True
    credible: float = math.inf

    def reached(self, quantity: float) -> bool:
        if not self.at_least:
            return quantity <= self.limit
        return self.limit <= quantity <= self.credible


@dataclass(frozen=True)
class Figure:
    """One line of the table.

    `value` is in `unit`; `reference` is in the same unit and `ratio` is the paired quotient,
    oriented as its label says (`1.0` is parity). `kind` is "ours",
    "peer" for another implementation doing the same work, or "machine" for what bounds both.
    """

    id: str
    group: str
    label: str
    value: Summary
    unit: str
    reference: float | None = None
    reference_label: str = ""
    ratio: Summary | None = None
    target: Target | None = None
    kind: str = "ours"
    note: str = ""

    @property
    def judged(self) -> Summary:
        """The quantity that the target judges and whose spread the table shows."""
        if self.ratio is None or (self.target is not None and self.target.of == "value"):
            return self.value
        return self.ratio

    @property
    def reached(self) -> bool | None:
        """True if the target is reached; None without a target."""
        return None if self.target is None else self.target.reached(self.judged.median)


def _no_progress(text: str) -> None:
    """Reports no progress."""


@dataclass(frozen=True)
class Plan:
    """The options of one run of the benchmarks."""

    rounds: int = 15
    quick: bool = False
    ciphers: tuple[str, ...] = ("aegis-128x2", "aes-128-xts", "aes-256-xts")
    progress: Callable[[str], None] = field(default=_no_progress, repr=False)

    @property
    def slice_seconds(self) -> float:
        """How long one try of a loop should take: long compared with reading the clock, short
        compared with the scheduler's time slice, so that most tries run undisturbed."""
        return 0.001 if self.quick else 0.002


def interleave(
    series: Mapping[Series, Callable[[], float]],
    rounds: int,
    *,
    tries: int = 3,
    warmup: int = 1,
    progress: Callable[[str], None] = _no_progress,
    title: str = "",
) -> dict[Series, Samples]:
    """Calls every function in every round and returns the samples, one array for each series.

    A function returns seconds (for one byte, one read, ...), and the least of `tries` calls is the
    round's sample. Every other round reverses the order; `warmup` rounds are thrown away. The
    garbage collector is off meanwhile.
    """
    names = list(series)
    taken: dict[Series, list[float]] = {name: [] for name in names}
    with _no_collection():
        for number in range(-warmup, rounds):
            progress(f"{title}: round {max(number + 1, 0)} of {rounds}")
            for name in names if number % 2 == 0 else reversed(names):
                sample = min(series[name]() for _ in range(tries))
                if number >= 0:
                    taken[name].append(sample)
    return {name: np.asarray(samples, dtype=np.float64) for name, samples in taken.items()}


def repeats_for(seconds_of: Callable[[int], float], wanted: float) -> int:
    """Returns how many repeats make `seconds_of(repeats)` last about `wanted` seconds, at least
    one."""
    repeats = 1
    while True:
        # A single try could be interrupted, which would make the answer far too small.
        seconds = min(seconds_of(repeats) for _ in range(3))
        if seconds >= wanted / 4:
            return max(1, round(repeats * wanted / seconds))
        repeats *= 4


@contextlib.contextmanager
def _no_collection() -> Iterator[None]:
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def aligned(nbytes: int, alignment: int = 4096) -> npt.NDArray[np.uint8]:
    """Returns an array of bytes whose address is a multiple of `alignment`. Arrays that the system
    can back with huge pages (numpy asks for them from 4 MiB on) should be aligned to 2 MiB."""
    raw = np.empty(nbytes + alignment, dtype=np.uint8)
    start = -raw.ctypes.data % alignment
    return raw[start : start + nbytes]


def random_bytes(nbytes: int) -> npt.NDArray[np.uint8]:
    """Returns incompressible bytes in aligned memory that has been touched; the same ones every
    time."""
    out = aligned(nbytes, 1 << 21 if nbytes >= 1 << 22 else 4096)
    generator = np.random.default_rng(20240229)
    step = 1 << 24
    for start in range(0, nbytes, step):
        part = out[start : start + step]
        part[:] = np.frombuffer(generator.bytes(part.size), dtype=np.uint8)
    return out
