# SPDX-License-Identifier: Apache-2.0
"""The claims of `pyccmem bench`, each as one benchmark of pytest-benchmark.

What is measured, and how results are checked, is pyccmem.bench's alone. The time that
pytest-benchmark shows is that of the claim as a whole; the figures are in the saved JSON, under
`extra_info`. A wrong result fails.
"""

from __future__ import annotations

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from pyccmem.bench.command import CLAIMS
from pyccmem.bench.rounds import Figure, Plan

PLAN = Plan(rounds=5, quick=True)


@pytest.mark.parametrize("claim", CLAIMS)
def bench_claim(benchmark: BenchmarkFixture, claim: str) -> None:
    figures: list[Figure] = benchmark.pedantic(lambda: list(CLAIMS[claim](PLAN)), rounds=1)
    if not figures:
        pytest.skip("what this claim is measured with is not installed")
    for figure in figures:
        benchmark.extra_info[figure.id] = {
            "value": figure.value.median,
            "unit": figure.unit,
            "ratio": None if figure.ratio is None else figure.ratio.median,
        }
