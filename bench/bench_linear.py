# SPDX-License-Identifier: Apache-2.0
"""Claim 7: products with an encrypted matrix against numpy's with the plain one, one thread inside
pyccmem. numpy's BLAS takes its number of threads from the environment: to compare the two, start
with OPENBLAS_NUM_THREADS=1. `pyccmem bench --only linear` sees to that itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from pyccmem import binding
from pyccmem.bench import native
from pyccmem.bench.linear import NARROW, SQUARE, Products

ROWS = (1, 8, 64)
VARIANTS = [
    *((cipher, "float32") for cipher in binding.CIPHERS),
    *(("aegis-128x2", kind) for kind in NARROW),
]


@pytest.fixture(scope="module")
def products() -> Iterator[Products]:
    pytest.importorskip("ml_dtypes")
    with native.threads(1):
        made = Products(SQUARE, VARIANTS, max(ROWS))
        for rows in ROWS:
            made.check(rows, VARIANTS)
        yield made
        made.close()


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("variant", VARIANTS, ids="-".join)
def bench_linear(
    measure: Callable[..., Any], products: Products, variant: tuple[str, str], rows: int
) -> None:
    measure(f"{rows} rows of x", lambda: products.product(variant, rows), rounds=5)


@pytest.mark.parametrize("rows", ROWS)
def bench_plain(measure: Callable[..., Any], products: Products, rows: int) -> None:
    measure(f"{rows} rows of x", lambda: products.reference(rows), rounds=5)
