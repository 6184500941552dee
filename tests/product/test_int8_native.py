# SPDX-License-Identifier: Apache-2.0
"""ccmem_store_linear_int8: to the bit what the header says, computed by NumPy in whole numbers; the
numbers that saturate; rows too long for 32 bits; what is not finite; changed pages, refusals,
forks."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Iterator

import ml_dtypes
import numpy as np
import pytest
import support
from hypothesis import given, settings
from hypothesis import strategies as st
from support import AEGIS, OK, PAGE_SIZES

from pyccmem.binding import CIPHERS, ffi, lib

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
CODES = {np.dtype(np.float32): lib.CCMEM_F32, BFLOAT16: lib.CCMEM_BF16}
#: Around the rows of x that are summed along k (few_rows of the tables), and those of panels.
ROWS = (0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 15, 16, 17, 31, 32, 33, 47, 64, 65, 70)
HEIGHTS = (0, 1, 2, 3, 4, 5, 6, 7, 11, 12, 13, 24, 25, 48, 130)
EDGES = (1, 2, 3, 4, 5, 31, 32, 33, 63, 64, 65, 127, 128, 150, 384, 1000, 4096, 4100)
#: Elements of a row whose sums are of 32 bits (INT8_SUM_MAX).
SUM_MAX = 1 << 17
#: Elements of a row that are taken at a time beside panels (int8_part in tiers/sizes.c).
PART = 16 << 10


class Store:
    """A native store, closed with its `with` block."""

    def __init__(self, data: bytes, offset: int = 0, cipher: str = AEGIS, page_size: int = 4096):
        key, store = ffi.new("ccmem_key **"), ffi.new("ccmem_store **")
        nbytes = offset + len(data) + 1
        assert lib.ccmem_key_generate(lib.CCMEM_SECRET_MLOCK, key) == OK
        status = lib.ccmem_store_new(key[0], CIPHERS[cipher], nbytes, page_size, 0, 64, 0, store)
        lib.ccmem_key_free(key[0])
        assert status == OK
        self.handle, self.offset = store[0], offset
        assert lib.ccmem_store_write(self.handle, offset, ffi.from_buffer(data), len(data)) == OK

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        lib.ccmem_store_free(self.handle)

    def linear(self, shape, x, scale, bias=None, *, to=np.float32, encrypted=None):
        """Status and y; what lies behind y must stay. `encrypted`: a Store of the bias."""
        (out, width), to = shape, np.dtype(to)
        y = np.full(len(x) * out + 7, 7.5, to)
        added = ffi.new("ccmem_bias *")
        if bias is not None:
            added.dtype = CODES[bias.dtype]
            if encrypted is None:
                added.data = pointer(bias)
            else:
                added.store, added.offset = encrypted.handle, encrypted.offset
        status = lib.ccmem_store_linear_int8(
            self.handle, self.offset, out, width, ffi.cast("float *", pointer(scale)), pointer(x),
            CODES[x.dtype], len(x), added[0], pointer(y), CODES[to],
        )  # fmt: skip
        assert (y[len(x) * out :] == 7.5).all()
        return status, y[: len(x) * out].reshape(len(x), out)


def pointer(array):
    return ffi.cast("void *", array.ctypes.data)


def rounded(x):
    """q and step of each row, as the header says: float32, one operation after the other."""
    x = x.astype(np.float32)
    most = np.abs(x).max(axis=1, keepdims=True, initial=0)
    finite = np.isfinite(most)
    clean, top = np.where(finite, x, 0), np.where(finite, most, 0).astype(np.float32)
    enlarge = np.where(top < np.float32(2.0**-100), np.float32(2.0**100), np.float32(1))
    per_step = np.divide(
        np.float32(127), top * enlarge, out=np.zeros_like(top), where=top > 0, dtype=np.float32
    )
    q = np.rint((clean * enlarge) * per_step).astype(np.int64)
    step = np.where(finite, top / np.float32(127), np.float32(np.nan))
    return q, step.astype(np.float32)


def product(x, w, scale, bias=None, to=np.float32):
    q, step = rounded(x)
    with np.errstate(all="ignore"):
        # The sums are below 2**53, so that products of float64 are exact.
        sums = (q.astype(np.float64) @ w.T.astype(np.float64)).astype(np.int64)
        y = sums.astype(np.float32) * (step * scale)
        if bias is not None:
            y = y + bias.astype(np.float32)
    return y.astype(to)


def same(a, b):
    """Equal bits, but for those of what is not a number."""
    nan = np.isnan(a.astype(np.float32))
    assert (nan == np.isnan(b.astype(np.float32))).all()
    return np.where(nan, 0, a).tobytes() == np.where(nan, 0, b).tobytes()


@pytest.fixture(autouse=True)
def keep_threads() -> Iterator[None]:
    before = lib.ccmem_threads()
    yield
    lib.ccmem_set_threads(before)


@settings(max_examples=120, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    cipher=st.sampled_from(sorted(CIPHERS)),
    page_size=st.sampled_from(PAGE_SIZES),
    out=st.sampled_from(HEIGHTS),
    width=st.one_of(st.sampled_from((0, *EDGES)), st.integers(0, 9000)),
    rows=st.one_of(st.sampled_from(ROWS), st.integers(1, 40)),
    offset=st.one_of(st.integers(0, 9000), st.integers(0, 80).map(lambda n: n * 128)),
    x_dtype=st.sampled_from(sorted(CODES, key=str)),
    y_dtype=st.sampled_from(sorted(CODES, key=str)),
    bias=st.sampled_from((None, "plain", "encrypted", "bfloat16", "encrypted bfloat16")),
    threads=st.sampled_from((1, 2, 4)),
)
def test_to_the_bit(
    seed, cipher, page_size, out, width, rows, offset, x_dtype, y_dtype, bias, threads
):
    rng = np.random.default_rng(seed)
    lib.ccmem_set_threads(threads)
    w = rng.integers(-128, 128, (out, width), dtype=np.int8)
    x = (rng.standard_normal((rows, width)) * 10.0 ** rng.integers(-6, 6)).astype(x_dtype)
    scale = rng.standard_normal(out).astype(np.float32)
    kind = BFLOAT16 if bias and "bfloat16" in bias else np.float32
    added = None if bias is None else rng.standard_normal(out).astype(kind)
    with Store(w.tobytes(), offset, cipher, page_size) as store:
        other = Store(added.tobytes(), 12, cipher) if bias and "encrypted" in bias else None
        try:
            status, y = store.linear(w.shape, x, scale, added, to=y_dtype, encrypted=other)
        finally:
            if other is not None:
                other.__exit__()
        assert status == OK
        assert same(y, product(x, w, scale, added, y_dtype))


@pytest.mark.parametrize("rows", [1, 4, 9, 33])
@pytest.mark.parametrize("width", [150, PART, PART + 70, 2 * PART + 4097])
def test_lowest_and_highest_elements(rows, width):
    """Sums of two products of 127 + 128 and 127 do not fit into 16 bits, those of -128 and -127
    nearly not: instructions that saturate give others."""
    w = np.full((7, width), -128, np.int8)
    w[1], w[2, ::2], w[3, 1::2] = 127, 127, 127
    x = np.ones((rows, width), np.float32)
    x[rows // 2], x[:, 5] = -1, 1
    scale = np.ones(7, np.float32)
    q, _ = rounded(x)
    pairs = (w[:, : width // 2 * 2].astype(np.int64) + 128) * q[0, : width // 2 * 2]
    assert (np.abs(pairs.reshape(7, -1, 2).sum(2)) > 32767).any()  # the data would strike
    with Store(w.tobytes(), 3) as store:
        status, y = store.linear(w.shape, x, scale)
        assert status == OK
        assert same(y, product(x, w, scale))


@pytest.mark.parametrize("rows", [1, 20])
@pytest.mark.parametrize("width", [SUM_MAX - 1, SUM_MAX, SUM_MAX + 1, 3 * SUM_MAX + 5])
def test_rows_whose_sums_fill_32_bits_and_more(rows, width):
    w = np.full((3, width), -128, np.int8)
    w[1], w[2, ::3] = 127, 55
    x = np.ones((rows, width), np.float32)
    x[rows // 2] = -1
    assert 127 * 128 * SUM_MAX < 2**31 <= 127 * 128 * (SUM_MAX + 2048)
    scale = np.array([1, 0.5, 0.1], np.float32)
    with Store(w.tobytes(), 1) as store:
        status, y = store.linear(w.shape, x, scale)
        assert status == OK
        assert same(y, product(x, w, scale))


@pytest.mark.parametrize("rows", [3, 12])
def test_more_rows_than_a_pass_takes(rows):
    """int8_pass in tiers/sizes.c is 4 MiB."""
    rng = np.random.default_rng(rows)
    width, rows = (40000, 130) if rows == 12 else (70000, rows * 25)
    w = rng.integers(-128, 128, (5, width), dtype=np.int8)
    x = rng.standard_normal((rows, width)).astype(np.float32)
    scale = rng.standard_normal(5).astype(np.float32)
    lib.ccmem_set_threads(2)
    with Store(w.tobytes()) as store:
        status, y = store.linear(w.shape, x, scale)
        assert status == OK
        assert same(y, product(x, w, scale))


@pytest.mark.parametrize("x_dtype", sorted(CODES, key=str), ids=str)
@pytest.mark.parametrize("rows", [8, 40])
def test_rows_of_every_size(x_dtype, rows):
    """Zeros, subnormal and the largest numbers; what is not finite makes NaNs of its row alone."""
    rng = np.random.default_rng(rows)
    w = rng.integers(-128, 128, (33, 150), dtype=np.int8)
    x = rng.standard_normal((rows, 150)).astype(np.float32)
    x[0] = 0
    x[1] *= np.float32(2.0**-120)
    x[2] = np.float32(2.0**-149) * rng.integers(-3, 4, 150)
    x[3] *= np.float32(2.0**124)
    x[4, 7], x[5, 149], x[6, 0] = np.nan, np.inf, -np.inf
    x = x.astype(x_dtype)
    scale = rng.standard_normal(33).astype(np.float32)
    bias = rng.standard_normal(33).astype(np.float32)
    with Store(w.tobytes()) as store:
        status, y = store.linear(w.shape, x, scale, bias)
        assert status == OK
        assert same(y, product(x, w, scale, bias))
        assert (np.isnan(y).any(axis=1) == np.isin(np.arange(rows), (4, 5, 6))).all()
        assert (y[0] == bias).all()


def test_within_the_bound_of_the_header():
    rng = np.random.default_rng(5)
    w = rng.integers(-128, 128, (40, 1000), dtype=np.int8)
    x = rng.standard_normal((9, 1000)).astype(np.float32)
    scale, bias = (rng.standard_normal(40).astype(np.float32) for _ in range(2))
    with Store(w.tobytes()) as store:
        status, y = store.linear(w.shape, x, scale, bias)
    assert status == OK
    wide, step = w.astype(np.float64), np.abs(x).max(axis=1, keepdims=True) / 127
    exact = x.astype(np.float64) @ wide.T * scale + bias
    most = step / 2 * np.abs(scale) * np.abs(wide).sum(1) * (1 + 2.0**-15)
    most = most + 2.0**-22 * (np.abs(y) + np.abs(bias))
    assert (np.abs(y - exact) <= most).all()
    assert (np.abs(y - exact) > 2.0**-22 * np.abs(y)).any()  # x was rounded


CHILD = """
import hashlib, sys
sys.path[:0] = [{tests!r}, {support!r}]
import numpy as np, test_int8_native as t
total = hashlib.sha256()
rng = np.random.default_rng(1)
for out, width, rows in ((13, 150, 3), (49, 4100, 8), (49, 999, 9), (25, 20000, 70)):
    w = rng.integers(-128, 128, (out, width), dtype=np.int8)
    x = rng.standard_normal((rows, width)).astype(np.float32)
    s = rng.standard_normal(out).astype(np.float32)
    with t.Store(w.tobytes(), 5) as store:
        status, y = store.linear(w.shape, x, s, s)
    assert status == t.OK
    total.update(y.tobytes())
print(total.hexdigest())
"""


def test_every_tier_gives_the_same_bits():
    here = os.path.dirname(__file__)
    code = CHILD.format(tests=here, support=os.path.join(os.path.dirname(here), "support"))
    seen = set()
    for name in support.TIER_NAMES:
        seen.add(
            subprocess.run(
                [sys.executable, "-W", "ignore", "-c", code], check=True, capture_output=True,
                text=True, env={**os.environ, "PYCCMEM_TIER": name},
            ).stdout.strip()
        )  # fmt: skip
    assert len(seen) == 1
    assert len(seen.pop()) == len(hashlib.sha256().hexdigest())


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(("rows", "width"), [(1, 4096), (5, 1000), (40, 1000), (33, 20000)])
def test_a_changed_page_gives_nothing(rows, width, threads):
    rng = np.random.default_rng(3)
    lib.ccmem_set_threads(threads)
    w = rng.integers(-128, 128, (4_000_000 // width, width), dtype=np.int8)
    x = rng.standard_normal((rows, width)).astype(np.float32)
    scale = np.ones(len(w), np.float32)
    with Store(w.tobytes()) as store:
        mapping = lib.ccmem_store_mapping(store.handle)
        data = ffi.cast("uint8_t *", lib.ccmem_mapping_data(mapping))
        status, whole = store.linear(w.shape, x, scale)
        assert status == OK
        for page in (0, 1, w.nbytes // 8192, (w.nbytes - 1) // 4096):
            at = page * 4096 + int(rng.integers(4096))
            data[at] ^= 4
            status, y = store.linear(w.shape, x, scale)
            assert status == lib.CCMEM_ERR_INTEGRITY
            assert lib.ccmem_last_failure().page == page
            assert not y.any()
            data[at] ^= 4
            status, y = store.linear(w.shape, x, scale)
            assert status == OK
            assert y.tobytes() == whole.tobytes()
        lib.ccmem_mapping_release(mapping)


def test_a_changed_bias_gives_nothing():
    w, bias = np.ones((600, 64), np.int8), np.ones(600, np.float32)
    with Store(w.tobytes()) as store, Store(bias.tobytes()) as other:
        mapping = lib.ccmem_store_mapping(other.handle)
        ffi.cast("uint8_t *", lib.ccmem_mapping_data(mapping))[9] ^= 1
        x = np.ones((3, 64), np.float32)
        for width, lines in ((64, x), (0, x[:, :0])):
            status, y = store.linear((600, width), lines, bias, bias, encrypted=other)
            assert status == lib.CCMEM_ERR_INTEGRITY
            assert not y.any()
        lib.ccmem_mapping_release(mapping)


def test_refusals():
    w = np.ones((6, 64), np.int8)
    x, ones = np.ones((2, 64), np.float32), np.ones(6, np.float32)
    null = ffi.NULL
    with Store(w.tobytes()) as store:

        def status_of(out=6, width=64, scale=ones, x=x, x_type=0, count=2, y=True, y_type=0, **b):
            bias = ffi.new("ccmem_bias *", b)
            result = np.full((2, 6), 7.5, np.float32)
            status = lib.ccmem_store_linear_int8(
                store.handle, 0, out, width,
                null if scale is None else ffi.cast("float *", pointer(scale)),
                null if x is None else pointer(x), x_type, count, bias[0],
                pointer(result) if y else null, y_type,
            )  # fmt: skip
            return status, result

        for wrong in (
            {"scale": None},
            {"x": None},
            {"y": False},
            {"x_type": lib.CCMEM_F16},
            {"y_type": lib.CCMEM_I8},
            {"dtype": lib.CCMEM_F16},
            {"data": pointer(ones), "store": store.handle},
        ):
            status, y = status_of(**wrong)
            assert status == lib.CCMEM_ERR_ARGUMENT, wrong
            assert (y == 7.5).all()
        for wrong in ({"out": 7}, {"width": 80}, {"count": 2**63}):
            if "count" in wrong:
                assert status_of(**wrong)[0] == lib.CCMEM_ERR_RANGE
                continue
            wide = {**wrong, "count": 1, "x": np.ones((2, 80), np.float32)}
            status, y = status_of(**wide)
            assert status == lib.CCMEM_ERR_RANGE
            assert not y.reshape(-1)[: wrong.get("out", 6)].any()
        assert status_of(count=0, x=None, y=False)[0] == OK
        assert status_of(out=0, scale=None, y=False)[0] == OK


def test_in_a_child():
    w, ones = np.ones((6, 64), np.int8), np.ones(6, np.float32)
    with Store(w.tobytes()) as store:
        child = os.fork()
        if not child:
            status, y = store.linear(w.shape, np.ones((2, 64), np.float32), ones)
            os._exit(0 if status == lib.CCMEM_ERR_FORK and not y.any() else 1)
        assert os.waitpid(child, 0)[1] == 0


def test_no_plaintext_is_kept():
    """All blocks go back, on success and on failure, and the pool's are zeros then."""
    rng = np.random.default_rng(1)
    stats = ffi.new("ccmem_plain_stats *")
    lib.ccmem_plain_get_stats(stats)
    before = stats.blocks
    w = rng.integers(-128, 128, (50, 5000), dtype=np.int8)
    scale = np.ones(50, np.float32)
    with Store(w.tobytes()) as store:
        mapping = lib.ccmem_store_mapping(store.handle)
        for rows in (1, 30):
            x = rng.standard_normal((rows, 5000)).astype(np.float32)
            assert store.linear(w.shape, x, scale)[0] == OK
        ffi.cast("uint8_t *", lib.ccmem_mapping_data(mapping))[70000] ^= 1
        for rows in (1, 30):
            x = rng.standard_normal((rows, 5000)).astype(np.float32)
            assert store.linear(w.shape, x, scale)[0] == lib.CCMEM_ERR_INTEGRITY
        lib.ccmem_mapping_release(mapping)
    lib.ccmem_plain_get_stats(stats)
    assert stats.blocks == before
