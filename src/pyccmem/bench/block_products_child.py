# SPDX-License-Identifier: Apache-2.0
"""Measures the products of block_products.py and prints them as JSON, in a process of its own.

Usage: python -m pyccmem.bench.block_products_child CIPHER ROUNDS THREADS
"""

from __future__ import annotations

import json
import sys

from .block_products import measure_here

if __name__ == "__main__":
    print(json.dumps(measure_here(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))))
