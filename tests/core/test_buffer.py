# SPDX-License-Identifier: Apache-2.0
"""EncryptedBuffer: what it accepts, what it refuses and how, and that nothing is lost by it."""

from __future__ import annotations

import array
import gc
import mmap
import pickle
import random
import re
import struct
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import support

import pyccmem
from pyccmem import EncryptedBuffer, errors

N = 20_000


@pytest.fixture
def buffer(key: pyccmem.Key) -> EncryptedBuffer:
    """20,000 bytes, written once with known content."""
    made = EncryptedBuffer(N, key=key)
    made.write(CONTENT)
    return made


CONTENT = random.Random(20_000).randbytes(N)

# ---- the table of bad input: a call, its exception, a word of its text -------------------------


class NoBuffer:
    """Neither a number nor bytes."""


def read_only(n: int) -> np.ndarray:
    array_ = np.zeros(n, np.uint8)
    array_.setflags(write=False)
    return array_


E = errors
BAD_CALLS: list[tuple[str, Callable[[EncryptedBuffer], Any], type[Exception], str]] = [
    ("read before the start", lambda b: b.read(-1), E.RangeError, "-1"),
    ("read past the end", lambda b: b.read(N + 1), E.RangeError, "20001"),
    ("read one byte too many", lambda b: b.read(N, 1), E.RangeError, "20000"),
    ("read past the end by length", lambda b: b.read(1, N), E.RangeError, "20000"),
    ("read a negative length", lambda b: b.read(0, -1), E.RangeError, "-1"),
    ("read 2^63", lambda b: b.read(2**63, 1), E.RangeError, str(2**63)),
    ("read 2^64", lambda b: b.read(2**64, 1), E.RangeError, str(2**64)),
    ("read 2^64 bytes", lambda b: b.read(0, 2**64), E.RangeError, str(2**64)),
    ("read that wraps", lambda b: b.read(2**64 - 1, 2), E.RangeError, "20000"),
    ("read at 1.0", lambda b: b.read(1.0), E.ArgumentTypeError, "offset"),
    ("read at a str", lambda b: b.read("1"), E.ArgumentTypeError, "offset"),
    ("read at None", lambda b: b.read(None), E.ArgumentTypeError, "offset"),
    ("read at True", lambda b: b.read(True), E.ArgumentTypeError, "offset"),
    ("read 1.0 bytes", lambda b: b.read(0, 1.0), E.ArgumentTypeError, "nbytes"),
    ("read into bytes", lambda b: b.read_into(bytes(8)), E.ReadOnlyOutputError, "read-only"),
    (
        "read into a read-only view",
        lambda b: b.read_into(memoryview(bytearray(8)).toreadonly()),
        E.ReadOnlyOutputError,
        "read-only",
    ),
    (
        "read into a read-only array",
        lambda b: b.read_into(read_only(8)),
        E.ReadOnlyOutputError,
        "read-only",
    ),
    (
        "read into its own ciphertext",
        lambda b: b.read_into(b.ciphertext),
        E.ReadOnlyOutputError,
        "read-only",
    ),
    (
        "read into every other byte",
        lambda b: b.read_into(np.zeros(16, np.uint8)[::2]),
        E.NonContiguousError,
        "one piece",
    ),
    (
        "read into a view backwards",
        lambda b: b.read_into(memoryview(bytearray(8))[::-1]),
        E.NonContiguousError,
        "one piece",
    ),
    (
        "read into Fortran order",
        lambda b: b.read_into(np.zeros((4, 4), order="F")),
        E.NonContiguousError,
        "C order",
    ),
    ("read into None", lambda b: b.read_into(None), E.BufferTypeError, "out"),
    ("read into a str", lambda b: b.read_into("12345678"), E.BufferTypeError, "str"),
    ("read into an int", lambda b: b.read_into(8), E.BufferTypeError, "int"),
    ("read into a list", lambda b: b.read_into([0] * 8), E.BufferTypeError, "list"),
    ("read into an object", lambda b: b.read_into(NoBuffer()), E.BufferTypeError, "NoBuffer"),
    (
        "read into an array of objects",
        lambda b: b.read_into(np.array([None, None])),
        E.BufferTypeError,
        "references",
    ),
    ("read_into past the end", lambda b: b.read_into(bytearray(N + 1)), E.RangeError, "20001"),
    ("read_into at -1", lambda b: b.read_into(bytearray(1), -1), E.RangeError, "-1"),
    ("read_into at 2^64", lambda b: b.read_into(bytearray(1), 2**64), E.RangeError, "20000"),
    ("read_into at 1.5", lambda b: b.read_into(bytearray(1), 1.5), E.ArgumentTypeError, "offset"),
    ("read_into at None", lambda b: b.read_into(bytearray(1), None), E.ArgumentTypeError, "offset"),
    ("write past the end", lambda b: b.write(bytes(N + 1)), E.RangeError, "20001"),
    ("write past the end by 1", lambda b: b.write(b"xy", N - 1), E.RangeError, "20000"),
    ("write at -1", lambda b: b.write(b"x", -1), E.RangeError, "-1"),
    ("write nothing past the end", lambda b: b.write(b"", N + 1), E.RangeError, "20001"),
    ("write at 2^64", lambda b: b.write(b"x", 2**64), E.RangeError, "20000"),
    ("write at 2^63", lambda b: b.write(b"x", 2**63), E.RangeError, "20000"),
    ("write at a str", lambda b: b.write(b"x", "0"), E.ArgumentTypeError, "offset"),
    ("write a str", lambda b: b.write("text"), E.BufferTypeError, "encode"),
    ("write None", lambda b: b.write(None), E.BufferTypeError, "data"),
    ("write a number", lambda b: b.write(5), E.BufferTypeError, "int"),
    ("write a list", lambda b: b.write([1, 2]), E.BufferTypeError, "list"),
    (
        "write objects",
        lambda b: b.write(np.array([{}, {}], dtype=object)),
        E.BufferTypeError,
        "references",
    ),
    (
        "write records with objects",
        lambda b: b.write(np.zeros(2, [("a", "f8"), ("b", "O")])),
        E.BufferTypeError,
        "references",
    ),
    (
        "write every third byte",
        lambda b: b.write(np.zeros(30, np.uint8)[::3]),
        E.NonContiguousError,
        "ascontiguousarray",
    ),
    (
        "write a transposed array",
        lambda b: b.write(np.zeros((3, 5)).T),
        E.NonContiguousError,
        "C order",
    ),
    ("no data", lambda b: b.write(), TypeError, "data"),
    ("no output", lambda b: b.read_into(), TypeError, "out"),
    ("set the page size", lambda b: setattr(b, "page_size", 8192), AttributeError, "page_size"),
    ("set the size", lambda b: setattr(b, "nbytes", 1), AttributeError, "nbytes"),
    ("an attribute", lambda b: setattr(b, "note", 1), AttributeError, "note"),
    ("write to versions", lambda b: b.versions.__setitem__(0, 9), ValueError, "read-only"),
    ("write to ciphertext", lambda b: b.ciphertext.__setitem__(0, 9), TypeError, "read-only"),
]


@pytest.mark.parametrize(
    ("call", "error", "word"), [row[1:] for row in BAD_CALLS], ids=[row[0] for row in BAD_CALLS]
)
def test_bad_calls_are_refused_and_change_nothing(
    buffer: EncryptedBuffer, call: Callable, error: type[Exception], word: str
) -> None:
    before = bytes(buffer.ciphertext), buffer.versions.tolist(), buffer.stats()
    with pytest.raises(error, match=word) as caught:
        call(buffer)
    if issubclass(error, errors.PyccmemError):
        assert type(caught.value) is error
        text = str(caught.value)
        assert text.endswith(".") and len(text) > 30, text
    assert (bytes(buffer.ciphertext), buffer.versions.tolist(), buffer.stats()) == before
    assert buffer.read() == CONTENT


BAD_BUFFERS: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"nbytes": -1}, E.ArgumentError, "-1"),
    ({"nbytes": 1.5}, E.ArgumentTypeError, "nbytes"),
    ({"nbytes": "10"}, E.ArgumentTypeError, "nbytes"),
    ({"nbytes": None}, E.ArgumentTypeError, "nbytes"),
    ({"nbytes": True}, E.ArgumentTypeError, "nbytes"),
    ({"nbytes": 2**62}, E.OutOfMemoryError, "memory"),
    ({"nbytes": 2**63 - 1}, E.OutOfMemoryError, "memory"),
    ({"nbytes": 2**63}, E.OutOfMemoryError, "memory"),
    ({"nbytes": 2**64 - 1}, E.OutOfMemoryError, "memory"),
    ({"nbytes": 2**100}, E.OutOfMemoryError, "memory"),
    ({"page_size": 0}, E.PageSizeError, "power of two"),
    ({"page_size": 1}, E.PageSizeError, "4096"),
    ({"page_size": 2048}, E.PageSizeError, "4096"),
    ({"page_size": 4095}, E.PageSizeError, "power of two"),
    ({"page_size": 4097}, E.PageSizeError, "power of two"),
    ({"page_size": 12288}, E.PageSizeError, "power of two"),
    ({"page_size": 131072}, E.PageSizeError, "65536"),
    ({"page_size": -4096}, E.PageSizeError, "power of two"),
    ({"page_size": 2**32}, E.PageSizeError, "65536"),
    ({"page_size": 2**32 + 4096}, E.PageSizeError, "65536"),
    ({"page_size": 2**64}, E.PageSizeError, "65536"),
    ({"page_size": 4096.0}, E.ArgumentTypeError, "page_size"),
    ({"page_size": "4096"}, E.ArgumentTypeError, "page_size"),
    ({"cipher": "aes-128-gcm"}, E.ArgumentError, "aegis-128x2, aes-128-xts"),
    ({"cipher": "AES-128-XTS"}, E.ArgumentError, "aes-128-xts"),
    ({"cipher": ""}, E.ArgumentError, "aes-256-xts"),
    ({"cipher": None}, E.ArgumentTypeError, "cipher"),
    ({"cipher": 0}, E.ArgumentTypeError, "cipher"),
    ({"cipher": b"aes-128-xts"}, E.ArgumentTypeError, "cipher"),
    ({"name": 5}, E.ArgumentTypeError, "name"),
    ({"name": b"weights"}, E.ArgumentTypeError, "name"),
    ({"key": None}, E.ArgumentTypeError, "Key"),
    ({"key": support.KEY_BYTES}, E.ArgumentTypeError, "Key.from_bytes"),
    ({"key": "secret"}, E.ArgumentTypeError, "Key"),
    ({"tweak_cache": -1}, E.ArgumentError, "tweak_cache"),
    ({"tweak_cache": 2**31}, E.ArgumentError, "tweak_cache"),
    ({"tweak_cache": 2**64}, E.ArgumentError, "tweak_cache"),
    ({"tweak_cache": 0.5}, E.ArgumentTypeError, "tweak_cache"),
    ({"tweak_cache": None}, E.ArgumentTypeError, "tweak_cache"),
]


@pytest.mark.parametrize(("arguments", "error", "word"), BAD_BUFFERS, ids=lambda x: str(x)[:40])
def test_bad_buffers_are_refused(
    key: pyccmem.Key, arguments: dict, error: type[Exception], word: str
) -> None:
    good = {"nbytes": 100, "key": key}
    with pytest.raises(error, match=word) as caught:
        EncryptedBuffer(**{**good, **arguments})
    assert type(caught.value) is error
    assert str(caught.value).endswith(".")


def test_the_key_is_required_by_name(key: pyccmem.Key) -> None:
    with pytest.raises(TypeError, match="key"):
        EncryptedBuffer(100)
    with pytest.raises(TypeError):
        EncryptedBuffer(100, key)


def test_every_error_is_a_builtin_too() -> None:
    """`except ValueError` and the like catch what they would catch elsewhere."""
    for error, builtin in (
        (E.ArgumentError, ValueError),
        (E.RangeError, IndexError),
        (E.ArgumentTypeError, TypeError),
        (E.OutOfMemoryError, MemoryError),
        (E.KeyFileError, OSError),
        (E.ClosedError, ValueError),
        (E.ForkError, RuntimeError),
        (E.IntegrityError, ValueError),
        (E.NotAuthenticatedError, RuntimeError),
    ):
        assert issubclass(error, builtin) and issubclass(error, E.PyccmemError)
    for name in E.__all__:
        assert issubclass(getattr(E, name), (E.PyccmemError, E.PyccmemWarning)), name
        assert getattr(E, name).__doc__, name
        assert name in (E.__doc__ or ""), name


# ---- sizes ------------------------------------------------------------------------------------


@pytest.mark.parametrize("nbytes", [1, 15, 16, 4095, 4096, 4097, 65535, 65536, 65537, 1 << 20])
def test_sizes_round_up_to_pages(
    key: pyccmem.Key, cipher: str, page_size: int, nbytes: int
) -> None:
    with EncryptedBuffer(nbytes, key=key, cipher=cipher, page_size=page_size) as made:
        pages = -(-nbytes // page_size)
        assert len(made) == made.nbytes == nbytes
        assert (made.cipher, made.page_size) == (cipher, page_size)
        assert len(made.ciphertext) == pages * page_size
        assert made.versions.shape == (pages,) and made.versions.dtype == np.uint64
        data = random.Random(nbytes).randbytes(nbytes)
        assert made.write(data) == nbytes
        assert made.read() == data
        assert made.read(nbytes) == b"" and made.read(nbytes, 0) == b""
        assert made.read(nbytes - 1) == data[-1:]
        with pytest.raises(errors.RangeError):
            made.read(nbytes - 1, 2)


def test_an_empty_buffer(key: pyccmem.Key, cipher: str) -> None:
    with EncryptedBuffer(0, key=key, cipher=cipher) as made:
        assert len(made) == 0 and made.read() == b"" and made.write(b"") == 0
        assert made.read_into(bytearray()) == 0
        assert len(made.ciphertext) == 0 and made.versions.shape == (0,)
        assert made.stats()["bytes_read"] == 0
        for call in (lambda: made.read(0, 1), lambda: made.write(b"x"), lambda: made.read(1)):
            with pytest.raises(errors.RangeError):
                call()


def test_empty_reads_and_writes_move_no_version(buffer: EncryptedBuffer) -> None:
    before = bytes(buffer.ciphertext), buffer.versions.tolist()
    for offset in (0, 1, 4096, N):
        assert buffer.write(b"", offset) == 0
        assert buffer.read(offset, 0) == b""
        assert buffer.read_into(bytearray(), offset) == 0
    assert (bytes(buffer.ciphertext), buffer.versions.tolist()) == before


def test_a_large_buffer_is_sparse_until_written(key: pyccmem.Key) -> None:
    """8 GiB of address space; memory is taken by what is written."""
    nbytes = 8 << 30
    try:
        made = EncryptedBuffer(nbytes, key=key, page_size=65536)
    except errors.OutOfMemoryError:
        pytest.skip("this system does not overcommit 8 GiB of address space")
    with made:
        before = support.status_field("VmRSS")
        for offset in (0, 4 << 30, (6 << 30) - 5, nbytes - 10):
            made.write(b"0123456789", offset)
            assert made.read(offset, 10) == b"0123456789"
        assert made.read(1 << 30, 1000) == bytes(1000)
        assert made.read_into(bytearray(70_000), (4 << 30) - 40_000) == 70_000
        assert support.SANITIZED or support.status_field("VmRSS") - before < 64 << 20


@support.not_sanitized
def test_out_of_memory_is_an_error_and_loses_nothing() -> None:
    """With the address space limited: no new buffer, no large read; what exists goes on."""
    script = """
import resource
import pyccmem
from pyccmem import EncryptedBuffer, errors
pyccmem.set_num_threads(1)
key = pyccmem.Key.generate()
b = EncryptedBuffer(1 << 30, key=key, page_size=65536)
b.write(b"kept", 1 << 29)
with open("/proc/self/statm") as file:
    used = int(file.read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (64 << 20),) * 2)
for call, word in (
    (lambda: b.read(), "read_into"),
    (lambda: EncryptedBuffer(1 << 30, key=key), "memory"),
    (lambda: EncryptedBuffer(200 << 20, key=key, page_size=65536), "memory"),
    (lambda: pyccmem.Key.from_passphrase("x", salt=bytes(16)), "scrypt"),
):
    for _ in range(3):
        try:
            call()
        except errors.OutOfMemoryError as error:
            assert isinstance(error, MemoryError) and word in str(error), error
        else:
            raise AssertionError("more memory than the limit allows")
assert b.read(1 << 29, 4) == b"kept"
with EncryptedBuffer(1 << 20, key=key) as small:
    small.write(b"small")
    assert small.read(0, 5) == b"small"
"""
    support.check_with_little_memory(script)


# ---- kinds of data ----------------------------------------------------------------------------

DTYPES = ["u1", "i1", "<u2", ">u2", "<i4", "<f2", "<f4", "<f8", "c16", "S5", "U3", "?", "M8[s]"]


@pytest.mark.parametrize("dtype", DTYPES)
def test_arrays_of_every_plain_dtype(key: pyccmem.Key, dtype: str) -> None:
    count = 777
    source = np.frombuffer(
        random.Random(7).randbytes(count * np.dtype(dtype).itemsize), dtype, count
    )
    if dtype == "?":
        source = source.view(np.uint8) % 2 == 1
    with EncryptedBuffer(source.nbytes + 13, key=key) as made:
        assert made.write(source, 13) == source.nbytes
        out = np.empty_like(source)
        assert made.read_into(out, 13) == source.nbytes
        assert out.tobytes() == source.tobytes()


def test_records_shapes_and_scalars(key: pyccmem.Key) -> None:
    records = np.zeros(9, [("Offset", "<f8"), ("O", "<i4"), ("s", "S3")])
    records["O"] = np.arange(9)
    shaped = np.arange(24, dtype=np.int32).reshape(2, 3, 4)
    zero_d = np.array(3.5)
    empty = np.zeros((0, 4))
    with EncryptedBuffer(5000, key=key) as made:
        for source in (records, shaped, zero_d, empty, shaped[1:], np.zeros((3, 0, 2))):
            assert made.write(source, 4090 - source.nbytes // 2) == source.nbytes
            out = np.empty_like(source)
            made.read_into(out, 4090 - source.nbytes // 2)
            assert out.tobytes() == source.tobytes()


def test_other_buffers(key: pyccmem.Key) -> None:
    content = random.Random(1).randbytes(4096)
    mapped = mmap.mmap(-1, 4096)
    mapped[:] = content
    numbers = array.array("d", content)
    with EncryptedBuffer(8192, key=key) as made:
        for source in (
            content,
            bytearray(content),
            memoryview(content),
            memoryview(content).cast("I"),
            memoryview(b"x" + content)[1:],
            mapped,
            numbers,
            np.frombuffer(content, np.uint8),
            support.ffi.buffer(support.ffi.from_buffer(content)),
        ):
            made.write(bytes(8192))
            assert made.write(source, 1000) == 4096
            assert made.read(1000, 4096) == content
        mapped[:] = bytes(4096)
        out_array = array.array("d", bytes(4096))
        out_view = memoryview(bytearray(4096)).cast("d", (16, 32))
        for out in (mapped, out_array, out_view, bytearray(4096)):
            assert made.read_into(out, 1000) == 4096
            assert bytes(out) == content
        mapped.close()


def test_offsets_of_integer_like_types(buffer: EncryptedBuffer) -> None:
    class Index:
        def __index__(self) -> int:
            return 4000

    for offset in (np.int64(4000), np.uint8(200), Index()):
        at = int(offset.__index__())
        assert buffer.read(offset, np.int32(300)) == CONTENT[at : at + 300]
        out = bytearray(300)
        buffer.read_into(out, offset)
        assert out == CONTENT[at : at + 300]
        buffer.write(CONTENT[at : at + 300], offset)


def test_an_index_that_raises_shows_through(buffer: EncryptedBuffer) -> None:
    class Broken:
        def __index__(self) -> int:
            raise ZeroDivisionError

    for call in (
        lambda: buffer.read(Broken()),
        lambda: buffer.read_into(bytearray(1), Broken()),
        lambda: buffer.write(b"x", Broken()),
    ):
        with pytest.raises(ZeroDivisionError):
            call()


def test_an_output_is_held_only_during_the_call(buffer: EncryptedBuffer) -> None:
    """A bytearray can be resized afterwards, and after a failure too."""
    out = bytearray(100)
    buffer.read_into(out)
    out += b"grows"
    with pytest.raises(errors.RangeError):
        buffer.read_into(out, N)
    out += b"again"
    data = bytearray(100)
    buffer.write(data)
    data += b"x"


def test_a_failed_read_leaves_the_output_alone(buffer: EncryptedBuffer) -> None:
    out = bytearray(b"\x77" * 100)
    with pytest.raises(errors.RangeError):
        buffer.read_into(out, N - 50)
    assert out == b"\x77" * 100


def test_read_gives_its_own_bytes(buffer: EncryptedBuffer) -> None:
    """Results are not shared with each other nor with the interpreter's one-byte strings."""
    for n in (0, 1, 2, 16, 100):
        first = buffer.read(0, n)
        buffer.write(bytes(255 - b for b in CONTENT[:n]))
        second = buffer.read(0, n)
        assert type(first) is bytes and first == CONTENT[:n]
        assert second == bytes(255 - b for b in CONTENT[:n])
        buffer.write(CONTENT[:n])
    assert [bytes([i])[0] for i in range(256)] == list(range(256))
    assert hash(buffer.read(0, 100)) == hash(CONTENT[:100])
    assert bytes(100) == b"\0" * 100


def test_from_data(key: pyccmem.Key, cipher: str) -> None:
    for data in (b"", b"x", CONTENT, np.arange(1000, dtype=np.float32)):
        with EncryptedBuffer.from_data(data, key=key, cipher=cipher) as made:
            assert made.read() == bytes(memoryview(data).cast("B")) if len(data) else True
            assert made.nbytes == memoryview(data).nbytes
    for bad in (None, "text", 5, np.zeros((4, 4)).T[1:], [1]):
        with pytest.raises(errors.BufferTypeError):
            EncryptedBuffer.from_data(bad, key=key)


# ---- ciphertext and versions ------------------------------------------------------------------


def test_the_ciphertext_view(buffer: EncryptedBuffer) -> None:
    view = buffer.ciphertext
    assert isinstance(view, memoryview) and view.readonly and view.format == "B"
    assert view.nbytes == 5 * 4096 and view.c_contiguous
    before = bytes(view)
    buffer.write(b"x", 4096)
    after = bytes(view)
    assert before[:4096] == after[:4096] and before[4096:8192] != after[4096:8192]
    assert before[8192:] == after[8192:]
    assert buffer.ciphertext == view


def test_the_ciphertext_outlives_its_buffer(key: pyccmem.Key) -> None:
    made = EncryptedBuffer(N, key=key)
    made.write(CONTENT)
    view, part = made.ciphertext, made.ciphertext[4096:4100]
    stored = bytes(view)
    as_array = np.frombuffer(view, np.uint8)
    made.close()
    with pytest.raises(errors.ClosedError):
        _ = made.ciphertext
    del made
    gc.collect()
    for _ in range(20):
        EncryptedBuffer(N, key=key).write(bytes(N))
    assert bytes(view) == stored and bytes(part) == stored[4096:4100]
    del view
    gc.collect()
    assert as_array.tobytes() == stored


def test_views_and_buffers_let_go_of_each_other(key: pyccmem.Key) -> None:
    made = EncryptedBuffer(N, key=key)
    view = made.ciphertext
    gone = weakref.ref(made)
    del made
    gc.collect()
    assert gone() is None, "a view keeps its buffer, and so its keys, alive"
    assert len(view) == 5 * 4096


def test_writing_its_own_ciphertext(key: pyccmem.Key, cipher: str) -> None:
    """The source overlaps what the write changes; the bytes of the moment of the call count."""
    for nbytes, native_threads in ((3 * 4096, 1), (9 << 20, 2)):
        before = pyccmem.get_num_threads()
        pyccmem.set_num_threads(native_threads)
        try:
            with EncryptedBuffer(nbytes, key=key, cipher=cipher) as made:
                for cut, offset in (
                    (slice(0, nbytes), 0),
                    (slice(100, 5000), 200),
                    (slice(4096, 8192), 0),
                    (slice(0, 4096), 4096),
                    (slice(1, nbytes), 0),
                    (slice(0, nbytes - 1), 1),
                ):
                    made.write(random.Random(nbytes).randbytes(nbytes))
                    view = made.ciphertext
                    stored = bytes(view[cut])
                    made.write(view[cut], offset)
                    assert made.read(offset, len(stored)) == stored
                    made.write(np.frombuffer(made.ciphertext, np.uint8)[cut], offset)
        finally:
            pyccmem.set_num_threads(before)


def test_writing_anothers_ciphertext(key: pyccmem.Key, buffer: EncryptedBuffer) -> None:
    with EncryptedBuffer(5 * 4096, key=key) as outer:
        outer.write(buffer.ciphertext)
        assert outer.read() == bytes(buffer.ciphertext)
        out = bytearray(5 * 4096)
        outer.read_into(out)
        assert out == bytes(buffer.ciphertext)


def test_versions_are_a_snapshot(buffer: EncryptedBuffer) -> None:
    before = buffer.versions
    assert not before.flags.writeable
    buffer.write(b"x")
    assert before.tolist() == [1] * 5 and buffer.versions.tolist() == [2, 1, 1, 1, 1]


# ---- versions run out -------------------------------------------------------------------------


def test_versions_run_out_without_loss(key: pyccmem.Key, cipher: str) -> None:
    with EncryptedBuffer(4 * 4096, key=key, cipher=cipher, _version_limit=3) as made:
        content = bytearray(4 * 4096)
        for _ in range(3):
            data = random.Random(1).randbytes(4096)
            made.write(data, 4096)
            content[4096:8192] = data
        assert made.versions.tolist() == [0, 3, 0, 0]
        before = bytes(made.ciphertext), made.versions.tolist()
        for data, offset in (
            (b"x", 5000),
            (bytes(4096), 4096),
            (bytes(4 * 4096), 0),
            (bytes(4097), 0),
            (b"xy", 8191),
            (bytes(100), 4050),
        ):
            with pytest.raises(errors.VersionExhaustedError, match="new buffer"):
                made.write(data, offset)
            assert (bytes(made.ciphertext), made.versions.tolist()) == before
            assert made.read() == content
        assert made.write(b"", 4096) == 0
        made.write(b"other pages still take writes", 8192)
        assert made.read(8192, 29) == b"other pages still take writes"
        assert made.versions.tolist() == [0, 3, 1, 0]


def test_a_limit_of_one_allows_one_write(key: pyccmem.Key, cipher: str) -> None:
    with EncryptedBuffer(100 << 12, key=key, cipher=cipher, _version_limit=1) as made:
        data = random.Random(9).randbytes(100 << 12)
        made.write(data)
        with pytest.raises(errors.VersionExhaustedError):
            made.write(data)
        assert made.read() == data


# ---- counters ---------------------------------------------------------------------------------


def test_stats_count_calls_bytes_and_pages(key: pyccmem.Key, cipher: str) -> None:
    with EncryptedBuffer(10 * 4096, key=key, cipher=cipher) as made:
        zero = made.stats()
        assert {name: zero[name] for name in zero if name != "overhead_bytes"} == dict.fromkeys(
            (
                "reads",
                "writes",
                "bytes_read",
                "bytes_written",
                "pages_opened",
                "pages_sealed",
                "tweak_hits",
                "tweak_misses",
                "retries",
                "integrity_failures",
            ),
            0,
        )
        assert zero["overhead_bytes"] > 0
        made.write(bytes(10 * 4096))
        made.write(b"abc", 4095)
        made.write(b"")
        now = made.stats()
        assert (now["writes"], now["bytes_written"]) == (3, 10 * 4096 + 3)
        assert now["pages_sealed"] == 12 == int(made.versions.sum())
        assert (now["reads"], now["bytes_read"]) == (0, 0)
        made.read()
        made.read_into(bytearray(64), 8192)
        made.read(0, 0)
        now = made.stats()
        assert (now["reads"], now["bytes_read"]) == (3, 10 * 4096 + 64)
        assert now["pages_opened"] >= 11 and now["retries"] == 0
        assert now["integrity_failures"] == 0
        assert made.authenticated <= (now["tweak_hits"] + now["tweak_misses"] == 0)


def test_the_tweak_cache_remembers_recent_pages(key: pyccmem.Key) -> None:
    for entries, hits in ((0, 0), (4096, 99)):
        with EncryptedBuffer(4096, key=key, cipher="aes-128-xts", tweak_cache=entries) as made:
            made.write(bytes(4096))
            for _ in range(100):
                made.read(100, 64)
            now = made.stats()
            assert now["tweak_hits"] + now["tweak_misses"] == 100
            assert now["tweak_hits"] >= hits if entries else now["tweak_hits"] == 0


@pytest.mark.parametrize("entries", [0, 1, 2, 3, 7, 64, 4096, 2**31 - 1])
def test_any_size_of_tweak_cache_gives_the_same_bytes(
    key: pyccmem.Key, cipher: str, entries: int
) -> None:
    """Also where the cipher has no tweaks to remember."""
    seed = random.Random(entries)
    with EncryptedBuffer(50 * 4096, key=key, cipher=cipher, tweak_cache=entries) as made:
        model = bytearray(50 * 4096)
        for _ in range(400):
            offset = seed.randrange(len(model))
            n = min(seed.choice((1, 16, 64, 500)), len(model) - offset)
            if seed.random() < 0.4:
                data = seed.randbytes(n)
                made.write(data, offset)
                model[offset : offset + n] = data
            assert made.read(offset, n) == model[offset : offset + n]


def test_process_wide_stats(key: pyccmem.Key) -> None:
    gc.collect()
    before = pyccmem.stats()
    assert before["tier"] in support.TIER_NAMES and before["level"] in ("secretmem", "mlock")
    a = EncryptedBuffer(5000, key=key)
    b = EncryptedBuffer(70_000, key=key, page_size=65536)
    now = pyccmem.stats()
    assert now["buffers"] == before["buffers"] + 2
    assert now["bytes"] == before["bytes"] + 75_000
    assert now["ciphertext_bytes"] == before["ciphertext_bytes"] + 8192 + 131072
    assert now["overhead_bytes"] > before["overhead_bytes"]
    a.close()
    del b
    gc.collect()
    assert pyccmem.stats() == before


# ---- names ------------------------------------------------------------------------------------


def test_a_buffer_has_the_name_it_was_given(key: pyccmem.Key) -> None:
    for name in ("weights", "", "Gewichte \u00fc\n"):
        with (
            EncryptedBuffer(100, key=key, name=name) as a,
            EncryptedBuffer.from_data(b"x", key=key, name=name) as b,
        ):
            assert a.name == b.name == name
            assert ascii(name) in repr(a) and repr(a).isascii()
    with pytest.raises(AttributeError):
        a.name = "other"  # type: ignore[misc]


def test_buffers_without_a_name_are_told_apart(key: pyccmem.Key) -> None:
    names = [EncryptedBuffer(100, key=key).name for _ in range(50)]
    assert len(set(names)) == 50 and all(re.fullmatch("buffer-[0-9]+", name) for name in names)
    with EncryptedBuffer(100, key=key) as made:
        shown = f"{made.name!r} of 100 bytes, aegis-128x2, pages of 4096, open"
        assert repr(made) == f"<pyccmem.EncryptedBuffer {shown}>"


# ---- verify() and what a failure says ----------------------------------------------------------


def test_a_buffer_as_it_was_written_is_good(key: pyccmem.Key, page_size: int) -> None:
    with EncryptedBuffer(9 * page_size + 5, key=key, page_size=page_size) as made:
        assert made.authenticated and made.verify() == []
        made.write(b"x" * (3 * page_size), page_size + 7)
        assert made.verify() == []
        before = made.stats()
        assert made.verify() == []
        assert made.stats()["bytes_read"] == before["bytes_read"]
    with EncryptedBuffer(0, key=key) as empty:
        assert empty.verify() == []


@pytest.mark.parametrize("threads", [1, 3])
def test_verify_lists_the_pages_that_were_changed(key: pyccmem.Key, threads: int) -> None:
    """Any set of pages of a buffer that several threads share; put back, all are good again."""
    seed = random.Random(threads)
    pages = 700
    before = pyccmem.get_num_threads()
    pyccmem.set_num_threads(threads)
    try:
        with EncryptedBuffer(pages * 4096 - 9, key=key) as made:
            made.write(seed.randbytes(made.nbytes))
            for count in (1, 2, 40, pages):
                chosen = sorted(seed.sample(range(pages), count))
                bits = [seed.randrange(8 * 4096) for _ in chosen]
                failures = made.stats()["integrity_failures"]
                for page, bit in zip(chosen, bits, strict=True):
                    support.damage(made, page, bit)
                assert made.verify() == chosen
                assert made.stats()["integrity_failures"] == failures + count
                for page, bit in zip(chosen, bits, strict=True):
                    support.damage(made, page, bit)
                assert made.verify() == []
    finally:
        pyccmem.set_num_threads(before)


def test_a_changed_page_is_an_error_that_says_what_it_is(key: pyccmem.Key) -> None:
    with EncryptedBuffer(3 * 8192 + 100, key=key, page_size=8192, name="weights") as made:
        content = random.Random(3).randbytes(made.nbytes)
        made.write(content)
        made.write(content[:8192])
        for page, version, span in ((0, 2, "0 to 8191"), (3, 1, "24576 to 24675")):
            support.damage(made, page, 77)
            first = page * 8192
            part = bytearray(b"\x77" * 50)
            whole = bytearray(b"\x77" * made.nbytes)
            for call, *arguments in (
                (made.read, first, 10),
                (made.read,),
                (made.read_into, part, first + 20),
                (made.read_into, whole),
                (made.write, b"part of a page", first + 1),
            ):
                with pytest.raises(errors.IntegrityError) as caught:
                    call(*arguments)
                error = caught.value
                assert type(error) is errors.IntegrityError
                assert (error.name, error.page, error.version) == ("weights", page, version)
                assert error.offset == first
                text = str(error)
                assert text.startswith(f"Page {page} of buffer 'weights' (bytes {span}, "), text
                assert f"version {version})" in text and "was changed since" in text
                assert text.endswith(".")
            assert not any(part) and not any(whole), "the output is zeros"
            copied = pickle.loads(pickle.dumps(error))
            assert str(copied) == text and copied.page == page and copied.name == "weights"
            assert made.read(8192, 2 * 8192) == content[8192 : 3 * 8192], "the rest is readable"
            support.damage(made, page, 77)
            assert made.read() == content
        assert made.stats()["integrity_failures"] == 10
        assert pyccmem.stats()["integrity_failures"] >= 10


def test_a_page_marked_as_never_written_that_has_a_tag(key: pyccmem.Key) -> None:
    with EncryptedBuffer(3 * 4096, key=key) as made:
        made.write(b"x" * 4096, 4096)
        versions, tags = support.records(made)
        versions[1] = 0
        with pytest.raises(
            errors.IntegrityError, match="marked as never written, but was written"
        ) as caught:
            made.read(5000, 1)
        assert (caught.value.page, caught.value.version, caught.value.offset) == (1, 0, 4096)
        assert made.verify() == [1]
        versions[1] = 1
        assert made.read(5000, 1) == b"x" and made.verify() == []
        tags[2 * 16] = 1
        assert made.verify() == [2]


def test_a_changed_page_may_be_replaced_as_a_whole(key: pyccmem.Key) -> None:
    with EncryptedBuffer(2 * 4096, key=key) as made:
        made.write(CONTENT[:8192])
        support.damage(made, 1, 9)
        before = bytes(made.ciphertext), made.versions.tolist()
        with pytest.raises(errors.IntegrityError):
            made.write(b"a part", 4096)
        assert (bytes(made.ciphertext), made.versions.tolist()) == before
        made.write(CONTENT[:4096], 4096)
        assert made.verify() == [] and made.read(4096) == CONTENT[:4096]


@pytest.mark.parametrize("name", support.XTS_CIPHERS)
def test_xts_has_nothing_to_verify(key: pyccmem.Key, name: str) -> None:
    with EncryptedBuffer.from_data(CONTENT, key=key, cipher=name, name="weights") as made:
        assert not made.authenticated
        with pytest.raises(errors.NotAuthenticatedError) as caught:
            made.verify()
        for word in ("'weights'", name, "no tags", "aegis-128x2"):
            assert word in str(caught.value)
    with pytest.raises(errors.ClosedError):
        made.verify()
    assert not made.authenticated


# ---- closed -----------------------------------------------------------------------------------

USES: dict[str, Callable[[EncryptedBuffer], Any]] = {
    "read": lambda b: b.read(),
    "read 0 bytes": lambda b: b.read(0, 0),
    "read_into": lambda b: b.read_into(bytearray(8)),
    "read_into nothing": lambda b: b.read_into(bytearray()),
    "write": lambda b: b.write(b"x"),
    "write nothing": lambda b: b.write(b""),
    "ciphertext": lambda b: b.ciphertext,
    "versions": lambda b: b.versions,
    "stats": lambda b: b.stats(),
    "verify": lambda b: b.verify(),
    "with": lambda b: b.__enter__(),
}


@pytest.mark.parametrize("use", USES.values(), ids=USES)
def test_use_after_close(buffer: EncryptedBuffer, use: Callable) -> None:
    assert not buffer.closed
    use(buffer)
    buffer.close()
    buffer.close()
    assert buffer.closed
    with pytest.raises(errors.ClosedError, match="closed"):
        use(buffer)
    assert (len(buffer), buffer.page_size, buffer.cipher) == (N, 4096, "aegis-128x2")
    assert buffer.name in repr(buffer) and "closed" in repr(buffer)


def test_a_buffer_whose_constructor_failed_is_harmless() -> None:
    empty = EncryptedBuffer.__new__(EncryptedBuffer)
    for use in (*USES.values(), len, lambda b: b.name, lambda b: b.cipher, lambda b: b.closed):
        with pytest.raises(errors.ClosedError, match="never made"):
            use(empty)
    assert repr(empty) == "<pyccmem.EncryptedBuffer, never made>"
    with pytest.raises(AttributeError, match="nothing"):
        empty.nothing  # noqa: B018
    empty.close()
    with pytest.raises(errors.ClosedError, match="closed"):
        empty.read(0, 0)


FINALIZERS = """
import gc, sys
import pyccmem
from pyccmem import EncryptedBuffer, Key, errors
gc.disable()
uses = {
    "read": lambda o: o.buffer.read(0, 3) == b"abc",
    "read_into": lambda o: o.buffer.read_into(bytearray(5000)) == 5000,
    "write": lambda o: o.buffer.write(bytes(5000)) == 5000,
    "versions": lambda o: o.buffer.versions.tolist() == [1, 0],
    "stats": lambda o: o.buffer.stats()["writes"] == 1,
    "ciphertext": lambda o: len(bytes(o.buffer.ciphertext)) == 8192,
    "view": lambda o: bytes(o.view) == o.stored,
    "key": lambda o: len(EncryptedBuffer(100, key=o.key)) == 100,
    "close": lambda o: o.buffer.close() is None,
}
right, refused = 0, 0
class Owner:
    def __del__(self):
        global right, refused
        try:
            assert uses[self.use](self), self.use
            right += 1
        except errors.ClosedError:
            refused += 1
def fill(owner, use):
    owner.use, owner.cycle, owner.key = use, owner, Key.generate()
    owner.buffer = EncryptedBuffer(5000, key=owner.key)
    owner.buffer.write(b"abc")
    owner.view = owner.buffer.ciphertext
    owner.stored = bytes(owner.view)
def owner_first(use):
    fill(Owner(), use)
def owner_last(use):
    class Box: pass
    box = Box()
    fill(box, use)
    owner = Owner()
    owner.__dict__.update(box.__dict__)
    owner.cycle = owner
for use in uses:
    for make in (owner_first, owner_last):
        for _ in range(20):
            make(use)
        gc.collect()
assert right + refused == 2 * 20 * len(uses), (right, refused)
print("collected", flush=True)
kept = [Owner() for _ in uses]
for owner, use in zip(kept, uses):
    fill(owner, use)
last = Owner()      # and what the interpreter's end finalizes, in whatever order
fill(last, "read")
"""


def test_finalizers_may_use_what_is_collected_with_them() -> None:
    """A __del__ in a reference cycle with a key, a buffer or a view finds it working or closed,
    in whichever order the collector finalizes them; never memory that was freed."""
    done = support.run_python(FINALIZERS)
    assert done.returncode == 0, f"{done.returncode}: {done.stdout}{done.stderr[-1500:]}"
    assert done.stdout == "collected\n"


RESURRECTED = """
import gc
import pyccmem
from pyccmem import EncryptedBuffer, Key, errors
kept = []
class Owner:
    def __init__(self):
        self.cycle, self.key = self, Key.generate()
        self.buffer = EncryptedBuffer(50_000, key=self.key)
        self.buffer.write(b"abc")
        self.view = self.buffer.ciphertext
        self.stored = bytes(self.view)
    def __del__(self):
        kept.append(self)
for _ in range(20):
    Owner()
gc.collect()
gc.collect()
assert len(kept) == 20
for owner in kept:
    for use in (
        lambda: owner.buffer.read(0, 3) == b"abc",
        lambda: len(EncryptedBuffer(100, key=owner.key)) == 100,
        lambda: bytes(owner.view) == owner.stored,
    ):
        try:
            assert use()
        except errors.ClosedError:
            pass
print("used")
"""


def test_a_finalizer_may_bring_a_buffer_back() -> None:
    """What a __del__ saves from the collector works or is closed, also after the collection."""
    done = support.run_python(RESURRECTED)
    assert done.returncode == 0, f"{done.returncode}: {done.stdout}{done.stderr[-1500:]}"
    assert done.stdout == "used\n"


def test_the_context_manager_closes_on_an_exception_too(key: pyccmem.Key) -> None:
    with pytest.raises(ZeroDivisionError), EncryptedBuffer(10, key=key) as made:
        _ = 1 / 0
    assert made.closed


def test_wrong_calls_from_an_output_that_lies(buffer: EncryptedBuffer) -> None:
    """Objects that pass for buffers in odd ways are refused or served, never crash."""
    for out in (
        memoryview(bytearray(8)).cast("c"),
        memoryview(bytearray(8)).cast("?"),
        np.zeros((), np.uint8),
        np.zeros(4, np.dtype([("pad", "V3"), ("x", "u1")])),
        np.lib.stride_tricks.as_strided(np.zeros(8, np.uint8), (4,), (1,)),
    ):
        buffer.read_into(out)
    released = memoryview(bytearray(8))
    released.release()
    closed = mmap.mmap(-1, 4096)
    closed.close()
    for out in (released, closed):
        for call in (buffer.read_into, buffer.write):
            with pytest.raises(errors.BufferTypeError):
                call(out)
    with pytest.raises(errors.PyccmemError):
        buffer.read_into(np.lib.stride_tricks.as_strided(np.zeros(1, np.uint8), (4,), (0,)))


def test_reading_into_memory_that_is_both_in_and_out(buffer: EncryptedBuffer) -> None:
    """read_into and write of overlapping parts of one caller's array are independent calls."""
    memory = np.zeros(N + 100, np.uint8)
    buffer.read_into(memory[:N])
    buffer.write(memory[: N - 100], 100)
    buffer.read_into(memory[100 : N + 100])
    assert memory[100:200].tobytes() == CONTENT[:100]
    assert memory[200 : N + 100].tobytes() == CONTENT[: N - 100]


def test_struct_packing_into_place(buffer: EncryptedBuffer) -> None:
    buffer.write(struct.pack("<id", 7, 2.5), 4090)
    assert struct.unpack("<id", buffer.read(4090, 12)) == (7, 2.5)


def test_integers_too_long_to_print(buffer: EncryptedBuffer) -> None:
    """Python refuses to print integers of more than 4300 digits; the sentence must not need it."""
    huge = 1 << 20_000
    for call in (
        lambda: buffer.read(huge),
        lambda: buffer.read(0, huge),
        lambda: buffer.write(b"x", huge),
        lambda: buffer.read_into(bytearray(1), huge),
        lambda: buffer.read(-huge),
        lambda: EncryptedBuffer(huge, key=pyccmem.Key.generate()),
        lambda: pyccmem.set_num_threads(huge),
    ):
        with pytest.raises(errors.PyccmemError):
            call()
