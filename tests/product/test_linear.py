# SPDX-License-Identifier: Apache-2.0
"""Products with encrypted matrices: linear(), @ and np.matmul. Results against numpy in float64,
sameness of bits, refusals, changed pages, and what plaintext lies in memory meanwhile and after."""

from __future__ import annotations

import contextlib
import gc
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import support
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import pyccmem
from pyccmem import EncryptedBuffer, EncryptedTensor, Key, audit, errors, linear
from pyccmem.binding import ffi
from pyccmem.product import tiles
from pyccmem.product.tiles import Product

ml_dtypes = pytest.importorskip("ml_dtypes")

WEIGHTS = {
    "float32": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "int8": np.dtype(np.int8),
    "float64": np.dtype(np.float64),
}
INPUTS = ("float32", "float64", "float16", "int64", "int8", "uint8", "bool")
#: TILE_BYTES for the products that go by tiles: those that are not float32, or with columns.
WAYS = {"tiles": 1 << 20, "small tiles": 3000, "tiles of a row": 1}


@pytest.fixture(autouse=True)
def keep_threads() -> Iterator[None]:
    before = pyccmem.get_num_threads()
    yield
    pyccmem.set_num_threads(before)


@contextlib.contextmanager
def going(way: str) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        nbytes = WAYS[way]
        patch.setattr(tiles, "TILE_BYTES", nbytes)
        patch.setattr(tiles, "LARGE_TILE_BYTES", nbytes)
        yield


def numbers(rng: np.random.Generator, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    kind = np.dtype(dtype)
    if kind.kind == "b":
        return rng.integers(0, 2, shape).astype(kind)
    if kind.kind in "iu":
        return rng.integers(0 if kind.kind == "u" else -100, 101, shape).astype(kind)
    return rng.standard_normal(shape).astype(kind)


def placed(
    array: np.ndarray, offset: int = 0, cipher: str = support.AEGIS, page_size: int = 4096
) -> EncryptedTensor:
    """A tensor that begins at a byte of a buffer, with other bytes before and behind it."""
    with Key.from_bytes(support.KEY_BYTES) as key:
        data = b"\x55" * offset + array.tobytes() + b"\x66" * 77
        buffer = EncryptedBuffer.from_data(data, key=key, cipher=cipher, page_size=page_size)
    return EncryptedTensor._adopt(buffer, array.shape, array.dtype, offset)


def exact(x: Any, w: np.ndarray, bias: Any = None, scale: Any = None) -> tuple[Any, Any]:
    """linear() in float64, and the magnitude that its bound is a part of."""
    a, b = np.asarray(x).astype(np.float64), w.astype(np.float64)
    if scale is not None:
        b = b * scale.astype(np.float64)[:, None]
    add = np.zeros(len(b)) if bias is None else bias.astype(np.float64)
    return a @ b.T + add, np.abs(a) @ np.abs(b).T + np.abs(add)


def check(y: np.ndarray, expected: np.ndarray, magnitude: np.ndarray, n: int) -> None:
    unit = 2.0 ** (-24 if y.dtype == np.float32 else -52)
    assert isinstance(y, np.ndarray) and y.shape == expected.shape
    assert (np.abs(y - expected) <= (n + 10) * (1 + n * unit) * unit * magnitude).all()


# ---- results ------------------------------------------------------------------------------------


@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    seed=st.integers(0, 2**32),
    way=st.sampled_from(sorted(WAYS)),
    kind=st.sampled_from(sorted(WEIGHTS)),
    x_kind=st.sampled_from(INPUTS),
    out=st.sampled_from((0, 1, 2, 3, 17, 65)),
    width=st.sampled_from((0, 1, 5, 31, 64, 127, 1000, 1024, 1025, 2300)),
    lead=st.sampled_from(((), (0,), (1,), (2, 3), (1, 0, 2), (11,), (4, 1, 5), (70,))),
    scaled=st.booleans(),
    biased=st.booleans(),
    sealed=st.booleans(),
    threads=st.integers(1, 2),
    cipher=st.sampled_from(support.CIPHERS),
    page_size=st.sampled_from(support.PAGE_SIZES),
    offset=st.sampled_from((0, 1, 64, 128, 4095, 4096, 9001)),
    layout=st.sampled_from(("C", "F", "step", "turned")),
)
def test_within_the_bound(
    seed, way, kind, x_kind, out, width, lead, scaled, biased, sealed, threads, cipher, page_size,
    offset, layout,
):  # fmt: skip
    rng = np.random.default_rng(seed)
    pyccmem.set_num_threads(threads)
    w = numbers(rng, (out, width), WEIGHTS[kind])
    x = numbers(rng, (*lead, width), x_kind)
    if layout == "F":
        x = np.asfortranarray(x)
    elif layout == "step":
        x = np.repeat(x, 3, axis=-1)[..., ::3]
    elif layout == "turned":
        x = np.ascontiguousarray(x[..., ::-1])[..., ::-1]
    scale = numbers(rng, (out,), np.float32) if scaled and kind == "int8" else None
    bias = numbers(rng, (out,), np.float32) if biased else None
    tensor = placed(w, offset, cipher, page_size)
    kept = x.copy()

    def given(v: Any) -> Any:
        return placed(v) if sealed and v is not None else v

    with going(way):
        y = linear(x, tensor, given(bias), scale=given(scale))
        again = linear(x, tensor, given(bias), scale=given(scale))
        pyccmem.set_num_threads(3 - threads)
        other = linear(x, tensor, bias, scale=scale)
    assert y.dtype == (np.float64 if {"float64", "int64"} & {kind, x_kind} else np.float32)
    check(y, *exact(x, w, bias, scale), width)
    assert y.tobytes() == again.tobytes()
    check(other, *exact(x, w, bias, scale), width)
    if y.dtype == np.float32:  # tiles are larger for more threads
        assert y.tobytes() == other.tobytes()
    assert (x == kept).all()


@pytest.mark.parametrize("way", WAYS)
def test_a_large_bias_is_in_the_bound(way: str) -> None:
    x, w, bias = np.float32([[1e-3]]), np.float32([[1], [-1]]), np.float32([1234567, 7654321])
    with going(way):
        check(linear(x, placed(w), bias), *exact(x, w, bias), 1)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("x_kind", ["bool", "int8", "uint8", "int16", "int32", "int64"])
@pytest.mark.parametrize("kind", WEIGHTS)
def test_integers_keep_a_fractional_scale_and_bias(kind: str, x_kind: str, way: str) -> None:
    """200 * 1 * 3 does not fit in int8, nor do a half of it and a bias of a half."""
    w, half = np.full((3, 200), 3).astype(WEIGHTS[kind]), np.full(3, 0.5)
    with going(way):
        scale = half if kind == "int8" else None
        y = linear(np.ones((2, 200), x_kind), placed(w), half, scale=scale)
    assert y.dtype.kind == "f" and y.dtype.itemsize >= 4
    assert (y == (300.5 if kind == "int8" else 600.5)).all()


def test_complex_x_and_bias() -> None:
    w = numbers(np.random.default_rng(1), (5, 9), np.float32)
    x = np.full((2, 9), 1 + 2j, np.complex64)
    for way in WAYS:
        with going(way):
            y = linear(x, placed(w), np.full(5, 1j))
            assert y.dtype == np.complex64
            np.testing.assert_allclose(y, x @ w.T + 1j, rtol=1e-5)
            with pytest.raises(errors.ArgumentTypeError, match="must hold real numbers"):
                linear(x.real, placed(w), np.full(5, 1j))


def test_reshaped_and_viewed_weights() -> None:
    rng = np.random.default_rng(2)
    flat = numbers(rng, (12 * 700,), np.float32)
    x = numbers(rng, (3, 700), np.float32)
    for tensor in (placed(flat, 13).reshape(12, 700), placed(flat.view("V4"), 13).view("f4")):
        y = linear(x, tensor.reshape(12, 700))
        check(y, *exact(x, flat.reshape(12, 700)), 700)


@pytest.mark.parametrize("rows", [1, 3, 60])
@pytest.mark.parametrize("kind", ["f2", "f4", "f8"])
@pytest.mark.parametrize("order", "<>")
def test_either_byte_order(order: str, kind: str, rows: int) -> None:
    """Whole numbers, whose products are exact in any order and either byte order."""
    w = (np.arange(15 * 40).reshape(15, 40) % 17 - 8).astype(order + kind)
    x = (np.arange(rows * 40).reshape(rows, 40) % 7).astype(order + kind)
    bias = np.arange(15).astype(order + "f4")
    expected = x.astype("f8") @ w.T.astype("f8")
    weight = placed(w)
    assert np.array_equal(linear(x, weight, bias), expected + np.arange(15))
    assert np.array_equal(linear(x.astype("f4"), weight), expected)
    assert np.array_equal(np.ones((2, 15), "f4") @ weight, np.ones((2, 15)) @ w.astype("f8"))
    assert np.array_equal(weight @ x[0], expected[0])


@pytest.mark.parametrize("shape", [(3, 0), (0, 3), (0, 0)])
@pytest.mark.parametrize("way", WAYS)
def test_nothing_to_sum_leaves_the_bias(shape: tuple[int, int], way: str) -> None:
    bias = np.arange(shape[0], dtype=np.float32) + 1
    with going(way):
        y = linear(np.ones((2, shape[1]), np.float32), placed(np.zeros(shape, np.float32)), bias)
    assert y.shape == (2, shape[0])
    assert shape[1] or (y == bias).all()


# ---- @ and np.matmul ----------------------------------------------------------------------------

SHAPES = [
    ((5,), (5, 3)), ((5, 3), (3,)), ((5, 3), (3, 7)), ((1, 40), (40, 1)), ((30, 40), (40, 12)),
    ((2, 5, 3), (3, 7)), ((5, 3), (2, 3, 7)), ((5, 3), (4, 2, 3, 7)), ((4, 1, 5, 3), (3, 7)),
    ((0, 3), (3, 4)), ((4, 0), (0, 5)), ((3, 4), (4, 0)), ((2, 0, 3), (3, 4)), ((3, 4), (0, 4, 2)),
    ((5,), (5,)), ((2, 5, 3), (2, 3, 4)), ((3,), (2, 3, 4)), ((2, 5, 3), (3,)),
    ((12, 1500), (1500, 20)), ((70, 33), (33, 900)),
]  # fmt: skip


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("left", "right"), SHAPES)
def test_matmul_as_numpy(left: tuple[int, ...], right: tuple[int, ...], way: str) -> None:
    rng = np.random.default_rng(4)
    for kinds in (("f4", "f4"), ("f8", "f4"), ("f4", "f8"), ("i8", "i4"), ("i1", "i1")):
        a, b = (numbers(rng, s, k) for s, k in zip((left, right), kinds, strict=True))
        expected = np.matmul(a, b)
        exact64 = np.matmul(a.astype(np.float64), b.astype(np.float64))
        size = np.matmul(np.abs(a.astype(np.float64)), np.abs(b.astype(np.float64)))
        with going(way):
            results = [
                placed(a, 5) @ b, a @ placed(b, 5), placed(a, 5) @ placed(b, 5),
                np.matmul(placed(a), b), np.matmul(a, placed(b)), np.matmul(placed(a), placed(b)),
            ]  # fmt: skip
        for y in results:
            assert np.shape(y) == np.shape(expected), y
            assert y.dtype == expected.dtype
            if y.dtype.kind == "f":
                unit = 2.0 ** (-24 if y.dtype == np.float32 else -52)
                assert (np.abs(y - exact64) <= 2 * (left[-1] + 10) * unit * size).all()
            else:
                np.testing.assert_array_equal(y, expected)


def test_matmul_with_options_and_lists() -> None:
    a, b = np.eye(3) * 2, np.arange(9.0).reshape(3, 3)
    out = np.empty((3, 3))
    assert np.matmul(placed(a), b, out=out) is out
    np.testing.assert_array_equal(out, 2 * b)
    np.testing.assert_array_equal(placed(a) @ b.tolist(), 2 * b)
    np.testing.assert_array_equal(b.tolist() @ placed(a), 2 * b)
    target = placed(a)
    assert np.matmul(placed(a), b, out=target) is target
    np.testing.assert_array_equal(target[...], 2 * b)


# ---- refusals ------------------------------------------------------------------------------------


def test_wrong_arguments() -> None:
    w = np.ones((3, 4), np.float32)
    t, x = placed(w), np.ones((2, 4), np.float32)
    eight = placed(w.astype(np.int8))
    cases: list[tuple[Any, type[Exception], str]] = [
        (lambda: linear(x, w), errors.ArgumentTypeError, "weight must be an EncryptedTensor"),
        (lambda: linear(x, placed(w[0])), errors.ArgumentError, "must have two dimensions"),
        (lambda: linear(x, placed(w.reshape(1, 3, 4))), errors.ArgumentError, "two dimensions"),
        (lambda: linear(x, t.view("i4")), errors.ArgumentTypeError, "weight is of int32"),
        (lambda: linear(x, t.view("u1")), errors.ArgumentTypeError, "weight is of uint8"),
        (lambda: linear(x[:, :3], t), errors.ArgumentError, "last dimension must be 4"),
        (lambda: linear(1.0, t), errors.ArgumentError, "last dimension must be 4"),
        (lambda: linear("a", t), errors.ArgumentTypeError, "x is of .*must hold numbers"),
        (lambda: linear([[1], [1, 2]], t), errors.ArgumentTypeError, "x is not an array"),
        (lambda: linear(x, t, np.ones(4)), errors.ArgumentError, "bias has shape .4,."),
        (lambda: linear(x, t, 1.0), errors.ArgumentError, "bias has shape"),
        (lambda: linear(x, t, ["a"] * 3), errors.ArgumentTypeError, "bias is of"),
        (lambda: linear(x, t, scale=np.ones(3)), errors.ArgumentError, "scale is for weights"),
        (lambda: linear(x, eight, scale=np.ones(2)), errors.ArgumentError, "scale has shape"),
        (lambda: t @ np.ones(3), errors.ArgumentError, "do not fit"),
        (lambda: np.ones(4) @ t, errors.ArgumentError, "do not fit"),
        (lambda: np.ones((2, 2)) @ t, errors.ArgumentError, "do not fit"),
        (lambda: t @ 2, errors.ArgumentError, "do not fit"),
        (lambda: 2 @ t, errors.ArgumentError, "do not fit"),
        (lambda: t @ t, errors.ArgumentError, "do not fit"),
        (lambda: placed(w[0]) @ np.ones(3), errors.ArgumentError, "do not fit"),
        (lambda: t @ "a", errors.ArgumentTypeError, "right operand is of"),
        (lambda: "a" @ t, errors.ArgumentTypeError, "left operand is of"),
    ]
    for number, (call, kind, sentence) in enumerate(cases):
        with pytest.raises(kind, match=sentence):
            pytest.fail(f"case {number} gave {call()!r}")
    with pytest.raises(TypeError, match="positional"):
        linear(x, eight, None, np.ones(3))  # type: ignore[misc]
    np.testing.assert_array_equal(linear(x, t), x @ w.T)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("shape", [(3, 4), (3, 0), (0, 4)])
def test_closed_and_in_a_child(way: str, shape: tuple[int, int]) -> None:
    t = placed(np.ones(shape, np.float32))
    x, left = np.ones((2, shape[1]), np.float32), np.ones((2, shape[0]), np.float32)

    def child() -> None:
        for call in (lambda: linear(x, t), lambda: left @ t, lambda: t @ x.T):
            with pytest.raises(errors.ForkError):
                call()

    with going(way):
        if t.nbytes and not support.SANITIZED:
            support.in_forked_child(child)
        assert linear(x, t).shape == (2, shape[0])
        t.close()
        for call in (lambda: linear(x, t), lambda: left @ t, lambda: t @ x.T):
            with pytest.raises(errors.ClosedError, match="closed"):
                call()


# ---- changed pages -----------------------------------------------------------------------------


def flip_tag(buffer: EncryptedBuffer, page: int) -> None:
    _, tags = support.records(buffer)
    ffi.cast("uint8_t *", tags)[16 * page + 7] ^= 0x20


def held(error: BaseException) -> list[tuple[str, np.ndarray]]:
    """Every array of the package's frames that an exception keeps alive, and of the products by
    tiles that these have."""
    found, trace = [], error.__traceback__
    while trace is not None:
        frame = trace.tb_frame
        if frame.f_globals.get("__name__", "").startswith("pyccmem"):
            for name, value in frame.f_locals.items():
                fields = vars(value).items() if isinstance(value, Product) else ()
                for label, one in ((name, value), *fields):
                    if isinstance(one, np.ndarray):
                        found.append((label.removeprefix("_"), one))
        trace = trace.tb_next
    return found


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("what", ["ciphertext", "tag"])
@pytest.mark.parametrize("way", WAYS)
def test_a_changed_page_gives_nothing(way: str, what: str, threads: int) -> None:
    rng = np.random.default_rng(6)
    pyccmem.set_num_threads(threads)
    w = numbers(rng, (60, 700), np.float32)
    x, left = numbers(rng, (4, 700), np.float32), numbers(rng, (4, 60), np.float32)
    t = placed(w, 100)
    calls = {
        "linear": lambda: linear(x, t, np.ones(60)),
        "double": lambda: linear(x.astype(np.float64), t),
        "columns": lambda: left @ t,
        "vector": lambda: t @ x[0],
        "cube": lambda: t.reshape(2, 30, 700) @ x.T,
    }
    pages = -(-(100 + w.nbytes) // 4096)
    with going(way):
        good = {name: call().tobytes() for name, call in calls.items()}
        for page in sorted({0, 1, pages // 2, pages - 1}):
            mend = (
                (lambda page=page: support.damage(t.buffer, page, 8 * 150 + 3))
                if what == "ciphertext"
                else (lambda page=page: flip_tag(t.buffer, page))
            )
            mend()
            for name, call in calls.items():
                with pytest.raises(errors.IntegrityError) as caught:
                    call()
                assert caught.value.page == page
                for label, array in held(caught.value):
                    if label in ("out", "part", "product", "y"):
                        assert not array.any(), f"{name}: {label} holds part of the product"
                caught = None
            mend()
            for name, call in calls.items():
                assert call().tobytes() == good[name]


def test_the_frames_are_looked_into() -> None:
    """The control of the test above: an exception's frames do show `out`."""
    t = placed(np.ones((60, 700), np.float32))
    support.damage(t.buffer, 40)
    with going("small tiles"), pytest.raises(errors.IntegrityError) as caught:
        linear(np.ones((2, 700)), t)
    assert "out" in dict(held(caught.value))
    with going("small tiles"), pytest.raises(errors.IntegrityError) as caught:
        np.ones((2, 60)) @ t
    assert {"out", "part"} <= set(dict(held(caught.value)))


@pytest.mark.parametrize("way", WAYS)
def test_a_changed_bias_or_scale(way: str) -> None:
    w, x = np.ones((6, 8), np.int8), np.ones((2, 8), np.float32)
    for name in ("bias", "scale"):
        vector = placed(np.ones(6, np.float32))
        support.damage(vector.buffer, 0)
        with going(way), pytest.raises(errors.IntegrityError):
            linear(x, placed(w), **{name: vector})


# ---- plaintext --------------------------------------------------------------------------------

PEAK = """
import sys
import numpy as np, pyccmem
from pyccmem import EncryptedTensor, Key, linear
from pyccmem.product import tiles
pyccmem.set_num_threads(2)
w = np.ones((1500, 2000), sys.argv[1])
key = Key.generate()
t = EncryptedTensor.from_numpy(w, key=key)
start = pyccmem.stats()
assert start["plain_peak"] <= 1 << 12
def measure(rows, kind, most):
    x = np.ones((rows, 2000), kind)
    linear(x, t)
    now = pyccmem.stats()
    assert now["plain_in_use"] == start["plain_in_use"], now
    assert now["plain_blocks"] == start["plain_blocks"], now
    assert now["plain_peak"] <= most, (rows, kind, now["plain_peak"], most)
    return now["plain_peak"]
# Native: x in the kernel's order, and in each thread 64 KiB of pages and some rows of the matrix.
assert measure(1, "f4", 2 * (160 << 10) + 2 * 8000) > 0
measure(9, "f4", 2 * (160 << 10) + 9 * 2 * 8000)
measure(70, "f4", 2 * (536 << 10) + 96 * 8000)
# By tiles, larger for more threads: as stored, and converted.
size = np.dtype(sys.argv[1]).itemsize
tile = tiles.tile_bytes(20)
most = tile * (8 + size) // 8 + 20 * 2000 * 8
peak = measure(20, "f8", most)
assert peak > tile // 2
# The control: the whole tensor is counted.
whole = t[...]
assert pyccmem.stats()["plain_peak"] >= w.nbytes
del whole
# Of many rows, at most 24 MiB at a time: x alone has 32 MB.
measure(4000, "f4", 2 * (536 << 10) + (24 << 20))
"""


@support.not_sanitized
@pytest.mark.parametrize("kind", ["f4", "f2", "i1"])
def test_peak_of_plaintext(kind: str) -> None:
    support.check_python(PEAK, kind)


@pytest.mark.parametrize("way", WAYS)
def test_plaintext_in_use_returns(way: str) -> None:
    t = placed(np.ones((60, 700), np.float16), 3)
    gc.collect()
    before = pyccmem.stats()
    with going(way):
        linear(np.ones((3, 700), np.float32), t, placed(np.ones(60)))
        np.ones((3, 60)) @ t
        t @ placed(np.ones((700, 2)))
        support.damage(t.buffer, 9)
        for call in (lambda: linear(np.ones(700), t), lambda: np.ones(60) @ t):
            with contextlib.suppress(errors.IntegrityError):
                pytest.fail(f"gave {call()!r}")
    gc.collect()
    now = pyccmem.stats()
    for name in ("plain_blocks", "plain_in_use"):
        assert now[name] == before[name]


MAKE = """
import json, struct, sys
import numpy as np
values = np.random.default_rng(5).standard_normal((int(sys.argv[2]), int(sys.argv[3])))
data = values.astype(np.float32).tobytes()
header = {"w": {"dtype": "F32", "shape": values.shape, "data_offsets": [0, len(data)]}}
text = json.dumps(header).encode()
with open(sys.argv[1], "wb") as file:
    file.write(struct.pack("<Q", len(text)) + text + data)
"""


def weights_file(directory: Path, shape: tuple[int, int]) -> str:
    """A file of random weights made in another process, so that this one never holds them."""
    path = str(directory / f"w{shape[0]}.safetensors")
    support.check_python(MAKE, path, *map(str, shape))
    return path


AFTER = """
import gc, os, sys
import numpy as np, pyccmem
from pyccmem import EncryptedTensor, Key, audit, linear
from pyccmem.safetensors import load_file
t = load_file(sys.argv[1], key=Key.generate())["w"]
samples = audit.samples_from_safetensors(sys.argv[1], 5000)
outputs, inputs = t.shape
X = lambda *shape: np.ones(shape, np.float32)
products = {
    "native": lambda: [linear(X(n, inputs), t) for n in (1, 2, 9, 49, 300)],
    "double": lambda: [linear(np.ones((n, inputs)), t) for n in (1, 20)],
    "vector": lambda: [X(outputs) @ t, t @ X(inputs)],
    "columns": lambda: X(12, outputs) @ t,
    "many columns": lambda: X(300, outputs) @ t,
    "right": lambda: t @ X(inputs, 16),
    "stack": lambda: X(3, 2, outputs) @ t,
    "whole": lambda: X(1, 3, outputs) @ t.reshape(1, outputs, inputs),
    "as x": lambda: linear(t, EncryptedTensor.from_numpy(X(16, inputs), key=Key.generate())),
    "as x, turned": lambda:
        EncryptedTensor.from_numpy(X(3, outputs), key=Key.generate()) @ t,
    "as x, in pieces of less than a mapping": lambda: [
        EncryptedTensor.from_numpy(X(3, inputs), key=Key.generate())
        @ EncryptedTensor._adopt(t.buffer, (inputs, 2), np.float32, at * inputs * 8)
        for at in range(40)],
}
for name, work in products.items():
    work()
    gc.collect()
    report = audit.scan(os.getpid(), samples)
    assert report.clean, (name, report.found, report.places)
kept = t[...]
assert audit.scan(os.getpid(), samples).found == 5000
print("clean")
"""


@support.not_sanitized
@support.linux_only
@pytest.mark.parametrize("shape", [(300, 11008), (1200, 1024)])
def test_nothing_is_left_in_memory(tmp_path: Path, shape: tuple[int, int]) -> None:
    """Neither in what pyccmem used nor in the buffers of numpy's BLAS, for whatever number of
    threads that takes; the wide matrix has tiles so flat that it takes fewer for less of one."""
    assert support.check_python(AFTER, weights_file(tmp_path, shape)).strip() == "clean"


BESIDE = """
import sys, threading
import numpy as np, pyccmem
from pyccmem import Key, linear
from pyccmem.product import tiles
from pyccmem.safetensors import load_file
tiles.TILE_BYTES = tiles.LARGE_TILE_BYTES = int(sys.argv[2])
t = load_file(sys.argv[1], key=Key.generate())["w"]
way = sys.argv[3]
rows = {"native": 1, "few": 20, "panels": 70, "tiles": 20, "whole": 20}[way]
x = np.ones((rows, t.shape[1]), np.float64 if way == "tiles" else np.float32)
kept = t[...] if way == "whole" else None
count, stop = 0, threading.Event()
def work():
    global count
    while not stop.is_set():
        linear(x, t)
        count += 1
        if count == 3:
            print("ready", flush=True)
thread = threading.Thread(target=work)
thread.start()
sys.stdin.readline()
before = count
sys.stdin.readline()
stop.set()
thread.join()
print(count - before, flush=True)
"""


@support.not_sanitized
@support.linux_only
@pytest.mark.parametrize("way", ["native", "few", "panels", "tiles", "whole"])
def test_a_scan_beside_it_sees_at_most_tiles(tmp_path: Path, way: str) -> None:
    shape, tile, count = (4096, 2048), 128 << 10, 20_000
    path = weights_file(tmp_path, shape)
    samples = audit.samples_from_safetensors(path, count)
    child = subprocess.Popen(
        [sys.executable, "-c", BESIDE, path, str(tile), way],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=support.child_environment(),
    )
    assert child.stdin and child.stdout
    try:
        assert child.stdout.readline() == "ready\n"
        child.stdin.write("\n")
        child.stdin.flush()
        reports = [audit.scan(child.pid, samples) for _ in range(3)]
        child.stdin.write("\n")
        child.stdin.flush()
        assert int(child.stdout.readline()) > 0, "nothing was multiplied during the scans"
    finally:
        child.kill()
        child.communicate()
    # A scan meets a tile, the BLAS's copies of it in two threads, and all again in memory that it
    # comes back to. Of the native ways' up to 536 KiB in each of two threads the same holds.
    most = 8 * tile / (4 * shape[0] * shape[1]) * count
    assert most < count / 20
    for report in reports:
        if way == "whole":
            assert report.found == count
        else:
            assert report.found <= most, report.places
