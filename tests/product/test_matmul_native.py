# SPDX-License-Identifier: Apache-2.0
"""ccmem_store_linear: results, bounds, sameness of bits, refusals, changed pages, writers."""

from __future__ import annotations

import ctypes
import os
import platform
import threading
from collections.abc import Iterator

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from native_store import NativeStore, floats
from support import OK, PAGE_SIZES

from pyccmem.binding import CIPHERS, ffi, lib

DTYPES = {
    "float32": (lib.CCMEM_F32, np.dtype(np.float32)),
    "float16": (lib.CCMEM_F16, np.dtype(np.float16)),
    "bfloat16": (lib.CCMEM_BF16, np.dtype(ml_dtypes.bfloat16)),
    "int8": (lib.CCMEM_I8, np.dtype(np.int8)),
}
#: Up to so many rows of x are summed along k, more in panels (few_rows in tiers/sizes.c),
FEW = 48
#: but for whole panels on these tiers, of rows of W that are multiplied as they lie, up to so many
#: bytes (gemm_panels_as_is()).
WHOLE_PANELS = ("portable", "aesni", "vaes256")
PANEL, AS_IS = 16, (304 << 10) // 24
#: Around the rows of x of a block of sums, of a panel, and of several.
ROWS = (*range(8), *range(12, 18), 28, 29, 32, 33, FEW - 1, FEW, FEW + 1, 63, 64, 65, 97, 110)
#: Around the rows of W of a block, of a group of them, and of several.
HEIGHTS = (0, 1, 2, 3, 4, 5, 6, 7, 12, 13, 17, 23, 24, 25, 48, 49, 64, 130)
#: Elements of the blocks that a row is cut into, and of what is multiplied in registers at a time.
EDGES = (1, 2, 31, 32, 33, 63, 64, 65, 127, 128, 129, 384, 1000, 1024, 4096, 4100)


class Store(NativeStore):
    def linear(self, offset, dtype, shape, x, scale=None, bias=None, *, pad=0):
        """Status and y, whose rows are `pad` floats apart; these and the outside must stay."""
        rows, (out, width) = len(x), shape
        y = np.full((rows + 1, out + pad), 7.5, np.float32)
        status = lib.ccmem_store_linear(
            self.handle, offset, DTYPES[dtype][0], out, width, floats(scale), floats(x), rows,
            x.shape[1], floats(bias), floats(y), out + pad,
        )  # fmt: skip
        assert (y[:, out:] == 7.5).all()
        assert (y[rows:] == 7.5).all()
        return status, y[:rows, :out]


def random_matrix(rng, dtype, shape):
    values = rng.standard_normal(shape) * 10.0 ** rng.integers(-2, 3)
    if dtype == "int8":
        return rng.integers(-128, 128, shape, dtype=np.int8)
    return values.astype(DTYPES[dtype][1])


def bound(x, w, scale, bias):
    """The exact result in float64, and what the header promises about the distance from it."""
    w, x = w.astype(np.float64), x.astype(np.float64)
    scale = np.ones(len(w)) if scale is None else scale.astype(np.float64)
    bias = np.zeros(len(w)) if bias is None else bias.astype(np.float64)
    k = (-(-w.shape[1] // 32) if len(x) == 1 else w.shape[1]) + 9
    g = k * 2.0**-24 / (1 - k * 2.0**-24)
    return (x @ w.T) * scale + bias, g * ((np.abs(x) @ np.abs(w).T) * np.abs(scale) + np.abs(bias))


def order(rows: int, width: int, dtype: str) -> int:
    """Which of the three orders sums have: of one row, along k, in panels."""
    if rows == 1:
        return 1
    tier = ffi.string(lib.ccmem_tier_name(lib.ccmem_tier_active())).decode()
    as_is = dtype == "float32" and width % 1024 and width * 4 <= AS_IS and tier in WHOLE_PANELS
    whole = rows * 9 >= -(-rows // PANEL) * PANEL * 8
    return 3 if rows > FEW or (as_is and whole) else 2


@pytest.fixture(autouse=True)
def keep_threads() -> Iterator[None]:
    before = lib.ccmem_threads()
    yield
    lib.ccmem_set_threads(before)


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    dtype=st.sampled_from(sorted(DTYPES)),
    cipher=st.sampled_from(sorted(CIPHERS)),
    page_size=st.sampled_from(PAGE_SIZES),
    out=st.sampled_from(HEIGHTS),
    width=st.one_of(st.sampled_from((0, *EDGES)), st.integers(0, 9000)),
    rows=st.one_of(st.sampled_from(ROWS), st.integers(1, 40)),
    offset=st.one_of(st.integers(0, 9000), st.integers(0, 80).map(lambda n: n * 128)),
    scaled=st.booleans(),
    biased=st.booleans(),
    threads=st.integers(1, 3),
)
def test_within_the_bound(
    seed, dtype, cipher, page_size, out, width, rows, offset, scaled, biased, threads
):
    rng = np.random.default_rng(seed)
    lib.ccmem_set_threads(threads)
    w = random_matrix(rng, dtype, (out, width))
    x = rng.standard_normal((rows, width + int(rng.integers(3)))).astype(np.float32)
    scale = rng.standard_normal(out).astype(np.float32) if scaled else None
    bias = rng.standard_normal(out).astype(np.float32) if biased else None
    with Store(offset + w.nbytes + int(rng.integers(9000)), cipher, page_size) as store:
        store.write(offset, w.tobytes())
        status, y = store.linear(offset, dtype, w.shape, x, scale, bias, pad=int(rng.integers(3)))
        assert status == OK
        exact, most = bound(x[:, :width], w, scale, bias)
        assert (np.abs(y - exact) <= most).all()
        if not rows:
            return
        # What other rows hold changes nothing, nor which row it is, nor how many more.
        row = int(rng.integers(rows))
        same = [n for n in range(1, 121) if order(n, width, dtype) == order(rows, width, dtype)]
        other = np.full((int(rng.choice(same)), x.shape[1]), 1.5, np.float32)
        place = int(rng.integers(len(other)))
        other[place] = x[row]
        _, again = store.linear(offset, dtype, w.shape, other, scale, bias)
        assert again[place].tobytes() == y[row].tobytes()


@pytest.mark.parametrize("rows", [1, 2, 16, FEW, FEW + 1])
@pytest.mark.parametrize("dtype", sorted(DTYPES))
def test_same_bits_wherever_the_matrix_lies(dtype, rows):
    rng = np.random.default_rng(5)
    # Rows and places that every cipher's loop of one row takes, and places that it does not.
    w = random_matrix(rng, dtype, (70, 1536))
    x = rng.standard_normal((rows, 1536)).astype(np.float32)
    results = set()
    for cipher in CIPHERS:
        for page_size in PAGE_SIZES:
            for offset in (0, 128, 512, 4096, 4099, 65536 + 768):
                for threads in (1, 2, 5):
                    lib.ccmem_set_threads(threads)
                    with Store(offset + w.nbytes, cipher, page_size) as store:
                        store.write(offset, w.tobytes())
                        status, y = store.linear(offset, dtype, w.shape, x)
                        assert status == OK
                        results.add(y.tobytes())
    assert len(results) == 1


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "int8"])
def test_every_element_value(dtype):
    """Times 1, each value of a short type comes out as it is, infinities and subnormals too."""
    bits = DTYPES[dtype][1].itemsize * 8
    w = np.arange(2**bits, dtype=f"u{bits // 8}").view(DTYPES[dtype][1]).reshape(-1, 1)
    for cipher in CIPHERS:
        with Store(w.nbytes, cipher) as store:
            store.write(0, w.tobytes())
            for rows in (1, 2, FEW + 1):
                status, y = store.linear(0, dtype, w.shape, np.ones((rows, 1), np.float32))
                assert status == OK
                for row in y:
                    np.testing.assert_array_equal(row, w[:, 0].astype(np.float32))


@pytest.mark.parametrize("dtype", sorted(DTYPES))
@pytest.mark.parametrize("rows", [1, 2, FEW + 1])
@pytest.mark.parametrize("width", [13_600, 41_000, 90_001])
def test_rows_that_are_taken_in_parts(dtype, rows, width):
    """Rows so wide that a group of them is not opened at once. Sums of whole numbers are exact."""
    rng = np.random.default_rng(width)
    w = rng.integers(-3, 4, (14, width)).astype(DTYPES[dtype][1])
    x = rng.integers(-3, 4, (rows, width)).astype(np.float32)
    scale, bias = np.exp2(np.arange(14) % 4).astype(np.float32), np.arange(14, dtype=np.float32)
    with Store(5 + w.nbytes) as store:
        store.write(5, w.tobytes())
        status, y = store.linear(5, dtype, w.shape, x, scale, bias)
    assert status == OK
    np.testing.assert_array_equal(y, x @ w.astype(np.float32).T * scale + bias)


@pytest.mark.parametrize("rows, width", [(1500, 384), (1100, 2000), (3000, 3000)])
@pytest.mark.parametrize("dtype", sorted(DTYPES))
def test_x_of_more_rows_than_are_packed_at_once(dtype, rows, width):
    """1 MiB of x at a time, or 256 rows of up to 2 MiB, or 32 MiB of wider rows."""
    rng = np.random.default_rng(4)
    w = rng.integers(-3, 4, (7, width)).astype(DTYPES[dtype][1])
    x = rng.integers(-3, 4, (rows, width)).astype(np.float32)
    with Store(w.nbytes) as store:
        store.write(0, w.tobytes())
        status, y = store.linear(0, dtype, w.shape, x)
    assert status == OK
    np.testing.assert_array_equal(y, x @ w.astype(np.float32).T)


@pytest.mark.parametrize("page_size", [4096, 65536])
@pytest.mark.parametrize(
    "width, offset", [(384, 0), (384, 3), (1536, 4), (4096, 0), (4096, 8), (3101, 3)]
)
def test_many_rows_are_summed_in_one_chain(width, offset, page_size):
    """However blocks are cut: by columns that end within pages or with them, for any number of rows
    of x, by one thread or several. The control: another order of columns gives other bits."""
    rng = np.random.default_rng(9)
    w, x = (rng.standard_normal((n, width), np.float32) for n in (131, 700))
    with Store(offset + w.nbytes, page_size=page_size) as s:
        s.write(offset, w.tobytes())
        lib.ccmem_set_threads(1)
        y = s.linear(offset, "float32", w.shape, x)[1]
        numbers = [(1, FEW + 1), (2, 700), (3, 333), (2, FEW + 2)]
        numbers += [(2, n) for n in range(2, FEW) if order(n, width, "float32") == 3]
        for threads, rows in numbers:
            lib.ccmem_set_threads(threads)
            assert s.linear(offset, "float32", w.shape, x[:rows])[1].tobytes() == y[:rows].tobytes()
        s.write(offset, np.ascontiguousarray(w[:, ::-1]).tobytes())
        turned = s.linear(offset, "float32", w.shape, np.ascontiguousarray(x[:, ::-1]))[1]
    assert turned.tobytes() != y.tobytes()
    expected, error = bound(x, w, None, None)
    assert (np.abs(y - expected) <= error).all() and (np.abs(turned - expected) <= error).all()


@pytest.mark.parametrize("rows", [1, 2, 7, FEW + 5])
@pytest.mark.parametrize("cipher", sorted(CIPHERS))
def test_infinities_and_nan_stay_in_their_rows(cipher, rows):
    w = np.ones((40, 1024), np.float32)
    w[3, 5], w[7, 1023], w[39, 0] = np.inf, np.nan, -np.inf
    with Store(w.nbytes, cipher) as store:
        store.write(0, w.tobytes())
        _, y = store.linear(0, "float32", w.shape, np.ones((rows, 1024), np.float32))
        for row in y:
            assert row[3] == np.inf
            assert np.isnan(row[7])
            assert row[39] == -np.inf
            assert (np.delete(row, [3, 7, 39]) == 1024).all()


@pytest.mark.parametrize("rows", [2, 7, FEW + 5])
def test_infinities_of_x_stay_in_their_rows(rows):
    x = np.ones((rows, 100), np.float32)
    x[0, 99], x[1, 0] = np.inf, np.nan
    with Store(40 * 400) as store:
        store.write(0, np.ones((40, 100), np.float32).tobytes())
        _, y = store.linear(0, "float32", (40, 100), x)
    assert (y[0] == np.inf).all()
    assert np.isnan(y[1]).all()
    assert (y[2:] == 100).all()


@pytest.mark.parametrize("cipher", sorted(CIPHERS))
def test_pages_never_written_are_zeros(cipher):
    x = np.ones((1, 1024), np.float32)
    with Store(64 * 4096, cipher) as store:
        store.write(4096 * 9, np.ones(1024, np.float32).tobytes())
        status, y = store.linear(0, "float32", (64, 1024), x)
        assert status == OK
        assert y[0, 9] == 1024
        assert (np.delete(y[0], 9) == 0).all()


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(
    ("rows", "width", "offset"),
    [
        (1, 1024, 0),
        (1, 1000, 0),
        (1, 1024, 5),
        (2, 1024, 0),
        (14, 96, 0),
        (3, 1001, 7),
        (70, 333, 0),
    ],
)
def test_a_changed_page_gives_nothing(rows, width, offset, threads):
    rng = np.random.default_rng(3)
    lib.ccmem_set_threads(threads)
    w = random_matrix(rng, "float32", (2000, width))
    x = rng.standard_normal((rows, width)).astype(np.float32)
    with Store(offset + w.nbytes) as store:
        store.write(offset, w.tobytes())
        mapping = lib.ccmem_store_mapping(store.handle)
        data = ffi.cast("uint8_t *", lib.ccmem_mapping_data(mapping))
        pages = (offset + w.nbytes + 4095) // 4096
        status, whole = store.linear(offset, "float32", w.shape, x)
        assert status == OK
        for page in (0, 1, pages // 2, pages - 1):
            data[page * 4096 + int(rng.integers(4096))] ^= 1 << int(rng.integers(8))
            changed = bytes(ffi.buffer(data + page * 4096, 4096))
            status, y = store.linear(offset, "float32", w.shape, x)
            assert status == lib.CCMEM_ERR_INTEGRITY
            assert not y.any()
            assert lib.ccmem_last_failure().page == page
            assert bytes(ffi.buffer(data + page * 4096, 4096)) == changed
            status = lib.ccmem_store_write(  # a page written as a whole is good again
                store.handle, page * 4096, ffi.from_buffer(bytes(4096)), min(
                    4096, offset + w.nbytes - page * 4096)
            )  # fmt: skip
            if status == OK:
                old = (bytes(offset) + w.tobytes())[page * 4096 : (page + 1) * 4096]
                store.write(page * 4096, old)
            else:  # the last page, covered in part: mend it and stop
                assert page == pages - 1
                break
            again = store.linear(offset, "float32", w.shape, x)
            assert again[0] == OK
            assert again[1].tobytes() == whole.tobytes()
        lib.ccmem_mapping_release(mapping)


def test_refusals():
    x = np.ones((2, 8), np.float32)
    huge = 2**63
    with Store(4096) as store:
        for offset, out, width in (
            (4065, 1, 8), (0, 129, 8), (0, 1, 1025), (0, huge, 8), (0, 8, huge), (2**64 - 1, 1, 8),
            (0, 2**62 + 1, 4),
        ):  # fmt: skip
            y = np.full(2, 7.5, np.float32)
            one = out if out < 3 else 1
            status = lib.ccmem_store_linear(
                store.handle, offset, lib.CCMEM_F32, out, width, ffi.NULL, floats(x), 0, width,
                ffi.NULL, floats(y), one,
            )  # fmt: skip
            assert status == lib.CCMEM_ERR_RANGE
        status, y = store.linear(4065, "float32", (1, 8), x)
        assert status == lib.CCMEM_ERR_RANGE
        assert not y.any()

        def call(dtype=0, x_=None, rows=2, ldx=8, ldy=4):
            x_ = floats(x) if x_ is None else x_
            y = np.full((2, 4), 7.5, np.float32)
            return lib.ccmem_store_linear(
                store.handle, 0, dtype, 4, 8, ffi.NULL, x_, rows, ldx, ffi.NULL, floats(y), ldy
            )

        assert call() == OK
        assert call(dtype=4) == lib.CCMEM_ERR_ARGUMENT
        assert call(x_=ffi.NULL) == lib.CCMEM_ERR_ARGUMENT
        assert call(ldx=7) == lib.CCMEM_ERR_ARGUMENT
        assert call(ldy=3) == lib.CCMEM_ERR_ARGUMENT


def test_in_a_child():
    with Store(4096) as store:
        pid = os.fork()
        if not pid:
            status, y = store.linear(0, "float32", (1, 8), np.ones((1, 8), np.float32))
            os._exit(0 if status == lib.CCMEM_ERR_FORK and not y.any() else 1)
        assert os.waitpid(pid, 0)[1] == 0


@pytest.mark.parametrize("cipher", sorted(CIPHERS))
def test_each_page_as_one_writer_left_it(cipher):
    """A row is a page that writers fill with one number: no product mixes two of them."""
    pages = 512
    with Store(pages * 4096, cipher) as store:
        values = [np.full(1024, v, np.float32).tobytes() for v in (1, 2, 3)]
        for page in range(pages):
            store.write(page * 4096, values[0])
        stop = threading.Event()

        def writer(seed: int) -> None:
            rng = np.random.default_rng(seed)
            while not stop.is_set():
                store.write(int(rng.integers(pages)) * 4096, values[int(rng.integers(3))])

        writers = [threading.Thread(target=writer, args=(i,)) for i in range(2)]
        for thread in writers:
            thread.start()
        seen = set()
        try:
            for i in range(300):
                x = np.ones(((1, 2, 9, FEW + 1)[i % 4], 1024), np.float32)
                status, y = store.linear(0, "float32", (pages, 1024), x)
                assert status == OK
                seen |= set(np.unique(y))
        finally:
            stop.set()
            for thread in writers:
                thread.join()
        assert seen == {1024.0, 2048.0, 3072.0}


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the modes are x86's")
@pytest.mark.parametrize("rows", [1, 2, FEW + 1])
def test_the_callers_rounding_mode_changes_nothing(rows):
    fenv = ctypes.CDLL("libm.so.6")
    rng = np.random.default_rng(2)
    w = random_matrix(rng, "float32", (60, 1000))
    x = rng.standard_normal((rows, 1000)).astype(np.float32)
    upward, nearest = 0x800, 0
    with Store(w.nbytes) as store:
        store.write(0, w.tobytes())
        _, expected = store.linear(0, "float32", w.shape, x)
        assert fenv.fesetround(upward) == 0
        try:
            _, y = store.linear(0, "float32", w.shape, x)
            still = fenv.fegetround()
        finally:
            fenv.fesetround(nearest)
    assert still == upward
    assert y.tobytes() == expected.tobytes()


def test_no_plaintext_is_kept():
    before = ffi.new("ccmem_plain_stats *")
    after = ffi.new("ccmem_plain_stats *")
    rng = np.random.default_rng(1)
    w = random_matrix(rng, "float32", (300, 1000))
    with Store(w.nbytes) as store:
        store.write(0, w.tobytes())
        lib.ccmem_plain_get_stats(before)
        for rows in (1, 2, FEW + 1):
            store.linear(0, "float32", w.shape, np.ones((rows, 1000), np.float32))
        lib.ccmem_plain_get_stats(after)
    assert (after.blocks, after.in_use) == (before.blocks, before.in_use)
    assert after.peak > 0
