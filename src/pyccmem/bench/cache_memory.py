# SPDX-License-Identifier: Apache-2.0
"""Memory that an encrypted cache takes, and how long it takes to erase it. In a new process, whose
memory nothing else has touched (cache_child.py)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from .. import errors
from ..kv_cache import KVCache
from . import cache_shapes
from .cache_shapes import LLAMA
from .rounds import CheckError

#: Bytes of K and V as plain bfloat16 has them.
SIZE = {True: 256 << 20, False: 1 << 30}
LAYERS = 32
ERASED = {True: 3, False: 5}  # caches that are made to be erased

#: Tokens appended at a time.
STEP = 256


def memory(quick: bool, size: int | None = None) -> dict[str, float]:
    """Returns by type how many bytes a cache takes for one of plain bfloat16: as it says itself,
    and as the process has grown."""
    found = {}
    for dtype in ("bfloat16", "int8"):
        nbytes = size or SIZE[quick]
        _filled(dtype, nbytes >> 4).close()  # what a first use sets up does not count
        before = _resident()
        with _filled(dtype, nbytes) as cache:
            found[f"{dtype}/stats"] = cache.stats()["memory_bytes"] / nbytes
            after = _resident()
            if before is not None and after is not None:
                found[f"{dtype}/resident"] = (after - before) / nbytes
    return found


def erase(quick: bool, size: int | None = None) -> list[float]:
    """Returns how many seconds it took to erase each of several caches."""
    return list(_erased(ERASED[quick], size or SIZE[quick]))


def _erased(count: int, nbytes: int) -> Iterator[float]:
    for _ in range(count):
        with _filled("bfloat16", nbytes) as cache:
            query = cache_shapes.random_rows((LLAMA.query, 1, LLAMA.size), "bfloat16", 3)
            cache.attend(0, query)
            yield cache_shapes.once(cache.erase)
            try:
                cache.attend(0, query)
            except errors.ClosedError:
                continue
            raise CheckError("A cache that was erased still answers.")


def _filled(dtype: str, nbytes: int) -> KVCache:
    """Returns a cache of as many tokens as make `nbytes` of plain bfloat16, which the caller
    closes."""
    tokens = nbytes // (LAYERS * 2 * LLAMA.stored * LLAMA.size * 2)
    step = min(STEP, tokens)
    rows: Any = cache_shapes.random_rows((LLAMA.stored, step, LLAMA.size), "bfloat16", 1)
    cache = KVCache(LAYERS, LLAMA.stored, LLAMA.size, dtype=dtype)
    for begin in range(0, tokens, step):
        part = rows[:, : min(step, tokens - begin)]
        for layer in range(LAYERS):
            cache.append(layer, part, part)
    return cache


def _resident() -> int | None:
    """Returns the bytes of the process that are in memory; None where the system does not tell."""
    try:
        with open("/proc/self/status", encoding="ascii") as status:
            for line in status:
                if line.startswith("VmRSS:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    return None
