# SPDX-License-Identifier: Apache-2.0
"""Claim 9: a first pass over a mapping, by mechanism, beside read_into() of the same bytes. Here a
mapping is made and closed as well each time; `pyccmem bench --only mapping` times the pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from pyccmem.bench import mapping, native
from pyccmem.bench.rounds import random_bytes
from pyccmem.buffer import EncryptedBuffer

SIZE = 256 << 20


@pytest.fixture(scope="module")
def buffer() -> Iterator[EncryptedBuffer]:
    plain = random_bytes(64 << 20)
    with mapping.filled(plain, SIZE, "aegis-128x2") as made:
        with mapping.mapping(made, mapping.WINDOW, "sigsegv") as array:
            native.must_equal(array[: len(plain)], plain, "a mapping")
        yield made


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("mechanism", mapping.MECHANISMS)
def bench_first_pass(
    measure: Callable[..., Any], buffer: EncryptedBuffer, mechanism: str, threads: int
) -> None:
    if not mapping.usable(mechanism):
        pytest.skip("this system does not offer the mechanism")
    measure("256 MiB", lambda: mapping.first_pass(buffer, mechanism, threads), nbytes=SIZE)


def bench_read_into(measure: Callable[..., Any], buffer: EncryptedBuffer) -> None:
    out = np.zeros(SIZE, np.uint8)
    measure("256 MiB", lambda: mapping.read_into(buffer, out), nbytes=SIZE)
