# SPDX-License-Identifier: Apache-2.0
"""How the microbenchmarks hand their work to pytest-benchmark.

What is measured, and how results are checked, is pyccmem.bench's: here one operation at a time is
timed on its own, for profiling and for comparing two builds. Ratios come from `pyccmem bench`,
where subject and reference take turns.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from pyccmem import binding


@pytest.fixture(params=binding.CIPHERS)
def cipher(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def measure(benchmark: BenchmarkFixture) -> Callable[..., Any]:
    """measure(group, call, nbytes=..., count=...): times `call` in rounds, after one that warms up.
    `nbytes` and `count` are what one call does; the saved JSON then has GB/s or ns for one."""

    def run(
        group: str, call: Callable[[], Any], *, nbytes: int = 0, count: int = 0, rounds: int = 15
    ) -> Any:
        benchmark.group = group
        result = benchmark.pedantic(call, rounds=rounds, iterations=1, warmup_rounds=1)
        if benchmark.stats is not None:
            seconds = benchmark.stats.stats.median
            if nbytes:
                benchmark.extra_info["gigabytes_per_second"] = nbytes / seconds / 1e9
            if count:
                benchmark.extra_info["nanoseconds_each"] = seconds / count * 1e9
        return result

    return run
