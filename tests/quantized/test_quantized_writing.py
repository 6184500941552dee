# SPDX-License-Identifier: Apache-2.0
"""Tensors of blocks that are made of arrays and written, row by row."""

from __future__ import annotations

import gc
from typing import Any

import numpy as np
import pytest
import support

import pyccmem
from pyccmem import EncryptedTensor, QuantizedTensor, errors
from pyccmem.quantized import (
    FORMATS,
    BlockFormat,
    dequantize_blocks,
    quantize_blocks,
    quantize_rows,
)

SOME = [FORMATS[name] for name in ("q4_0", "q4_k", "int8_g128", "int8_row")]


@pytest.fixture
def key() -> Any:
    with pyccmem.Key.generate() as made:
        yield made


def plain_of(kind: BlockFormat, x: np.ndarray) -> np.ndarray:
    """What blocks of x stand for."""
    if kind.scaled_rows:
        q, scale = quantize_rows(x)
        return q.astype(np.float32) * scale[..., None]
    return dequantize_blocks(quantize_blocks(x, kind), kind)


def same(a: Any, b: Any) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype and bool((a == b).all())


@pytest.mark.parametrize("kind", FORMATS.values(), ids=str)
def test_an_array_is_quantised_the_same_everywhere(kind: BlockFormat, key: Any) -> None:
    x = np.random.default_rng(0).normal(size=(3, 5, 512)).astype(np.float32)
    wanted = plain_of(kind, x)
    arenas = [pyccmem.Arena(key=key, frozen=frozen) for frozen in (False, True)]
    for options in ({"key": key}, {"arena": arenas[0]}, {"arena": arenas[1]},
                    {"key": key, "cipher": "aes-256-xts", "page_size": 8192}):  # fmt: skip
        for t in (
            EncryptedTensor.from_numpy(x, dtype=kind.name, name="w", **options),
            QuantizedTensor.from_numpy(x, kind, name="w", **options),
        ):
            with t:
                assert isinstance(t, QuantizedTensor) and t.format is kind and t.name == "w"
                assert same(t.dequantize(), wanted)
    other = x.transpose(1, 0, 2).astype(np.float64)
    with QuantizedTensor.from_numpy(other, kind, key=key) as t:
        assert same(t.dequantize(), wanted.transpose(1, 0, 2))
    with EncryptedTensor.zeros((2, 512), kind.name, key=key) as zero:
        assert zero.shape == (2, 512) and not zero.dequantize().any()
        assert isinstance(zero, QuantizedTensor)
    with QuantizedTensor.zeros((2, 512), kind, arena=arenas[1]) as zero:
        assert not zero.dequantize().any() and zero.frozen
        with pytest.raises(errors.FrozenError):
            zero[0] = 1
        zero.thaw()
        zero[0] = x[0, 0]
        assert same(zero[0], wanted[0, 0])


def test_a_large_array_is_quantised_in_parts(key: Any) -> None:
    """Across parts, and where rows of an arena begin and end within its own."""
    x = np.random.default_rng(1).normal(size=(1100, 1280)).astype(np.float32)
    for kind in SOME:
        wanted = plain_of(kind, x)
        gc.collect()
        pyccmem.set_plaintext_budget(pyccmem.stats()["plain_in_use"] + (4 << 20))
        try:
            t = QuantizedTensor.from_numpy(x, kind, key=key)
            arena = pyccmem.Arena(key=key, frozen=True)
            u = QuantizedTensor.from_numpy(x, kind, arena=arena) if not kind.scaled_rows else None
        finally:
            pyccmem.set_plaintext_budget(None)
        assert same(t.dequantize(), wanted)
        assert u is None or same(u.dequantize(), wanted)


@pytest.mark.parametrize("kind", SOME, ids=str)
def test_rows_are_written_as_numpy_writes_them(kind: BlockFormat, key: Any) -> None:
    rng = np.random.default_rng(2)
    x = rng.normal(size=(9, 2, 256)).astype(np.float32)
    t, wanted = QuantizedTensor.from_numpy(x, kind, key=key), plain_of(kind, x)
    rows = rng.normal(size=(4, 2, 256)).astype(np.float32)
    for index, value in [
        (0, rows[0]),
        (-1, rows[1].astype(np.float64)),
        (slice(2, 4), rows[:2]),
        (slice(8, 4, -1), rows),
        ([3, 1, 3], rows[:3]),
        ((slice(None), 1), rows[0, 0]),
        (np.arange(9) % 3 == 0, rows[:3]),
        ((np.array([7, 8]), np.array([0, 1])), rows[:2, 0]),
        (slice(5, 5), rows[:0]),
        (4, 0.25),
        (Ellipsis, rows[:1]),
        ((1, 1, slice(None)), rows[0, 0]),
    ]:
        t[index] = value
        shape = wanted[index].shape
        wanted[index] = plain_of(kind, np.ascontiguousarray(np.broadcast_to(value, shape)))
        assert same(t.dequantize(), wanted), index
    other = QuantizedTensor.from_numpy(rows[0], kind, key=key)
    t[6] = other
    wanted[6] = plain_of(kind, other.dequantize())
    assert same(t.dequantize(), wanted)


def test_what_cannot_be_written_is_refused(key: Any) -> None:
    x = np.ones((4, 64), np.float32)
    t = QuantizedTensor.from_numpy(x, "q8_0", key=key)
    for index in ((0, 3), (slice(None), slice(2)), (..., [1, 2])):
        with pytest.raises(errors.ArgumentError, match="part of a row"):
            t[index] = 1
    with pytest.raises(errors.ArgumentError, match=r"\[1, 9\] is NaN"):
        bad = x.copy()
        bad[1, 9] = np.nan
        t[:] = bad
    with pytest.raises(errors.ArgumentError, match="does not fit"):
        t[:2] = x[:3]
    with pytest.raises(errors.IndexingError):
        t[4] = 1
    with pytest.raises(errors.ArgumentTypeError, match="real numbers"):
        t[0] = 1j
    assert same(t.dequantize(), plain_of(FORMATS["q8_0"], x))
    t.freeze()
    with pytest.raises(errors.FrozenError):
        t[0] = 1
    t.close()
    with pytest.raises(errors.ClosedError):
        t[0] = 1
    with pytest.raises(errors.ArgumentError, match=r"\[0, 1\] is infinite"):
        QuantizedTensor.from_numpy(np.where(np.arange(32) == 1, np.inf, 0.0)[None], "q4_0", key=key)
    with pytest.raises(errors.ArgumentError, match="formats are"):
        QuantizedTensor.from_numpy(x, "float32", key=key)
    with pytest.raises(errors.ArgumentTypeError):
        QuantizedTensor.from_numpy(x, "q4_0")
    with pytest.raises(errors.ArgumentError, match="both given"):
        QuantizedTensor.from_numpy(x, "q4_0", key=key, arena=pyccmem.Arena(key=key))


def test_a_write_over_a_changed_page_is_refused(key: Any) -> None:
    t = QuantizedTensor.from_numpy(np.ones((64, 1024), np.float32), "q4_k", key=key)
    support.damage(t.raw.buffer, 2)
    with pytest.raises(errors.IntegrityError):
        t[15] = 2
    support.damage(t.raw.buffer, 2)
    assert (t[15] == t[16]).all()


def test_other_dtypes_are_converted(key: Any) -> None:
    """from_numpy() takes a dtype of NumPy's as well."""
    x = np.arange(3000, dtype=np.float64).reshape(30, 100) / 7
    for arena in (None, pyccmem.Arena(key=key), pyccmem.Arena(key=key, frozen=True)):
        place = {"key": key} if arena is None else {"arena": arena}
        for dtype in (np.float16, "float32", np.float64, np.int16):
            t = EncryptedTensor.from_numpy(x, dtype=dtype, **place)
            assert same(t[...], x.astype(dtype))
            assert same(
                EncryptedTensor.from_numpy(x.T, dtype=dtype, **place)[...], x.T.astype(dtype)
            )
    with pytest.raises(errors.ArgumentTypeError, match="not a dtype"):
        EncryptedTensor.from_numpy(x, dtype="q9_k", key=key)
