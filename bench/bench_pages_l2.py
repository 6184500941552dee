# SPDX-License-Identifier: Apache-2.0
"""Claim 1: pages in L2 at 0.80 (aes-128-xts) and 0.88 (aes-256-xts) of the AES unit's ceiling, and
at 1.25 of libaegis (aegis-128x2)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from pyccmem import binding
from pyccmem.bench import native
from pyccmem.bench.pages import OPERATIONS, Pages

#: Passes over the working set in one timed call.
REPEATS = 32


@pytest.mark.parametrize("operation", list(OPERATIONS))
@pytest.mark.parametrize("tier", binding.usable_tiers())
def bench_pages(measure: Callable[..., Any], tier: str, cipher: str, operation: str) -> None:
    pages = Pages(tier, cipher, operation)
    pages.check()
    repeats = 1 if tier == "portable" else REPEATS
    nbytes = repeats * pages.nbytes
    group = f"{nbytes >> 10} KiB of pages in L2, {cipher}"
    measure(group, lambda: pages.seconds(repeats), nbytes=nbytes)


@pytest.mark.parametrize("tier", binding.usable_tiers())
def bench_ceiling(measure: Callable[..., Any], tier: str, cipher: str) -> None:
    if native.ceiling(tier, cipher, 1) == 0:
        pytest.skip(f"tier {tier} uses no AES unit")
    rate = measure(f"AES unit's ceiling, {cipher}", lambda: native.ceiling(tier, cipher, 1 << 18))
    assert rate > 0
