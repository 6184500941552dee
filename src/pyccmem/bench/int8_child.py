# SPDX-License-Identifier: Apache-2.0
"""Measures the products of int8.py and prints them as JSON. int8.py runs it in a new process.

Usage: python -m pyccmem.bench.int8_child CIPHER ROUNDS THREADS
"""

from __future__ import annotations

import json
import sys

from .int8 import measure_here

if __name__ == "__main__":
    print(json.dumps(measure_here(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))))
