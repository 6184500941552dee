# SPDX-License-Identifier: Apache-2.0
"""ccmem_store_linear_blocks: results, bounds, sameness of bits, refusals, changed pages."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Iterator

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from native_store import NativeStore as Store
from native_store import floats
from support import AEGIS, OK, PAGE_SIZES

from pyccmem.binding import CIPHERS, ffi, lib
from pyccmem.quantized import FORMATS, BlockFormat, dequantize_blocks

KINDS = [f for f in FORMATS.values() if f.name != "int8_row"]
BY_NAME = {kind.name: kind for kind in KINDS}
#: Elements of x that are quantised together, by those of a block.
UNIT = {32: 32, 64: 32, 128: 32, 256: 256}
#: Bytes of a block's head and, in K formats, where else than in q's something lies: the rest are
#: q's (csrc/quant/formats.h).
KEPT = {
    "q4_0": range(2), "q4_1": range(4), "q5_0": range(2), "q5_1": range(4), "q8_0": range(2),
    "q2_k": (*range(16), *range(80, 84)), "q3_k": range(96, 110), "q4_k": range(16),
    "q5_k": range(16), "q6_k": range(192, 210), "iq4_nl": range(2), "iq4_xs": range(8),
}  # fmt: skip
HALVES = {"q2_k": (80, 82), "q3_k": (108,), "q4_k": (0, 2), "q5_k": (0, 2), "q6_k": (208,)}


def head(kind: BlockFormat) -> list[int]:
    if kind.gguf is None:
        return list(range(8 if kind.name.endswith("_zp") else 4))
    return list(KEPT[kind.name])


def random_blocks(
    rng: np.random.Generator, kind: BlockFormat, rows: int, blocks: int
) -> np.ndarray:
    """Any bits, but scales and offsets that are finite, of both signs."""
    packed = rng.integers(0, 256, (rows, blocks, kind.nbytes), dtype=np.uint8)

    def put(at: int, dtype: type) -> None:
        values = (rng.standard_normal((rows, blocks, 1)) * 0.1).astype(dtype)
        packed[:, :, at : at + values.itemsize] = values.view(np.uint8)

    if kind.gguf is None:
        for at in range(0, len(head(kind)), 4):
            put(at, np.float32)
    else:
        for at in HALVES.get(kind.name, (0, 2) if kind.name in ("q4_1", "q5_1") else (0,)):
            put(at, np.float16)
    return packed.reshape(rows, blocks * kind.nbytes)


def linear(store: Store, offset: int, kind: BlockFormat, shape, x, bias=None):
    """Status and y; what lies behind y must stay."""
    rows, (out, width) = len(x), shape
    y = np.full((rows + 1, out), 7.5, np.float32)
    status = lib.ccmem_store_linear_blocks(
        store.handle, offset, kind.native, out, width, ffi.NULL, floats(x), rows, floats(bias),
        floats(y),
    )  # fmt: skip
    assert (y[rows:] == 7.5).all()
    return status, y[:rows]


def whole_numbers(rng: np.random.Generator, kind: BlockFormat, rows: int, width: int):
    """x that loses nothing when it is quantised: the largest of each unit is 127."""
    x = rng.integers(-127, 128, (rows, width)).astype(np.float32)
    x[:, :: UNIT[kind.elements]] = 127
    return x


def bound(kind: BlockFormat, packed: np.ndarray, x: np.ndarray, bias, *, whole: bool = False):
    """The product in float64, and what docs/design/quantized-products.md promises about the
    distance from it; with `whole`, for whole_numbers()."""
    w = dequantize_blocks(packed, kind.name).astype(np.float64)
    blocks = packed.shape[1] // kind.nbytes
    blank = packed.reshape(len(packed), blocks, kind.nbytes).copy()
    blank[:, :, [i for i in range(kind.nbytes) if i not in head(kind)]] = 0
    # With all q's stored as 0 an element is the block's offset, or what is taken from q.
    zero = dequantize_blocks(blank.reshape(packed.shape), kind.name).astype(np.float64)
    size = np.abs(w - zero) + np.abs(zero)
    x = x.astype(np.float64)
    unit = UNIT[kind.elements]
    most = np.abs(x).reshape(len(x), x.shape[1] // unit, unit).max(axis=2, initial=0)
    step = np.repeat(most / 127, unit, axis=1)
    k = w.shape[1] / 32 + 16
    g = k * 2.0**-24 / (1 - k * 2.0**-24)
    bias = np.zeros(len(w)) if bias is None else bias.astype(np.float64)
    lost = 0.0 if whole else 0.5001
    away = lost * step @ np.abs(w).T + g * ((np.abs(x) + step) @ size.T + np.abs(bias))
    return x @ w.T + bias, away + w.shape[1] * 2.0**-99 * np.abs(w).max(initial=0)


@pytest.fixture(autouse=True)
def keep_threads() -> Iterator[None]:
    before = lib.ccmem_threads()
    yield
    lib.ccmem_set_threads(before)


@settings(max_examples=200, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    name=st.sampled_from(sorted(BY_NAME)),
    cipher=st.sampled_from(sorted(CIPHERS)),
    page_size=st.sampled_from(PAGE_SIZES),
    out=st.one_of(st.sampled_from((0, 1, 2, 3, 63, 64, 65)), st.integers(0, 150)),
    blocks=st.one_of(st.sampled_from((0, 1, 2, 3)), st.integers(0, 40)),
    rows=st.one_of(st.integers(0, 9), st.integers(10, 40)),
    offset=st.integers(0, 9000),
    biased=st.booleans(),
    whole=st.booleans(),
    threads=st.sampled_from((1, 2, 4)),
)
def test_within_the_bound(
    seed, name, cipher, page_size, out, blocks, rows, offset, biased, whole, threads
):
    rng, kind = np.random.default_rng(seed), BY_NAME[name]
    lib.ccmem_set_threads(threads)
    packed = random_blocks(rng, kind, out, blocks)
    width = blocks * kind.elements
    x = rng.standard_normal((rows, width)) * 10.0 ** rng.integers(-3, 4, (rows, width))
    x = whole_numbers(rng, kind, rows, width) if whole else x.astype(np.float32)
    bias = rng.standard_normal(out).astype(np.float32) if biased else None
    with Store(offset + packed.nbytes + int(rng.integers(9000)), cipher, page_size) as store:
        store.write(offset, packed.tobytes())
        status, y = linear(store, offset, kind, (out, width), x, bias)
        assert status == OK
        exact, most = bound(kind, packed, x, bias, whole=whole)
        assert (np.abs(y - exact) <= most).all()
    if not rows:
        return
    # Bits depend neither on how many rows there are, nor on the store, nor on threads.
    lib.ccmem_set_threads(1)
    r = int(rng.integers(rows))
    with Store(packed.nbytes, AEGIS, 4096) as store:
        store.write(0, packed.tobytes())
        status, alone = linear(store, 0, kind, (out, width), x[r : r + 1], bias)
        assert status == OK
        assert alone.tobytes() == y[r : r + 1].tobytes()


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_the_bound_is_not_a_wide_one(kind: BlockFormat) -> None:
    """A bit of one q more, or one block in another's place, breaks it."""
    rng = np.random.default_rng(kind.native)
    packed = random_blocks(rng, kind, 40, 4)
    x = whole_numbers(rng, kind, 3, 4 * kind.elements)
    exact, most = bound(kind, packed, x, None, whole=True)
    moved = np.roll(packed.reshape(40, 4, -1), 1, axis=1).reshape(packed.shape)
    other, _ = bound(kind, moved, x, None)
    assert (np.abs(other - exact) > most).mean() > 0.99
    changed = packed.reshape(40, 4, -1).copy()
    changed[:, :, -1 if kind.name not in ("q2_k", "q3_k", "q6_k") else 70] ^= 1
    other, _ = bound(kind, changed.reshape(packed.shape), x, None)
    assert (np.abs(other - exact) > most).mean() > 0.9


def digest() -> str:
    """Of results of every format, with several numbers of rows, that end in all ways."""
    found = hashlib.sha256()
    for kind in KINDS:
        rng = np.random.default_rng(kind.native)
        for blocks in (1, 2, 5, 18):
            width = blocks * kind.elements
            packed = random_blocks(rng, kind, 37, blocks)
            x = rng.standard_normal((45, width)) * 10.0 ** rng.integers(-3, 4, (45, width))
            x[1] = 0
            x[2] *= 1e-32
            x[3, : width // 2] = 0
            x[4] *= 1e-30
            with Store(packed.nbytes) as store:
                store.write(0, packed.tobytes())
                for rows in (1, 5, 13, 45):
                    status, y = linear(store, 0, kind, (37, width), x[:rows].astype(np.float32))
                    assert status == OK
                    found.update(y.tobytes())
    return found.hexdigest()


def test_the_same_bits_on_every_tier() -> None:
    script = (
        "import runpy, sys; sys.path[:] = sys.argv[2:]\n"
        "print(runpy.run_path(sys.argv[1])['digest']())"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, __file__, *sys.path],
        env={**os.environ, "PYCCMEM_TIER": "portable"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == digest()


@pytest.mark.parametrize("rows", (1, 4, 13, 40))
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_extreme_numbers_do_not_saturate(kind: BlockFormat, rows: int) -> None:
    """All q's the lowest or the highest, times x of which each is the largest: sums that overflow
    16 bits where pairs are added in these. Scales of 1, so that the result is exact."""
    width = 2 * kind.elements
    for fill in (0x00, 0x7F, 0x80, 0xFF):
        packed = np.full((3, 2, kind.nbytes), fill, np.uint8)
        one = np.float32(1) if kind.gguf is None else np.float16(1)
        places = (
            range(0, len(head(kind)), 4)
            if kind.gguf is None
            else HALVES.get(kind.name, (0, 2) if kind.name in ("q4_1", "q5_1") else (0,))
        )
        for at in places:
            packed[:, :, at : at + one.nbytes] = np.frombuffer(one.tobytes(), np.uint8)
        packed = packed.reshape(3, -1)
        w = dequantize_blocks(packed, kind.name).astype(np.float64)
        for sign in (1, -1):
            x = np.full((rows, width), sign * 127, np.float32)
            with Store(packed.nbytes) as store:
                store.write(0, packed.tobytes())
                status, y = linear(store, 0, kind, (3, width), x)
            assert status == OK
            assert np.allclose(y, x.astype(np.float64) @ w.T, rtol=1e-6, atol=0)


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_what_is_no_number_makes_its_row_none(kind: BlockFormat) -> None:
    rng = np.random.default_rng(9)
    packed = random_blocks(rng, kind, 20, 3)
    x = rng.standard_normal((9, 3 * kind.elements)).astype(np.float32)
    x[1, 5], x[4, -1], x[6, 40 % x.shape[1]] = np.nan, np.inf, -np.inf
    x[2], x[3] = 0, 1e-38
    bias = rng.standard_normal(20).astype(np.float32)
    with Store(packed.nbytes) as store:
        store.write(0, packed.tobytes())
        status, y = linear(store, 0, kind, (20, x.shape[1]), x, bias)
        assert status == OK
        assert np.isnan(y[[1, 4, 6]]).all()
        assert np.isfinite(y[[0, 2, 3, 5, 7, 8]]).all()
        assert (y[2] == bias).all()
        good = [0, 5, 7, 8]
        assert (
            linear(store, 0, kind, (20, x.shape[1]), x[good], bias)[1].tobytes()
            == y[good].tobytes()
        )


@pytest.mark.parametrize("rows", (1, 3, 8, 40))
@pytest.mark.parametrize("name", ("q8_0", "q4_k", "int4_g64_zp"))
def test_a_changed_page_gives_zeros(name: str, rows: int) -> None:
    rng, kind = np.random.default_rng(5), BY_NAME[name]
    out = 200
    packed = random_blocks(rng, kind, out, 6)
    x = rng.standard_normal((rows, 6 * kind.elements)).astype(np.float32)
    for threads in (1, 2):
        lib.ccmem_set_threads(threads)
        with Store(packed.nbytes) as store:
            store.write(0, packed.tobytes())
            assert linear(store, 0, kind, (out, x.shape[1]), x)[0] == OK
            mapping = lib.ccmem_store_mapping(store.handle)
            data = ffi.cast("uint8_t *", lib.ccmem_mapping_data(mapping))
            data[packed.nbytes - 100] ^= 4
            status, y = linear(store, 0, kind, (out, x.shape[1]), x)
            lib.ccmem_mapping_release(mapping)
            assert status == lib.CCMEM_ERR_INTEGRITY
            assert not y.any()


def test_refusals() -> None:
    x, y = np.zeros((2, 512), np.float32), np.full((2, 64), 7.5, np.float32)
    scale = np.ones(4, np.float32)
    with Store(4096) as store:

        def call(offset=0, kind=lib.CCMEM_Q4_K, out=4, width=256, scale=None, x=x, rows=2, y=y):
            return lib.ccmem_store_linear_blocks(
                store.handle, offset, kind, out, width, floats(scale), floats(x), rows, ffi.NULL,
                floats(y),
            )  # fmt: skip

        wrong = lib.CCMEM_ERR_ARGUMENT
        assert call() == OK
        assert call(width=255) == call(width=128) == wrong
        assert call(kind=lib.CCMEM_BLOCK_FORMATS) == call(kind=99) == wrong
        assert call(scale=scale) == wrong
        assert call(x=None) == call(y=None) == wrong
        y[:] = 7.5
        assert call(out=29) == lib.CCMEM_ERR_RANGE
        assert not y.reshape(-1)[:58].any()
        assert call(offset=4096 - 4 * 144) == OK
        y[:] = 7.5
        assert call(offset=4097 - 4 * 144) == lib.CCMEM_ERR_RANGE
        assert not y.reshape(-1)[:8].any()
        assert (y.reshape(-1)[8:] == 7.5).all()
        y[:] = 7.5
        assert call(rows=0) == call(out=0) == OK
        assert (y == 7.5).all()
        assert call(out=2**60, y=y, rows=0) == lib.CCMEM_ERR_RANGE


def typed(store, kind, shape, x, bias, y, bias_store=None):
    """Status of the typed product; x, bias and y as NumPy has them."""
    dtypes = {np.dtype(np.float32): lib.CCMEM_F32, np.dtype(ml_dtypes.bfloat16): lib.CCMEM_BF16}
    added = ffi.new("ccmem_bias *")[0]
    added.dtype = lib.CCMEM_F32 if bias is None else dtypes[bias.dtype]
    if bias_store is not None:
        added.store, added.offset = bias_store.handle, 3
    elif bias is not None:
        added.data = ffi.cast("void *", bias.ctypes.data)
    return lib.ccmem_store_linear_blocks_typed(
        store.handle, 0, kind.native, *shape, ffi.NULL, ffi.cast("void *", x.ctypes.data),
        dtypes[x.dtype], len(x), added, ffi.cast("void *", y.ctypes.data), dtypes[y.dtype],
    )  # fmt: skip


@pytest.mark.parametrize("rows", (1, 2, 11, 40))
@pytest.mark.parametrize("name", ("q8_0", "q4_k", "int4_g128_zp"))
def test_typed_vectors(name: str, rows: int) -> None:
    """As floats, rounded once; and a bias that is read from a store or refused there."""
    rng, kind, half = np.random.default_rng(4), BY_NAME[name], ml_dtypes.bfloat16
    shape = (50, 3 * kind.elements)
    packed = random_blocks(rng, kind, 50, 3)
    x = rng.standard_normal((rows, shape[1])).astype(half)
    bias = rng.standard_normal(50).astype(half)
    with Store(packed.nbytes) as store, Store(4099) as biases:
        store.write(0, packed.tobytes())
        biases.write(3, bias.tobytes())
        wide = x.astype(np.float32)
        expected = linear(store, 0, kind, shape, wide, bias.astype(np.float32))[1]
        for x_of, y_of in ((x, half), (x, np.float32), (wide, half), (wide, np.float32)):
            for bias_store in (None, biases):
                y = np.full((rows, 50), 7.5, y_of)
                assert typed(store, kind, shape, x_of, bias, y, bias_store) == OK
                assert y.tobytes() == expected.astype(y_of).tobytes()
        y = np.full((rows, 50), 7.5, half)
        assert typed(store, kind, (50, shape[1] - 1), x, bias, y) == lib.CCMEM_ERR_ARGUMENT
        assert typed(store, kind, (51, shape[1]), x, None, np.zeros((rows, 51), half)) == (
            lib.CCMEM_ERR_RANGE
        )
        for damaged in (biases, store):
            mapping = lib.ccmem_store_mapping(damaged.handle)
            ffi.cast("uint8_t *", lib.ccmem_mapping_data(mapping))[40] ^= 1
            lib.ccmem_mapping_release(mapping)
            for y_of in (half, np.float32):
                y = np.full((rows, 50), 7.5, y_of)
                given = biases if damaged is biases else None
                assert typed(store, kind, shape, x, bias, y, given) == lib.CCMEM_ERR_INTEGRITY
                assert not y.any()


def test_int8_rows_go_with_them() -> None:
    rng = np.random.default_rng(2)
    w = rng.integers(-128, 128, (30, 70), dtype=np.int8)
    scale, x = rng.random(30).astype(np.float32), rng.standard_normal((3, 70)).astype(np.float32)
    y, other = np.zeros((3, 30), np.float32), np.zeros((3, 30), np.float32)
    with Store(w.nbytes) as store:
        store.write(0, w.tobytes())
        assert lib.ccmem_store_linear_blocks(
            store.handle, 0, lib.CCMEM_INT8_ROW, 30, 70, floats(scale), floats(x), 3, ffi.NULL,
            floats(y),
        ) == OK  # fmt: skip
        assert lib.ccmem_store_linear_int8(
            store.handle, 0, 30, 70, floats(scale), floats(x), lib.CCMEM_F32, 3,
            ffi.new("ccmem_bias *")[0], floats(other), lib.CCMEM_F32,
        ) == OK  # fmt: skip
    assert y.any() and y.tobytes() == other.tobytes()
