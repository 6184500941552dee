# SPDX-License-Identifier: Apache-2.0
"""pyccmem.linear() with "int8_row": x is rounded to int8, and multiplied in whole numbers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import support

import pyccmem
from pyccmem import errors
from pyccmem.quantized import QuantizedTensor


@pytest.fixture
def key() -> Iterator[Any]:
    with pyccmem.Key.generate() as key:
        yield key


def made(key: Any, shape: tuple[int, int], **options: Any) -> tuple[QuantizedTensor, Any, Any]:
    """A tensor, its whole numbers, and its scales."""
    rng = np.random.default_rng(shape[0])
    whole = rng.integers(-128, 128, shape, dtype=np.int8)
    scale = rng.uniform(0.001, 0.02, shape[0]).astype(np.float32)
    raw = pyccmem.EncryptedTensor.from_numpy(whole.view(np.uint8), key=key, **options)
    scales = pyccmem.EncryptedTensor.from_numpy(scale, key=key, **options)
    return QuantizedTensor.from_blocks(raw, "int8_row", shape, scales), whole, scale


def expected(x: Any, whole: Any, scale: Any, bias: Any = 0.0) -> Any:
    """What docs/design/quantized-products.md says, operation by operation."""
    most = np.abs(x).max(axis=-1, keepdims=True)
    q = np.rint(x * (np.float32(127) / most)).astype(np.int64)
    sums = (q @ whole.T.astype(np.int64)).astype(np.float32)
    return sums * (most / np.float32(127) * scale) + np.float32(bias)


@pytest.mark.parametrize("cipher", ["aegis-128x2", "aes-128-xts"])
@pytest.mark.parametrize("shape", [(512,), (1, 512), (3, 5, 512), (40, 512)])
def test_whole_numbers_to_the_bit(key: Any, cipher: str, shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(1)
    x = rng.standard_normal(shape).astype(np.float32)
    bias = rng.standard_normal(70).astype(np.float32)
    t, whole, scale = made(key, (70, 512), cipher=cipher)
    with t, pyccmem.EncryptedTensor.from_numpy(bias, key=key) as sealed:
        y = pyccmem.linear(x, t, bias)
        assert y.shape == (*shape[:-1], 70)
        assert y.tobytes() == expected(x, whole, scale, bias).tobytes()
        assert t.linear(x).tobytes() == expected(x, whole, scale).tobytes()
        assert pyccmem.linear(x, t, sealed).tobytes() == y.tobytes()
        exact = x.astype(np.float64) @ t.dequantize().T.astype(np.float64) + bias
        most = np.abs(x).max(axis=-1, keepdims=True) / 254
        room = most * np.abs(t.dequantize()).sum(1) * 1.001 + 1e-6 * (np.abs(y) + np.abs(bias))
        assert (np.abs(y - exact) <= room).all()
        assert (np.abs(y - exact) > 1e-5).any()  # x was rounded


def test_other_types_of_x(key: Any) -> None:
    t, whole, scale = made(key, (30, 96))
    x = np.random.default_rng(2).standard_normal((4, 96))
    with t:
        half = pyccmem.linear(x.astype(np.float16), t)
        assert (
            half.tobytes()
            == expected(x.astype(np.float16).astype(np.float32), whole, scale).tobytes()
        )
        double = pyccmem.linear(x, t)  # float64 is not rounded
        assert double.dtype == np.float64
        assert np.allclose(double, x @ t.dequantize().T.astype(np.float64), rtol=1e-9)
        x[1, 5] = np.nan
        y = pyccmem.linear(x.astype(np.float32), t)
        assert np.isnan(y[1]).all()
        assert np.isfinite(y[[0, 2, 3]]).all()
        assert pyccmem.linear(np.zeros((0, 96), np.float32), t).shape == (0, 30)
        assert not pyccmem.linear(np.zeros((2, 96), np.float32), t).any()


@pytest.mark.parametrize("part", ["raw", "scale"])
@pytest.mark.parametrize("rows", [1, 30])
def test_a_changed_page_or_scale_raises(key: Any, rows: int, part: str) -> None:
    t, _, _ = made(key, (70, 512))
    x = np.ones((rows, 512), np.float32)
    with t:
        assert pyccmem.linear(x, t).any()
        support.damage(getattr(t, part).buffer, 0)
        with pytest.raises(errors.IntegrityError, match=getattr(t, part).name):
            pyccmem.linear(x, t)
    with pytest.raises(errors.ClosedError):
        pyccmem.linear(x, t)


def test_scales_and_x_leave_no_plaintext(key: Any) -> None:
    t, _, _ = made(key, (70, 512))
    with t:
        pyccmem.linear(np.ones((2, 512), np.float32), t)
        before = pyccmem.stats()["plain_in_use"]
        for rows in (1, 30):
            pyccmem.linear(np.ones((rows, 512), np.float32), t)
        assert pyccmem.stats()["plain_in_use"] == before
