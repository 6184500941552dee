# SPDX-License-Identifier: Apache-2.0
"""Quantisers: no larger an error than those of ggml, and what cannot be quantised is refused."""

from __future__ import annotations

import ctypes
import importlib.util
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import pyccmem
from pyccmem import errors
from pyccmem.quantized import (
    FORMATS,
    BlockFormat,
    dequantize_blocks,
    quantize_blocks,
    quantize_rows,
)

BLOCKS = [f for f in FORMATS.values() if not f.scaled_rows]
COLS = 2048


def _rows() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    n = 4 * COLS
    normal = rng.normal(size=n)
    return {
        "normal": normal,
        "small": 0.02 * normal,
        "huge": 1e4 * normal,
        "tiny": 1e-6 * normal,
        "below float16": 1e-12 * normal,
        "subnormal": 1e-42 * normal,
        "student": rng.standard_t(3, size=n),
        "cauchy": np.clip(rng.standard_cauchy(size=n), -1e3, 1e3),
        "laplace": rng.laplace(size=n),
        "uniform": rng.uniform(-1, 1, size=n),
        "positive": rng.uniform(0, 1, size=n),
        "shifted": normal + 5,
        "blocks of their own": normal * np.repeat(np.exp(rng.normal(size=n // 32)), 32),
        "mixed": normal * np.exp(2 * rng.normal(size=n)),
        "sparse": np.where(rng.random(n) < 0.05, normal, 0),
        "one": np.where(np.arange(n) % 256 == 17, 1.0, 0),
        "constants": np.repeat(rng.normal(size=n // 256), 256),
        "constant": np.full(n, 0.1),
        "negative constant": np.full(n, -0.37),
        "zero": np.zeros(n),
    }


ROWS = {name: row.astype(np.float32).reshape(4, COLS) for name, row in _rows().items()}


def error_of(kind: BlockFormat, packed: np.ndarray, x: np.ndarray) -> float:
    return float(np.sqrt(np.mean((dequantize_blocks(packed, kind).astype(np.float64) - x) ** 2)))


def room(x: np.ndarray) -> float:
    """What the rounding of scales to float16 may cost where a format can hit a number by chance,
    such as a constant: half a unit in the last of 11 bits, or of its subnormal numbers."""
    return 2.0**-11 * float(np.abs(x).max()) + 2.0**-25


def no_worse(
    reference: Callable[[np.ndarray], np.ndarray], kind: BlockFormat, names: list[str]
) -> None:
    for name in names:
        x = ROWS[name]
        with np.errstate(all="ignore"):
            wanted = error_of(kind, reference(x), x)
        got = error_of(kind, quantize_blocks(x, kind), x)
        regular = name not in ("one", "constants", "constant", "negative constant", "tiny")
        assert got <= wanted * (1 + 1e-6) + (0 if regular else room(x)), (name, got, wanted)


@pytest.mark.parametrize("name", ["q4_0", "q4_1", "q5_0", "q5_1", "q8_0"])
def test_the_error_is_no_larger_than_that_of_gguf(name: str) -> None:
    quants = pytest.importorskip("gguf.quants")
    kind = FORMATS[name]
    type_ = quants.GGMLQuantizationType(kind.gguf)

    def reference(x: np.ndarray) -> np.ndarray:
        return quants.quantize(x, type_)

    no_worse(reference, kind, list(ROWS))
    # The control: a reference that uses the blocks better is not reached.
    better = {"q4_0": "q5_0", "q4_1": "q5_1", "q5_0": "q8_0", "q5_1": "q8_0"}.get(name)
    if better is not None:
        x = ROWS["normal"]
        fine = error_of(FORMATS[better], quants.quantize(x, quants.GGMLQuantizationType(
            FORMATS[better].gguf)), x)  # fmt: skip
        assert error_of(kind, quantize_blocks(x, kind), x) > fine


def ggml() -> ctypes.CDLL:
    """The ggml that comes with xllamacpp, whose functions can be called."""
    spec = importlib.util.find_spec("xllamacpp")
    if spec is None or spec.origin is None:
        pytest.skip("xllamacpp is not installed, which brings a ggml")
    found = next(Path(spec.origin).parent.glob("*.so"))
    try:
        library = ctypes.CDLL(str(found))
        call = library.ggml_quantize_chunk
    except (OSError, AttributeError) as error:
        pytest.skip(f"the ggml in {found.name} cannot be called: {error}")
    call.restype = ctypes.c_size_t
    call.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, *[ctypes.c_int64] * 3,
                     ctypes.c_void_p]  # fmt: skip
    return library


@pytest.mark.parametrize("kind", [f for f in BLOCKS if f.gguf is not None], ids=str)
def test_the_error_is_no_larger_than_that_of_ggml(kind: BlockFormat) -> None:
    library = ggml()

    def reference(x: np.ndarray) -> np.ndarray:
        out = np.empty(kind.packed_shape(x.shape), np.uint8)
        library.ggml_quantize_chunk(
            kind.gguf, x.ctypes.data, out.ctypes.data, 0, len(x), x.shape[1], None
        )
        return out

    no_worse(reference, kind, list(ROWS))


def simple(x: np.ndarray, kind: BlockFormat) -> np.ndarray:
    """The error of the usual way to make groups: the largest number, or the range, gets the
    largest whole number."""
    lines = x.astype(np.float64).reshape(-1, kind.elements)
    if kind.name.endswith("_zp"):
        levels = 15 if kind.name.startswith("int4") else 254
        low, high = lines.min(1, keepdims=True), lines.max(1, keepdims=True)
        scale = np.maximum((high - low) / levels, 1e-300)
        return np.round((lines - low) / scale) * scale + low - lines
    most = 7 if kind.name.startswith("int4") else 127
    scale = np.maximum(np.abs(lines).max(1, keepdims=True) / most, 1e-300)
    return np.clip(np.round(lines / scale), -most - 1, most) * scale - lines


@pytest.mark.parametrize("kind", [f for f in BLOCKS if f.gguf is None], ids=str)
def test_groups_are_no_worse_than_by_their_largest(kind: BlockFormat) -> None:
    for name, x in ROWS.items():
        wanted = np.sqrt(np.mean(simple(x, kind) ** 2))
        got = error_of(kind, quantize_blocks(x, kind), x)
        most = float(np.abs(x).max())
        assert got <= wanted * (1 + 1e-6) + 2.0**-22 * most + 2.0**-143, name


def test_rows_of_bytes() -> None:
    for name, x in ROWS.items():
        q, scale = quantize_rows(x)
        assert q.dtype == np.int8 and q.shape == x.shape and scale.shape == (4,)
        assert q.min() >= -127
        got = q.astype(np.float64) * scale.astype(np.float64)[:, None] - x
        step = np.abs(x).max(1, keepdims=True).astype(np.float64) / 127
        plain = np.round(x / np.maximum(step, 1e-300)) * step - x
        room_ = 2.0**-22 * np.abs(x).max() + 2.0**-146
        assert np.sqrt(np.mean(got**2)) <= np.sqrt(np.mean(plain**2)) + room_, name
    q, scale = quantize_rows(np.array([[3.0, -1.5, 0], [0, 0, 0]]))
    assert np.array_equal(q, [[127, -64, 0], [0, 0, 0]]) or np.abs(q[0]).max() == 127
    assert scale[1] == 0


@pytest.mark.parametrize("kind", BLOCKS, ids=str)
def test_what_blocks_hold_is_kept(kind: BlockFormat) -> None:
    """Quantising what blocks stand for gives blocks that stand for about the same; of numbers that
    the block's largest can reach, exactly."""
    x = np.tile(np.arange(-8, 8, dtype=np.float32), 64).reshape(1, -1)
    if kind.name in ("q4_0", "q4_1", "q5_0", "int4_g32", "int4_g128_zp"):
        got = dequantize_blocks(quantize_blocks(x, kind), kind)
        assert np.array_equal(got, x)
    once = dequantize_blocks(quantize_blocks(ROWS["normal"], kind), kind)
    twice = dequantize_blocks(quantize_blocks(once, kind), kind)
    first = np.sqrt(np.mean((once - ROWS["normal"]) ** 2))
    assert np.sqrt(np.mean((twice - once) ** 2)) <= 0.6 * first


@pytest.mark.parametrize("kind", FORMATS.values(), ids=str)
def test_numbers_that_are_too_large_are_held_at_the_largest(kind: BlockFormat) -> None:
    """float16's scales end at 65504: what is larger stays finite."""
    x = np.full((1, 256), 1e30, np.float32)
    x[0, ::2] = -3e38
    with np.errstate(over="ignore"):
        if kind.scaled_rows:
            q, scale = quantize_rows(x)
            got = q.astype(np.float32) * scale[:, None]
        else:
            got = dequantize_blocks(quantize_blocks(x, kind), kind)
    assert np.isfinite(got).all() and (got[0, ::2] <= 0).all()
    if kind.gguf is None:
        assert np.allclose(got[0, ::2], -3e38, rtol=0.1)


@pytest.mark.parametrize("kind", [f for f in BLOCKS if f.gguf is not None], ids=str)
def test_scales_that_float16_cannot_hold_are_its_largest(kind: BlockFormat) -> None:
    """A scale that overflowed would make the block zeros."""
    for size in (1e9, 1e30, 3e38):
        x = np.full((1, 256), size, np.float32)
        x[0, ::2] *= -1
        got = dequantize_blocks(quantize_blocks(x, kind), kind)
        assert np.array_equal(np.sign(got), np.sign(x))
        assert np.abs(got).max() >= 2 * 65504  # a scale of 65504 times 2 at least
    if kind.name == "q4_0":
        assert sorted(set(np.abs(got[0]).tolist())) == [7 * 65504.0, 8 * 65504.0]


@pytest.mark.parametrize("kind", FORMATS.values(), ids=str)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_refused_with_its_place(kind: BlockFormat, bad: float) -> None:
    x = np.ones((2, 3, 512), np.float32)
    for place in ((0, 0, 0), (1, 2, 511), (1, 0, 77)):
        x[place] = bad
        name = "NaN" if np.isnan(bad) else "infinite"
        with pytest.raises(
            errors.ArgumentError, match=rf"\[{', '.join(map(str, place))}\] is {name}"
        ):
            quantize_rows(x) if kind.scaled_rows else quantize_blocks(x, kind)
        x[place] = 1
    with pytest.raises(errors.ArgumentError, match="is infinite"):
        wide = np.full((1, 512), 1e300)  # no float32
        quantize_rows(wide) if kind.scaled_rows else quantize_blocks(wide, kind)


def test_threads_and_layouts_make_no_difference() -> None:
    x = np.random.default_rng(1).normal(size=(512, 600)).astype(np.float32).T  # not contiguous
    before = pyccmem.get_num_threads()
    try:
        for kind in BLOCKS:
            pyccmem.set_num_threads(1)
            one = quantize_blocks(np.ascontiguousarray(x), kind)
            pyccmem.set_num_threads(3)
            assert np.array_equal(quantize_blocks(x, kind), one)
            assert np.array_equal(quantize_blocks(x.astype(np.float64), kind), one)
    finally:
        pyccmem.set_num_threads(before)


def test_arguments_are_checked() -> None:
    x = np.ones((2, 64), np.float32)
    with pytest.raises(errors.ArgumentError, match="use quantize_rows"):
        quantize_blocks(x, "int8_row")
    with pytest.raises(errors.ArgumentError, match="multiple of 256"):
        quantize_blocks(x, "q4_k")
    with pytest.raises(errors.ArgumentError, match="number alone"):
        quantize_blocks(np.float32(1), "q4_0")
    for wrong in (x.astype(complex), np.array(["a"] * 32), x.astype("M8[s]")):
        with pytest.raises(errors.ArgumentTypeError, match="real numbers"):
            quantize_blocks(wrong, "q4_0")
    assert quantize_blocks(np.ones((0, 64)), "q4_0").shape == (0, 36)
    assert quantize_blocks(np.ones((3, 0)), "q4_0").shape == (3, 0)
    assert quantize_blocks(np.arange(32), "q8_0").shape == (34,)
    assert quantize_rows(np.ones((0, 4)))[1].shape == (0,)
