# SPDX-License-Identifier: Apache-2.0
"""Claim 6: batches of 256 rows of 1536 bytes at random places of a table, against numpy's take. No
target: the figures say what a cipher and its page size cost here."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from pyccmem import binding
from pyccmem.bench import native
from pyccmem.bench.rows import BATCH, ROW, Rows, page_sizes

BATCHES = 20


@pytest.fixture(scope="module", params=binding.CIPHERS)
def rows(request: pytest.FixtureRequest) -> Iterator[Rows]:
    with native.threads(1):
        made = Rows(request.param)
        made.check()
        yield made
        made.close()


@pytest.mark.parametrize("page_size", page_sizes("aegis-128x2"))
def bench_gather(measure: Callable[..., Any], rows: Rows, page_size: int) -> None:
    if page_size not in rows.buffers:
        pytest.skip("this cipher opens only what is asked for, whatever the page size")
    measure(f"{ROW} bytes a row", lambda: rows.gather(page_size, BATCHES), count=BATCHES * BATCH)


def bench_take(measure: Callable[..., Any], rows: Rows) -> None:
    measure(f"{ROW} bytes a row", lambda: rows.take(BATCHES), count=BATCHES * BATCH)
