# SPDX-License-Identifier: Apache-2.0
"""Measures what each of very many tensors costs: python -m pyccmem.bench.many [NUMBER] [--apart]
[--file].

Prints the memory besides the ciphertext, mappings, locked memory and time of each of NUMBER tensors
of 64 B to 4 KiB in one arena; with --apart, in buffers of their own; with --file, taken one by one
from one sealed file, which is made in the working directory and removed.
"""

from __future__ import annotations

import gc
import os
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

import pyccmem
from pyccmem import safetensors

__all__ = ["main"]

_SIZES = (64, 512, 1024, 4096)


def _kilobytes(name: str) -> int:
    with open("/proc/self/status", encoding="ascii") as file:
        return next(int(line.split()[1]) for line in file if line.startswith(f"{name}:"))


def _mappings() -> int:
    with open("/proc/self/maps", "rb") as file:
        return sum(1 for _ in file)


_Plain = list[np.ndarray[Any, Any]]


def _in_memory(key: pyccmem.Key, plain: _Plain, apart: bool) -> Callable[[int], Any]:
    options: dict[str, Any] = {"key": key} if apart else {"arena": pyccmem.Arena(key=key)}
    make = pyccmem.EncryptedTensor.from_numpy
    return lambda i: make(plain[i % len(plain)], **options)


def _in_a_file(key: pyccmem.Key, plain: _Plain, number: int) -> Callable[[int], Any]:
    path = f"many-{os.getpid()}.safetensors"
    try:
        named = {str(i): plain[i % len(plain)] for i in range(number)}
        safetensors.save_file(named, path, key=key)
        file = safetensors.safe_open(path, key=key)
    finally:
        if os.path.exists(path):
            os.unlink(path)
    names = file.keys()
    return lambda i: file.get_tensor(names[i])


def main(number: int, apart: bool = False, file: bool = False) -> None:
    """Makes the tensors, and prints what they cost."""
    key = pyccmem.Key.generate()
    plain = [np.arange(n // 8, dtype=np.float64) + 1 for n in _SIZES]
    make = _in_a_file(key, plain, number) if file else _in_memory(key, plain, apart)
    first, kinds = make(0), len(plain)
    # Memory that the preparations have freed would hide what the tensors take.
    filling = [bytes(16 * (i % 30)) for i in range(20 * number)] if file else []
    gc.collect()
    before = _kilobytes("RssAnon")
    start, cpu = time.perf_counter(), time.process_time()
    tensors = [make(i) for i in range(number)]
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    beside = 1024 * (_kilobytes("RssAnon") - before) / number - (0 if file else 4096)
    filling.clear()
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
    main(numbers[0] if numbers else 1_000_000, "--apart" in sys.argv, "--file" in sys.argv)
