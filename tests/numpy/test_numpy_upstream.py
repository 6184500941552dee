# SPDX-License-Identifier: Apache-2.0
"""The index expressions of NumPy's own tests, of the version that is installed, on tensors."""

from __future__ import annotations

import pytest
import upstream_indexing

pytestmark = pytest.mark.skipif(
    upstream_indexing.upstream() is None, reason="NumPy is installed without its tests"
)


def test_every_expression_agrees() -> None:
    found = upstream_indexing.run()
    assert found["different"] == []
    assert found["tried"] > 3000  # 4,000 in NumPy 2.4
    assert " passed" in found["pytest"] and "failed" not in found["pytest"]


def test_a_difference_is_noticed() -> None:
    """The control: tensors with other values."""
    found = upstream_indexing.run(("test_indexing.py",), broken=True)
    assert len(found["different"]) > 500
