# SPDX-License-Identifier: Apache-2.0
"""Pages that are put back from an earlier time together with all that lies beside them in memory: a
written buffer takes them for what it holds, a frozen one and one with its versions in locked memory
refuse them. And what freezing and thawing must keep: contents, writes, and that no nonce comes
twice."""

from __future__ import annotations

import hashlib
import os
import random
import re
import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import support
from secret_search import WITH_LIMIT
from support import linux_only

import pyccmem
from pyccmem import Arena, EncryptedBuffer, EncryptedTensor, Key, errors
from pyccmem.assessment.library import integrity
from pyccmem.binding import AUTHENTICATED, CIPHERS, ffi, lib
from pyccmem.binding.owned import pointer_to

PAGE = 4096
PAGES = 5
SIZE = PAGES * PAGE - 1000
TAGGED = pytest.mark.parametrize("cipher", sorted(AUTHENTICATED))
EVERY = pytest.mark.parametrize("cipher", sorted(CIPHERS))
OK, FROZEN = lib.CCMEM_OK, lib.CCMEM_ERR_FROZEN


# ---- the attacker --------------------------------------------------------------------------------


def is_locked(address: int) -> bool:
    """True for memory that is never swapped out: mlock(2), memfd_secret(2)."""
    inside = False
    with open("/proc/self/smaps", encoding="ascii", errors="replace") as lines:
        for line in lines:
            head = line.split()[0]
            if not head.endswith(":"):
                low, high = (int(part, 16) for part in head.split("-"))
                inside = low <= address < high
            elif head == "VmFlags:" and inside:
                return "lo" in line.split()[1:]
    raise AssertionError("nothing is mapped there")


class Attacker:
    """Who writes to a buffer's pages and to what is known of them, from outside the process, but
    has no way to memory that is locked. With `anywhere` they try that too."""

    def __init__(self, buffer: EncryptedBuffer, anywhere: bool = False) -> None:
        store = buffer._opened()
        self.view = buffer.ciphertext  # keeps the mapping
        pages = len(self.view) // PAGE
        versions, tags = support.records(buffer)
        places = [
            (ffi.cast("uint8_t *", ffi.from_buffer(self.view)), PAGE * pages),
            (tags, 16 * pages),
            (versions, 8 * pages),
            (support.copies(buffer), 8 * pages),
        ]
        self.store = store
        self.places = [
            (int(ffi.cast("uintptr_t", at)), n)
            for at, n in places
            if at != ffi.NULL and (anywhere or not is_locked(int(ffi.cast("uintptr_t", at))))
        ]

    def snapshot(self) -> list[bytes]:
        found = []
        with open("/proc/self/mem", "rb", buffering=0) as memory:
            for at, n in self.places:
                memory.seek(at)
                found.append(memory.read(n))
        return found

    def put_back(self, state: list[bytes]) -> None:
        with open("/proc/self/mem", "r+b", buffering=0) as memory:
            for (at, n), data in zip(self.places, state, strict=True):
                assert len(data) == n
                memory.seek(at)
                assert memory.write(data) == n


def two_states(buffer: EncryptedBuffer, **how: Any) -> tuple[Attacker, list[bytes]]:
    """Writes a buffer twice. Returns who has seen the first state, and that."""
    buffer.write(b"\x01" * buffer.nbytes)
    attacker = Attacker(buffer, **how)
    first = attacker.snapshot()
    buffer.write(b"\x02" * buffer.nbytes)
    assert buffer.read() == b"\x02" * buffer.nbytes
    return attacker, first


def refused(buffer: EncryptedBuffer) -> None:
    """Each page is, and nothing of it is handed out."""
    for page in range(PAGES):
        out = bytearray(b"\x77" * 100)
        with pytest.raises(errors.IntegrityError):
            buffer.read_into(out, page * PAGE)
        assert out == bytes(100)
    with pytest.raises(errors.IntegrityError):
        buffer.read()
    assert buffer.verify() == list(range(PAGES))


@linux_only
@TAGGED
def test_a_written_buffer_takes_an_earlier_state_for_its_own(key: Key, cipher: str) -> None:
    """The control of the tests below: the same attacker succeeds, and verify() sees nothing."""
    with EncryptedBuffer(SIZE, key=key, cipher=cipher) as buffer:
        attacker, first = two_states(buffer)
        assert len(first) == 4 and not buffer.fresh
        attacker.put_back(first)
        assert buffer.read() == b"\x01" * SIZE
        assert buffer.verify() == []


@linux_only
@TAGGED
@pytest.mark.parametrize("page_size", [4096, 16384])
def test_a_fresh_buffer_refuses_it(key: Key, cipher: str, page_size: int) -> None:
    with EncryptedBuffer(SIZE, key=key, cipher=cipher, fresh=True) as buffer:
        attacker, first = two_states(buffer)
        assert buffer.fresh and "fresh" in repr(buffer)
        assert len(first) == 3, "the versions lie in locked memory"
        second = attacker.snapshot()
        attacker.put_back(first)
        refused(buffer)
        attacker.put_back(second)
        assert buffer.read() == b"\x02" * SIZE and buffer.verify() == []
        # "Never written" is a version as well.
        attacker.put_back([bytes(len(part)) for part in second])
        refused(buffer)


@linux_only
def test_locked_memory_is_no_more_than_that(key: Key) -> None:
    """What the level promises: with memfd_secret(2) nobody outside can write to the versions; with
    mlock(2) who can write to the process can put them back, too."""
    if key.level == "secretmem":
        with EncryptedBuffer(SIZE, key=key, fresh=True) as buffer:
            buffer.write(b"\x01" * SIZE)
            attacker = Attacker(buffer, anywhere=True)
            assert len(attacker.places) == 4
            with pytest.raises(OSError):
                attacker.snapshot()
            at, n = attacker.places[2]
            with (
                pytest.raises(OSError),
                open("/proc/self/mem", "r+b", buffering=0) as memory,
            ):
                memory.seek(at)
                memory.write(bytes(n))
            assert buffer.read() == b"\x01" * SIZE
    with (
        Key.generate(level="mlock") as lower,
        EncryptedBuffer(SIZE, key=lower, fresh=True) as buffer,
    ):
        attacker, first = two_states(buffer, anywhere=True)
        attacker.put_back(first)
        assert buffer.read() == b"\x01" * SIZE


@linux_only
@TAGGED
def test_a_frozen_buffer_refuses_it(key: Key, cipher: str) -> None:
    """Whatever was in memory before: pages and tags from before it was frozen, from another time
    when it was frozen, of other places, and of nothing."""
    with EncryptedBuffer(SIZE, key=key, cipher=cipher) as buffer:
        _, written = two_states(buffer)
        buffer.freeze()
        assert buffer.fresh and buffer.frozen and "frozen" in repr(buffer)
        assert support.records(buffer)[0] == ffi.NULL == support.copies(buffer)
        attacker = Attacker(buffer)
        frozen = attacker.snapshot()
        assert len(frozen) == 2, "pages and tags are all there is"
        swapped = [frozen[0][PAGE:] + frozen[0][:PAGE], frozen[1][16:] + frozen[1][:16]]
        nothing = [bytes(len(part)) for part in frozen]
        for state in (written[:2], swapped, nothing):
            attacker.put_back(state)
            refused(buffer)
        attacker.put_back(frozen)
        assert buffer.read() == b"\x02" * SIZE and buffer.verify() == []
        buffer.thaw()
        buffer.write(b"\x03" * SIZE)
        buffer.freeze()
        attacker = Attacker(buffer)
        attacker.put_back(frozen)
        refused(buffer)


@linux_only
@TAGGED
def test_a_frozen_arena_refuses_it(key: Key, cipher: str) -> None:
    """What other tensors held before, in these pages or in others; an ordinary arena, in which the
    tensor was written twice, is the control."""
    old = np.full(PAGES * PAGE // 8, 1.5)
    found = {}
    for frozen in (True, False):
        arena = Arena(key=key, cipher=cipher, frozen=frozen)
        tensor = EncryptedTensor.from_numpy(old, arena=arena)
        first = Attacker(tensor.buffer).snapshot()
        if frozen:
            tensor.close()
            tensor = EncryptedTensor.from_numpy(2 * old, arena=arena)
        else:
            tensor[...] = 2 * old
        assert tensor.fresh == tensor.frozen == frozen
        attacker = Attacker(tensor.buffer)
        attacker.put_back(first)
        try:
            found[frozen] = bool((tensor[...] == old).all())
        except errors.IntegrityError:
            assert tensor.verify() == list(range(PAGES))
            found[frozen] = False
    assert found == {True: False, False: True}


@TAGGED
def test_pages_of_a_sealed_file_have_no_versions_in_memory(
    key: Key, cipher: str, tmp_path: Any
) -> None:
    from pyccmem import safetensors

    path = tmp_path / "weights.safetensors"
    with EncryptedTensor.from_numpy(np.arange(5000.0), key=key, cipher=cipher) as tensor:
        safetensors.save_file({"w": tensor}, path, key=key)
    with safetensors.load_file(path, key=key)["w"] as loaded:
        assert loaded.fresh and not loaded.frozen
        assert support.records(loaded.buffer)[0] == ffi.NULL
        assert (loaded.buffer.versions == 1).all()
        assert (loaded[...] == np.arange(5000.0)).all()
        loaded.freeze()  # nothing to do
        with pytest.raises(errors.ReadOnlyError, match="sealed file"):
            loaded.thaw()


def test_counters_go_on(key: Key) -> None:
    with EncryptedBuffer(SIZE, key=key) as buffer:
        buffer.write(bytes(SIZE))
        support.damage(buffer, 1)
        assert buffer.verify() == [1]
        support.damage(buffer, 1)
        for change in (buffer.freeze, buffer.thaw):
            change()
            stats = buffer.stats()
            assert stats["integrity_failures"] == 1 and stats["writes"] >= 1


# ---- contents and nonces -------------------------------------------------------------------------


@EVERY
@pytest.mark.parametrize("page_size", [4096, 65536])
@pytest.mark.parametrize("nbytes", [0, 1, 4096, 3 * 65536, (2 << 20) + 77])
def test_contents_stay(key: Key, cipher: str, page_size: int, nbytes: int) -> None:
    plain = random.Random(nbytes).randbytes(nbytes)
    with EncryptedBuffer(nbytes, key=key, cipher=cipher, page_size=page_size) as buffer:
        buffer.write(plain)
        for _ in range(2):
            buffer.freeze()
            assert buffer.frozen and not buffer.writable
            assert buffer.read() == plain
            assert (buffer.versions == 1).all()
            buffer.freeze()
            if nbytes:
                with pytest.raises(errors.FrozenError, match="thaw"):
                    buffer.write(b"x", nbytes - 1)
            buffer.thaw()
            assert buffer.writable and not buffer.frozen
            assert buffer.read() == plain
            buffer.write(plain[:10])
            assert buffer.read() == plain
            buffer.thaw()
        if cipher in AUTHENTICATED:
            assert buffer.verify() == []


@EVERY
def test_no_page_is_sealed_twice_under_a_nonce(key: Key, cipher: str) -> None:
    """All of zeros: a key and a nonce that came twice would give the same ciphertext. The control:
    the same state, looked at twice, is recognised."""
    seen: set[bytes] = set()

    def pages(buffer: EncryptedBuffer) -> set[bytes]:
        view = buffer.ciphertext
        return {bytes(view[at : at + PAGE]) for at in range(0, len(view), PAGE)}

    with EncryptedBuffer(PAGES * PAGE, key=key, cipher=cipher) as buffer:
        buffer.write(bytes(buffer.nbytes))
        for _ in range(4):
            for change in (buffer.freeze, buffer.thaw, lambda: buffer.write(bytes(buffer.nbytes))):
                now = pages(buffer)
                assert len(now) == PAGES and not now & seen
                assert now == pages(buffer)
                seen |= now
                change()


@EVERY
def test_a_frozen_arena_gives_no_page_twice(key: Key, cipher: str) -> None:
    """And gives the memory of those that were left back. An ordinary one is the control."""
    places: dict[bool, list[int]] = {}
    for frozen in (True, False):
        places[frozen] = []
        arena = Arena(key=key, cipher=cipher, frozen=frozen)
        seen: set[bytes] = set()
        size = support.status_field("VmSize")
        for number in range(400):
            tensor = EncryptedTensor.from_numpy(np.zeros(3 * PAGE, np.uint8), arena=arena)
            first = int(lib.ccmem_arena_place(tensor._opened()))
            places[frozen].append(first)
            if frozen:
                text = hashlib.sha256(tensor.buffer.ciphertext).digest()
                assert text not in seen
                seen.add(text)
            assert number % 50 or not tensor[...].any()
            tensor.close()
        assert support.SANITIZED or support.status_field("VmSize") - size < 2 << 20
    assert len(set(places[True])) == 400 and len(set(places[False])) < 100


def native_once(key: Key, nbytes: int) -> Any:
    out = ffi.new("ccmem_store **")
    native = key._opened()
    arguments = (native, lib.CCMEM_AEGIS_128X2, nbytes, PAGE, 0, 0, lib.CCMEM_FRESH_ONCE, out)
    assert lib.ccmem_store_new(*arguments) == OK
    return ffi.gc(out[0], lib.ccmem_store_free)


def test_what_is_filled_is_not_filled_again(key: Key) -> None:
    """In order, whole pages, each once; a page that is not yet filled is refused."""
    nbytes = 3 * PAGE + 50
    store, fill = native_once(key, nbytes), lib.ccmem_store_fill
    data, out = ffi.new("uint8_t[]", b"\x05" * 4 * PAGE), ffi.new("uint8_t[]", nbytes)
    assert lib.ccmem_store_read(store, 0, out, 1) == lib.CCMEM_ERR_INTEGRITY
    assert fill(store, PAGE, data, PAGE) == FROZEN
    for n in (1, PAGE - 1, PAGE + 1):
        assert fill(store, 0, data, n) == lib.CCMEM_ERR_ARGUMENT
    assert fill(store, 0, ffi.NULL, PAGE) == lib.CCMEM_ERR_ARGUMENT
    assert fill(store, 0, data, PAGE) == OK
    assert fill(store, 0, data, PAGE) == FROZEN
    assert fill(store, 0, data, 3 * PAGE) == FROZEN
    assert fill(store, 3, data, PAGE) == lib.CCMEM_ERR_ARGUMENT
    for offset, n in ((PAGE, 3 * PAGE), (2**64 - PAGE, PAGE), (PAGE, 2**64 - PAGE), (2**63, 1)):
        assert fill(store, offset, data, n) == lib.CCMEM_ERR_RANGE
    assert lib.ccmem_store_read(store, PAGE, out, 1) == lib.CCMEM_ERR_INTEGRITY
    assert fill(store, PAGE, data, nbytes - PAGE) == OK
    assert fill(store, 3 * PAGE, data, 50) == FROZEN
    assert lib.ccmem_store_read(store, 0, out, nbytes) == OK
    assert bytes(ffi.buffer(out)) == b"\x05" * nbytes
    for status in (
        lib.ccmem_store_write(store, 0, data, 5),
        lib.ccmem_store_write(store, 0, data, PAGE),
        lib.ccmem_store_scatter(store, ffi.new("uint64_t[]", [0, 9]), 2, 3, data),
    ):
        assert status == FROZEN
    with EncryptedBuffer(nbytes, key=key) as written:
        assert fill(written._opened(), 0, data, PAGE) == lib.CCMEM_ERR_ARGUMENT
        assert lib.ccmem_store_end_writes(written._opened(), 1) == OK
        for data in (b"x", bytes(nbytes)):
            with pytest.raises(errors.FrozenError):
                written.write(data)
        with pytest.raises(errors.FrozenError), written.map(mode="r+", window="1MiB"):
            pass
        assert written.read() == bytes(nbytes) and not written.versions.any()
        assert lib.ccmem_store_end_writes(written._opened(), 0) == OK
        written.write(b"x")


def test_only_one_of_several_fills_a_page(key: Key) -> None:
    """Threads that want the same pages: one gets each."""
    won = [0] * 8
    store = native_once(key, 64 * PAGE)
    together = threading.Barrier(4)
    data = ffi.new("uint8_t[]", 8 * PAGE)

    def work() -> None:
        for turn in range(8):
            together.wait(30)
            if lib.ccmem_store_fill(store, turn * 8 * PAGE, data, 8 * PAGE) == OK:
                won[turn] += 1

    support.run_threads([work] * 4)
    assert won == [1] * 8
    stats = ffi.new("ccmem_stats *")
    assert lib.ccmem_store_stats(store, stats) == OK and stats.pages_sealed == 64


# ---- other threads -------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [8, PAGE, 3 * PAGE + 8], ids=["part", "page", "several"])
def test_no_write_is_lost_when_a_buffer_is_frozen(key: Key, n: int) -> None:
    """A write that returned is in the frozen buffer; readers see whole pages all the time."""
    size = 2 << 20
    with EncryptedBuffer(size, key=key) as buffer:
        stop = threading.Event()
        finished = [0]  # the last number that a write returned for
        turns = [0]

        def write() -> None:
            number = 0
            while not stop.is_set():
                number += 1
                try:
                    buffer.write(number.to_bytes(8, "little") * (n // 8), PAGE)
                except errors.FrozenError:
                    number -= 1
                    time.sleep(0.0005)
                else:
                    finished[0] = number

        def read() -> None:
            last = 0
            while not stop.is_set():
                number = int.from_bytes(buffer.read(PAGE, 8), "little")
                assert number >= last
                last = number

        def freeze() -> None:
            try:
                began, at_first = time.monotonic(), 0
                while turns[0] < 30 or time.monotonic() - began < 0.3:
                    buffer.freeze()
                    done = finished[0]
                    words = np.frombuffer(buffer.read(PAGE, n), "<u8")
                    held = words.min()
                    assert held >= done, "a write that returned was lost"
                    assert finished[0] <= held
                    assert buffer.frozen and buffer.verify() == []
                    buffer.thaw()
                    at_first = finished[0]
                    ends = time.monotonic() + 10
                    while finished[0] == at_first and time.monotonic() < ends:
                        time.sleep(0.0005)
                    turns[0] += 1
            finally:
                stop.set()

        support.run_threads([write, read, freeze])
        assert turns[0] >= 30 and finished[0] >= 30


def test_two_threads_freeze_and_thaw(key: Key) -> None:
    plain = os.urandom(300_000)
    with EncryptedBuffer.from_data(plain, key=key, fresh=True) as buffer:
        end = time.monotonic() + 0.5

        def work() -> None:
            while time.monotonic() < end:
                buffer.freeze()
                assert buffer.read() == plain
                buffer.thaw()

        support.run_threads([work] * 3)
        buffer.thaw()
        assert buffer.fresh and buffer.writable and buffer.read() == plain


# ---- what is refused, and what stays as it was ---------------------------------------------------


def test_a_damaged_buffer_is_not_frozen(key: Key) -> None:
    with EncryptedBuffer(SIZE, key=key, fresh=True) as buffer:
        buffer.write(b"\x04" * SIZE)
        for change in (buffer.freeze, buffer.thaw):
            support.damage(buffer, 2)
            was = buffer._opened(), buffer.writable
            with pytest.raises(errors.IntegrityError, match="Page 2 "):
                buffer.freeze()
                buffer.thaw()
            assert (buffer._opened(), buffer.writable) == was
            support.damage(buffer, 2)
            change()
            if buffer.writable:
                buffer.write(b"\x04")
            assert buffer.read() == b"\x04" * SIZE


def test_a_mapping_holds_it_up(key: Key) -> None:
    with EncryptedTensor.zeros(1 << 18, np.uint8, key=key) as tensor:
        with tensor.map(mode="r+", window="1MiB") as array:
            array[5] = 9
            with pytest.raises(errors.MappingConflictError, match="freeze"):
                tensor.freeze()
        with tensor.map(mode="r", window="1MiB") as array:
            tensor.freeze()
            assert array[5] == 9
        with pytest.raises(errors.FrozenError):
            tensor.map(mode="r+", window="1MiB")
        with tensor.map(mode="r", window="1MiB") as array:
            assert array[5] == 9
            with pytest.raises(errors.MappingConflictError, match="thaw"):
                tensor.thaw()
        tensor.thaw()
        with tensor.map(mode="r+", window="1MiB") as array:
            array[6] = 8
        assert tensor[5] == 9 and tensor[6] == 8


def test_every_way_to_write_a_frozen_tensor_is_refused(key: Key) -> None:
    frozen = Arena(key=key, frozen=True)
    for tensor in (
        EncryptedTensor.from_numpy(np.arange(3000.0), key=key),
        EncryptedTensor.from_numpy(np.arange(3000.0), arena=frozen),
    ):
        tensor.freeze()
        before = bytes(tensor.buffer.ciphertext)
        same = tensor.reshape(30, 100)
        for index in (3, slice(None), slice(None, None, 7), [1, 5, 9]):
            with pytest.raises(errors.FrozenError):
                tensor[index] = 1.0
        with pytest.raises(errors.FrozenError):
            same[3, 4] = 1.0
        with pytest.raises(errors.FrozenError), tensor.open("r+"):
            pass
        with pytest.raises(errors.FrozenError):
            tensor.buffer.write(b"x")
        assert bytes(tensor.buffer.ciphertext) == before
        assert isinstance(errors.FrozenError(""), errors.ReadOnlyError)
        assert (tensor[...] == np.arange(3000.0)).all()
        copy = tensor.copy(key=key)
        copy[0] = 5
        tensor.thaw()
        same[3, 4] = 7
        assert tensor[304] == 7 and tensor.writable and same.writable
        tensor.close()
        for use in (tensor.freeze, tensor.thaw):
            with pytest.raises(errors.ClosedError):
                use()


def test_arenas(key: Key) -> None:
    """Arrays in any order of memory, zeros and copies can be frozen from the start; what cannot be
    frozen says so."""
    frozen, plain = Arena(key=key, frozen=True, fresh=True, name="f"), Arena(key=key, fresh=True)
    assert frozen.fresh and frozen.frozen and plain.fresh and not plain.frozen
    assert ", frozen" in repr(frozen) and ", fresh" in repr(plain)
    values = np.arange(600_000, dtype=np.float32).reshape(600, 1000)
    odd = np.array([b"abc", b"d" * 300_001, b"", b"e"])
    for array in (
        values,
        values.T,
        values[::3, ::-1],
        values.astype(">f4"),
        values[:0],
        np.broadcast_to(values[0], (1001, 1000)).T,
        values.reshape(-1).view("V12")[::-1],
        odd[::-1],
        np.float64(4),
    ):
        with EncryptedTensor.from_numpy(array, arena=frozen) as tensor:
            assert tensor.frozen and np.array_equal(tensor[...], array)
            tensor.thaw()
            assert tensor.fresh and np.array_equal(tensor[...], array)
            tensor[...] = array[...]
            with tensor.copy(arena=frozen) as again:
                assert again.frozen and np.array_equal(again[...], array)
    with EncryptedTensor.zeros((70, 80), arena=frozen) as tensor:
        assert tensor.frozen and not tensor[...].any() and tensor.verify() == []
    with EncryptedTensor.from_numpy(values, arena=plain) as tensor:
        assert tensor.fresh and not tensor.frozen
        with pytest.raises(errors.ArgumentError, match=r"Arena with frozen=True"):
            tensor.freeze()
        tensor[0, 0] = 1


def test_arguments(key: Key) -> None:
    xts = sorted(set(CIPHERS) - set(AUTHENTICATED))[0]
    for make in (
        lambda **o: EncryptedBuffer(5, key=key, **o),
        lambda **o: EncryptedBuffer.from_data(b"12", key=key, **o),
        lambda **o: EncryptedTensor.zeros(5, key=key, **o),
        lambda **o: EncryptedTensor.from_numpy(np.zeros(5), key=key, **o),
        lambda **o: Arena(key=key, **o),
    ):
        with pytest.raises(errors.ArgumentError, match="no tags"):
            make(cipher=xts, fresh=True)
        with pytest.raises(errors.ArgumentTypeError, match="fresh must be True or False"):
            make(fresh=1)
    with pytest.raises(errors.ArgumentTypeError, match="frozen must be True or False"):
        Arena(key=key, frozen="yes")
    with pytest.raises(errors.ArgumentError, match="fresh and arena are both given"):
        EncryptedTensor.zeros(5, arena=Arena(key=key), fresh=True)
    with EncryptedBuffer(5, key=key, cipher=xts) as buffer:
        buffer.freeze()
        assert not buffer.fresh and buffer.frozen


def test_the_tweak_cache_stays_off(key: Key) -> None:
    """What the user chose holds for the stores that take its place."""
    for entries in (0, 16):
        with EncryptedBuffer(64 * PAGE, key=key, cipher="aes-128-xts", tweak_cache=entries) as one:
            one.write(bytes(one.nbytes))
            for change in (one.freeze, one.thaw):
                change()
                for _ in range(3):
                    one.read(5 * PAGE, 32)
                stats = one.stats()
                assert (stats["tweak_hits"] > 0) == (entries > 0)


def test_the_level_of_the_key_stays(key: Key) -> None:
    with (
        Key.generate(level="mlock") as lower,
        EncryptedBuffer(SIZE, key=lower, fresh=True) as buffer,
    ):
        for change in (buffer.freeze, buffer.thaw):
            change()
            level = lib.ccmem_store_level(buffer._opened())
            assert level == lib.CCMEM_SECRET_MLOCK and buffer.level == "mlock"


@pytest.fixture
def closed_key(key: Key) -> Iterator[Key]:
    with Key.generate() as own:
        yield own


def test_the_key_is_not_needed(closed_key: Key) -> None:
    with EncryptedBuffer(SIZE, key=closed_key) as buffer, Arena(key=closed_key, frozen=True) as a:
        buffer.write(b"\x09" * SIZE)
        tensor = EncryptedTensor.from_numpy(np.arange(5), arena=a)
        closed_key.close()
        buffer.freeze()
        buffer.thaw()
        tensor.thaw()
        buffer.write(b"x")
        assert buffer.read(0, 2) == b"x\x09" and tensor[2] == 2


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_child_can_do_nothing_with_it(key: Key) -> None:
    arena = Arena(key=key, frozen=True)
    with (
        EncryptedBuffer(SIZE, key=key, fresh=True) as fresh,
        EncryptedBuffer(SIZE, key=key) as frozen,
        EncryptedTensor.from_numpy(np.arange(900), arena=arena) as tensor,
    ):
        fresh.write(b"\x01" * SIZE)
        frozen.freeze()

        def child() -> None:
            out = ffi.new("uint8_t[]", PAGE)
            for buffer in (fresh, frozen, tensor.buffer):
                for use in (buffer.read, buffer.freeze, buffer.thaw, buffer.verify):
                    with pytest.raises(errors.ForkError):
                        use()
                store = pointer_to(buffer._opened())
                cell = ffi.new("ccmem_store **")
                for status in (
                    lib.ccmem_store_fill(store, 0, out, PAGE),
                    lib.ccmem_store_end_writes(store, 1),
                    lib.ccmem_store_like(store, ffi.NULL, 0, cell),
                ):
                    assert status == lib.CCMEM_ERR_FORK
            fresh.close()
            frozen.close()
            with Key.generate() as own, EncryptedBuffer(SIZE, key=own, fresh=True) as new:
                new.write(b"\x02" * SIZE)
                new.freeze()
                assert new.read() == b"\x02" * SIZE

        support.in_forked_child(child)
        fresh.write(b"\x03", 1)
        assert fresh.read(0, 3) == b"\x01\x03\x01" and frozen.read() == bytes(SIZE)
        assert tensor[5] == 5


# ---- locked memory -------------------------------------------------------------------------------

LIMITED = (
    WITH_LIMIT
    + """
from pyccmem import Arena, EncryptedTensor
limit(256 << 10)
key = Key.generate()
small = EncryptedBuffer(1 << 20, key=key, fresh=True)   # 2 KiB of versions
small.write(b"x" * (1 << 20))
try:
    EncryptedBuffer(256 << 20, key=key, fresh=True)     # 512 KiB
except errors.LockedMemoryError as error:
    print(error)
else:
    sys.exit("it was made")
arena = Arena(key=key, fresh=True)
tensors = []
try:
    for _ in range(100):
        tensors.append(EncryptedTensor.zeros(4 << 20, "u1", arena=arena))
except errors.LockedMemoryError as error:
    print(error)
else:
    sys.exit("it was made")
EncryptedBuffer(256 << 20, key=key).write(b"y")         # without, there is room
assert small.read(5, 2) == b"xx" and tensors
small.freeze(); small.thaw(); small.write(b"z")
"""
)


@linux_only
@support.not_sanitized
def test_locked_memory_is_counted_against_its_limit() -> None:
    done = support.check_python(LIMITED)
    first, second = done.splitlines()
    assert "fresh=True: 8 bytes a page" in first and "RLIMIT_MEMLOCK is 256 KiB" in first
    assert "RLIMIT_MEMLOCK is 256 KiB" in second


@linux_only
@support.not_sanitized
def test_what_it_takes_is_given_back(key: Key) -> None:
    """Locked bytes, descriptors, mappings; and 8 bytes a page are what is locked."""

    def work() -> None:
        with EncryptedBuffer(64 << 20, key=key, fresh=True) as buffer:
            buffer.write(b"x", 5000)
        for _ in range(3):
            with EncryptedBuffer(1 << 20, key=key, fresh=True) as buffer:
                buffer.write(bytes(buffer.nbytes))
                buffer.freeze()
                buffer.thaw()
                support.damage(buffer, 3)
                with pytest.raises(errors.IntegrityError):
                    buffer.freeze()
        arena = Arena(key=key, frozen=True)
        tensor = EncryptedTensor.from_numpy(np.zeros(100_000), arena=arena)
        tensor.thaw()

    work()
    before = support.resources()[1:]
    work()
    assert support.resources()[1:] == before
    with Key.generate(level="mlock") as lower:
        locked = support.status_field("VmLck")
        with EncryptedBuffer(64 << 20, key=lower, fresh=True):
            taken = support.status_field("VmLck") - locked
        assert 128 << 10 <= taken <= (128 + 64 + 8) << 10


def test_the_process_tells(key: Key) -> None:
    """stats() and the posture say how much of what is held is fresh."""
    before = pyccmem.stats()["fresh_bytes"]
    arena = Arena(key=key, frozen=True)
    with (
        EncryptedBuffer(1000, key=key, fresh=True),
        EncryptedBuffer(300, key=key) as plain,
        EncryptedTensor.from_numpy(np.zeros(50, np.uint8), arena=arena) as tensor,
    ):
        assert pyccmem.stats()["fresh_bytes"] == before + 1050
        plain.freeze()
        tensor.thaw()
        assert pyccmem.stats()["fresh_bytes"] == before + 1300
        seen = integrity(None).seen  # type: ignore[arg-type]
        assert re.search(r"\d+ of \d+ bytes are fresh", seen)
    assert pyccmem.stats()["fresh_bytes"] == before
