# SPDX-License-Identifier: Apache-2.0
"""EncryptedTensor: how tensors are made, read whole and in parts, written, viewed and closed; what
is decrypted and what is left behind. Index expressions have a test module of their own."""

from __future__ import annotations

import copy
import gc
import pickle
import threading
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import support
from support import linux_only, not_sanitized

import pyccmem
from pyccmem import EncryptedBuffer, EncryptedTensor, errors
from pyccmem.core import runs

RNG = np.random.default_rng(3)

DTYPES = [
    *("?", "i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "f2", "f4", "f8", "c8", "c16"),
    *(">i4", ">f8", "S5", "U3", "V7", "M8[ns]", "m8[s]"),
    "i4,f8,(2,3)u1",
]

ML_DTYPES = ["bfloat16", "float8_e4m3fn", "float8_e5m2", "float8_e4m3b11fnuz", "int4"]


def sample(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """An array of random bytes that are valid for any dtype that does not interpret them, and of
    small numbers otherwise."""
    kind = np.dtype(dtype)
    if kind.kind in "?biufcSMm":
        return RNG.integers(0, 100, shape).astype(kind)
    if kind.kind == "U":
        return RNG.integers(0, 100, shape).astype(kind)
    made = np.zeros(shape, kind)
    raw = made.reshape(-1).view(np.uint8)
    raw[:] = RNG.integers(1, 7, raw.shape)
    return made


@pytest.fixture
def plain() -> np.ndarray:
    return RNG.standard_normal((37, 300)).astype(np.float32)


@pytest.fixture
def tensor(key: pyccmem.Key, cipher: str, plain: np.ndarray) -> EncryptedTensor:
    return EncryptedTensor.from_numpy(plain, key=key, cipher=cipher)


def opened(tensor: EncryptedTensor, work: Callable[[], Any]) -> int:
    """How many pages, whole or in part, `work` decrypts."""
    before = tensor.buffer.stats()["pages_opened"]
    work()
    return tensor.buffer.stats()["pages_opened"] - before


# ---- dtypes ------------------------------------------------------------------------------------


def check_dtype(key: pyccmem.Key, dtype: Any) -> None:
    for shape in ((), (1,), (700, 3), (2, 0)):
        array = sample(shape, dtype)
        tensor = EncryptedTensor.from_numpy(array, key=key)
        assert tensor.dtype == array.dtype and tensor.shape == array.shape
        assert tensor.nbytes == array.nbytes and tensor.itemsize == array.itemsize
        assert tensor.size == array.size and tensor.ndim == array.ndim
        assert tensor.strides == array.strides or not array.size
        assert tensor[...].tobytes() == array.tobytes() and tensor[...].dtype == array.dtype
        if not array.size:
            continue
        for index in ((0,) * len(shape), (-1,) * len(shape)):
            element, expected = tensor[index], array[index]
            assert type(element) is type(expected)
            assert element.dtype == expected.dtype and element.tobytes() == expected.tobytes()
        if shape == (700, 3):
            for index in (3, np.s_[5:600:7, 1], np.s_[::-1, ::2], [5, 699, 5], np.s_[:, [0, 2]]):
                assert tensor[index].tobytes() == array[index].tobytes()
            changed, row = array.copy(), array[7].copy()
            for index, value in (
                (np.s_[1:9, 1], array[7, 2]),
                (5, row),
                ([2, 4], row),
                (np.s_[20:30], row),
                ((699, 1), array[0, 0]),
                (np.s_[::3, ::2], row[:2]),
            ):
                changed[index] = value
                tensor[index] = value
            assert tensor[...].tobytes() == changed.tobytes()


@pytest.mark.parametrize("dtype", DTYPES)
def test_numpy_dtypes(key: pyccmem.Key, dtype: str) -> None:
    check_dtype(key, dtype)


@pytest.mark.parametrize("name", ML_DTYPES)
def test_ml_dtypes(key: pyccmem.Key, name: str) -> None:
    types = pytest.importorskip("ml_dtypes", reason="needs ml_dtypes")
    dtype = np.dtype(getattr(types, name))
    array = np.arange(2100).reshape(700, 3).astype(dtype)
    tensor = EncryptedTensor.from_numpy(array, key=key)
    assert tensor.dtype == dtype
    for index in (..., 3, (3, 1), np.s_[::3, 1], [5, 1], (-1, 2)):
        found, expected = tensor[index], array[index]
        assert type(found) is type(expected) and found.tobytes() == expected.tobytes()
    tensor[4] = np.float32(1.5)
    array[4] = np.float32(1.5)
    tensor[:, 2] = [1] * 700
    array[:, 2] = [1] * 700
    assert tensor[...].tobytes() == array.tobytes()
    assert np.asarray(tensor, np.float32).tobytes() == array.astype(np.float32).tobytes()
    with tensor.open("r+") as opened_array:
        opened_array[0] = 2
    assert (tensor[0] == np.asarray(2, dtype)).all()
    raw = tensor.view(np.uint8)
    assert raw[5].tobytes() == array[5].tobytes()
    assert raw.view(dtype).dtype == dtype


def test_fields_of_structured_dtypes(key: pyccmem.Key) -> None:
    dtype = np.dtype([("a", "i4"), ("b", "f8"), ("c", "u1", (2, 3)), ("d", [("x", "i2")])])
    array = sample((50, 40), dtype)
    tensor = EncryptedTensor.from_numpy(array, key=key)
    for name in dtype.names:
        assert tensor[name].dtype == array[name].dtype
        assert tensor[name].tobytes() == array[name].tobytes()
    assert tensor[["a", "d"]].dtype == array[["a", "d"]].dtype
    assert tensor[["a", "d"]]["d"].tobytes() == array["d"].tobytes()
    tensor["b"] = np.arange(40)
    array["b"] = np.arange(40)
    tensor["d"] = array["d"][::-1].copy()
    array["d"] = array["d"][::-1].copy()
    assert tensor[...].tobytes() == array.tobytes()
    record = tensor[3, 4]
    assert isinstance(record, np.void) and record["a"] == array[3, 4]["a"]
    record["a"] += 1
    assert tensor[3, 4].tobytes() == array[3, 4].tobytes(), "a record is a copy"
    with pytest.raises(errors.IndexingError, match="one field"):
        tensor[["a", "b"]] = tensor[["a", "b"]]
    for names in ("nothing", ["a", "nothing"]):
        with pytest.raises((ValueError, KeyError)) as expected:
            array[names]
        with pytest.raises(type(expected.value)):
            tensor[names]
    with pytest.raises(errors.IndexingError, match="only integers"):
        EncryptedTensor.zeros(3, key=key)["a"]


@pytest.mark.parametrize("dtype", [object, "O", [("a", "i4"), ("b", "O")], "S", "U0", "V0"])
def test_dtypes_without_a_fixed_size_are_refused(key: pyccmem.Key, dtype: Any) -> None:
    with pytest.raises(errors.ArgumentTypeError, match="dtype"):
        EncryptedTensor.zeros((3,), dtype, key=key)
    with pytest.raises(errors.ArgumentTypeError, match="references"):
        EncryptedTensor.from_numpy(np.array([None, 1]), key=key)


# ---- making ------------------------------------------------------------------------------------


def test_new_tensors_are_zero(key: pyccmem.Key, cipher: str) -> None:
    for make in (EncryptedTensor.zeros, EncryptedTensor.empty):
        tensor = make((30, 40), "f4", key=key, cipher=cipher, page_size=8192)
        assert (tensor[...] == 0).all() and tensor[3, 4] == 0 and tensor.dtype == np.float32
        assert (tensor.cipher, tensor.page_size) == (cipher, 8192)
        assert isinstance(tensor.buffer, EncryptedBuffer) and tensor.buffer.nbytes == 4800
        assert not any(tensor.buffer.versions)
    assert EncryptedTensor.zeros(5, key=key).dtype == np.float64
    assert EncryptedTensor.zeros(5, key=key).shape == (5,)
    assert EncryptedTensor.zeros([2, np.int64(3)], "u1", key=key).shape == (2, 3)
    assert EncryptedTensor.zeros((), "u1", key=key)[()] == 0
    assert EncryptedTensor.zeros((2,), np.dtype(("f4", (3,))), key=key).shape == (2, 3)


def test_from_numpy_takes_any_layout(key: pyccmem.Key) -> None:
    array = RNG.standard_normal((300, 1100))
    for source in (array, array.T, array[::-2, ::3], np.asfortranarray(array), array[5], array[:0]):
        tensor = EncryptedTensor.from_numpy(source, key=key)
        assert tensor.shape == source.shape and tensor.dtype == source.dtype
        assert np.array_equal(tensor[...], source)
    readonly = array.copy()
    readonly.setflags(write=False)
    assert np.array_equal(EncryptedTensor.from_numpy(readonly, key=key)[...], array)
    assert EncryptedTensor.from_numpy([[1, 2], [3, 4]], key=key)[1, 0] == 3
    assert EncryptedTensor.from_numpy(2.5, key=key).shape == ()
    again = EncryptedTensor.from_numpy(EncryptedTensor.from_numpy(array, key=key), key=key)
    assert np.array_equal(again[...], array)


BAD_SHAPES = [
    ((-1,), errors.ArgumentError),
    ((2, -3), errors.ArgumentError),
    ((1 << 62, 8), errors.ArgumentError),
    ((1 << 70,), errors.ArgumentError),
    (1.5, errors.ArgumentTypeError),
    ("3", errors.ArgumentTypeError),
    ((2, None), errors.ArgumentTypeError),
    ((True,), errors.ArgumentTypeError),
    ((1,) * 70, errors.ArgumentError),
]


@pytest.mark.parametrize(("shape", "error"), BAD_SHAPES, ids=repr)
def test_bad_shapes_are_refused(key: pyccmem.Key, shape: Any, error: type[Exception]) -> None:
    with pytest.raises(error) as caught:
        EncryptedTensor.zeros(shape, "f4", key=key)
    assert str(caught.value).endswith(".") and len(str(caught.value)) > 25


def test_other_bad_arguments(key: pyccmem.Key) -> None:
    with pytest.raises(errors.ArgumentTypeError, match="from_numpy"):
        EncryptedTensor(np.zeros(3))
    with pytest.raises(errors.ArgumentTypeError, match="dtype"):
        EncryptedTensor.zeros(3, "no such type", key=key)
    with pytest.raises(errors.PageSizeError):
        EncryptedTensor.zeros(3, key=key, page_size=5000)
    with pytest.raises(errors.ArgumentError, match="cipher"):
        EncryptedTensor.zeros(3, key=key, cipher="rot13")
    with pytest.raises(errors.ArgumentTypeError, match="Key"):
        EncryptedTensor.zeros(3, key=b"x" * 32)  # type: ignore[arg-type]


def test_a_buffer_that_was_filled_before_becomes_a_tensor(key: pyccmem.Key) -> None:
    array = RNG.standard_normal((40, 30))
    buffer = EncryptedBuffer(array.nbytes + 5000, key=key)
    buffer.write(array, 1234)
    tensor = EncryptedTensor._adopt(buffer, (40, 30), "f8", 1234)
    assert tensor.buffer is buffer
    for index in (..., 3, (3, 4), np.s_[::-3, 2:9], [5, 0, 5], np.s_[:, 7], array > 0, np.s_[2:5]):
        assert np.array_equal(tensor[index], array[index])
    tensor[5, ::2] = 1
    tensor[[7, 9]] = 2
    tensor[11] = 3
    array[5, ::2] = 1
    array[[7, 9]] = 2
    array[11] = 3
    out = np.empty_like(array)
    buffer.read_into(out, 1234)
    assert np.array_equal(out, array)
    assert not any(buffer.read(0, 1234)) and not any(buffer.read(1234 + array.nbytes))
    for shape, offset in (((40, 30), 5001), ((40, 30), -1), ((10**6,), 0)):
        with pytest.raises(errors.RangeError, match="outside"):
            EncryptedTensor._adopt(buffer, shape, "f8", offset)


# ---- reading -----------------------------------------------------------------------------------


def test_a_read_is_a_copy_of_its_own(tensor: EncryptedTensor, plain: np.ndarray) -> None:
    for index in (..., 3, np.s_[2:9], np.s_[:, 4], [1, 2], (5, np.s_[2:8])):
        array = tensor[index]
        assert type(array) is np.ndarray and array.flags.c_contiguous and array.flags.writeable
        array[...] = -1
        assert np.array_equal(tensor[index], plain[index])


def test_only_the_pages_of_an_index_are_decrypted(key: pyccmem.Key, cipher: str) -> None:
    """Rows of one page each; and an axis whose items lie a page or more apart."""
    array = RNG.integers(0, 255, (64, 4096), dtype=np.uint8)
    tensor = EncryptedTensor.from_numpy(array, key=key, cipher=cipher, page_size=4096)
    assert opened(tensor, lambda: tensor[5]) == 1
    assert opened(tensor, lambda: tensor[5, 7]) == 1
    assert opened(tensor, lambda: tensor[5, 100:3000:3]) == 1
    assert opened(tensor, lambda: tensor[10:20]) == 10
    assert opened(tensor, lambda: tensor[::8]) == 8
    assert opened(tensor, lambda: tensor[[3, 60, 3]]) == 3
    assert opened(tensor, lambda: tensor[10:20, 5]) == 10
    assert opened(tensor, lambda: tensor[10:20, 5:100:7]) == 10
    assert opened(tensor, lambda: tensor[np.arange(64) % 9 == 0, 5]) == 8
    assert opened(tensor, lambda: tensor[3:3]) == 0
    assert opened(tensor, lambda: tensor[...]) == 64
    flat = tensor.reshape(-1)
    assert opened(tensor, lambda: flat[:: 2 * 4096]) == 32
    assert opened(tensor, lambda: flat[4096 * 3 : 4096 * 5 : 100]) == 2


def test_one_native_call_reads_many_rows(tensor: EncryptedTensor, plain: np.ndarray) -> None:
    """The calls that the buffer counts are runs; what matters is that runs join where they can."""

    def runs(index: Any) -> int:
        before = tensor.buffer.stats()["reads"]
        assert np.array_equal(tensor[index], plain[index])
        return tensor.buffer.stats()["reads"] - before

    assert runs(...) == 1
    assert runs(np.s_[3:20]) == 1
    assert runs(np.s_[3:20, :]) == 1
    assert runs(np.s_[None, 3:20, None]) == 1
    assert runs(np.s_[3:20, 5:10]) == 17
    assert runs(np.s_[3]) == 1
    assert runs([1, 5, 9]) == 3
    assert runs(np.s_[3, ::-1]) == 1


@pytest.mark.parametrize("run", [1, 2, 3, 4, 8, 16, 24])
def test_strided_reads_larger_than_the_staging(key: pyccmem.Key, run: int) -> None:
    """Items with small gaps, in rows larger and smaller than what is staged at a time."""
    array = RNG.integers(0, 255, (3, 900_000 // run, run), dtype=np.uint8)
    tensor = EncryptedTensor.from_numpy(array, key=key)
    whole, wide = tensor.reshape(-1, run), array.reshape(-1, run)
    for index in (np.s_[::2], np.s_[::-1], np.s_[5::-3], np.s_[7:-9:5], np.s_[::30]):
        assert np.array_equal(whole[index], wide[index])
        assert np.array_equal(tensor[:, index], array[:, index])
        assert np.array_equal(tensor[::-2, index], array[::-2, index])
        assert np.array_equal(tensor[[2, 0], index], array[[2, 0], index])


def test_blocks_cover_the_tensor_in_order(tensor: EncryptedTensor, plain: np.ndarray) -> None:
    for nbytes in (1200, 1201, 5000, 12_000, 1 << 20):
        parts = list(tensor.blocks(nbytes))
        assert all(0 < part.nbytes <= nbytes for part in parts)
        assert all(part.shape == parts[0].shape for part in parts[:-1])
        assert np.array_equal(np.concatenate(parts), plain)
    assert sum(len(part) for part in tensor.reshape(-1).blocks(100)) == plain.size
    assert list(tensor[:0].shape) == [0, 300]
    for nbytes, error in ((1199, errors.ArgumentError), ("x", errors.ArgumentTypeError)):
        with pytest.raises(error, match="nbytes"):
            tensor.blocks(nbytes)  # refused before the first block is asked for


def test_blocks_of_tensors_without_rows(key: pyccmem.Key) -> None:
    assert list(EncryptedTensor.zeros((0, 4), key=key).blocks(100)) == []
    (only,) = EncryptedTensor.zeros((3, 0), key=key).blocks(100)
    assert only.shape == (3, 0)
    with pytest.raises(errors.ArgumentTypeError, match="no dimensions"):
        EncryptedTensor.zeros((), key=key).blocks(100)


def test_streaming_needs_little_plaintext(key: pyccmem.Key) -> None:
    tensor = EncryptedTensor.from_numpy(np.ones((4096, 1024), np.float32), key=key)
    gc.collect()
    before = pyccmem.stats()["plain_in_use"]
    most, total = 0, 0.0
    for block in tensor.blocks(256 << 10):
        most = max(most, pyccmem.stats()["plain_in_use"] - before)
        total += float(block.sum())
    assert total == 4096 * 1024
    assert 256 << 10 <= most <= 2 * (256 << 10) + 4096


def test_len_iteration_membership_and_truth(
    key: pyccmem.Key, tensor: EncryptedTensor, plain: np.ndarray
) -> None:
    assert len(tensor) == 37
    assert all(np.array_equal(a, b) for a, b in zip(tensor, plain, strict=True))
    assert all(a == b for a, b in zip(tensor[3], plain[3], strict=True))
    assert list(EncryptedTensor.zeros((0, 3), key=key)) == []
    assert plain[20, 20] in tensor and np.float32(99) not in tensor
    one, scalar = EncryptedTensor.zeros(1, key=key), EncryptedTensor.zeros((), key=key)
    assert not one and not scalar
    one[0] = scalar[...] = 2
    assert one and scalar
    with pytest.raises(ValueError, match="ambiguous"):
        bool(tensor)
    for work in (len, iter):
        with pytest.raises(TypeError, match="no dimensions"):
            work(scalar)


def test_conversion_to_an_array(tensor: EncryptedTensor, plain: np.ndarray) -> None:
    for made in (np.asarray(tensor), np.array(tensor)):
        assert type(made) is np.ndarray and made.dtype == np.float32
        assert np.array_equal(made, plain)
    for dtype in ("f8", "f2", "i4", "S8", "?", object):
        expected = plain.astype(dtype)
        for made in (np.asarray(tensor, dtype), np.array(tensor, dtype=dtype, copy=True)):
            assert made.dtype == expected.dtype and np.array_equal(made, expected)
    assert np.array_equal(np.add(tensor, 1), plain + 1)
    assert np.array_equal(plain - tensor, plain - plain)
    assert np.array_equal(np.concatenate([tensor, tensor]), np.concatenate([plain, plain]))


@pytest.mark.skipif(np.lib.NumpyVersion(np.__version__) < "2.0.0", reason="NumPy 2's copy=")
def test_no_array_without_a_copy(tensor: EncryptedTensor) -> None:
    for make in (np.asarray, np.array):
        with pytest.raises(ValueError, match="copy"):
            make(tensor, copy=False)


# ---- writing -----------------------------------------------------------------------------------


def test_duplicate_indices_the_last_one_wins(key: pyccmem.Key) -> None:
    for width in (1, 5, 300, 3000):
        array = np.zeros((20, width), np.float32)
        tensor = EncryptedTensor.from_numpy(array, key=key)
        ids = RNG.integers(0, 20, 200)
        values = RNG.standard_normal((200, width)).astype(np.float32)
        array[ids] = values
        tensor[ids] = values
        assert np.array_equal(tensor[...], array)
        tensor[[3, 3, -17], width // 2] = [1, 2, 3]
        array[[3, 3, -17], width // 2] = [1, 2, 3]
        assert np.array_equal(tensor[...], array)


@pytest.mark.parametrize("cipher", ["aegis-128x2", "aes-128-xts"])
@pytest.mark.parametrize("page_size", [4096, 65536])
@pytest.mark.parametrize("item", ["u1", "i2", "f4", "f8", "V5", "V3000", "V5000"])
def test_strided_writes(key: pyccmem.Key, cipher: str, page_size: int, item: str) -> None:
    """Many runs in one page, runs across pages, runs that adjoin, in every order."""
    rows = max(8, 200_000 // (9 * np.dtype(item).itemsize))
    array = sample((rows, 9), item)
    tensor = EncryptedTensor.from_numpy(array, key=key, cipher=cipher, page_size=page_size)
    fresh = sample((rows, 9), item)
    order = RNG.permutation(rows)
    for index in (
        *(np.s_[::2], np.s_[:, 3], np.s_[1::3, ::-2], np.s_[::-1, 1:5], np.s_[::-1]),
        *(order, order[:5], np.arange(rows), np.sort(order)[2:], np.s_[order, 2:7:2], np.s_[5:, 8]),
    ):
        array[index] = fresh[index]
        tensor[index] = fresh[index]
        assert tensor[...].tobytes() == array.tobytes(), index


def test_a_page_moves_one_version_for_many_elements(key: pyccmem.Key, cipher: str) -> None:
    tensor = EncryptedTensor.zeros((8, 1024), "f4", key=key, cipher=cipher, page_size=4096)
    tensor[...] = 1
    assert tensor.buffer.versions.tolist() == [1] * 8
    tensor[:, ::2] = 5
    assert tensor.buffer.versions.tolist() == [2] * 8
    tensor[3, [5, 7, 900]] = 6
    assert tensor.buffer.versions.tolist() == [2, 2, 2, 3, 2, 2, 2, 2]
    tensor[[0, 1]] = 7
    assert tensor.buffer.versions.tolist() == [3, 3, 2, 3, 2, 2, 2, 2]


@pytest.mark.parametrize("kind", ["broadcast", "converted", "transposed", "scalar", "leading"])
def test_large_assignments_are_converted_in_pieces(key: pyccmem.Key, kind: str) -> None:
    shape = (3, 1000, 700)
    value: Any = {
        "broadcast": lambda: RNG.standard_normal((1000, 1)).astype("f4"),
        "converted": lambda: RNG.standard_normal(shape),
        "transposed": lambda: RNG.standard_normal((700, 1000, 3)).astype("f4").T,
        "scalar": lambda: 3.5,
        "leading": lambda: RNG.standard_normal((1, 1, *shape)),
    }[kind]()
    array = np.zeros(shape, "f4")
    tensor = EncryptedTensor.zeros(shape, "f4", key=key)
    gc.collect()
    used = pyccmem.stats()["plain_in_use"]
    for index in (..., np.s_[:], np.s_[::-1], np.s_[:, ::-1, :], np.s_[:, :, ::-1]):
        array[index] = value
        tensor[index] = value
        assert np.array_equal(tensor[...], array)
    assert pyccmem.stats()["plain_in_use"] == used
    peak = support.check_python(
        """
import numpy as np, pyccmem
t = pyccmem.EncryptedTensor.zeros((3, 1000, 700), "f4", key=pyccmem.Key.generate())
t[...] = np.ones((3, 1000, 700))
t[::-1] = 5
assert t[2, 999, 699] == 5
print(pyccmem.stats()["plain_peak"])
"""
    )
    assert int(peak) <= (2 << 20) + 65536


def test_values_that_are_tensors_or_ciphertext(key: pyccmem.Key) -> None:
    source = RNG.integers(0, 255, (50, 200), dtype=np.uint8)
    tensor = EncryptedTensor.from_numpy(source, key=key)
    other = EncryptedTensor.zeros((50, 200), "u1", key=key)
    other[...] = tensor
    assert np.array_equal(other[...], source)
    other[3:5] = tensor[:2]
    stored = np.frombuffer(other.buffer.ciphertext, np.uint8)[:10_000].reshape(50, 200)
    expected = stored.copy()
    other[...] = stored  # its own ciphertext: must be read before it is overwritten
    assert np.array_equal(other[...], expected)


def test_a_refused_assignment_changes_nothing(tensor: EncryptedTensor, plain: np.ndarray) -> None:
    before = tensor.buffer.versions.tolist()
    for index, value, error in (
        (..., np.zeros(7), ValueError),
        (3, np.zeros((2, 300)), ValueError),
        ((3, 4), [1, 2], (TypeError, ValueError)),
        ([1, 2], np.zeros((3, 300)), ValueError),
        (40, 1, IndexError),
        (..., "word", ValueError),
        (..., object(), TypeError),
        ("name", 1, IndexError),
    ):
        with pytest.raises(error) as caught:
            tensor[index] = value
        assert isinstance(caught.value, errors.PyccmemError)
    assert tensor.buffer.versions.tolist() == before
    assert np.array_equal(tensor[...], plain)


def test_versions_that_run_out(key: pyccmem.Key) -> None:
    buffer = EncryptedBuffer(4096, key=key, _version_limit=3)
    tensor = EncryptedTensor._adopt(buffer, (1024,), "f4")
    for n in range(3):
        tensor[::2] = n
    for index in (5, slice(None), slice(None, None, 2), [1, 5]):
        with pytest.raises(errors.VersionExhaustedError):
            tensor[index] = 9
    assert tensor[...].tolist() == [2, 0] * 512


# ---- names, and pages that were changed ----------------------------------------------------------


def test_a_tensor_has_the_name_of_its_buffer(key: pyccmem.Key) -> None:
    for make in (
        lambda **how: EncryptedTensor.from_numpy(np.ones((4, 5)), **how),
        lambda **how: EncryptedTensor.zeros((4, 5), **how),
        lambda **how: EncryptedTensor.empty((4, 5), **how),
    ):
        tensor = make(key=key, name="layer.0")
        assert tensor.name == tensor.buffer.name == tensor.reshape(-1).name == "layer.0"
        assert repr(tensor) == (
            "<pyccmem.EncryptedTensor 'layer.0' of shape (4, 5), float64, aegis-128x2, open>"
        )
        assert make(key=key).name != make(key=key).name


def test_a_tensor_that_was_never_made(key: pyccmem.Key) -> None:
    empty = EncryptedTensor.__new__(EncryptedTensor)
    assert repr(empty) == "<pyccmem.EncryptedTensor, never made>"
    for use in (
        lambda: empty[0],
        lambda: empty[...],
        lambda: empty.shape,
        lambda: empty.verify(),
        lambda: empty.close(),
        lambda: empty.__enter__(),
        lambda: empty.__setitem__(0, 1),
    ):
        with pytest.raises(errors.ClosedError, match="never made"):
            use()
    with pytest.raises(AttributeError, match="shapes"):
        empty.shapes  # type: ignore[attr-defined]  # noqa: B018


#: Every way to read that has code of its own; each touches the page in the middle of 64 x 4096.
READS: dict[str, Callable[[EncryptedTensor], Any]] = {
    "all": lambda t: t[...],
    "a row": lambda t: t[32],
    "a scalar": lambda t: t[32, 5],
    "a numpy number": lambda t: t[np.int64(32)],
    "a slice": lambda t: t[30:40],
    "every other row": lambda t: t[::2],
    "a column": lambda t: t[:, 7],
    "items close together": lambda t: t[20:50, 3::50],
    "items backwards": lambda t: t[:, ::-3],
    "a last piece that is shorter": lambda t: t.reshape(-1)[: 32 * 4096 + 60 : 50],
    "rows by number": lambda t: t[np.array([1, 32, 63])],
    "rows by list": lambda t: t[[0, 32, 5]],
    "a mask": lambda t: t[np.arange(64) % 4 == 0],
    "elements by number": lambda t: t[[1, 32], [3, 4]],
    "nested rows": lambda t: t[np.array([[1, 2], [32, 3]])],
    "asarray": lambda t: np.asarray(t),
    "asarray of another dtype": lambda t: np.asarray(t, np.float64),
    "blocks": lambda t: list(t.blocks(5 * 4096)),
    "iteration": lambda t: list(t),
    "open": lambda t: t.open().__enter__(),
    "contains": lambda t: 0x5A in t,
    "a record": lambda t: t.view("V4096")[32, 0],
    "a view": lambda t: t.view("i8")[32, 1],
    "reshaped": lambda t: t.reshape(-1)[32 * 4096 - 2 : 32 * 4096 + 2],
}


@pytest.mark.parametrize("pieces", ["one call", "small pieces"])
@pytest.mark.parametrize("read", READS.values(), ids=READS)
def test_every_way_to_read_refuses_a_changed_page(
    key: pyccmem.Key, monkeypatch: pytest.MonkeyPatch, read: Callable, pieces: str
) -> None:
    """Nothing comes out, nothing is left in memory that the traceback keeps, and the tensor goes on
    where the page is not touched."""
    if pieces == "small pieces":  # so that some are read before the one that fails
        monkeypatch.setattr(runs, "OFFSETS", 2)
        monkeypatch.setattr(runs, "STAGING_BYTES", 4000)
    array = np.full((64, 4096), 0x77, np.uint8)
    tensor = EncryptedTensor.from_numpy(array, key=key, page_size=4096, name="weights")
    read(tensor)
    gc.collect()
    used = pyccmem.stats()["plain_in_use"]
    support.damage(tensor.buffer, 32, 999)
    with pytest.raises(errors.IntegrityError, match="Page 32 of buffer 'weights'") as caught:
        read(tensor)
    assert (caught.value.page, caught.value.offset) == (32, 32 * 4096)
    assert kept_plaintext(caught.value) == 0
    assert np.array_equal(tensor[:32], array[:32]) and np.array_equal(tensor[33:], array[33:])
    assert tensor[31, 5] == 0x77 and tensor[33, 5] == 0x77
    assert tensor.verify() == [32]
    support.damage(tensor.buffer, 32, 999)
    assert np.array_equal(tensor[...], array) and tensor.verify() == []
    del caught
    gc.collect()
    assert pyccmem.stats()["plain_in_use"] <= used + 64


def kept_plaintext(error: BaseException) -> int:
    """How many bytes of plaintext the frames of an exception's traceback hold in this package."""
    kept = 0
    trace = error.__traceback__
    while trace is not None:
        if "pyccmem" in trace.tb_frame.f_globals.get("__name__", ""):
            for value in trace.tb_frame.f_locals.values():
                if isinstance(value, support.ffi.buffer):
                    kept += bytes(value).count(0x77)
                elif isinstance(value, np.ndarray) and not value.dtype.hasobject:
                    kept += value.tobytes().count(0x77)
        trace = trace.tb_next
    return kept


def test_the_search_for_kept_plaintext_finds_some(key: pyccmem.Key) -> None:
    """The control of the test above: what a frame of this package holds is seen."""
    tensor = EncryptedTensor.from_numpy(np.full(1000, 0x77, np.uint8), key=key)
    with pytest.raises(ZeroDivisionError) as caught, tensor.open():
        _ = 1 / 0
    assert kept_plaintext(caught.value) == 0, "open() has wiped it"
    names = {"__name__": "pyccmem.test", "tensor": tensor}
    with pytest.raises(ZeroDivisionError) as caught:
        exec("def f():\n    array = tensor[...]\n    1 / 0\nf()", names)
    assert kept_plaintext(caught.value) == 1000


def test_writing_to_a_changed_page(key: pyccmem.Key) -> None:
    """A part of it is refused and changes nothing; a whole page is replaced."""
    array = np.full((64, 4096), 0x77, np.uint8)
    tensor = EncryptedTensor.from_numpy(array, key=key, page_size=4096)
    support.damage(tensor.buffer, 32)
    before = tensor.buffer.versions.tolist()
    for index in ((32, 5), np.s_[32, 3:9], np.s_[32, ::5], (32, [1, 5])):
        with pytest.raises(errors.IntegrityError):
            tensor[index] = 1
    assert tensor.buffer.versions.tolist() == before and tensor.verify() == [32]
    tensor[3, 5] = array[3, 5] = 9
    tensor[32] = array[32] = 5
    assert tensor.verify() == [] and np.array_equal(tensor[...], array)


def test_verify_looks_at_the_pages_of_the_tensor_only(key: pyccmem.Key) -> None:
    buffer = EncryptedBuffer(20 * 4096, key=key)
    buffer.write(RNG.bytes(20 * 4096))
    for page in (2, 6, 9, 10, 15):
        support.damage(buffer, page)
    for first, last, expected in ((3, 6, []), (6, 7, [6]), (0, 20, [2, 6, 9, 10, 15])):
        tensor = EncryptedTensor._adopt(buffer, (last - first, 4096), "u1", first * 4096)
        assert tensor.verify() == tensor.reshape(-1).verify() == expected
    for offset, nbytes, expected in (
        (9 * 4096 - 1, 1, []),
        (9 * 4096 - 1, 2, [9]),
        (10 * 4096 + 4095, 2, [10]),
        (10 * 4096 + 4096, 1, []),
        (2 * 4096 + 100, 5 * 4096, [2, 6]),
        (2 * 4096, 0, []),
    ):
        assert EncryptedTensor._adopt(buffer, nbytes, "u1", offset).verify() == expected
    xts = EncryptedTensor.zeros(5, key=key, cipher="aes-256-xts", name="weights")
    with pytest.raises(errors.NotAuthenticatedError, match="'weights'"):
        xts.verify()
    tensor.close()
    with pytest.raises(errors.ClosedError):
        tensor.verify()


# ---- open() ------------------------------------------------------------------------------------


def test_open_gives_a_plain_array_for_a_while(tensor: EncryptedTensor, plain: np.ndarray) -> None:
    with tensor.open() as array:
        assert type(array) is np.ndarray and np.array_equal(array, plain)
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 1
        kept = array[3:5]
    assert not kept.any(), "what open() gave is wiped even where references remain"
    versions = tensor.buffer.versions.tolist()
    with tensor.open("r") as array:
        pass
    assert tensor.buffer.versions.tolist() == versions, "reading writes nothing back"
    with tensor.open("r+") as array:
        array *= 2
        kept = array
    assert not kept.any()
    assert np.array_equal(tensor[...], plain * 2)


def test_open_drops_changes_on_an_exception(tensor: EncryptedTensor, plain: np.ndarray) -> None:
    with pytest.raises(ZeroDivisionError), tensor.open("r+") as array:
        array[...] = 0.5
        kept = array
        _ = 1 / 0
    assert not kept.any()
    assert np.array_equal(tensor[...], plain)
    with pytest.raises(errors.ClosedError), tensor.open("r+") as array:
        array[...] = 0.5
        kept = array
        tensor.close()
    assert not kept.any()


@pytest.mark.parametrize("mode", ["w", "rb", "", None, 3])
def test_open_in_another_mode(tensor: EncryptedTensor, mode: Any) -> None:
    with pytest.raises(errors.ArgumentError, match="mode"):
        tensor.open(mode)


def test_open_of_tensors_of_any_shape(key: pyccmem.Key) -> None:
    for shape in ((), (0, 3), (1,), (5, 1000)):
        tensor = EncryptedTensor.zeros(shape, "i2", key=key)
        with tensor.open("r+") as array:
            assert array.shape == shape and array.dtype == np.int16
            array[...] = 3
        assert (tensor[...] == 3).all()


# ---- other forms of the same bytes ---------------------------------------------------------------


def test_reshape_and_view_share_the_buffer(tensor: EncryptedTensor, plain: np.ndarray) -> None:
    reads = tensor.buffer.stats()["reads"]
    for shape in ((-1,), (300, 37), (37, 3, 100), (1, 37, -1, 1), (37, 300)):
        made, expected = tensor.reshape(*shape), plain.reshape(*shape)
        assert made.shape == expected.shape and made.buffer is tensor.buffer
        assert tensor.reshape(shape).shape == expected.shape
    assert tensor.reshape(-1).shape == (11_100,) and tensor.reshape([300, 37]).shape == (300, 37)
    for dtype in ("u1", "f8", ">i4", "c8", "i2", "V12"):
        assert tensor.view(dtype).shape == plain.view(dtype).shape
        assert tensor.view(dtype).dtype == np.dtype(dtype)
    assert tensor.buffer.stats()["reads"] == reads, "no data are read for another form"
    assert tensor.view("u1")[5, 7:21].tobytes() == plain.view("u1")[5, 7:21].tobytes()
    assert tensor.reshape(300, 37).view(">i4")[::7, 3].tolist() == (
        plain.reshape(300, 37).view(">i4")[::7, 3].tolist()
    )
    tensor.reshape(-1)[300] = 5
    assert tensor[1, 0] == 5
    tensor.view("u4")[2] = 0
    assert not tensor[2].any()


@pytest.mark.parametrize(
    ("work", "error"),
    [
        (lambda t: t.reshape(7, 7), ValueError),
        (lambda t: t.reshape(-1, -1), ValueError),
        (lambda t: t.reshape("x"), TypeError),
        (lambda t: t.reshape(1.5), TypeError),
        (lambda t: t.view("V7"), ValueError),
        (lambda t: t.view("O"), TypeError),
        (lambda t: t.view("S"), TypeError),
        (lambda t: t.reshape(-1, 1).view("f8"), ValueError),
        (lambda t: t.view("no type"), TypeError),
    ],
)
def test_forms_that_cannot_be(tensor: EncryptedTensor, work: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        work(tensor)


# ---- what it shows -----------------------------------------------------------------------------


def test_nothing_shows_contents(key: pyccmem.Key) -> None:
    tensor = EncryptedTensor.from_numpy(np.full((3, 4), 31337, np.int32), key=key)
    shown = [repr(tensor), str(tensor), f"{tensor}", f"{tensor!r}", str([tensor]), str({1: tensor})]
    for text in shown:
        assert "31337" not in text and "(3, 4)" in text and "int32" in text
    assert "open" in repr(tensor)
    tensor.close()
    assert "closed" in repr(tensor)
    for attribute in ("shape", "dtype", "nbytes", "buffer", "note"):
        with pytest.raises(AttributeError):
            setattr(tensor, attribute, None)


def test_what_a_debugger_would_print_reads_no_memory(key: pyccmem.Key) -> None:
    """A tensor's own attributes hold no address that printing them would follow."""
    tensor = EncryptedTensor.zeros((1 << 16, 1 << 14), "f8", key=key)
    assert tensor._ghost.nbytes == 0 and tensor[:2, :3].tolist() == [[0.0] * 3] * 2
    assert len(repr({name: getattr(tensor, name) for name in tensor.__slots__})) < 5000


@pytest.mark.parametrize(
    "work",
    [pickle.dumps, copy.copy, copy.deepcopy, lambda t: t.__reduce__()],
    ids=["pickle", "copy", "deepcopy", "reduce"],
)
def test_pickling_and_copying_are_refused(tensor: EncryptedTensor, work: Any) -> None:
    with pytest.raises(errors.NotPicklableError, match="EncryptedTensor"):
        work(tensor)


# ---- lifetime ----------------------------------------------------------------------------------


USES: dict[str, Callable[[EncryptedTensor], Any]] = {
    "element": lambda t: t[1, 2],
    "row": lambda t: t[1],
    "rows": lambda t: t[1:3],
    "strided": lambda t: t[::2, 1],
    "close together": lambda t: t[1, ::2],
    "gather": lambda t: t[[1, 2]],
    "gather array": lambda t: t[np.array([1, 2])],
    "mask": lambda t: t[np.ones((37, 300), bool)],
    "whole": lambda t: t[...],
    "nothing": lambda t: t[:0],
    "no rows": lambda t: t[np.zeros(0, int)],
    "array": np.asarray,
    "set element": lambda t: t.__setitem__((1, 2), 3),
    "set row": lambda t: t.__setitem__(1, 3),
    "set strided": lambda t: t.__setitem__(np.s_[::2, 1], 3),
    "set gathered": lambda t: t.__setitem__([1, 2], 3),
    "set nothing": lambda t: t.__setitem__(np.s_[:0], 3),
    "open": lambda t: t.open().__enter__(),
    "iterate": lambda t: next(iter(t)),
    "blocks": lambda t: next(t.blocks()),
    "contains": lambda t: 5 in t,
    "with": lambda t: t.__enter__(),
}


@pytest.mark.parametrize("use", USES)
def test_use_after_close(tensor: EncryptedTensor, use: str) -> None:
    view = tensor.reshape(37, 300)
    array, element = tensor[3], tensor[1, 2]
    before = array.copy()
    with tensor as entered:
        assert entered is tensor and not tensor.closed
    assert tensor.closed and view.closed
    for closed in (tensor, view):
        with pytest.raises(errors.ClosedError, match="closed"):
            USES[use](closed)
        closed.close()
    assert np.array_equal(array, before) and element == element
    assert tensor.shape == (37, 300) and tensor.reshape(-1).shape == (11_100,)


@linux_only
@not_sanitized
def test_use_in_a_forked_child(tensor: EncryptedTensor) -> None:
    tensor[1, 2]  # so that there is scratch memory to inherit
    array = tensor[3]

    def child() -> None:
        for name, use in USES.items():
            if name == "with":
                continue
            with pytest.raises(errors.ForkError):
                use(tensor)
        assert not array.any()
        assert tensor.shape == (37, 300) and "open" in repr(tensor)

    support.in_forked_child(child)
    assert array.any() and tensor[1, 2] == tensor[1][2]


def test_threads_read_and_write_at_once(key: pyccmem.Key) -> None:
    """Each thread owns some columns: elements of all threads share every page."""
    tensor = EncryptedTensor.zeros((500, 8), "i4", key=key)
    failures: list[Any] = []

    def work(column: int) -> None:
        try:
            for n in range(1, 60):
                tensor[:, column] = n * 10 + column
                tensor[n, column] = -n
                expected = np.full(500, n * 10 + column)
                expected[n] = -n
                if not np.array_equal(tensor[:, column], expected) or tensor[n, column] != -n:
                    failures.append((column, n))
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def test_a_read_inside_a_read(key: pyccmem.Key) -> None:
    """Elements read from several threads and from finalizers at once never mix."""
    tensor = EncryptedTensor.from_numpy(np.arange(5000), key=key)
    failures: list[Any] = []

    class Reads:
        def __del__(self) -> None:
            if tensor[77] != 77:
                failures.append("in a finalizer")

    def work(start: int) -> None:
        for i in range(start, 5000, 7):
            nested = Reads()
            nested.itself = nested  # type: ignore[attr-defined]
            if tensor[i] != i or tensor[i].dtype != np.int64:
                failures.append(i)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    gc.collect()
    assert not failures


@not_sanitized
def test_many_tensors_come_and_go(key: pyccmem.Key) -> None:
    def cycle(times: int) -> None:
        for n in range(times):
            tensor = EncryptedTensor.zeros((n % 50 + 1, 30), "f4", key=key)
            tensor[0, 0] = 1
            tensor[...], tensor[0], tensor[0, 0], tensor[[0, 0]], tensor[:, ::2]
            tensor.reshape(-1).view("u1")

    cycle(300)
    gc.collect()
    before, memory = pyccmem.stats(), support.status_field("VmRSS")
    cycle(3000)
    gc.collect()
    after = pyccmem.stats()
    for name in ("buffers", "bytes", "plain_blocks", "plain_in_use"):
        assert after[name] == before[name]
    assert support.status_field("VmRSS") - memory < 4 << 20


# ---- what is left behind -----------------------------------------------------------------------

#: Fills tensors from a file, wiping what it read; then reads every element in every way, or holds
#: one array for the control.
READER = """
import sys, warnings
import numpy as np
import pyccmem
from pyccmem import EncryptedTensor
pyccmem.set_num_threads(2)
path, control = sys.argv[1], sys.argv[2] == "control"
key = pyccmem.Key.generate()
shapes = {"table": ((3000, 48), "f4"), "wide": ((24, 5000), "f8"), "flat": ((70_000,), "i2"),
          "cube": ((9, 40, 33), "f4"), "tiny": ((5, 4), "f4")}
tensors = {}
with open(path, "rb", buffering=0) as file:
    for name, (shape, dtype) in shapes.items():
        tensors[name] = EncryptedTensor.zeros(shape, dtype, key=key)
        raw = np.empty(tensors[name].nbytes, np.uint8)
        assert file.readinto(raw) == raw.size
        tensors[name].buffer.write(raw)
        raw[:] = 0
for name, t in tensors.items():
    count = t.shape[0]
    t[...], np.asarray(t)
    if np.__version__[0] != "1":  # whose array() makes a copy of its own
        np.array(t, copy=True)
    for row in t: pass
    for block in t.blocks(max(t.nbytes // 7, t.nbytes // count)): pass
    for part in (t[::2], t[1::2], t[::-1], t[np.arange(count)], t[list(range(count))], t[1:-1],
                 t[np.ones(count, bool)], t.reshape(-1)[::2], t.reshape(-1)[1::2], t.view("u1")[:]):
        pass
    if t.ndim > 1:
        t[:, ::2], t[:, 1::2], t[:, 3], t[np.arange(count), 1:3], t[:, np.array([0, 2])]
    with t.open() as a: pass
    with t.open("r+") as a: pass
    t[...] = t[...]
    t[::-1] = t[::-1]
    t[::2] = t[::2]
    t[np.arange(count)] = t[np.arange(count)]
    t.reshape(-1)[:] = t.reshape(-1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        np.asarray(t, "f8")
del row, block, part, a
kept = tensors["cube"][4] if control else None
print("ready", flush=True)
input()
assert kept is None or kept.any()
"""


@linux_only
@not_sanitized
@pytest.mark.parametrize("control", [False, True], ids=["dropped", "one array kept"])
def test_arrays_that_were_dropped_are_nowhere_in_memory(tmp_path: Any, control: bool) -> None:
    """No 16-byte sample of any tensor, in any mapping of the process; but those of an array that
    is still held are found, and they alone."""
    import secret_search

    rng = np.random.default_rng(99)
    layout = [3000 * 48 * 4, 24 * 5000 * 8, 70_000 * 2, 9 * 40 * 33 * 4, 5 * 4 * 4]
    content = rng.integers(0, 256, sum(layout), dtype=np.uint8).tobytes()
    path = tmp_path / "values"
    path.write_bytes(content)
    kept_start = sum(layout[:3]) + 4 * 40 * 33 * 4
    kept = range(kept_start, kept_start + 40 * 33 * 4)
    needles = {}
    for at in range(0, len(content) - 16, 16 * 37):
        needles[at] = content[at : at + 16]
    for at in range(kept.start, kept.stop - 16, 16):
        needles[at] = content[at : at + 16]
    with secret_search.child(READER, str(path), "control" if control else "-") as pid:
        found = {name for name, _ in secret_search.find(pid, needles)}
    inside = {at for at in needles if at in kept and at + 16 <= kept.stop}
    assert found == (inside if control else set())


def test_long_doubles(key: pyccmem.Key) -> None:
    """Their padding bytes are nobody's, so only values can be compared."""
    array = sample((300, 7), np.longdouble) / 3
    tensor = EncryptedTensor.from_numpy(array, key=key)
    assert tensor.dtype == array.dtype and np.array_equal(tensor[...], array)
    assert np.array_equal(tensor[::-2, ::3], array[::-2, ::3]) and tensor[5, 6] == array[5, 6]
    tensor[::3, 1] = array[::3, 2]
    assert np.array_equal(tensor[::3, 1], array[::3, 2])


def test_warnings_of_casts_come_through(tensor: EncryptedTensor, plain: np.ndarray) -> None:
    def warned(target: Any) -> set[str]:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            target[0, :1] = np.array([1 + 2j])
        return {str(warning.message) for warning in caught}

    assert warned(tensor) == warned(plain) != set()


FINALIZERS = """
import gc
import numpy as np
import pyccmem
from pyccmem import EncryptedTensor, Key, errors
gc.disable()
uses = {
    "array": lambda o: int(o.array.sum()) == 2 * sum(range(1000)),
    "element": lambda o: o.tensor[7] == 7,
    "whole": lambda o: o.tensor[...].tolist() == list(range(1000)),
    "strided": lambda o: o.tensor[::3].tolist() == list(range(0, 1000, 3)),
    "write": lambda o: o.tensor.__setitem__(slice(3, 5), 1) is None,
    "stopped": lambda o: next(o.blocks, None) is not None,
    "open": lambda o: o.opened.__exit__(None, None, None) is not None,
}
done = 0
class Owner:
    def __del__(self):
        global done
        try:
            assert uses[self.use](self), self.use
        except errors.ClosedError:
            pass
        done += 1
key = Key.generate()
def fill(owner, use):
    owner.use, owner.cycle = use, owner
    owner.tensor = EncryptedTensor.from_numpy(np.arange(1000), key=key)
    owner.tensor[7]
    owner.array = owner.tensor[...]
    owner.array *= 2
    owner.blocks = owner.tensor.blocks(800)
    next(owner.blocks)
    owner.opened = owner.tensor.open("r+")
    owner.opened.__enter__()
class Box: pass
for use in uses:
    for _ in range(20):
        fill(Owner(), use)
        box, owner = Box(), Owner()
        fill(box, use)
        owner.__dict__.update(box.__dict__)
        owner.cycle = owner
        del box, owner
    gc.collect()
    others = [EncryptedTensor.zeros(1000, "i8", key=key)[...] for _ in range(20)]
assert done == 2 * 20 * len(uses), done
gc.collect()
del others
print(pyccmem.stats()["plain_blocks"])
"""


def test_finalizers_may_use_arrays_that_are_collected_with_them() -> None:
    """A __del__ in a reference cycle finds arrays, elements and open blocks whole, in whichever
    order the collector takes them; and all of them are given back."""
    assert support.check_python(FINALIZERS) == "0\n"
