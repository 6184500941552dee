# SPDX-License-Identifier: Apache-2.0
"""Which page size an EncryptedTensor should have: its access patterns, timed for each size.

Usage: python bench/page_size.py [--cipher aegis-128x2] [--rounds 15] [--size 64] [--json]

A table of numbers of 4 bytes, 384 to a row, is read as a whole, in batches of rows, row by row and
number by number, and rows are written, through EncryptedTensor's own indexing. The same is done to
a plain numpy array in the same rounds, and what is shown is how many times longer the encrypted
tensor takes: 1 is parity, less is better. Quartiles are behind the medians. Every result is
compared with numpy's first.

"whole" is a new array, whose memory numpy has the system map and pyccmem keeps from the last time;
"whole, in place" goes to one that is there already. Batches and single rows are copies on either
side.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from functools import partial
from time import perf_counter
from typing import Any

import numpy as np

from pyccmem import EncryptedTensor, Key
from pyccmem.bench.common import threads
from pyccmem.bench.report import machine, number
from pyccmem.bench.rounds import (
    CheckError,
    Summary,
    aligned,
    interleave,
    random_bytes,
    repeats_for,
)
from pyccmem.measure import SUITES

PAGE_SIZES = (4096, 8192, 16384, 65536)
WIDTH = 384
BATCH = 256

#: Places that take turns, so that none is in the cache from the last time unless the table is.
PLACES = 4096


class Patterns:
    """The accesses, to an encrypted tensor or to an array, by what they are called."""

    def __init__(self, table: Any, length: int) -> None:
        self.table = table
        self.out = aligned(table.nbytes, 2 << 20).view(np.float32).reshape(length, WIDTH)
        self.out[...] = 0
        places = np.random.default_rng(5)
        self.rows: list[int] = places.integers(0, length, PLACES).tolist()
        self.columns: list[int] = places.integers(0, WIDTH, PLACES).tolist()
        self.batches = list(places.integers(0, length, (64, BATCH)))
        self.row = np.arange(WIDTH, dtype=np.float32)
        self._turn = 0
        self.calls: dict[str, Callable[[int], Any]] = {
            "whole": lambda _: self._copy(self.table[...]),
            "whole, in place": lambda _: self._whole(),
            f"{BATCH} rows": lambda i: self.table[self.batches[i % 64]],
            "a row": lambda i: self._copy(self.table[self.rows[i % PLACES]]),
            "a number": lambda i: self.table[self.rows[i % PLACES], self.columns[i % PLACES]],
            "a row written": self._write_row,
        }

    def _whole(self) -> Any:
        if isinstance(self.table, np.ndarray):
            np.copyto(self.out, self.table)
        else:
            self.table.buffer.read_into(self.out)
        return self.out

    def _copy(self, got: Any) -> Any:
        # What numpy gives is a view; the tensor's is a copy already.
        return got.copy() if isinstance(self.table, np.ndarray) else got

    def _write_row(self, i: int) -> None:
        self.table[self.rows[i % PLACES]] = self.row

    def seconds(self, name: str, count: int) -> float:
        call = self.calls[name]
        first = self._turn
        self._turn += count
        start = perf_counter()
        for i in range(first, first + count):
            call(i)
        return perf_counter() - start

    def results(self) -> list[bytes]:
        """What each access gives at the first few places; the table is the same afterwards."""
        before = self._copy(self.table[self.rows[0]])
        got = [bytes(np.asarray(call(i)).data) for i in range(3) for call in self._reads()]
        self._write_row(0)
        got.append(bytes(np.asarray(self.table[self.rows[0]]).data))
        self.table[self.rows[0]] = before
        return got

    def _reads(self) -> list[Callable[[int], Any]]:
        return [call for name, call in self.calls.items() if "written" not in name]


def measure(
    cipher: str, size: int, rounds: int, progress: Callable[[str], None]
) -> dict[str, dict[int, dict[str, float]]]:
    """By pattern and page size: seconds with an encrypted tensor and with an array, and the ratio
    (median, low, high)."""
    length = size // (4 * WIDTH)
    # Small integers: any bits are a number, but a NaN would not be equal to itself.
    values = random_bytes(length * WIDTH).astype(np.float32).reshape(length, WIDTH)
    plain = Patterns(values, length)
    tensors: dict[int, Patterns] = {}
    found: dict[str, dict[int, dict[str, float]]] = {}
    with Key.generate() as key:
        for page_size in PAGE_SIZES:
            tensor = EncryptedTensor.from_numpy(values, key=key, cipher=cipher, page_size=page_size)
            tensors[page_size] = Patterns(tensor, length)
            if tensors[page_size].results() != plain.results():
                raise CheckError(f"Pages of {page_size} bytes: the result is not numpy's.")
    for name in plain.calls:
        series = {0: _each(plain, name)}
        series |= {page_size: _each(tensor, name) for page_size, tensor in tensors.items()}
        tries = 1 if name.startswith("whole") else 3
        times = interleave(series, rounds, tries=tries, progress=progress, title=name)
        for page_size in PAGE_SIZES:
            ratio = Summary.of(times[page_size] / times[0])
            found.setdefault(name, {})[page_size] = {
                "seconds": float(np.median(times[page_size])),
                "plain": float(np.median(times[0])),
                "ratio": ratio.median,
                "low": ratio.low,
                "high": ratio.high,
            }
    return found


def _each(patterns: Patterns, name: str) -> Callable[[], float]:
    count = repeats_for(partial(patterns.seconds, name), 0.002)
    return lambda: patterns.seconds(name, count) / count


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--cipher", choices=list(SUITES), default="aegis-128x2")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--size", type=int, default=64, metavar="MIB", help="of the table (64)")
    parser.add_argument("--threads", type=int, default=1, help="for one bulk read (1)")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()

    def progress(text: str) -> None:
        if sys.stderr.isatty():
            print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)

    with threads(given.threads):
        found = measure(given.cipher, given.size << 20, given.rounds, progress)
    progress("")
    if given.json:
        print(json.dumps({"machine": machine(), "cipher": given.cipher, "patterns": found}))
        return 0
    print(f"{given.cipher}, {given.size} MiB: times as long as numpy (quartiles)")
    print("".join(["pages of".ljust(18), *(f"{size >> 10} KiB".rjust(24) for size in PAGE_SIZES)]))
    for name, by_size in found.items():
        cells = [
            f"{number(got['ratio'])} ({number(got['low'])} - {number(got['high'])})".rjust(24)
            for got in by_size.values()
        ]
        plain = next(iter(by_size.values()))["plain"]
        print("".join([name.ljust(18), *cells]) + f"   numpy {_time(plain)}")
    return 0


def _time(seconds: float) -> str:
    for factor, unit in ((1e9, "ns"), (1e6, "us")):
        if seconds * factor < 1000:
            return f"{seconds * factor:.3g} {unit}"
    return f"{seconds * 1e3:.3g} ms"


if __name__ == "__main__":
    sys.exit(main())
