# SPDX-License-Identifier: Apache-2.0
"""Claim 3: two threads on two cores take little more than half the time of one.

Measured in cache, where the cores share nothing but the buffer. The AES unit's ceiling in two
threads at once shows what the two cores can do at all: they may be two halves of one.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from functools import partial
from time import perf_counter

import numpy as np

from .. import measure
from ..cpu import cpu_info
from . import common
from .bulk import Bulk
from .rounds import Figure, Plan, Summary, Target, interleave, repeats_for

GROUP = "two threads"

#: Plaintext and ciphertext of either half are more than an L2 and less than a last-level cache, so
#: that one thread and two work from the same cache.
SIZE = 3 << 20

TARGET = 1.8

#: A try of two threads needs both processors free at once. Many short tries find such moments even
#: on a machine that does other work.
TRIES = 30
SLICE_SECONDS = 0.001


def cores() -> int:
    """Returns how many processors this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class Scaling:
    """The same bulk operation with one thread and with two."""

    def __init__(self, cipher: str, nbytes: int = SIZE) -> None:
        self.bulk = Bulk(cipher, nbytes)

    def seconds(self, operation: str, number: int, repeats: int) -> float:
        """Returns the time of `repeats` calls of "write" or "read_into" with `number` threads."""
        bulk = self.bulk
        with common.threads(number):
            start = perf_counter()
            if operation == "write":
                for _ in range(repeats):
                    bulk.buffer.write(bulk.source)
            else:
                for _ in range(repeats):
                    bulk.buffer.read_into(bulk.out)
            return perf_counter() - start

    def check(self) -> None:
        for number in (2, 1):
            with common.threads(number):
                self.bulk.check()

    def close(self) -> None:
        self.bulk.close()


def figures(plan: Plan) -> Iterator[Figure]:
    if cores() < 2:
        plan.progress(f"{GROUP}: skipped, this process may use one processor only")
        return
    for cipher in plan.ciphers:
        scaling = Scaling(cipher)
        try:
            yield from _figures(plan, cipher, scaling)
        finally:
            scaling.close()


def _figures(plan: Plan, cipher: str, scaling: Scaling) -> Iterator[Figure]:
    title = f"{GROUP}, {cipher}"
    plan.progress(f"{title}: checking")
    scaling.check()
    series: dict[tuple[str, int], Callable[[], float]] = {}
    for operation in ("write", "read_into"):
        one = partial(scaling.seconds, operation, 1)
        repeats = repeats_for(one, SLICE_SECONDS)
        for number in (1, 2):
            series[operation, number] = partial(
                _time, partial(scaling.seconds, operation, number), repeats
            )
    tier = cpu_info()["tier"]
    if measure.ceiling(tier, cipher, 1) > 0:
        repeats = repeats_for(partial(common.ceiling_wall, tier, cipher), SLICE_SECONDS)
        for number in (1, 2):
            series["ceiling", number] = partial(_ceilings, tier, cipher, repeats, number)
    times = interleave(series, plan.rounds, tries=TRIES, progress=plan.progress, title=title)
    rates = {name: 1 / taken for name, taken in times.items()}
    for operation in dict.fromkeys(operation for operation, _ in rates):
        one_thread, two_threads = rates[operation, 1], rates[operation, 2]
        machine = operation == "ceiling"
        what = "AES unit's ceiling" if machine else operation
        yield Figure(
            id=f"threads/{cipher}/{operation}",
            group=GROUP,
            label=f"{cipher} {what}",
            value=Summary.of(two_threads / 1e9),
            unit="GB/s",
            reference=float(np.median(one_thread)) / 1e9,
            reference_label="one thread",
            ratio=Summary.of(two_threads / one_thread),
            target=None if machine else Target(TARGET),
            kind="machine" if machine else "ours",
        )


def _time(seconds: Callable[[int], float], repeats: int) -> float:
    """Returns the seconds for a byte."""
    return seconds(repeats) / (SIZE * repeats)


def _ceilings(tier: str, cipher: str, repeats: int, number: int) -> float:
    """Returns the seconds for a byte of `number` threads together, which are all in the ceiling
    loop at once."""
    rates: list[float] = []
    start = threading.Barrier(number)

    def loop() -> None:
        start.wait()
        rates.append(measure.ceiling(tier, cipher, repeats))

    workers = [threading.Thread(target=loop) for _ in range(number)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return 1 / sum(rates)
