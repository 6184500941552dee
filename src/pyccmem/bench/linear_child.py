# SPDX-License-Identifier: Apache-2.0
"""Measures the products of linear.py and prints them as JSON. linear.py runs it in a new process,
whose environment sets the threads of numpy's BLAS and pyccmem.

Usage: python -m pyccmem.bench.linear_child ROUNDS CIPHER...
"""

from __future__ import annotations

import sys

from .linear import as_json, measure_here

if __name__ == "__main__":
    print(as_json([*measure_here(sys.argv[2:], int(sys.argv[1]))]))
