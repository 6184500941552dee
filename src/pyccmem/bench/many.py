# SPDX-License-Identifier: Apache-2.0
"""What a tensor costs where there are very many: python -m pyccmem.bench.many [NUMBER] [--apart].

Prints the memory beside the ciphertext, mappings, locked memory and time of each of NUMBER tensors
of 64 B to 4 KiB in one arena; with --apart, in buffers of their own.
"""

from __future__ import annotations

import gc
import sys
import time
from typing import Any

import numpy as np

import pyccmem

__all__ = ["main"]

_SIZES = (64, 512, 1024, 4096)


def _kilobytes(name: str) -> int:
    with open("/proc/self/status", encoding="ascii") as file:
        return next(int(line.split()[1]) for line in file if line.startswith(f"{name}:"))


def _mappings() -> int:
    with open("/proc/self/maps", "rb") as file:
        return sum(1 for _ in file)


def main(number: int, apart: bool = False) -> None:
    """Makes the tensors, and prints what they cost."""
    key = pyccmem.Key.generate()
    options: dict[str, Any] = {"key": key} if apart else {"arena": pyccmem.Arena(key=key)}
    plain = [np.arange(n // 8, dtype=np.float64) + 1 for n in _SIZES]
    make = pyccmem.EncryptedTensor.from_numpy
    first = make(plain[0], **options)
    gc.collect()
    before = _kilobytes("VmRSS")
    start, cpu = time.perf_counter(), time.process_time()
    kinds = len(plain)
    tensors = [make(plain[i % kinds], **options) for i in range(number)]
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    beside = 1024 * (_kilobytes("VmRSS") - before) / number - 4096
    same = all(
        np.array_equal(tensors[i][...], plain[i % kinds]) for i in range(0, number, 997)
    ) and np.array_equal(first[...], plain[0])
    print(f"tensors: {number}")
    print(f"bytes beside each: {beside:.0f}")
    print(f"mappings: {_mappings()}")
    print(f"locked bytes: {1024 * _kilobytes('VmLck')}")
    print(f"us to make each: {1e6 * seconds / number:.1f}")
    print(f"us of processor time to make each: {1e6 * cpu / number:.1f}")
    print(f"as it was written: {same}")


if __name__ == "__main__":
    numbers = [int(word) for word in sys.argv[1:] if word.isdigit()]
    main(numbers[0] if numbers else 1_000_000, "--apart" in sys.argv)
