# SPDX-License-Identifier: Apache-2.0
"""Claim 5: building a buffer takes no more than 16 MiB beside source and ciphertext, and metadata
no more than 1 %. These are sizes, not speeds, so here they must hold."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pyccmem import EncryptedBuffer, Key
from pyccmem.bench import build
from pyccmem.bench.rounds import random_bytes

SIZE = 64 << 20


def bench_build(measure: Callable[..., Any], cipher: str) -> None:
    source = random_bytes(SIZE)
    with Key.generate() as key:

        def build_one() -> bytes:
            with EncryptedBuffer.from_data(source, key=key, cipher=cipher) as buffer:
                return buffer.read(SIZE - 4096)

        last = measure(f"building from {SIZE >> 20} MiB", build_one, nbytes=SIZE)
    assert last == source[-4096:].tobytes()


def bench_build_memory(measure: Callable[..., Any], cipher: str) -> None:
    size = 4 * SIZE
    result = measure("building in a new process", lambda: build.measure(size, cipher), rounds=1)
    overhead = 100 * result["overhead"] / result["ciphertext"]
    assert overhead <= build.TARGET_METADATA
    if "peak" in result:
        extra = result["peak"] - result["source"] - result["ciphertext"]
        assert extra <= build.TARGET_PEAK * 2**20
