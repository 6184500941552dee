# SPDX-License-Identifier: Apache-2.0
"""What several claims need: sizes by cipher, a number of threads, the check of a result."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from time import perf_counter
from typing import Any

from .. import errors, measure
from ..process import get_num_threads, set_num_threads
from .rounds import CheckError, Plan

__all__ = [
    "KEY_BYTES",
    "PAGE",
    "TAGGED",
    "TAG_BYTES",
    "ceiling_wall",
    "must_equal",
    "pages_seconds",
    "representatives",
    "threads",
]

#: The page size that a benchmark uses unless it says otherwise.
PAGE = 4096

#: Bytes of the key: K1 || K2 for XTS.
KEY_BYTES = {name: suite.subkey_size for name, suite in measure.SUITES.items()}

#: The ciphers whose pages carry a tag, and its size.
TAGGED = frozenset(name for name, suite in measure.SUITES.items() if suite.tag_size)
TAG_BYTES = max(suite.tag_size for suite in measure.SUITES.values())


def ceiling_wall(tier: str, cipher: str, repeats: int) -> float:
    """Returns the seconds that measure.ceiling() itself takes, to choose its repeats by."""
    start = perf_counter()
    measure.ceiling(tier, cipher, repeats)
    return perf_counter() - start


def pages_seconds(tier: str, cipher: str, seal: bool, source: Any, out: Any, repeats: int) -> float:
    """Times measure.pages(). Raises CheckError when a page does not open again."""
    try:
        operation = "seal" if seal else "open"
        return measure.pages(tier, cipher, operation, source, out, repeats, page_size=PAGE)
    except errors.IntegrityError:
        raise CheckError(f"{tier}, {cipher}: a sealed page does not open again.") from None


@contextmanager
def threads(number: int) -> Iterator[None]:
    """Makes bulk operations of the block use `number` threads, and as many as before afterwards."""
    before = get_num_threads()
    set_num_threads(number)
    try:
        yield
    finally:
        set_num_threads(before)


def representatives(plan: Plan) -> tuple[str, ...]:
    """Returns the first of the run's ciphers with tags and the first without: what costs the same
    for both key sizes of XTS need not be measured twice."""
    kinds = {cipher in TAGGED: cipher for cipher in reversed(plan.ciphers)}
    return tuple(cipher for cipher in plan.ciphers if cipher in kinds.values())


def must_equal(got: Any, expected: Any, what: str) -> None:
    """Raises CheckError unless the two hold the same bytes."""
    if memoryview(got).cast("B") != memoryview(expected).cast("B"):
        raise CheckError(f"{what}: the result is wrong, so its speed means nothing.")
