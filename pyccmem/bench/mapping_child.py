# SPDX-License-Identifier: Apache-2.0
"""Measures the mappings of mapping.py and prints them as JSON: run by it in a new process, whose
environment says how many threads numpy's BLAS and pyccmem use, and which keeps to so many
processors before any thread starts.

Usage: python -m pyccmem.bench.mapping_child PROCESSORS ROUNDS QUICK CIPHER...
"""

from __future__ import annotations

import os
import sys

if __name__ == "__main__":
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: int(sys.argv[1])])

    from .mapping import as_json, measure_here

    print(as_json([*measure_here(sys.argv[4:], int(sys.argv[2]), sys.argv[3] == "1")]))
