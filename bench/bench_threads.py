# SPDX-License-Identifier: Apache-2.0
"""Claim 3: two threads on two cores at 1.8 times the speed of one, in cache."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from pyccmem import binding
from pyccmem.bench.threads import SIZE, Scaling, cores

REPEATS = 20


@pytest.fixture(scope="module", params=binding.CIPHERS)
def scaling(request: pytest.FixtureRequest) -> Iterator[Scaling]:
    made = Scaling(request.param)
    made.check()
    yield made
    made.close()


@pytest.mark.parametrize("operation", ["write", "read_into"])
@pytest.mark.parametrize("threads", [1, 2])
def bench_threads(
    measure: Callable[..., Any], scaling: Scaling, threads: int, operation: str
) -> None:
    if threads > cores():
        pytest.skip(f"this process may use {cores()} processor only")
    group = f"{operation} of {SIZE >> 20} MiB in cache, {scaling.bulk.buffer.cipher}"
    measure(group, lambda: scaling.seconds(operation, threads, REPEATS), nbytes=REPEATS * SIZE)
