# SPDX-License-Identifier: Apache-2.0
"""Measures a part of what cache.py reports and prints it as JSON. cache.py runs it anew each time.

Usage: python -m pyccmem.bench.cache_child TASK ROUNDS QUICK THREADS...
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Any

from . import cache_memory, cache_plain
from .cache_shapes import as_json


def main(task: str, rounds: int, quick: bool, counts: Sequence[int]) -> Any:
    if task == "memory":
        return cache_memory.memory(quick)
    if task == "erase":
        return cache_memory.erase(quick)
    if task == "plain-pages":
        return as_json([*cache_plain.measure_here(rounds, quick, counts)])
    import torch

    from . import cache_torch

    torch.set_grad_enabled(False)
    if task == "tokens":
        from . import cache_tokens

        return as_json([*cache_tokens.measure_here(rounds, quick, counts)])
    if task == "append":
        return as_json([*cache_torch.append(rounds, quick, counts)])
    return as_json([*cache_torch.attention(rounds, quick, counts)])


if __name__ == "__main__":
    task, *numbers = sys.argv[1:]
    rounds, quick, *counts = (int(number) for number in numbers)
    print(json.dumps(main(task, rounds, bool(quick), counts)))
