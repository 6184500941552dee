# SPDX-License-Identifier: Apache-2.0
"""Blocks become float32 as gguf's package makes them, and groups as their definition says."""

from __future__ import annotations

import numpy as np
import pytest

import pyccmem
from pyccmem import errors
from pyccmem.quantized import FORMATS, BlockFormat, dequantize_blocks

GGUF = [f for f in FORMATS.values() if f.gguf is not None]
GROUPS = [f for f in FORMATS.values() if "_g" in f.name]


def random_rows(kind: BlockFormat, rows: int = 300, blocks: int = 8) -> np.ndarray:
    """Bytes at random: every bit of every block matters, and scales are also zero, subnormal,
    infinite and not numbers."""
    rng = np.random.default_rng(kind.native)
    packed = rng.integers(0, 256, (rows, blocks * kind.nbytes), dtype=np.uint8)
    if kind.gguf is None:
        return packed
    for row, byte in zip(packed, (0x7C, 0xFC, 0, 0x80, 0x03), strict=False):
        row.reshape(blocks, -1)[:, [1, -1]] = byte  # the upper byte of d, before or behind the rest
        row.reshape(blocks, -1)[::2, [0, -2]] = 0
    return packed


def same(a: np.ndarray, b: np.ndarray) -> bool:
    """The same bits, where a number is expected; which NaN it is, nothing promises."""
    nan = np.isnan(b)
    bits = (a.view(np.uint32) == b.view(np.uint32)) | nan
    return a.shape == b.shape and bool(bits.all() and (np.isnan(a) == nan).all())


def reference(kind: BlockFormat, packed: np.ndarray) -> np.ndarray:
    quants = pytest.importorskip("gguf.quants")
    with np.errstate(all="ignore"):
        return quants.dequantize(packed, quants.GGMLQuantizationType(kind.gguf))


@pytest.mark.parametrize("kind", GGUF, ids=str)
def test_the_numbers_are_those_of_gguf(kind: BlockFormat) -> None:
    packed = random_rows(kind)
    expected = reference(kind, packed)
    assert np.isnan(expected).any() and np.isinf(expected).any()
    assert np.isfinite(expected).mean() > 0.8
    assert same(dequantize_blocks(packed, kind.name), expected)


@pytest.mark.parametrize("kind", GGUF, ids=str)
def test_each_bit_of_a_block_matters(kind: BlockFormat) -> None:
    """The control of the test above: a block with any one bit changed no longer gives the same."""
    block = np.random.default_rng(3).integers(0, 256, (1, kind.nbytes), dtype=np.uint8)
    block[0, :4] = block[0, -4:] = 0x2C  # float16's 0.065, wherever it is
    expected = reference(kind, block)
    for bit in range(8 * kind.nbytes):
        changed = block.copy()
        changed[0, bit // 8] ^= 1 << bit % 8
        assert not same(dequantize_blocks(changed, kind.name), expected), bit


def statement(kind: BlockFormat, packed: np.ndarray) -> np.ndarray:
    """The definition of the group formats in float64, element by element."""
    out = np.empty((len(packed), packed.shape[1] // kind.nbytes, kind.elements))
    plus = kind.name.endswith("_zp")
    for r, row in enumerate(packed):
        for b, block in enumerate(row.reshape(-1, kind.nbytes)):
            scale = float(block[:4].copy().view("<f4")[0])
            offset = float(block[4:8].copy().view("<f4")[0]) if plus else 0.0
            body = block[8 if plus else 4 :]
            for i in range(kind.elements):
                if kind.name.startswith("int8"):
                    q = int(body[i].view(np.int8))
                else:
                    byte = int(body[i // 32 * 16 + i % 16])
                    q = (byte >> 4 if i % 32 >= 16 else byte & 15) - (0 if plus else 8)
                out[r, b, i] = scale * q + offset if plus else scale * q
    return out.reshape(len(packed), -1)


@pytest.mark.parametrize("kind", GROUPS, ids=str)
def test_groups_are_as_defined(kind: BlockFormat) -> None:
    """The product is rounded to float32, then the sum."""
    packed = random_rows(kind, 40, 3)
    rng = np.random.default_rng(1)
    heads = packed.reshape(40, 3, -1)[:, :, : 8 if kind.name.endswith("_zp") else 4]
    heads[:] = rng.normal(size=(40, 3, heads.shape[2] // 4)).astype("<f4").view(np.uint8)
    exact, got = statement(kind, packed), dequantize_blocks(packed, kind.name)
    offset = np.repeat(heads[:, :, 4:].copy().view("<f4"), kind.elements).reshape(40, -1)
    product = np.abs(exact - offset) if offset.size else np.abs(exact)
    assert (np.abs(got - exact) <= 2.0**-24 * (product + np.abs(got)) * 1.0001).all()
    if not offset.size:
        assert same(got, exact.astype(np.float32))
    wrong = packed.copy()
    wrong[0, -1] ^= 0x10  # the control
    assert not np.array_equal(dequantize_blocks(wrong, kind.name), got)


def test_rows_of_bytes_have_their_scale_elsewhere() -> None:
    every = np.arange(256, dtype=np.uint8).reshape(2, 128)
    got = dequantize_blocks(every, "int8_row")
    assert np.array_equal(got, every.view(np.int8).astype(np.float32))


@pytest.mark.parametrize("kind", FORMATS.values(), ids=str)
def test_threads_make_no_difference(kind: BlockFormat) -> None:
    packed = random_rows(kind, 1, 200_000 // kind.elements)
    before = pyccmem.get_num_threads()
    try:
        pyccmem.set_num_threads(1)
        one = dequantize_blocks(packed, kind.name)
        pyccmem.set_num_threads(3)
        assert same(dequantize_blocks(packed, kind.name), one)
    finally:
        pyccmem.set_num_threads(before)


def test_the_sizes_are_those_of_gguf() -> None:
    constants = pytest.importorskip("gguf.constants")
    names = {f.name.upper() for f in GGUF}
    assert len(names) == 12
    for kind in GGUF:
        number = constants.GGMLQuantizationType[kind.name.upper()]
        assert kind.gguf == number
        assert constants.GGML_QUANT_SIZES[number] == (kind.elements, kind.nbytes)
    assert {f.name: f.bits for f in GROUPS}["int4_g128_zp"] == 4.5


def test_what_is_no_block_is_refused() -> None:
    for name in ("Q4_K", "q9_k", "", None, 3):
        with pytest.raises(errors.ArgumentError, match="q4_0, q4_1"):
            dequantize_blocks(np.zeros(18, np.uint8), name)  # type: ignore[arg-type]
    for shape in ((), (17,), (3, 19)):
        with pytest.raises(errors.ArgumentError, match="multiple of 18"):
            dequantize_blocks(np.zeros(shape, np.uint8), "q4_0")
    with pytest.raises(errors.ArgumentTypeError, match="float64"):
        dequantize_blocks(np.zeros(18), "q4_0")
    assert dequantize_blocks(np.zeros((0, 18), np.uint8), "q4_0").shape == (0, 32)
    assert dequantize_blocks(np.zeros((4, 0), np.uint8), "q4_0").shape == (4, 0)
    with pytest.raises(errors.ArgumentError, match="multiple of 256"):
        FORMATS["q4_k"].row_bytes(128)
    with pytest.raises(errors.ArgumentError, match="number alone"):
        FORMATS["q4_k"].packed_shape(())
    assert FORMATS["q4_k"].packed_shape((2, 3, 512)) == (6, 288)
