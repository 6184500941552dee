# SPDX-License-Identifier: Apache-2.0
"""Measures the products of gemm.py and prints them as JSON. gemm.py runs it in a new process, whose
environment sets the threads and the instructions of numpy's BLAS, torch and pyccmem.

Usage: python -m pyccmem.bench.gemm_child CIPHER ROUNDS THREADS OUTxIN... ROWS...
"""

from __future__ import annotations

import sys

from .gemm import as_json, measure_here

if __name__ == "__main__":
    cipher, rounds, threads, *rest = sys.argv[1:]
    sizes = [tuple(int(number) for number in text.split("x")) for text in rest]
    shapes = [(size[0], size[1]) for size in sizes if len(size) == 2]
    rows = [size[0] for size in sizes if len(size) == 1]
    print(as_json([*measure_here(cipher, int(rounds), shapes, rows, int(threads))]))
