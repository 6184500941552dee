# SPDX-License-Identifier: Apache-2.0
"""What the parts of the benchmark of caches share: shapes, numbers for K, V and q, caches that are
filled with them, samples taken in turn."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from time import perf_counter
from typing import Any

import numpy as np
import numpy.typing as npt

from ..kv_cache import KVCache
from . import common
from .rounds import CheckError, interleave

Array = npt.NDArray[Any]
Call = Callable[[], object]


@dataclass(frozen=True)
class Heads:
    """Heads of an attention: of q, of K and V, and the elements of a row."""

    name: str
    query: int
    stored: int
    size: int


LLAMA = Heads("Llama-3-8B", 32, 8, 128)
MINILM = Heads("MiniLM", 12, 12, 32)
MULTI = Heads("32 of 32 heads", 32, 32, 128)

#: Bytes of an element, as plain memory has it. An int8 cache is compared with bfloat16.
BYTES = {"float32": 4, "bfloat16": 2, "int8": 2}

#: Layers are attended to in turn, as a model does, so that none of them is found in a processor's
#: cache from the last time: as many as make this much memory.
WORKING_SET = 48 << 20

#: A sample is as many calls as take this long; one at least.
SAMPLE_SECONDS = 0.01

#: If a call takes longer than this, it is tried once a round, else twice.
SLOW = 0.1

#: Rounds end after so many seconds, but not before there were FEWEST, two in either order.
CASE_SECONDS = {True: 2.5, False: 8.0}  # quick, and not
FEWEST = 4

#: How far a result may be from another one of its type, as a share of the largest number.
CLOSE = {"float32": 1e-4, "bfloat16": 0.02, "int8": 0.05}


@dataclass(frozen=True)
class Measured:
    """The samples of one subject and of its reference in the same rounds, in seconds for one call:
    `task` by `threads` threads, of `heads`, stored as `dtype`, over `tokens` tokens."""

    task: str
    threads: int
    heads: str
    dtype: str
    tokens: int
    rows: int
    seconds: list[float]
    reference: list[float]
    note: str = ""


def as_json(found: Sequence[Measured]) -> list[dict[str, Any]]:
    return [asdict(one) for one in found]


# ---- numbers -------------------------------------------------------------------------------------


def random_rows(shape: Sequence[int], dtype: str, seed: int) -> Array:
    """Returns normal numbers of float32, or the bits of bfloat16 in uint16; the same every time."""
    numbers = np.random.default_rng(seed).standard_normal(tuple(shape), dtype=np.float32)
    return numbers if dtype == "float32" else bits(numbers)


def bits(numbers: Array) -> Array:
    """Returns the bits of bfloat16 of float32, cut off."""
    return (numbers.view(np.uint32) >> 16).astype(np.uint16)


def as_float(array: Array) -> Array:
    """Returns float32 of the bits of bfloat16, and float32 as it is."""
    if array.dtype != np.uint16:
        return array
    return (array.astype(np.uint32) << 16).view(np.float32)


def must_be_close(got: Array, expected: Array, dtype: str, what: str) -> None:
    """Raises CheckError unless the two are as near to each other as their types allow."""
    first, second = as_float(got).astype(np.float64), as_float(expected).astype(np.float64)
    error = np.abs(first - second).max()
    if not error <= CLOSE[dtype] * np.abs(second).max():
        raise CheckError(f"{what}: the result is wrong, so its speed means nothing.")


# ---- caches --------------------------------------------------------------------------------------


class Layers:
    """K and V of one layer, of which there are as many as make a working set, and queries."""

    def __init__(self, heads: Heads, dtype: str, tokens: int, rows: int = 1) -> None:
        self.heads, self.dtype, self.tokens, self.rows = heads, dtype, tokens, rows
        nbytes = 2 * heads.stored * tokens * heads.size * BYTES[dtype]
        self.count = max(1, -(-WORKING_SET // nbytes))
        if rows > 1:  # bound by arithmetic
            self.count = 1
        kind = "float32" if dtype == "float32" else "bfloat16"
        shape = (1, heads.stored, tokens, heads.size)
        self.k, self.v = random_rows(shape, kind, 1), random_rows(shape, kind, 2)
        self.q = random_rows((1, heads.query, rows, heads.size), kind, 3)

    def filled(self, make: Callable[..., KVCache], dtype: str | None = None) -> KVCache:
        """Returns a cache with all layers, which the caller closes."""
        heads = self.heads
        cache = make(self.count, heads.stored, heads.size, dtype=dtype or self.dtype)
        for layer in range(self.count):
            cache.append(layer, self.k, self.v)
        return cache

    def calls(self, cache: KVCache) -> list[Call]:
        """Returns one attention for each layer."""
        out = np.empty_like(self.q)

        def attend(layer: int) -> Call:
            return lambda: cache.attend(layer, self.q, out=out)

        return [attend(layer) for layer in range(self.count)]


# ---- samples -------------------------------------------------------------------------------------


def once(call: Call) -> float:
    """Returns the seconds for a call."""
    start = perf_counter()
    call()
    return perf_counter() - start


def in_turn(
    subjects: Mapping[str, Sequence[Call]], rounds: int, quick: bool
) -> dict[str, list[float]]:
    """Returns the samples of subjects that take turns, in seconds for a call; a subject's calls
    follow each other in a circle."""
    seconds: dict[str, Callable[[], float]] = {}
    slowest = 0.0
    for name, calls in subjects.items():
        for call in calls:  # the first time is another one
            call()
        took = sum(map(once, calls)) / len(calls)
        slowest = max(slowest, took)
        seconds[name] = _sample(calls, max(1, round(SAMPLE_SECONDS / max(took, 1e-9))))
    return samples_in_turn(seconds, rounds, quick, tries=1 if slowest > SLOW else 2)


def samples_in_turn(
    seconds: Mapping[str, Callable[[], float]], rounds: int, quick: bool, *, tries: int
) -> dict[str, list[float]]:
    """Returns what functions return that take turns, once in a round; the best of `tries`. There
    are fewer rounds where they take long."""
    found: dict[str, list[float]] = {name: [] for name in seconds}
    done, start = 0, perf_counter()
    while done < min(rounds, FEWEST) or (
        done < rounds and perf_counter() - start < CASE_SECONDS[quick]
    ):
        some = min(2, rounds - done)
        for name, samples in interleave(seconds, some, tries=tries, warmup=0).items():
            found[name] += samples.tolist()
        done += some
    return found


def _sample(calls: Sequence[Call], count: int) -> Callable[[], float]:
    places = itertools.cycle(calls)

    def seconds() -> float:
        # Threads of whoever was timed before may wait in a busy loop for a while.
        next(places)()
        chosen = [next(places) for _ in range(count)]
        start = perf_counter()
        for call in chosen:
            call()
        return (perf_counter() - start) / count

    return seconds


@contextmanager
def threads(number: int) -> Iterator[None]:
    """Makes pyccmem, and torch if it is loaded, use `number` threads in the block."""
    import sys

    torch = sys.modules.get("torch")
    with common.threads(number):
        if torch is None:
            yield
            return
        before = torch.get_num_threads()
        torch.set_num_threads(number)
        try:
            yield
        finally:
            torch.set_num_threads(before)
