# SPDX-License-Identifier: Apache-2.0
"""Options that are whole numbers: taken within their bounds, refused with both bounds otherwise."""

from __future__ import annotations

import argparse

import pytest

from pyccmem.console.numbers import whole


@pytest.mark.parametrize("text", ["2", "10", "007"])
def test_numbers_within_the_bounds(text: str) -> None:
    assert whole("a count", 2, 1000)(text) == int(text)


@pytest.mark.parametrize(
    "text", ["1", "1001", "-3", "+3", "3.0", "", " 3", "x", "²", "٣", "9" * 5000]
)
def test_all_else_is_refused_with_the_bounds(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match=r"is not a count.* from 2 to 1000"):
        whole("a count", 2, 1000)(text)
