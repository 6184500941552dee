# SPDX-License-Identifier: Apache-2.0
"""Claim 2: bulk reads and writes at 0.95 (aegis-128x2), 0.85 (aes-128-xts) and 0.75 (aes-256-xts)
of memcpy; aegis-128x2 opened into a scratch that stays in the cache at 0.85 of a plain read."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from pyccmem import binding
from pyccmem.bench import native
from pyccmem.bench.bulk import SCRATCHES, Bulk

SIZE = 64 << 20


@pytest.fixture(scope="module", params=binding.CIPHERS)
def bulk(request: pytest.FixtureRequest) -> Iterator[Bulk]:
    with native.threads(1):
        made = Bulk(request.param, SIZE)
        made.check()
        yield made
        made.close()


@pytest.mark.parametrize("operation", ["memcpy", "write", "read_into"])
def bench_bulk(measure: Callable[..., Any], bulk: Bulk, operation: str) -> None:
    group = f"{SIZE >> 20} MiB in one call, {bulk.buffer.cipher}"
    measure(group, getattr(bulk, operation), nbytes=SIZE)


@pytest.mark.parametrize("step", SCRATCHES)
def bench_scratch(measure: Callable[..., Any], bulk: Bulk, step: int) -> None:
    group = f"{SIZE >> 20} MiB opened into scratch, {bulk.buffer.cipher}"
    measure(group, lambda: bulk.scratch(step), nbytes=SIZE)


def bench_plain_read(measure: Callable[..., Any], bulk: Bulk) -> None:
    group = f"{SIZE >> 20} MiB opened into scratch, {bulk.buffer.cipher}"
    measure(group, bulk.plain_read, nbytes=SIZE)
