# SPDX-License-Identifier: Apache-2.0
"""What freshness costs: `python -m pyccmem.bench.freshness [MiB]`.

Reads and writes of rows of 64 bytes at random, and one pass over all, of the same bytes in four
ways: written (versions in ordinary memory), fresh (in locked memory), frozen (none), and a tree.
The tree is a prototype: each page's tag and version, 24 bytes, lie in a node of a page, which is
sealed as well, and so on up to one node, whose version would lie in locked memory. A read of a row
opens a node of each level, a write changes one of each.

Prints microseconds a row and GB/s, each as the median of rounds that take the ways in turn, and
what is locked for it.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from .. import EncryptedTensor, Key, set_num_threads

PAGE, ROW, RECORD = 4096, 64, 24
FANOUT = PAGE // RECORD
ROWS, ROUNDS = 20_000, 7


class _Plain:
    """A tensor of rows, read and written as it is."""

    def __init__(self, tensor: EncryptedTensor) -> None:
        self.tensor = tensor

    def read(self, rows: Any) -> None:
        self.tensor[rows]

    def write(self, rows: Any, values: Any) -> None:
        self.tensor[rows] = values

    def scan(self) -> None:
        for _ in self.tensor.blocks(1 << 20):
            pass


class _Tree(_Plain):
    """The same with nodes above the pages, one tensor of records a level."""

    def __init__(self, tensor: EncryptedTensor, key: Key) -> None:
        super().__init__(tensor)
        self.levels: list[EncryptedTensor] = []
        nodes = -(-tensor.nbytes // PAGE)
        while nodes > 1:
            nodes = -(-nodes // FANOUT)
            node = np.zeros((nodes, PAGE // 8), np.uint64)
            self.levels.append(EncryptedTensor.from_numpy(node, key=key))

    def _places(self, rows: Any) -> list[Any]:
        at, found = rows * ROW // PAGE, []
        for _ in self.levels:
            found.append((at // FANOUT, at % FANOUT * RECORD // 8))
            at = at // FANOUT
        return found

    def read(self, rows: Any) -> None:
        for level, place in zip(self.levels, self._places(rows), strict=True):
            level[place]
        super().read(rows)

    def write(self, rows: Any, values: Any) -> None:
        super().write(rows, values)
        for level, place in zip(self.levels, self._places(rows), strict=True):
            level[place] = values[:, 0]

    def scan(self) -> None:
        super().scan()
        for level in self.levels:
            for _ in level.blocks(1 << 20):
                pass


def _timed(work: Callable[[], None]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def main(mebibytes: int = 256) -> None:
    """Prints the table."""
    set_num_threads(1)
    size, key = mebibytes << 20, Key.generate()
    shape = (size // ROW, ROW // 8)
    source = np.zeros(shape, np.uint64)
    ways: dict[str, _Plain] = {
        "written": _Plain(EncryptedTensor.from_numpy(source, key=key)),
        "fresh": _Plain(EncryptedTensor.from_numpy(source, key=key, fresh=True)),
        "frozen": _Plain(EncryptedTensor.from_numpy(source, key=key)),
        "tree": _Tree(EncryptedTensor.from_numpy(source, key=key), key),
    }
    del source
    ways["frozen"].tensor.freeze()
    locked = {"fresh": size // PAGE * 8, "tree": 8}
    seen: dict[tuple[str, str], list[float]] = {}
    random = np.random.default_rng(1)
    for _ in range(ROUNDS):
        rows = random.integers(0, shape[0], ROWS)
        values = random.integers(0, 1 << 63, (ROWS, ROW // 8), np.uint64)
        for name, way in ways.items():
            seen.setdefault((name, "read"), []).append(_timed(lambda w=way, r=rows: w.read(r)))  # type: ignore[misc]
            seen.setdefault((name, "scan"), []).append(_timed(way.scan))
            if name != "frozen":
                seen.setdefault((name, "write"), []).append(
                    _timed(lambda w=way, r=rows, v=values: w.write(r, v))  # type: ignore[misc]
                )
    print(f"{mebibytes} MiB, pages of {PAGE}, rows of {ROW} bytes, one thread")
    print(f"{'':8} {'read us/row':>12} {'write us/row':>13} {'pass GB/s':>10} {'locked bytes':>13}")
    for name in ways:
        read = statistics.median(seen[name, "read"]) / ROWS * 1e6
        wrote = seen.get((name, "write"))
        write = f"{statistics.median(wrote) / ROWS * 1e6:13.2f}" if wrote else f"{'-':>13}"
        scan = size / statistics.median(seen[name, "scan"]) / 1e9
        print(f"{name:8} {read:12.2f} {write} {scan:10.2f} {locked.get(name, 0):13}")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:2]))
