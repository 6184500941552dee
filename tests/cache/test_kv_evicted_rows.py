# SPDX-License-Identifier: Apache-2.0
"""Rows of q that see only tokens that have been evicted, beside rows that see others."""

from __future__ import annotations

import numpy as np
import pytest

import pyccmem


@pytest.mark.parametrize("rows", [2, 105, 110, 150])
def test_rows_before_the_first_token_are_zeros(rows: int) -> None:
    rng = np.random.default_rng(rows)
    with pyccmem.KVCache(1, 1, 64, dtype="float32") as cache:
        k, v = rng.standard_normal((2, 1, 200, 64)).astype(np.float32)
        cache.append(0, k, v)
        cache.evict(97)
        first = cache.first()
        assert first == 96
        q = rng.standard_normal((2, rows, 64)).astype(np.float32)
        y = cache.attend(0, q)
    for row in range(rows):
        end = 200 - rows + row + 1
        if end <= first:
            assert not y[:, row].any(), row
            continue
        scores = q[:, row].astype(np.float64) @ k[0, first:end].T / 8
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        wanted = weights @ v[0, first:end] / weights.sum(-1, keepdims=True)
        assert np.allclose(y[:, row], wanted, rtol=1e-4, atol=1e-5), row
