# SPDX-License-Identifier: Apache-2.0
"""Buffers and tensors over the pages of a file: they read as others do and never write, notice
every change of the file at whatever moment it comes, and refuse a file that is not what it must
be."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import support
from support import AEGIS, PAGE_SIZES, linux_only, not_sanitized

import pyccmem
from pyccmem import EncryptedBuffer, EncryptedTensor, Key, errors
from pyccmem.binding import ffi, lib
from pyccmem.buffer import open_buffers
from pyccmem.safetensors._sealer import Sealer

ID = bytes(range(200, 216))
PAGE = 4096
SHARED_OR_OWN = pytest.mark.parametrize("anonymous", [False, True], ids=["mapped", "anonymous"])


class Sealed:
    """A file of pages with something before and after them, and its records."""

    def __init__(self, path: Path, plain: bytes, *, page_size: int = PAGE, at: int = 8192) -> None:
        self.path, self.plain, self.page_size, self.at = path, plain, page_size, at
        self.count = -(-len(plain) // page_size)
        self.versions = np.ones(self.count, np.uint64)
        pages = bytearray(self.count * page_size)
        with Key.from_bytes(support.KEY_BYTES) as key, Sealer(key, ID, page_size) as sealer:
            self.tags = sealer.seal(0, plain, pages)
        path.write_bytes(b"\xee" * at + pages + b"\xdd" * 100)

    def map(self, key: Key, **changes: Any) -> EncryptedBuffer:
        settings = {
            "key": key,
            "cipher": AEGIS,
            "store_id": ID,
            "page_size": self.page_size,
            "versions": self.versions,
            "tags": self.tags,
            "name": "weights",
        } | changes
        at = settings.pop("offset", self.at)
        nbytes = settings.pop("nbytes", len(self.plain))
        with open(self.path, "rb") as file:
            return EncryptedBuffer._mapped(file.fileno(), at, nbytes, **settings)

    def flip(self, page: int, bit: int) -> None:
        """Flips one bit of a page in the file; again, and it is as it was."""
        with open(self.path, "r+b") as file:
            file.seek(self.at + page * self.page_size + bit // 8)
            old = file.read(1)[0]
            file.seek(-1, os.SEEK_CUR)
            file.write(bytes([old ^ 1 << bit % 8]))


@pytest.fixture
def sealed(tmp_path: Path) -> Sealed:
    """Three hundred pages and a bit."""
    return Sealed(tmp_path / "file", random.Random(1).randbytes(300 * PAGE + 1001))


@pytest.fixture(params=[1, 3], ids=["one thread", "threads"])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    """Bulk reads by the calling thread alone, and by several."""
    before = pyccmem.get_num_threads()
    pyccmem.set_num_threads(request.param)
    yield request.param
    pyccmem.set_num_threads(before)


# ---- reading ----------------------------------------------------------------------------------


@SHARED_OR_OWN
@pytest.mark.parametrize("page_size", PAGE_SIZES)
@pytest.mark.parametrize("nbytes", [0, 1, 4095, 4096, 4097, 65536, 5 * 65536 + 3, (5 << 20) + 1])
def test_reads_what_was_sealed(
    key: Key, tmp_path: Path, page_size: int, nbytes: int, anonymous: bool, threads: int
) -> None:
    seed = random.Random(nbytes)
    plain = seed.randbytes(nbytes)
    file = Sealed(tmp_path / "file", plain, page_size=page_size, at=4096)
    with file.map(key, anonymous=anonymous) as buffer:
        file.path.unlink()
        assert buffer.read() == plain
        for _ in range(20 if nbytes else 0):
            at = seed.randrange(nbytes)
            n = seed.choice((0, 1, 64, 5000, nbytes))
            assert buffer.read(at, min(n, nbytes - at)) == plain[at : at + n]
        assert buffer.verify() == []
        assert len(buffer) == buffer.nbytes == nbytes
        assert buffer.versions.tolist() == [1] * file.count
        assert not buffer.writable
        assert (buffer.cipher, buffer.page_size, buffer.name) == (AEGIS, page_size, "weights")


@SHARED_OR_OWN
def test_a_tensor_in_a_file_is_a_tensor(key: Key, tmp_path: Path, anonymous: bool) -> None:
    """Every way to read, against the same tensor in a buffer of its own."""
    array = np.random.default_rng(2).standard_normal((200, 257)).astype(np.float32)
    file = Sealed(tmp_path / "file", array.tobytes())
    tensor = EncryptedTensor._adopt(file.map(key, anonymous=anonymous), array.shape, array.dtype)
    rows = np.array([5, 199, 0, 5, -1])
    for index in (..., 3, (3, 4), slice(10, 50), (slice(None), 7), rows, (rows, rows), array > 0):
        assert np.array_equal(tensor[index], array[index])
    assert np.array_equal(np.asarray(tensor), array)
    assert np.array_equal(np.concatenate(list(tensor.blocks(10_000))), array)
    assert np.array_equal(tensor.reshape(-1)[5:77], array.reshape(-1)[5:77])
    assert np.array_equal(tensor.view(np.uint32)[9], array.view(np.uint32)[9])
    assert tensor.verify() == []
    with tensor.open() as whole:
        assert np.array_equal(whole, array)
    own = EncryptedTensor.from_numpy(array, key=key)
    for lines in (1, 3, 40):
        x = np.random.default_rng(lines).standard_normal((lines, 257)).astype(np.float32)
        assert np.array_equal(pyccmem.linear(x, tensor), pyccmem.linear(x, own))
    assert np.array_equal(tensor @ array.T, own @ array.T)
    for shown in (repr(tensor), repr(tensor.buffer)):
        assert "read-only" in shown and "weights" in shown and "open" in shown
    assert "read-only" not in repr(own)


def test_counters_and_overhead(key: Key, sealed: Sealed) -> None:
    with sealed.map(key) as buffer:
        assert buffer.read(5, 100) and buffer.read()
        stats = buffer.stats()
        assert stats["reads"] == 2
        assert stats["bytes_read"] == 100 + len(sealed.plain)
        assert stats["pages_opened"] == 1 + sealed.count
        assert stats["writes"] == stats["pages_sealed"] == stats["bytes_written"] == 0
        with EncryptedBuffer(len(sealed.plain), key=key) as own:
            fewer = own.stats()["overhead_bytes"] - stats["overhead_bytes"]
        assert abs(fewer - 8 * sealed.count) < 200, "no second copy of the versions is kept"


@pytest.mark.parametrize("version", [1, 2, 2**32, 2**63 - 1])
def test_any_version_that_a_page_can_have(key: Key, tmp_path: Path, version: int) -> None:
    oracle = pytest.importorskip("oracle", reason="needs the [test] extra's cryptography")
    plain = random.Random(version).randbytes(3 * PAGE)
    subkey = oracle.subkey(AEGIS, ID, PAGE)
    file = Sealed(tmp_path / "file", plain)
    versions = [version, 1, max(version - 1, 1)]
    pages = [
        oracle.seal_page(AEGIS, subkey, i, v, plain[i * PAGE : (i + 1) * PAGE])
        for i, v in enumerate(versions)
    ]
    file.path.write_bytes(bytes(file.at) + b"".join(text for text, _ in pages))
    tags = b"".join(tag for _, tag in pages)
    with file.map(key, versions=np.array(versions, np.uint64), tags=tags) as buffer:
        assert buffer.read() == plain
        assert buffer.versions.tolist() == versions


def test_records_need_no_alignment(key: Key, sealed: Sealed) -> None:
    table = b"x" + sealed.versions.tobytes() + sealed.tags
    middle = 1 + 8 * sealed.count
    view = memoryview(table)
    with sealed.map(key, versions=view[1:middle], tags=view[middle:]) as buffer:
        assert buffer.read() == sealed.plain


def test_the_callers_records_are_copied(key: Key, sealed: Sealed) -> None:
    versions, tags = sealed.versions.copy(), bytearray(sealed.tags)
    with sealed.map(key, versions=versions, tags=tags) as buffer:
        versions[:] = 7
        tags[:] = bytes(len(tags))
        assert buffer.read() == sealed.plain


@linux_only
@SHARED_OR_OWN
def test_the_pages_are_mapped_and_cannot_be_written(
    key: Key, sealed: Sealed, anonymous: bool
) -> None:
    """Shared with the page cache, or memory of this process; read-only for the processor either
    way, and left out of dumps; gone with the last view of it."""
    buffer = sealed.map(key, anonymous=anonymous)
    start = int(ffi.cast("uintptr_t", ffi.from_buffer(buffer.ciphertext)))

    def entry() -> list[str]:
        found, inside = [], False
        with open("/proc/self/smaps", encoding="utf-8", errors="replace") as lines:
            for line in lines:
                if "-" in line.split(maxsplit=1)[0]:
                    low, high = (int(part, 16) for part in line.split()[0].split("-"))
                    inside = low <= start < high
                if inside:
                    found.append(line)
        return found

    lines = entry()
    assert lines[0].split()[1] == ("r--p" if anonymous else "r--s")
    assert str(sealed.path) in lines[0] or anonymous
    assert "dd" in lines[-1].split()
    view = buffer.ciphertext
    assert view.readonly
    expected = sealed.path.read_bytes()[sealed.at :][: sealed.count * PAGE]
    assert view == expected
    assert sealed.plain[:64] not in expected
    buffer.close()
    assert view == expected
    view.release()
    assert str(sealed.path) not in "".join(entry()[:1])


@linux_only
@not_sanitized
def test_opening_a_large_file_takes_its_records_only(key: Key, tmp_path: Path) -> None:
    """A GiB is neither read nor decrypted: memory grows by 24 bytes a page."""
    nbytes = 1 << 30
    count = nbytes // PAGE
    path = tmp_path / "file"
    with open(path, "wb") as file:
        file.truncate(nbytes)
    versions, tags = np.ones(count, np.uint64), np.ones(16 * count, np.uint8)
    with open(path, "rb") as file:
        before = support.status_field("VmRSS")
        buffer = EncryptedBuffer._mapped(
            file.fileno(),
            0,
            nbytes,
            key=key,
            cipher=AEGIS,
            store_id=ID,
            page_size=PAGE,
            versions=versions,
            tags=tags,
            name="large",
        )
        grown = support.status_field("VmRSS") - before
    assert grown < 24 * count + (4 << 20)
    with pytest.raises(errors.IntegrityError):
        buffer.read(nbytes - 1, 1)
    buffer.close()


HUGE_PAGE = 2 << 20


def address(buffer: EncryptedBuffer) -> int:
    return int(ffi.cast("uintptr_t", ffi.from_buffer(buffer.ciphertext)))


@linux_only
@not_sanitized
def test_parts_of_a_file_lie_as_they_do_in_it(key: Key, tmp_path: Path) -> None:
    """So that the kernel joins their mappings, and huge pages of the page cache can be seen as
    such: where a part begins, its address is the offset but for a multiple of the huge page."""
    plain = random.Random(6).randbytes(3 * HUGE_PAGE + 5000)
    file = Sealed(tmp_path / "file", plain, at=5 * PAGE)
    other = Sealed(tmp_path / "other", plain, at=PAGE)
    with file.map(key) as whole, other.map(key) as another:
        assert (address(whole) - file.at) % HUGE_PAGE == 0
        assert (address(another) - other.at) % HUGE_PAGE == 0
        assert whole.read() == another.read() == plain
    npages = 150  # of each part: not one of them fills a huge page
    parts = []
    with open(file.path, "rb") as opened:
        for first in range(0, 5 * npages, npages):
            records = {
                "versions": file.versions[first : first + npages],
                "tags": file.tags[16 * first : 16 * (first + npages)],
            }
            parts.append(
                EncryptedBuffer._mapped(
                    opened.fileno(),
                    file.at + first * PAGE,
                    npages * PAGE,
                    key=key,
                    cipher=AEGIS,
                    store_id=ID,
                    page_size=PAGE,
                    name="part",
                    **records,
                )
            )
        distances = [address(part) - address(parts[0]) for part in parts]
        assert distances == [at * npages * PAGE for at in range(5)]
        with open("/proc/self/maps", encoding="utf-8", errors="replace") as lines:
            assert sum(str(file.path) in line for line in lines) == 1, "joined"
        again = file.map(key)
        assert address(again) != address(parts[0]), "its place is taken"
    assert parts[0].read() == plain[: npages * PAGE]
    for at in (2, 0, 4, 1):
        parts[at].close()
        with pytest.raises(errors.ClosedError):
            parts[at].read()
    with pytest.raises(errors.IntegrityError):
        parts[3].read()  # sealed as other pages than those it is read as
    assert again.read() == plain
    again.close()
    parts[3].close()
    with open("/proc/self/maps", encoding="utf-8", errors="replace") as lines:
        assert not any(str(file.path) in line for line in lines), "nothing stays mapped"


@linux_only
@not_sanitized
def test_a_part_is_mapped_where_there_is_no_room_for_the_file(tmp_path: Path) -> None:
    """The address space that a whole file would take may be more than a process may have."""
    support.check_python(
        """
import os, resource, sys
import numpy as np
from pyccmem import EncryptedBuffer, Key
from pyccmem.safetensors._sealer import Sealer
key, plain = Key.generate(), os.urandom(10 * 4096)
pages = bytearray(len(plain))
with Sealer(key, bytes(16), 4096) as sealer:
    tags = sealer.seal(0, plain, pages)
with open(sys.argv[1], "wb") as file:
    file.write(pages)
    file.truncate(1 << 40)
resource.setrlimit(resource.RLIMIT_AS, (1 << 36, 1 << 36))
with open(sys.argv[1], "rb") as file:
    buffer = EncryptedBuffer._mapped(
        file.fileno(), 0, len(plain), key=key, cipher="aegis-128x2", store_id=bytes(16),
        page_size=4096, versions=np.ones(10, np.uint64), tags=tags, name="small")
assert buffer.read() == plain
""",
        str(tmp_path / "file"),
    )


# ---- writing ----------------------------------------------------------------------------------

WRITES: dict[str, Callable[[EncryptedBuffer, EncryptedTensor], Any]] = {
    "write": lambda b, t: b.write(b"x", 5),
    "write nothing": lambda b, t: b.write(b""),
    "write a page": lambda b, t: b.write(bytes(PAGE), PAGE),
    "write all": lambda b, t: b.write(bytes(b.nbytes)),
    "write own ciphertext": lambda b, t: b.write(b.ciphertext[:PAGE]),
    "element": lambda b, t: t.__setitem__(5, 1),
    "row": lambda b, t: t.reshape(-1, 7).__setitem__(3, 0),
    "nothing": lambda b, t: t.__setitem__(slice(0, 0), 0),
    "slice": lambda b, t: t.__setitem__(slice(1, 5000, 3), 1),
    "all": lambda b, t: t.__setitem__(..., np.zeros(t.shape, t.dtype)),
    "converted": lambda b, t: t.__setitem__(..., np.zeros(t.shape, np.float64)),
    "rows by number": lambda b, t: t.__setitem__([1, 5, 9000], 3),
    "mask": lambda b, t: t.__setitem__(np.arange(len(t)) % 5 == 0, 3),
    "open r+": lambda b, t: t.open("r+").__enter__(),
    "view": lambda b, t: t.view(np.uint16).__setitem__(0, 0),
}


@SHARED_OR_OWN
@pytest.mark.parametrize("use", WRITES.values(), ids=WRITES)
def test_every_write_is_refused(
    key: Key, sealed: Sealed, use: Callable[..., Any], anonymous: bool
) -> None:
    before = sealed.path.read_bytes()
    nbytes = len(sealed.plain) // 14 * 14
    with sealed.map(key, anonymous=anonymous) as buffer:
        tensor = EncryptedTensor._adopt(buffer, (nbytes,), np.uint8)
        assert not tensor.writable
        with pytest.raises(errors.ReadOnlyError, match=r"copy\(key=\.\.\.\)"):
            use(buffer, tensor)
        assert buffer.read() == sealed.plain
        assert buffer.versions.tolist() == [1] * sealed.count
        assert buffer.stats()["pages_sealed"] == 0
    assert sealed.path.read_bytes() == before
    # The same on a buffer of its own is no error: what was refused is the file.
    with EncryptedBuffer.from_data(sealed.plain, key=key) as own:
        use(own, EncryptedTensor._adopt(own, (nbytes,), np.uint8))


def test_the_native_functions_refuse(key: Key, sealed: Sealed) -> None:
    with sealed.map(key) as buffer:
        store = buffer._opened()
        offsets = ffi.new("uint64_t[]", [0, 100, 2 * PAGE - 1])
        data = ffi.new("uint8_t[]", 3 * PAGE)
        for run in (1, 16, 3 * PAGE):
            status = lib.ccmem_store_scatter(store, offsets, 3 if run < PAGE else 1, run, data)
            assert status == lib.CCMEM_ERR_READONLY, run
        assert lib.ccmem_store_write(store, 0, data, 0) == lib.CCMEM_ERR_READONLY
        assert lib.ccmem_store_write(store, buffer.nbytes, data, 1) == lib.CCMEM_ERR_RANGE
        assert buffer.read() == sealed.plain


# ---- writable copies --------------------------------------------------------------------------


@SHARED_OR_OWN
@pytest.mark.parametrize("nbytes", [0, 4, 4096, (1 << 20) - 4, 1 << 20, (3 << 20) + 4096 + 4])
def test_a_copy_can_be_written(key: Key, tmp_path: Path, nbytes: int, anonymous: bool) -> None:
    array = np.random.default_rng(nbytes).standard_normal(nbytes // 4).astype(np.float32)
    file = Sealed(tmp_path / "file", array.tobytes())
    tensor = EncryptedTensor._adopt(file.map(key, anonymous=anonymous), array.shape, np.float32)
    with Key.generate() as other:
        copy = tensor.copy(key=other)
    assert copy.writable and copy.name == tensor.name == "weights"
    assert (copy.cipher, copy.page_size) == (tensor.cipher, tensor.page_size)
    assert np.array_equal(copy[...], array)
    copy[...] = array[::-1]
    assert np.array_equal(copy[...], array[::-1])
    assert np.array_equal(tensor[...], array)
    tensor.close()
    assert np.array_equal(copy[...], array[::-1])


def test_a_copy_may_have_another_form(key: Key, cipher: str, page_size: int) -> None:
    array = np.arange(50_000, dtype=np.int16).reshape(100, 500)
    tensor = EncryptedTensor.from_numpy(array, key=key)
    copy = tensor.copy(key=key, cipher=cipher, page_size=page_size, name="copy")
    assert np.array_equal(copy[...], array)
    assert (copy.cipher, copy.page_size, copy.name) == (cipher, page_size, "copy")
    assert copy.buffer is not tensor.buffer
    copy[3, 4] = 99
    assert (copy[3, 4], tensor[3, 4]) == (99, array[3, 4])


def test_copies_of_tensors_of_every_kind(key: Key) -> None:
    scalar = EncryptedTensor.from_numpy(np.float64(2.5), key=key)
    assert scalar.copy(key=key)[()] == 2.5
    empty = EncryptedTensor.zeros((0, 3), np.int8, key=key).copy(key=key)
    assert empty.shape == (0, 3)
    kind = np.dtype([("a", "<i4"), ("b", "S3")])
    rows = np.array([(1, b"x"), (2, b"yz")], kind)
    assert np.array_equal(EncryptedTensor.from_numpy(rows, key=key).copy(key=key)[...], rows)
    array = np.arange(3 * 4096 + 20, dtype=np.uint8)
    whole = EncryptedTensor.from_numpy(array, key=key)
    part = EncryptedTensor._adopt(whole.buffer, (5, 11), np.uint8, 4090)
    copied = part.copy(key=key)
    assert copied.buffer.nbytes == 55
    assert np.array_equal(copied[...], array[4090:4145].reshape(5, 11))
    assert np.array_equal(whole.reshape(2, -1).copy(key=key)[1], array.reshape(2, -1)[1])


def test_a_copy_of_a_changed_tensor_is_refused(key: Key, sealed: Sealed) -> None:
    tensor = EncryptedTensor._adopt(sealed.map(key), (len(sealed.plain),), np.uint8)
    before = len(open_buffers())
    sealed.flip(299, 77)
    with pytest.raises(errors.IntegrityError, match="Page 299 of buffer 'weights'"):
        tensor.copy(key=key)
    assert len(open_buffers()) == before
    closed = Key.generate()
    closed.close()
    with pytest.raises(errors.ClosedError):
        tensor.copy(key=closed)
    with pytest.raises(errors.ArgumentTypeError, match="key"):
        tensor.copy(key=bytes(32))  # type: ignore[arg-type]
    sealed.flip(299, 77)
    assert tensor.copy(key=key)[...].tobytes() == sealed.plain
    tensor.close()
    with pytest.raises(errors.ClosedError):
        tensor.copy(key=key)


# ---- damage -----------------------------------------------------------------------------------


def refused(buffer: EncryptedBuffer, page: int) -> None:
    """Every way to read the page is refused, and hands out zeros at most; others can be read."""
    out = bytearray(b"\x77" * 100)
    for use in (
        lambda: buffer.read(page * PAGE, 1),
        lambda: buffer.read_into(out, page * PAGE + 50),
        lambda: buffer.read(),
    ):
        with pytest.raises(errors.IntegrityError, match=f"Page {page} of buffer 'weights'") as e:
            use()
        assert (e.value.page, e.value.name) == (page, "weights")
    assert out == bytes(100)
    assert buffer.verify() == [page]
    tensor = EncryptedTensor._adopt(buffer, (300, 1024), np.float32)
    with pytest.raises(errors.IntegrityError):
        pyccmem.linear(np.ones(1024, np.float32), tensor)


def test_every_changed_bit_of_the_file_is_noticed(key: Key, sealed: Sealed, threads: int) -> None:
    """While it is mapped, at once; and no longer when it is put back."""
    seed = random.Random(9)
    with sealed.map(key) as buffer:
        for bit in [0, 8 * PAGE - 1, *(seed.randrange(8 * PAGE) for _ in range(40))]:
            page = seed.randrange(300)
            sealed.flip(page, bit)
            refused(buffer, page)
            sealed.flip(page, bit)
            assert buffer.read() == sealed.plain
        assert buffer.stats()["integrity_failures"] > 100


def test_an_anonymous_copy_does_not_see_later_changes(key: Key, sealed: Sealed) -> None:
    with sealed.map(key, anonymous=True) as buffer:
        sealed.flip(7, 7)
        assert buffer.read() == sealed.plain
    with sealed.map(key, anonymous=True) as buffer:
        refused(buffer, 7)


@SHARED_OR_OWN
def test_changed_records_are_noticed(key: Key, sealed: Sealed, anonymous: bool) -> None:
    for bit in range(128):
        tags = bytearray(sealed.tags)
        tags[16 * 5 + bit // 8] ^= 1 << bit % 8
        with sealed.map(key, tags=tags, anonymous=anonymous) as buffer:
            with pytest.raises(errors.IntegrityError, match="Page 5 "):
                buffer.read(5 * PAGE, 10)
            assert buffer.verify() == [5]
    for bit in range(1, 63):
        versions = sealed.versions.copy()
        versions[5] ^= np.uint64(1 << bit)
        with sealed.map(key, versions=versions, anonymous=anonymous) as buffer:
            assert buffer.verify() == [5]


def test_pages_in_another_place_or_of_another_store_are_noticed(key: Key, sealed: Sealed) -> None:
    content = sealed.path.read_bytes()
    one, two = (slice(sealed.at + p * PAGE, sealed.at + (p + 1) * PAGE) for p in (4, 9))
    swapped = bytearray(content)
    swapped[one], swapped[two] = content[two], content[one]
    sealed.path.write_bytes(swapped)
    tags = [sealed.tags[16 * i : 16 * i + 16] for i in range(sealed.count)]
    tags[4], tags[9] = tags[9], tags[4]
    for records in (sealed.tags, b"".join(tags)):
        with sealed.map(key, tags=records) as buffer:
            assert buffer.verify() == [4, 9]
    sealed.path.write_bytes(content)
    everything = list(range(sealed.count))
    for change in (
        {"store_id": bytes(16)},
        {"offset": sealed.at - PAGE},
        {"key": Key.generate()},
    ):
        with sealed.map(**({"key": key} | change)) as buffer:
            assert buffer.verify() == everything
    half = {"page_size": 2 * PAGE, "nbytes": 300 * PAGE, "versions": sealed.versions[:150]}
    with sealed.map(key, tags=sealed.tags[: 16 * 150], **half) as buffer:
        assert buffer.verify() == list(range(150))


def test_a_version_that_memory_lost_is_noticed(key: Key, sealed: Sealed) -> None:
    """Even with the tag of a page that was never written, which reads as zeros elsewhere. A file
    whose versions are all 1, as a sealer writes it, has none in memory that could be lost."""
    with sealed.map(key) as buffer:
        versions, tags = support.records(buffer)
        assert versions == ffi.NULL and buffer.fresh
        ffi.memmove(tags + 16 * 3, bytes(16), 16)
        with pytest.raises(errors.IntegrityError, match=r"Page 3 .* match its tag"):
            buffer.read(3 * PAGE, 1)
        assert buffer.verify() == [3]
    numbers = sealed.versions.copy()
    numbers[9] = 2
    with sealed.map(key, versions=numbers) as buffer:
        assert buffer.verify() == [9] and not buffer.fresh
        versions, tags = support.records(buffer)
        versions[3] = 0
        ffi.memmove(tags + 16 * 3, bytes(16), 16)
        with pytest.raises(errors.IntegrityError, match=r"Page 3 .* never written"):
            buffer.read(3 * PAGE, 1)
        with pytest.raises(errors.IntegrityError):
            buffer.read()
        assert buffer.verify() == [3, 9]
        versions[3] = 1 | 1 << 63
        with pytest.raises(errors.IntegrityError, match="being written"):
            buffer.read(3 * PAGE, 1)


#: Changes bytes of the pages and puts them back as fast as it can, until its input ends; now and
#: then it pauses while all is as it was.
FLIPPER = """
import mmap, sys, threading, time
import numpy as np
path, at, size = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
with open(path, "r+b") as file:
    pages = np.frombuffer(mmap.mmap(file.fileno(), 0), np.uint8)[at : at + size]
stop = threading.Event()
threading.Thread(target=lambda: (sys.stdin.read(), stop.set()), daemon=True).start()
print("ready", flush=True)
cut = 0
while not stop.is_set():
    for i in range(300):
        cut = (cut + 509) % size
        part = pages[cut : cut + 64] if i % 3 else pages[cut % 4096 : cut % 4096 + 64]
        np.bitwise_not(part, out=part)
        part.sum()
        np.bitwise_not(part, out=part)
    time.sleep(0.0003)
"""

#: Reads while another process changes the file: whatever comes back without an error is right.
READER = """
import sys, time
import numpy as np
import pyccmem
from pyccmem import EncryptedBuffer, EncryptedTensor, Key, errors
path, at, nbytes, tags, seconds = (
    sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), bytes.fromhex(sys.argv[4]), float(sys.argv[5]))
count = nbytes // 4096
key = Key.from_bytes(bytes(range(32)))
with open(path, "rb") as file:
    buffer = EncryptedBuffer._mapped(
        file.fileno(), at, nbytes, key=key, cipher="aegis-128x2", store_id=bytes(range(200, 216)),
        page_size=4096, versions=np.ones(count, np.uint64), tags=tags, name="weights")
plain = np.load(path + ".npy")
raw = plain.tobytes()
tensor = EncryptedTensor._adopt(buffer, plain.shape, plain.dtype)
own = EncryptedTensor.from_numpy(plain, key=key)
x = np.random.default_rng(0).standard_normal((1, plain.shape[1])).astype(np.float32)
expected = pyccmem.linear(x, own)
offsets = np.array([5, 4097, 100, nbytes - 7])

def small():
    return buffer.read(1000, 333) == raw[1000:1333]
def page():
    return buffer.read(0, 4096) == raw[:4096]
def bulk():
    return buffer.read() == raw
def unaligned():
    return buffer.read(13, nbytes - 20) == raw[13:-7]
def rows():
    return np.array_equal(tensor[[0, 2, 1]], plain[[0, 2, 1]])
def product():
    return np.array_equal(pyccmem.linear(x, tensor), expected)
def copied():
    copy = tensor.copy(key=key)
    return np.array_equal(copy[...], plain)
def blas():
    many = np.ones((40, plain.shape[1]), np.float32)
    return np.array_equal(pyccmem.linear(many, tensor), pyccmem.linear(many, own))

view = buffer.ciphertext
first = np.load(path + ".good.npy").tobytes()
def twice():
    # The control: checked, then read again. What was right at the first look may be wrong then.
    if bytes(view[:4096]) != first:
        raise errors.IntegrityError("seen at the first look")
    return bytes(view[:4096]) == first

counts = {}
for use in (small, page, bulk, unaligned, rows, product, copied, blas, twice):
    right = wrong = refused = 0
    end = time.monotonic() + seconds
    late = end + 30  # where the machine is busy with other things, the changes come slowly
    while (now := time.monotonic()) < end or (
        now < late and not (wrong if use is twice else right and refused)
    ):
        try:
            if use():
                right += 1
            else:
                wrong += 1
        except errors.IntegrityError:
            refused += 1
    counts[use.__name__] = (right, wrong, refused)
print(counts)
"""


@linux_only
@not_sanitized
@pytest.mark.parametrize("name", support.TIER_NAMES)
def test_a_file_that_changes_all_the_time(tmp_path: Path, name: str) -> None:
    """Whatever is handed out is right, and everything else is an IntegrityError: no byte is
    verified at one moment and decrypted at another. Who looks twice is caught (the control)."""
    plain = np.random.default_rng(3).standard_normal((8, 1024)).astype(np.float32)
    file = Sealed(tmp_path / "file", plain.tobytes())
    np.save(str(file.path) + ".npy", plain)
    content = np.frombuffer(file.path.read_bytes(), np.uint8)
    np.save(str(file.path) + ".good.npy", content[file.at : file.at + PAGE])
    flipper = subprocess.Popen(
        [sys.executable, "-c", FLIPPER, str(file.path), str(file.at), str(len(file.plain))],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=support.child_environment(),
    )
    try:
        assert flipper.stdout.readline() == b"ready\n"
        arguments = (str(file.path), str(file.at), str(len(file.plain)), file.tags.hex(), "0.2")
        environment = support.child_environment(PYCCMEM_TIER=name)
        counts = eval(support.check_python(READER, *arguments, environment=environment))
    finally:
        flipper.stdin.close()
        flipper.wait(30)
        flipper.stdout.close()
    _, caught, _ = counts.pop("twice")
    assert caught, "the file did not change between two looks at it"
    assert not any(wrong for _, wrong, _ in counts.values()), counts
    assert all(right and refused for right, _, refused in counts.values()), counts


# ---- what cannot be mapped ---------------------------------------------------------------------


@SHARED_OR_OWN
@pytest.mark.parametrize("version", [0, 2**63, 2**63 + 1, 2**64 - 1])
def test_impossible_versions_are_refused(
    key: Key, sealed: Sealed, version: int, anonymous: bool
) -> None:
    for page in (0, 150, 300):
        versions = sealed.versions.copy()
        versions[page] = version
        with pytest.raises(errors.FileFormatError, match=f"Page {page} of 'weights' .* {version} "):
            sealed.map(key, versions=versions, anonymous=anonymous)


@SHARED_OR_OWN
def test_a_file_that_was_cut_off_is_refused(key: Key, sealed: Sealed, anonymous: bool) -> None:
    content = sealed.path.read_bytes()
    end = sealed.at + sealed.count * PAGE
    for length in (0, 1, sealed.at, end - PAGE, end - 1):
        sealed.path.write_bytes(content[:length])
        with pytest.raises(errors.FileFormatError, match=r"'weights'.* whole file"):
            sealed.map(key, anonymous=anonymous)
    sealed.path.write_bytes(content[:end])
    with sealed.map(key, anonymous=anonymous) as buffer:
        assert buffer.read() == sealed.plain
    for far in (2**40, 2**62, 2**63 - PAGE):
        with pytest.raises(errors.FileFormatError, match=str(far)):
            sealed.map(key, offset=far, anonymous=anonymous)
    none = {"nbytes": 0, "versions": b"", "tags": b"", "anonymous": anonymous}
    with sealed.map(key, **none) as buffer:
        assert buffer.read() == b"" and buffer.verify() == []
    with pytest.raises(errors.FileFormatError):
        sealed.map(key, offset=2**40, **none)


WRONG: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "offset": ({"offset": 8193}, errors.ArgumentError, "8193"),
    "offset in a page": ({"offset": 512}, errors.ArgumentError, "multiple of 4096"),
    "negative offset": ({"offset": -4096}, errors.ArgumentError, "offset"),
    "huge offset": ({"offset": 2**63}, errors.ArgumentError, "offset"),
    "offset type": ({"offset": "0"}, errors.ArgumentTypeError, "offset"),
    "negative size": ({"nbytes": -1}, errors.ArgumentError, "nbytes"),
    "other size": ({"nbytes": PAGE}, errors.ArgumentError, "versions"),
    "xts": ({"cipher": "aes-128-xts"}, errors.ArgumentError, "no tags"),
    "xts 256": ({"cipher": "aes-256-xts"}, errors.ArgumentError, "aegis-128x2"),
    "cipher": ({"cipher": "rot13"}, errors.ArgumentError, "rot13"),
    "cipher type": ({"cipher": 2}, errors.ArgumentTypeError, "cipher"),
    "page size": ({"page_size": 4097}, errors.PageSizeError, "4097"),
    "id": ({"store_id": bytes(17)}, errors.ArgumentError, "store_id"),
    "versions": ({"versions": bytes(8)}, errors.ArgumentError, "versions"),
    "tags": ({"tags": bytes(15)}, errors.ArgumentError, "tags"),
    "no tags": ({"tags": None}, errors.BufferTypeError, "tags"),
    "key": ({"key": bytes(32)}, errors.ArgumentTypeError, "Key"),
    "name": ({"name": 5}, errors.ArgumentTypeError, "name"),
}


@pytest.mark.parametrize("case", WRONG.values(), ids=WRONG)
def test_wrong_arguments(
    key: Key, sealed: Sealed, case: tuple[dict[str, Any], type[Exception], str]
) -> None:
    change, error, words = case
    with pytest.raises(error, match=words):
        sealed.map(**({"key": key} | change))


def test_more_than_memory_can_hold(key: Key, tmp_path: Path) -> None:
    """A size that no index can say; records of that size cannot be handed in, so by the native
    function."""
    with open(os.devnull, "rb") as file:
        out = ffi.new("ccmem_store **")
        for nbytes in (2**63 - 1, 2**64 - 1):
            status = lib.ccmem_store_map(
                key._opened(),
                lib.CCMEM_AEGIS_128X2,
                ID,
                nbytes,
                PAGE,
                file.fileno(),
                0,
                0,
                ffi.new("uint64_t[1]"),
                bytes(16),
                out,
            )
            assert status == lib.CCMEM_ERR_NOMEM


@SHARED_OR_OWN
def test_what_is_not_a_readable_file(
    key: Key, sealed: Sealed, tmp_path: Path, anonymous: bool
) -> None:
    def attempt(descriptor: int, nbytes: int = PAGE) -> None:
        EncryptedBuffer._mapped(
            descriptor,
            0,
            nbytes,
            key=key,
            cipher=AEGIS,
            store_id=ID,
            page_size=PAGE,
            versions=np.ones(nbytes // PAGE, np.uint64),
            tags=bytes(16 * (nbytes // PAGE)),
            name="weights",
            anonymous=anonymous,
        )

    unused = os.open(sealed.path, os.O_RDONLY)
    os.close(unused)
    with pytest.raises(errors.FileReadError, match="Bad file descriptor") as caught:
        attempt(unused)
    assert caught.value.errno == 9
    for wrong in (-1, 2**31):
        with pytest.raises(errors.ArgumentError, match="fd"):
            attempt(wrong)
    with pytest.raises(errors.ArgumentTypeError, match="fd"):
        attempt("0")  # type: ignore[arg-type]
    for path, flags in ((sealed.path, os.O_WRONLY), (tmp_path, os.O_RDONLY | os.O_DIRECTORY)):
        descriptor = os.open(path, flags)
        try:
            with pytest.raises((errors.FileReadError, errors.FileFormatError), match="weights"):
                attempt(descriptor)
        finally:
            os.close(descriptor)
    read_end, write_end = os.pipe()
    try:
        with pytest.raises(errors.FileFormatError):
            attempt(read_end)
    finally:
        os.close(read_end)
        os.close(write_end)


@linux_only
@not_sanitized
@SHARED_OR_OWN
def test_what_is_refused_leaves_nothing_behind(key: Key, sealed: Sealed, anonymous: bool) -> None:
    def held() -> tuple[int, int, int]:
        with open("/proc/self/maps", encoding="utf-8", errors="replace") as lines:
            mapped = sum(str(sealed.path) in line for line in lines)
        return mapped, len(os.listdir("/proc/self/fd")), support.status_field("VmLck")

    def work() -> None:
        for _ in range(100):
            with pytest.raises(errors.FileFormatError):
                sealed.map(key, versions=np.zeros(sealed.count, np.uint64), anonymous=anonymous)
            with pytest.raises(errors.FileFormatError):
                sealed.map(key, offset=2**40, anonymous=anonymous)
            sealed.map(key, anonymous=anonymous).close()

    work()
    before, size = held(), support.status_field("VmSize")
    for _ in range(3):
        work()
    assert held() == before
    assert before[0] == 0
    assert support.status_field("VmSize") - size < 100 * PAGE * sealed.count


# ---- processes --------------------------------------------------------------------------------

CUT_OFF = """
import os, sys
import numpy as np
from pyccmem import EncryptedBuffer, Key, errors
path, at, nbytes, tags = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), bytes.fromhex(sys.argv[4])
with open(path, "rb") as file:
    buffer = EncryptedBuffer._mapped(
        file.fileno(), at, nbytes, key=Key.from_bytes(bytes(range(32))), cipher="aegis-128x2",
        store_id=bytes(range(200, 216)), page_size=4096, tags=tags, name="weights",
        versions=np.ones(nbytes // 4096, np.uint64), anonymous=sys.argv[5] == "anonymous")
if sys.argv[6] == "cut":
    os.truncate(path, at)
try:
    assert buffer.read() == bytes(nbytes)
    print("read")
except errors.FileReadError as error:
    assert error.filename == path and path in str(error), error
    print("lost")
"""


@linux_only
@not_sanitized
@pytest.mark.parametrize("mode", ["mapped", "anonymous"])
def test_a_file_cut_off_later(tmp_path: Path, mode: str) -> None:
    """Is an error that names it where it is mapped, and none where it was read. Whole, it is read
    by both."""
    file = Sealed(tmp_path / "file", bytes(64 * PAGE))
    arguments = (str(file.path), str(file.at), str(len(file.plain)), file.tags.hex(), mode)
    for what in ("whole", "cut"):
        done = support.run_python(CUT_OFF, *arguments, what)
        expected = "lost\n" if what == "cut" and mode == "mapped" else "read\n"
        assert (done.returncode, done.stdout) == (0, expected), done.stderr


USES: dict[str, Callable[[EncryptedBuffer, EncryptedTensor, Key], Any]] = {
    "read": lambda b, t, k: b.read(),
    "read nothing": lambda b, t, k: b.read(0, 0),
    "read_into": lambda b, t, k: b.read_into(bytearray(10)),
    "write": lambda b, t, k: b.write(b"x"),
    "verify": lambda b, t, k: b.verify(),
    "versions": lambda b, t, k: b.versions,
    "stats": lambda b, t, k: b.stats(),
    "ciphertext": lambda b, t, k: b.ciphertext,
    "tensor": lambda b, t, k: t[5],
    "product": lambda b, t, k: pyccmem.linear(np.ones(1024, np.float32), t),
    "copy": lambda b, t, k: t.copy(key=k),
    "assignment": lambda b, t, k: t.__setitem__(0, 0),
    "assign nothing": lambda b, t, k: t.__setitem__(slice(0, 0), 0),
    "open r+": lambda b, t, k: t.open("r+").__enter__(),
}


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@SHARED_OR_OWN
def test_every_use_in_a_child_is_a_fork_error(key: Key, sealed: Sealed, anonymous: bool) -> None:
    buffer = sealed.map(key, anonymous=anonymous)
    tensor = EncryptedTensor._adopt(buffer, (300, 1024), np.float32)
    view = buffer.ciphertext
    expected = bytes(view)

    def child() -> None:
        for use in USES.values():
            with pytest.raises(errors.ForkError, match="fork"):
                use(buffer, tensor, key)
        with pytest.raises(errors.ForkError):
            sealed.map(key, anonymous=anonymous)
        assert bytes(view) == expected
        with Key.from_bytes(support.KEY_BYTES) as own, sealed.map(own) as again:
            assert again.read() == sealed.plain
        buffer.close()
        assert bytes(view) == expected

    support.in_forked_child(child)
    assert buffer.read() == sealed.plain


def test_closed(key: Key, sealed: Sealed) -> None:
    buffer = sealed.map(key)
    tensor = EncryptedTensor._adopt(buffer, (300, 1024), np.float32)
    with buffer:
        assert not buffer.closed
    assert buffer.closed and tensor.closed
    assert "closed" in repr(buffer) and "read-only" in repr(tensor)
    for use in USES.values():
        with pytest.raises(errors.ClosedError):
            use(buffer, tensor, key)
    assert not tensor.writable
