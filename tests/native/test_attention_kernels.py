# SPDX-License-Identifier: Apache-2.0
"""The kernels of attention, one by one, against NumPy in float64: every function, type and tier
that this processor can run, and the template with vectors of 64 bytes made of two. What they read
ends at memory that faults."""

from __future__ import annotations

import ctypes
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import native_build
import numpy as np
import pytest
from guarded import Guarded

ml_dtypes = pytest.importorskip("ml_dtypes")

SOURCE = Path(__file__).with_name("attention.c")
TABLES = ("portable", "avx2", "twice", "avx512")
BFLOATS = "bf16"  # a table for bfloat16 alone, to which q and p are rounded
FILES = [name for name in (*TABLES, BFLOATS) if name != "twice"]
KERNELS = [native_build.CSRC / f"kernels/attention_{name}.c" for name in FILES]
CPU = [path for path in native_build.sources() if path.match("platform/cpu*.c")]

F32, F16, BF16, I8 = range(4)
DTYPES = {
    F32: np.dtype(np.float32),
    F16: np.dtype(np.float16),
    BF16: np.dtype(ml_dtypes.bfloat16),
    I8: np.dtype(np.int8),
}
NAMES = {F32: "float32", F16: "float16", BF16: "bfloat16", I8: "int8"}
PAD, ALIGN, FLOATS = 32, 16, 64
ULP = 2.0**-24
SIZE, POINTER, FLOAT = ctypes.c_size_t, ctypes.c_void_p, ctypes.c_float

#: The members of attention_ops in order: how many functions, result, arguments.
MEMBERS: list[tuple[str, int, Any, tuple[Any, ...]]] = [
    ("pack", 4, None, (POINTER, POINTER, SIZE, FLOAT)),
    ("scores", 4, None, (POINTER, SIZE, POINTER, SIZE, POINTER, SIZE, SIZE, POINTER, SIZE, SIZE)),
    ("block_scores", 4, None, (POINTER, SIZE, *3 * (POINTER,), SIZE, SIZE, POINTER, SIZE, SIZE)),
    ("sums", 4, None, (POINTER, SIZE, POINTER, SIZE, POINTER, SIZE, POINTER, SIZE, SIZE, SIZE)),
    ("block_sums", 4, None, (POINTER, SIZE, POINTER, SIZE, *3 * (POINTER,), SIZE, SIZE, SIZE)),
    ("columns", 4, None, (POINTER, SIZE, POINTER, POINTER, SIZE, SIZE, SIZE)),
    ("highest", 1, FLOAT, (POINTER, SIZE)),
    ("exponentials", 1, FLOAT, (POINTER, SIZE, FLOAT)),
    ("soften", 1, None, (POINTER, SIZE, FLOAT)),
    ("scale", 1, None, (POINTER, SIZE, FLOAT)),
    ("store", 4, None, (POINTER, POINTER, SIZE)),
    ("quantise", 1, None, (POINTER, POINTER, POINTER, SIZE)),
]


def up(n: int, multiple: int) -> int:
    return -(-n // multiple) * multiple


class Ops:
    """A table, with memory for arguments that ends where the next byte faults."""

    def __init__(self, library: ctypes.CDLL, name: str) -> None:
        library.unit_attention.restype = ctypes.c_void_p
        self.address = library.unit_attention(name.encode())
        self.library, self.memory = library, {}
        self.rounds = name == BFLOATS
        if not self.address:
            return
        count = sum(member[1] for member in MEMBERS)
        places = (ctypes.c_void_p * count).from_address(self.address)
        at = 0
        for member, several, result, arguments in MEMBERS:
            kind = ctypes.CFUNCTYPE(result, *arguments)
            functions = [kind(place) if place else None for place in places[at : at + several]]
            setattr(self, member, functions if several > 1 else functions[0])
            at += several

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(name)

    def array(self, name: str, n: int, dtype: Any = np.float32) -> np.ndarray:
        """n elements at the end of a piece of memory of that name, filled with 0x5a."""
        nbytes = n * np.dtype(dtype).itemsize
        if name not in self.memory or self.memory[name].nbytes < nbytes:
            self.memory[name] = Guarded(max(nbytes, 1 << 16))
        guarded = self.memory[name]
        view = guarded.view(guarded.at_end(nbytes), nbytes)
        array = np.frombuffer(view, np.uint8)
        array[:] = 0x5A
        return array.view(dtype)

    def copy(self, name: str, values: np.ndarray) -> np.ndarray:
        array = self.array(name, values.size, values.dtype)
        array[:] = values.ravel()
        return array

    def close(self) -> None:
        for guarded in self.memory.values():
            guarded.close()


def seen(ops: Ops, values: np.ndarray) -> np.ndarray:
    """Numbers of q, p, K or V as the table multiplies them."""
    if not ops.rounds:
        return values
    rounded = values.astype(DTYPES[BF16]).astype(values.dtype)
    return np.where(np.abs(rounded) < 2.0**-126, 0, rounded)


def at(array: np.ndarray | None) -> int | None:
    return None if array is None else array.ctypes.data


def link(objects: dict[Path, Path], folder: Path) -> ctypes.CDLL:
    made = folder / "libattention.so"
    files = map(str, objects.values())
    subprocess.run([*native_build.compiler(), "-shared", *files, "-o", str(made)], check=True)
    return ctypes.CDLL(str(made))


@pytest.fixture(scope="module")
def objects(tmp_path_factory: pytest.TempPathFactory) -> dict[Path, Path]:
    """The kernels as the module has them, at -O3, and what they need."""
    folder = tmp_path_factory.mktemp("attention")
    return native_build.compile_objects([SOURCE, *KERNELS, *CPU], folder, "-O3")


@pytest.fixture(scope="module")
def library(objects: dict[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    return link(objects, tmp_path_factory.mktemp("library"))


@pytest.fixture(scope="module", params=TABLES)
def ops(request: pytest.FixtureRequest, library: ctypes.CDLL) -> Iterator[Ops]:
    made = Ops(library, request.param)
    if not made.address:
        pytest.skip(f"this processor cannot run {request.param}")
    yield made
    made.close()


@pytest.fixture(scope="module")
def bfloats(library: ctypes.CDLL) -> Iterator[Ops]:
    made = Ops(library, BFLOATS)
    if not made.address:
        pytest.skip(f"this processor cannot run {BFLOATS}")
    yield made
    made.close()


# ---- blocks of K and V -----------------------------------------------------------------------


def elements(rng: np.random.Generator, dtype: int, shape: tuple[int, ...], kind: str) -> np.ndarray:
    """Elements of that type: usual ones; of all sizes, subnormal ones included; or a few large and
    infinite ones among them."""
    if dtype == I8:
        return rng.integers(-127, 128, shape, np.int8)
    values = rng.standard_normal(shape)
    if kind == "wide":
        values *= np.exp2(rng.integers(-28 if dtype == F16 else -140, 4, shape))
    elif kind == "wild":
        values = np.where(rng.random(shape) < 0.02, 6e4 if dtype == F16 else 1e30, values)
        values = np.where(rng.random(shape) < 0.005, np.inf, values)
    return values.astype(DTYPES[dtype])


#: How rows lie: by themselves, or in a block of K or of V (kernels/attention.h).
ROWS, BLOCK_K, BLOCK_V = "rows", "K", "V"


def paired(rows: np.ndarray, pair: int) -> np.ndarray:
    """Rows of a matrix in pairs: what pairs of one column have lies together."""
    count, n = rows.shape
    return np.ascontiguousarray(rows.reshape(count // pair, pair, n).transpose(0, 2, 1))


class Block:
    """Random rows of K or V, of random shape, in memory as the kernels take it."""

    def __init__(
        self, ops: Ops, rng: np.random.Generator, dtype: int, kind: str, lie: str = ROWS
    ) -> None:
        size = DTYPES[dtype].itemsize
        self.d = int(rng.choice([rng.integers(1, 577), 64, 80, 96, 128, 256, 40, 1100]))
        self.tokens, self.rows = int(rng.integers(1, 65)), int(rng.integers(1, 18))
        if lie != ROWS:
            self.tokens = ALIGN * int(rng.integers(1, 9))
        row = up(self.d * size, PAD)
        self.n, self.stride = row // size, row + PAD * int(rng.integers(0, 3))
        self.values = elements(rng, dtype, (self.tokens, self.d), kind)
        padded = np.full((self.tokens, self.stride), 0x5A, np.uint8)
        padded[:, :row] = 0
        padded[:, : self.d * size] = self.values.view(np.uint8).reshape(self.tokens, -1)
        content = padded.ravel()[: (self.tokens - 1) * self.stride + row]
        if lie == BLOCK_K:
            matrix = np.ascontiguousarray(padded[:, :row]).view(DTYPES[dtype]).T
            content = paired(matrix, 2 if dtype in (BF16, I8) else 1).view(np.uint8).ravel()
        elif lie == BLOCK_V:
            matrix = np.ascontiguousarray(padded[:, :row]).view(DTYPES[dtype])
            content = paired(matrix, 2 if dtype in (BF16, I8) else 1).view(np.uint8).ravel()
        self.bytes = ops.copy("block", content)
        self.scales = self.scale_array = None
        self.exact = seen(ops, self.values.astype(np.float64))
        if dtype == I8:
            self.scales = rng.random(self.tokens).astype(np.float32)
            self.scale_array = ops.copy("scales", self.scales)
            self.exact = self.exact * self.scales.astype(np.float64)[:, None]

    def row(self, rng: np.random.Generator) -> int:
        """Floats from a row of q, of sums, ... to the next."""
        return up(self.d, FLOATS) + FLOATS * int(rng.integers(0, 2))


def close_to(
    ops: Ops, got: np.ndarray, expected: np.ndarray, sizes: np.ndarray, ulps: float
) -> bool:
    """Whether float32 sums are within ulps of the sums of the sizes of what was added; what is not
    finite, or could overflow, must only not be hidden. Subnormal sums may count as zeros where
    numbers are rounded to bfloat16."""
    least = ulps * 2.0**-126 if ops.rounds else 2e-43
    finite, small = np.isfinite(expected), sizes < 1e38
    hidden = ~finite & np.isfinite(got)
    with np.errstate(invalid="ignore", over="ignore"):
        wrong = np.abs(got - expected) > sizes * (ulps * ULP) + least
        wrong |= np.isnan(got)
    return not hidden.any() and not (wrong & finite & small).any()


def good_scores(ops: Ops, rng: np.random.Generator, dtype: int, kind: str, lie: str = ROWS) -> bool:
    block = Block(ops, rng, dtype, kind, lie)
    ldq, lds = block.row(rng), up(block.tokens, ALIGN) + ALIGN * int(rng.integers(0, 2))
    scale = np.float32(rng.choice([1.0, 0.125, 0.088388346]))
    q = rng.standard_normal((block.rows, block.d)).astype(np.float32)
    packed = ops.array("packed", (block.rows - 1) * ldq + up(block.d, FLOATS))
    for r in range(block.rows):
        ops.pack[dtype](at(packed) + 4 * r * ldq, at(ops.copy("q", q[r])), block.d, scale)
    scores = ops.array("scores", (block.rows - 1) * lds + up(block.tokens, ALIGN))
    rest = (block.tokens, block.n, at(packed), ldq, block.rows)
    start = (at(scores), lds, at(block.bytes))
    if lie == ROWS:
        ops.scores[dtype](*start, block.stride, at(block.scale_array), *rest)
    else:
        ops.block_scores[dtype](*start, at(block.bytes), at(block.scale_array), *rest)
    got = np.stack([scores[r * lds :][: block.tokens] for r in range(block.rows)])
    between = [scores[r * lds + up(block.tokens, ALIGN) : (r + 1) * lds] for r in range(block.rows)]
    exact = seen(ops, q).astype(np.float64) * float(scale)
    with np.errstate(invalid="ignore"):
        expected, sizes = exact @ block.exact.T, np.abs(exact) @ np.abs(block.exact).T
    untouched = all((gap.view(np.uint8) == 0x5A).all() for gap in between)
    if dtype == I8:  # q may be rounded to half of 2^-14 of its largest number
        largest = np.abs(exact).max(axis=1, keepdims=True)
        sizes = sizes + largest * np.abs(block.exact).sum(axis=1) * 2.0**-15 / (12 * ULP)
    return untouched and close_to(ops, got, expected, sizes, 12 + block.d / 8)


def good_sums(ops: Ops, rng: np.random.Generator, dtype: int, kind: str, lie: str = ROWS) -> bool:
    block = Block(ops, rng, dtype, kind, lie)
    ldo, ldp, padded = block.row(rng), block.tokens + int(rng.integers(0, 9)), up(block.d, FLOATS)
    p = rng.random((block.rows, block.tokens)).astype(np.float32)
    weights = ops.array("p", (block.rows - 1) * ldp + block.tokens)
    sums = ops.array("sums", (block.rows - 1) * ldo + padded)
    for r in range(block.rows):
        weights[r * ldp :][: block.tokens] = p[r]
        sums[r * ldo :][:padded] = 0
    for _ in range(2):
        start = (at(sums), ldo, at(weights), ldp, at(block.bytes))
        rest = (at(block.scale_array), block.tokens, block.n, block.rows)
        if lie == ROWS:
            ops.sums[dtype](*start, block.stride, *rest)
        else:
            ops.block_sums[dtype](*start, at(block.bytes), *rest)
    got = np.stack([sums[r * ldo :][: block.d] for r in range(block.rows)])
    between = [sums[r * ldo + padded : (r + 1) * ldo] for r in range(block.rows)]
    exact = 2 * seen(ops, p).astype(np.float64)
    with np.errstate(invalid="ignore"):
        expected, sizes = exact @ block.exact, exact @ np.abs(block.exact)
    untouched = all((gap.view(np.uint8) == 0x5A).all() for gap in between)
    if dtype == I8:  # and so may p times the scales
        weights = exact * block.scales.astype(np.float64)
        largest = weights.max(axis=1, keepdims=True)
        integers = np.abs(block.values.astype(np.float64)).sum(axis=0)
        sizes = sizes + largest * integers * 2.0**-15 / (12 * ULP)
    return untouched and close_to(ops, got, expected, sizes, 12 + 2 * block.tokens)


@pytest.mark.parametrize("kind", ["usual", "wide", "wild"])
@pytest.mark.parametrize("dtype", NAMES, ids=NAMES.values())
def test_scores_and_sums(ops: Ops, dtype: int, kind: str) -> None:
    """Random shapes, strides and sizes of numbers: within the bound of a sum in float32."""
    rng = np.random.default_rng([dtype, len(kind)])
    for i in range(60):
        assert good_scores(ops, rng, dtype, kind), i
        assert good_sums(ops, rng, dtype, kind), i
        assert good_scores(ops, rng, dtype, kind, BLOCK_K), i
        assert good_sums(ops, rng, dtype, kind, BLOCK_V), i


@pytest.mark.parametrize("kind", ["usual", "wide", "wild"])
def test_scores_and_sums_of_bfloats(bfloats: Ops, kind: str) -> None:
    """The same, of what is left of q and p."""
    rng = np.random.default_rng([4, len(kind)])
    for i in range(60):
        assert good_scores(bfloats, rng, BF16, kind), i
        assert good_scores(bfloats, rng, BF16, kind, BLOCK_K), i
        assert good_sums(bfloats, rng, BF16, kind, BLOCK_V), i


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_no_number_is_not_hidden_from_bfloats(bfloats: Ops, bad: float) -> None:
    """In q or p: all of its row's scores, or sums, are not finite; and those of others are."""
    ops, d, tokens, rows, at_bad = bfloats, 64, 16, 7, 3
    others = np.arange(rows) != at_bad
    block = ops.copy("block", np.ones((tokens, d), DTYPES[BF16]).view(np.uint8))
    for where in (0, 37, 63):
        packed, p = ops.array("packed", rows * d), ops.copy("p", np.ones((rows, tokens), "f4"))
        p[at_bad * tokens + where % tokens] = bad
        for r in range(rows):
            q = ops.copy("q", np.full(d, 0.5, np.float32))
            q[where] = bad if r == at_bad else 1
            ops.pack[BF16](at(packed) + 4 * r * d, at(q), d, 1.0)
        scores, sums = ops.array("scores", rows * tokens), ops.array("sums", rows * d)
        sums[:] = 0
        end = (tokens, d, at(packed), d, rows)
        for function, stride in ((ops.scores, 2 * d), (ops.block_scores, at(block))):
            function[BF16](at(scores), tokens, at(block), stride, None, *end)
            finite = np.isfinite(scores.reshape(rows, tokens))
            assert not finite[at_bad].any() and finite[others].all()
        ops.block_sums[BF16](
            *(at(sums), d, at(p), tokens, at(block), at(block), None), *(tokens, d, rows)
        )
        finite = np.isfinite(sums.reshape(rows, d))
        assert not finite[at_bad].any() and finite[others].all()


def good_largest(ops: Ops, d: int) -> bool:
    """Scores of a block whose bytes, and q, are all as large as can be: their sum must not wrap."""
    tokens, n, rows = 16, up(d, PAD), 3
    values = np.zeros((n, tokens), np.int8)
    values[:d] = 127
    block = ops.copy("block", paired(values, 2).view(np.uint8).ravel())
    scales = ops.copy("scales", np.ones(tokens, np.float32))
    packed = ops.array("packed", rows * up(d, FLOATS))
    for r in range(rows):
        q = ops.copy("q", np.full(d, 2.0, np.float32))
        ops.pack[I8](at(packed) + 4 * r * up(d, FLOATS), at(q), d, 1.0)
    scores = ops.array("scores", rows * tokens)
    ops.block_scores[I8](
        *(at(scores), tokens, at(block), at(block), at(scales)),
        *(tokens, n, at(packed), up(d, FLOATS), rows),
    )
    return bool((np.abs(scores / (254.0 * d) - 1) < 1e-4).all())


def test_long_rows_of_the_largest_bytes(ops: Ops) -> None:
    for d in (500, 512, 513, 1100, 4096):
        assert good_largest(ops, d), d


@pytest.mark.parametrize("dtype", NAMES, ids=NAMES.values())
def test_columns_of_a_block(ops: Ops, dtype: int) -> None:
    """Any eight tokens or more of a block of K, as floats: exactly, times their scales."""
    rng = np.random.default_rng([dtype, 7])
    for _ in range(60):
        block = Block(ops, rng, dtype, "wide", BLOCK_K)
        count = 8 * int(rng.integers(1, block.tokens // 8 + 1))
        first = 8 * int(rng.integers(0, (block.tokens - count) // 8 + 1))
        ld = count + int(rng.integers(0, 9))
        to = ops.array("scores", (block.n - 1) * ld + count)
        word = DTYPES[dtype].itemsize * (2 if dtype in (BF16, I8) else 1)
        scales = None if block.scales is None else ops.copy("scales", block.scales[first:])
        ops.columns[dtype](
            *(at(to), ld, at(block.bytes) + first * word, at(scales)),
            *(block.tokens, count, block.n),
        )
        expected = block.values[first : first + count].astype(np.float32)
        if block.scales is not None:
            expected = expected * block.scales[first : first + count, None]
        for i in range(block.d):
            assert np.array_equal(to[i * ld :][:count], expected[:, i])
            assert (to[i * ld + count : (i + 1) * ld].view(np.uint8) == 0x5A).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", NAMES, ids=NAMES.values())
def test_what_is_no_number_in_q_or_p_is_not_hidden(ops: Ops, dtype: int, bad: float) -> None:
    """All of its row's scores, or sums, are not finite; and those of other rows are."""
    d, tokens, rows, at_bad = 64, 5, 7, 3
    block = ops.copy("block", np.ones((tokens, d), DTYPES[dtype]).view(np.uint8))
    scales = ops.copy("scales", np.ones(tokens, np.float32)) if dtype == I8 else None
    for where in (0, 37, 63):
        packed = ops.array("packed", rows * d)
        for r in range(rows):
            q = ops.copy("q", np.full(d, 0.5, np.float32))
            q[where] = bad if r == at_bad else 1
            ops.pack[dtype](at(packed) + 4 * r * d, at(q), d, 1.0)
        scores = ops.array("scores", rows * ALIGN)
        stride = d * DTYPES[dtype].itemsize
        ops.scores[dtype](
            *(at(scores), ALIGN, at(block), stride, at(scales)),
            *(tokens, d, at(packed), d, rows),
        )
        finite = np.isfinite(scores.reshape(rows, ALIGN)[:, :tokens])
        assert not finite[at_bad].any() and finite[np.arange(rows) != at_bad].all()
    for token in range(tokens):
        p = ops.copy("p", np.ones((rows, tokens), np.float32))
        p[at_bad * tokens + token] = bad
        sums = ops.array("sums", rows * d)
        sums[:] = 0
        ops.sums[dtype](
            *(at(sums), d, at(p), tokens, at(block), stride, at(scales)), *(tokens, d, rows)
        )
        finite = np.isfinite(sums.reshape(rows, d))
        assert not finite[at_bad].any() and finite[np.arange(rows) != at_bad].all()


@pytest.mark.parametrize("dtype", [F16, BF16, I8], ids=lambda dtype: NAMES[dtype])
def test_every_element_is_converted(ops: Ops, dtype: int) -> None:
    """A sum of one row times 1 is that row, for every value of the short types."""
    bits = np.arange(256 if dtype == I8 else 1 << 16, dtype=np.uint8 if dtype == I8 else np.uint16)
    one = ops.copy("p", np.ones(1, np.float32))
    for first in range(0, len(bits), 256):
        some = bits[first : first + 256]
        block, sums = ops.copy("block", some), ops.array("sums", 256)
        sums[:] = 0
        scales = at(one) if dtype == I8 else None
        ops.sums[dtype](at(sums), 256, at(one), 1, at(block), 1024, scales, 1, 256, 1)
        expected = some.view(DTYPES[dtype]).astype(np.float32)
        assert np.array_equal(sums, expected, equal_nan=True)


# ---- functions of scores ---------------------------------------------------------------------


def good_functions(ops: Ops, rng: np.random.Generator, n: int) -> bool:
    scores = (rng.random(n) * rng.choice([1, 30, 120]) - 20).astype(np.float32)
    scores[rng.random(n) < rng.choice([0, 0.2, 1])] = -np.inf
    highest = ops.highest(at(ops.copy("scores", scores)), n)
    good = highest == scores.max()
    most = np.float32(max(highest, -3.0) if rng.random() < 0.5 else highest)
    array = ops.copy("scores", scores)
    total = ops.exponentials(at(array), n, most)
    with np.errstate(invalid="ignore"):
        distance = (scores - most).astype(np.float32).astype(np.float64)
    expected = np.where(scores == -np.inf, 0, np.exp(distance))
    expected[~(distance >= -87)] = 0
    good &= bool((np.abs(array - expected) <= expected * 2.0**-20).all())
    good &= abs(total - expected.sum()) <= expected.sum() * (2.0**-20 + n * ULP)

    cap = np.float32(rng.choice([0.5, 30, 50]))
    scores = (rng.standard_normal(n) * np.exp2(rng.integers(-30, 20, n))).astype(np.float32)
    scores[rng.random(n) < 0.1] = rng.choice([0, np.inf, -np.inf, 1e38, -1e-40])
    array = ops.copy("scores", scores)
    ops.soften(at(array), n, cap)
    expected = float(cap) * np.tanh(scores.astype(np.float64) / float(cap))
    good &= bool((np.abs(array - expected) <= np.abs(expected) * 2.0**-20 + 1e-43).all())

    values = ops.copy("scores", scores)
    ops.scale(at(values), n, cap)
    with np.errstate(over="ignore"):
        return good and np.array_equal(values, scores * cap)


def test_functions_of_scores(ops: Ops) -> None:
    rng = np.random.default_rng(1)
    for n in (*range(1, 80), 1000):
        for _ in range(3):
            assert good_functions(ops, rng, n), n


def test_nothing_visible_is_zero(ops: Ops) -> None:
    """Rows that see nothing: no score is a number's exponential, whatever the highest is."""
    for n in (1, 7, 8, 16, 37):
        for most in (-np.inf, 0.0, 3e38, np.inf):
            array = ops.copy("scores", np.full(n, -np.inf, np.float32))
            assert ops.exponentials(at(array), n, most) == 0 and not array.any()


def test_what_is_no_number_stays_so(ops: Ops) -> None:
    """A sum with it is none either, wherever it is; the highest is that of the others."""
    for n in (1, 5, 16, 37):
        for place in range(n):
            scores = np.linspace(-3, 2, n, dtype=np.float32)
            others = np.delete(scores, place)
            scores[place] = np.nan
            highest = ops.highest(at(ops.copy("scores", scores)), n)
            assert highest == (others.max() if n > 1 else -np.inf)
            array = ops.copy("scores", scores)
            assert np.isnan(ops.exponentials(at(array), n, highest)) and np.isnan(array[place])
            array = ops.copy("scores", scores)
            ops.soften(at(array), n, 30.0)
            assert np.array_equal(np.isnan(array), np.isnan(scores))


# ---- rows to be sealed -----------------------------------------------------------------------


def floats() -> np.ndarray:
    """Every upper half of a float32 with lower halves that round down, up, and are ties for one of
    the short types."""
    upper = np.arange(1 << 16, dtype=np.uint32) << 16
    lower = np.array([0, 1, 0x7FFF, 0x8000, 0x8001, 0x1000, 0x0FFF, 0x3000, 0xF000, 0xFFFF])
    return (upper[:, None] | lower.astype(np.uint32)).ravel().view(np.float32)


@pytest.mark.parametrize("dtype", [F32, F16, BF16], ids=lambda dtype: NAMES[dtype])
def test_rows_are_rounded_to_the_nearest(ops: Ops, dtype: int) -> None:
    values, target = floats(), DTYPES[dtype]
    with np.errstate(over="ignore", invalid="ignore"):
        expected = values.astype(target)
    got = np.empty(len(values), target)
    step = 4000
    for first in range(0, len(values), step):
        some = values[first : first + step]
        out = ops.array("out", len(some), target)
        ops.store[dtype](at(out), at(ops.copy("q", some)), len(some))
        got[first : first + step] = out
    bits = f"u{target.itemsize}"
    number = ~np.isnan(values)
    assert np.array_equal(got[number].view(bits), expected[number].view(bits))
    assert np.isnan(got[~number].astype(np.float32)).all()
    for d in range(1, 70):
        out = ops.array("out", d, target)
        ops.store[dtype](at(out), at(ops.copy("q", values[7777:][:d])), d)
        assert np.array_equal(out.view(bits), expected[7777:][:d].view(bits))


def good_bytes(ops: Ops, rng: np.random.Generator, d: int) -> bool:
    factor = float(rng.choice([1, 1e30, 1e-30, 1e-36, 1e-39, 3e-45, 0]))
    values = (rng.standard_normal(d) * factor).astype(np.float32)
    out, scale = ops.array("out", d, np.int8), ops.array("scale", 1)
    ops.quantise(at(out), at(scale), at(ops.copy("q", values)), d)
    most, step = np.abs(values).max(), float(scale[0])
    good = abs(step - float(most) / 127) <= step * 2.0**-22 + 2.0**-149
    error = np.abs(values - step * out.astype(np.float64))
    good &= bool((error <= step * (0.5 + 2.0**-14) + 127 * 2.0**-149).all())
    return good and out.min() >= -127 and (most > 0 or not out.any())


def test_bytes_and_their_scale(ops: Ops) -> None:
    """Each within half a step; rows of tiny numbers, and of zeros."""
    rng = np.random.default_rng(3)
    for d in (*range(1, 70), 128, 576):
        for _ in range(8):
            assert good_bytes(ops, rng, d), d


def test_bytes_of_what_is_no_number_do_no_harm(ops: Ops) -> None:
    for bad in (np.nan, np.inf, -np.inf):
        values = np.ones(37, np.float32)
        values[[3, 36]] = bad
        out, scale = ops.array("out", 37, np.int8), ops.array("scale", 1)
        ops.quantise(at(out), at(scale), at(ops.copy("q", values)), 37)


# ---- controls --------------------------------------------------------------------------------

TEMPLATE, PORTABLE = "attention_template.h", "attention_portable.c"
BFLOAT = "attention_bf16.c"

#: What is broken: the file, the change, the table that has it, and the check that must notice.
BROKEN: dict[str, tuple[str, str, str, str, str]] = {
    "half a group": (TEMPLATE, "if (GROUP > PAD && whole < bytes)", "if (0)", "twice", "scores"),
    "the last token": (
        TEMPLATE,
        "t < tokens; t++, v +=",
        "t + 1 < tokens; t++, v +=",
        "avx2",
        "sums",
    ),
    "a scale": (TEMPLATE, "b ? load_up_to(b + (at), count)", "b ? fall(1.0f)", "avx2", "sums"),
    "what q counts in": (TEMPLATE, "packed[place] = size", "packed[place] = 1", "avx2", "scores"),
    "a row of q": (TEMPLATE, "q += 4 * ldq)", "q += 4 * ldq + 1)", "avx2", "scores"),
    "pairs of rows": (TEMPLATE, "v + 4 * at", "v + 2 * at", "avx2", "block sums"),
    "what is hidden": (TEMPLATE, "fall(EXP_LOWEST))", "fall(-2e38f))", "avx2", "functions"),
    "a coefficient": (TEMPLATE, "fall(EXP_C4)", "fall(EXP_C4 + 1e-3f)", "avx2", "functions"),
    "a step of bytes": (TEMPLATE, "fall(s.per_step)", "fall(s.per_step * 1.1f)", "avx2", "bytes"),
    "a portable scale": (PORTABLE, "(scales ? scales[t] : 1.0f)", "1.0f", "portable", "sums"),
    "sums apart": (TEMPLATE, "fadd(total, sum[s * each + i])", "total", "avx2", "block scores"),
    "many pairs": (TEMPLATE, "PAIRS = 256", "PAIRS = 4096", "avx2", "largest"),
    "a pair of tokens": (TEMPLATE, "paired ? 2 * at : at", "at", "avx2", "block sums"),
    "portable pairs": (
        PORTABLE,
        "(i / pair * across + t)",
        "(i / pair * across)",
        "portable",
        "block scores",
    ),
    "the scale of bfloats": (BFLOAT, "* own[place]", "* 1.0f", BFLOATS, "scores"),
    "half a row of bfloats": (BFLOAT, "at * SINGLE, 2)", "at * SINGLE, 1)", BFLOATS, "scores"),
    "sums of bfloats apart": (
        BFLOAT,
        "splits; s++)\n                total",
        "0; s++)\n                total",
        BFLOATS,
        "block scores",
    ),
    "the last bfloats": (BFLOAT, "VECTORS(1);", "", BFLOATS, "block sums"),
    "portable scores": (PORTABLE, "t[i] += t[i + half];", "t[i + half] = 0;", "portable", "scores"),
}


def passes(ops: Ops, check: str) -> bool:
    rng = np.random.default_rng(9)
    if check == "largest":
        return good_largest(ops, 4096)
    for i in range(40):
        if check == "functions":
            good = good_functions(ops, rng, i + 1)
        elif check == "bytes":
            good = good_bytes(ops, rng, i + 1)
        else:
            function = good_scores if check.endswith("scores") else good_sums
            blocks = BLOCK_K if check.endswith("scores") else BLOCK_V
            lie = blocks if check.startswith("block") else ROWS
            good = function(ops, rng, BF16 if ops.rounds else i % 4, "usual", lie)
        if not good:
            return False
    return True


@pytest.mark.parametrize("change", BROKEN)
def test_a_broken_kernel_is_noticed(objects: dict[Path, Path], tmp_path: Path, change: str) -> None:
    """The control."""
    name, old, new, table, check = BROKEN[change]
    text = (native_build.CSRC / "kernels" / name).read_text(encoding="utf-8")
    assert old in text
    changed = tmp_path / "kernels" / name
    changed.parent.mkdir()
    changed.write_text(text.replace(old, new), encoding="utf-8")
    source = SOURCE if table == "twice" else native_build.CSRC / f"kernels/attention_{table}.c"
    made = source if name == TEMPLATE else changed
    own = native_build.compile_objects([made], tmp_path, f"-I{tmp_path}")[made]
    ops = Ops(link({**objects, source: own}, tmp_path), table)
    if not ops.address:
        pytest.skip(f"this processor cannot run {table}")
    assert not passes(ops, check)
    ops.close()
