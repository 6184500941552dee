# SPDX-License-Identifier: Apache-2.0
"""Pages that are moved to another key while they are used: the same values, no error, no torn page,
no nonce twice, and nothing of the old key left."""

from __future__ import annotations

import gc
import os
import threading
import time
import weakref
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import support
from secret_search import WITHOUT_MEMFD_SECRET, child, find, secrets_of
from support import AEGIS, linux_only, run_threads

import pyccmem
from pyccmem import (
    Arena,
    EncryptedBuffer,
    EncryptedTensor,
    Key,
    QuantizedTensor,
    Rekeying,
    errors,
)
from pyccmem.arena import frozen_twin
from pyccmem.binding import OK, ffi, lib
from pyccmem.core.rekey import STEP, run
from pyccmem.core.store import handle
from pyccmem.safetensors import load_file, save_file

PAGE = 4096
XTS = "aes-256-xts"


@pytest.fixture
def other() -> Iterator[Key]:
    with Key.generate() as key:
        yield key


def noise(nbytes: int, seed: int = 1) -> bytes:
    return np.random.default_rng(seed).bytes(nbytes)


def move(buffer: EncryptedBuffer, pages: int) -> int:
    status: int = lib.ccmem_store_move(handle(buffer), pages, ffi.new("uint64_t *"))
    return status


def begin(buffer: EncryptedBuffer) -> None:
    assert lib.ccmem_store_rekey(handle(buffer), ffi.NULL) == OK


# ---- values ----


def test_the_values_stay(key: Key, other: Key, cipher: str, page_size: int) -> None:
    pages = 37
    data = bytearray(noise(pages * page_size - 100))
    with EncryptedBuffer(len(data), key=key, cipher=cipher, page_size=page_size) as buffer:
        buffer.write(memoryview(data)[: 30 * page_size])  # the last pages are never written
        data[30 * page_size :] = bytes(len(data) - 30 * page_size)
        before = bytes(buffer.ciphertext)
        view, versions = buffer.ciphertext, buffer.versions
        for new in (other, None, key, None):
            buffer.rekey(new)
            assert buffer.read() == data
            after = bytes(buffer.ciphertext)
            for at in range(0, 30 * page_size, page_size):
                assert after[at : at + page_size] != before[at : at + page_size]
            before = after
            assert (buffer.versions[:30] > versions[:30]).all() and not buffer.versions[30:].any()
            versions = buffer.versions
            buffer.write(b"abc", 5)
            data[5:8] = b"abc"
            assert buffer.read() == data
        assert bytes(view) == bytes(buffer.ciphertext)
        assert cipher in support.XTS_CIPHERS or buffer.verify() == []


def test_reads_and_writes_of_every_kind_half_way(key: Key, cipher: str, page_size: int) -> None:
    """Each page is under one of two keys, and each way to a page meets both."""
    count = 24
    values = np.arange(count * page_size // 4, dtype=np.float32).reshape(count * 2, -1)
    tensor = EncryptedTensor.from_numpy(values, key=key, cipher=cipher, page_size=page_size)
    buffer = tensor.buffer
    begin(buffer)
    for done in range(0, count + 1, 5):
        assert (np.asarray(tensor) == values).all()
        rows = np.array([0, 9, 21, count * 2 - 1])
        assert (tensor[rows] == values[rows]).all()
        x = np.ones((1, values.shape[1]), np.float32)
        expected = x.astype(np.float64) @ values.T
        assert np.allclose(pyccmem.linear(x, tensor), expected, rtol=1e-4)
        with tensor.map(window="1MiB") as mapped:
            assert (mapped == values).all()
        for row in (done, count, count * 2 - 1 - done):
            tensor[row, 3] = values[row, 3] = done
            tensor[row] = values[row] = values[row] + 1
        if done < count:
            assert move(buffer, 5) == OK
    while buffer.key_use().moving:
        assert move(buffer, 5) == OK
    assert (np.asarray(tensor) == values).all()
    tensor.close()


def test_two_readers_and_a_writer_see_no_difference(key: Key, cipher: str, page_size: int) -> None:
    pages, rounds = 24, 6
    words = page_size // 8
    going = threading.Event()
    going.set()
    with EncryptedBuffer(pages * page_size, key=key, cipher=cipher, page_size=page_size) as buffer:
        buffer.write(np.zeros(pages * words, np.uint64))
        counts = [0, 0, 0]

        def reader(index: int) -> None:
            out = np.empty(pages * words, np.uint64)
            while going.is_set() or counts[index] < 4:
                buffer.read_into(out)
                for page in out.reshape(pages, words):
                    assert (page == page[0]).all(), np.unique(page)
                one = np.frombuffer(buffer.read(3 * page_size + 8, 64), np.uint64)
                assert (one == one[0]).all()
                counts[index] += 1

        def writer() -> None:
            while going.is_set() or counts[2] < 4:
                counts[2] += 1
                at = counts[2] % pages
                buffer.write(np.full(words, counts[2], np.uint64), at * page_size)

        def rekeyer() -> None:
            try:
                for _ in range(rounds):
                    buffer.rekey()
            finally:
                going.clear()

        run_threads([lambda: reader(0), lambda: reader(1), writer, rekeyer])
        assert min(counts) >= 4
        assert buffer.stats()["integrity_failures"] == 0
        last = {c % pages: c for c in range(counts[2] + 1)}
        out = np.frombuffer(buffer.read(), np.uint64).reshape(pages, words)
        assert [int(page[0]) for page in out] == [last.get(at, 0) for at in range(pages)]


def test_partial_writes_of_two_threads_are_not_lost_meanwhile(key: Key, cipher: str) -> None:
    pages, count = 8, 300
    with EncryptedBuffer(pages * PAGE, key=key, cipher=cipher) as buffer:
        buffer.write(bytes(pages * PAGE))
        done = threading.Event()

        def writer(index: int) -> None:
            for number in range(1, count + 1):
                for page in range(pages):
                    place = page * PAGE + 8 * index
                    buffer.write(number.to_bytes(8, "little"), place)
                    assert int.from_bytes(buffer.read(place, 8), "little") == number

        def rekeyer() -> None:
            while not done.is_set():
                buffer.rekey()

        def writers() -> None:
            try:
                run_threads([lambda: writer(0), lambda: writer(500)])
            finally:
                done.set()

        run_threads([writers, rekeyer])
        for page in range(pages):
            for index in (0, 500):
                found = buffer.read(page * PAGE + 8 * index, 8)
                assert int.from_bytes(found, "little") == count


# ---- keys and versions ----


def test_no_version_comes_twice(key: Key) -> None:
    """Versions of a page only go up, whichever key they are under: no nonce comes twice under
    either, though writers and the mover seal the same pages."""
    pages = 16
    with EncryptedBuffer(pages * PAGE, key=key, cipher=AEGIS) as buffer:
        buffer.write(noise(pages * PAGE))
        seen = buffer.versions.copy()
        for _ in range(3):
            begin(buffer)
            while buffer.key_use().moving:
                assert move(buffer, 3) == OK
                now = buffer.versions
                assert (now >= seen).all()
                buffer.write(b"x", int(now.argmin()) * PAGE)
                buffer.write(noise(PAGE), int(now.argmax()) * PAGE)
                assert (buffer.versions >= now).all()
                seen = buffer.versions.copy()


def test_the_old_ciphertext_does_not_open_any_more(key: Key) -> None:
    """A page that is put back with its tag and both version words is what an earlier state of
    memory was; after rekey() there is no key for it. Control: without rekey() it opens."""
    with EncryptedBuffer(2 * PAGE, key=key, cipher=AEGIS) as buffer:
        version, tags = support.records(buffer)
        copies = support.copies(buffer)
        pages = ffi.cast("uint8_t *", ffi.from_buffer(buffer.ciphertext))

        def state() -> tuple[bytes, int, bytes]:
            return bytes(ffi.buffer(pages, PAGE)), int(version[0]), bytes(ffi.buffer(tags, 16))

        def put(state: tuple[bytes, int, bytes]) -> None:
            ffi.memmove(pages, state[0], PAGE)
            ffi.memmove(tags, state[2], 16)
            version[0] = copies[0] = state[1]

        buffer.write(b"old" * 100)
        old = state()
        buffer.write(b"new" * 100)
        now = state()
        put(old)
        assert buffer.read(0, 6) == b"oldold", "the control"
        put(now)
        buffer.rekey()
        put(old)
        with pytest.raises(errors.IntegrityError):
            buffer.read(0, 6)
        buffer.write(bytes(PAGE))
        assert buffer.read(0, 6) == bytes(6)


def test_versions_begin_anew_where_they_were_used_up(key: Key) -> None:
    with EncryptedBuffer.from_data(noise(2 * PAGE), key=key, _version_limit=3) as buffer:
        buffer.write(b"b")
        buffer.write(b"c")
        with pytest.raises(errors.VersionExhaustedError, match="rekey"):
            buffer.write(b"d")
        with pytest.warns(errors.KeyUsageWarning, match="rekey"):
            assert buffer.key_use().fraction == 1
        buffer.rekey()
        buffer.write(b"d")
        assert buffer.read(0, 1) == b"d"
        for _ in range(2):
            buffer.rekey()
        for _ in range(2):
            buffer.write(b"e", PAGE)
        with pytest.raises(errors.VersionExhaustedError):
            buffer.write(b"e", PAGE)
        assert buffer.read(PAGE, 1) == b"e"


def test_what_a_key_has_sealed(key: Key, cipher: str) -> None:
    with EncryptedBuffer(64 * PAGE, key=key, cipher=cipher) as buffer:
        assert buffer.key_use().pages_sealed == 0
        buffer.write(noise(64 * PAGE))
        buffer.write(b"x")
        use = buffer.key_use()
        assert use.pages_sealed == 65 and use.highest_version == 2 and not use.moving
        assert use.pages == use.pages_moved == 64
        assert 0 < use.fraction < 1e-6
        begin(buffer)
        assert move(buffer, 16) == OK
        use = buffer.key_use()
        assert use.moving and use.pages_moved == 16 and use.pages_sealed == 16
        buffer.rekey()
        use = buffer.key_use()
        assert use.pages_sealed == 64 and not use.moving
    limits = {AEGIS: 1 << 48, "aegis-256x2": 1 << 48}  # of others: 2^44 blocks
    assert use.pages_limit == limits.get(cipher, 1 << 36)


def test_writers_wait_while_the_first_version_is_found(key: Key) -> None:
    """A page that is written meanwhile could else have that version under the old key. Most pages
    were never written, and only take time to be looked at."""
    with EncryptedBuffer(1 << 28, key=key, cipher=AEGIS) as buffer:
        done = threading.Event()
        count = [0]

        def writer() -> None:
            while not done.is_set() or count[0] < 9:
                count[0] += 1
                buffer.write(count[0].to_bytes(8, "little"), 8 * PAGE)
                assert int.from_bytes(buffer.read(8 * PAGE, 8), "little") == count[0]

        def rekeyer() -> None:
            try:
                for _ in range(30):
                    buffer.rekey()
            finally:
                done.set()

        run_threads([writer, rekeyer])
        assert int.from_bytes(buffer.read(8 * PAGE, 8), "little") == count[0]


# ---- stopping half-way ----


def test_a_part_of_a_damaged_page_is_not_moved(key: Key, page_size: int) -> None:
    data = noise(4 * page_size)
    with EncryptedBuffer.from_data(data, key=key, cipher=AEGIS, page_size=page_size) as buffer:
        begin(buffer)
        support.damage(buffer, 2, 8 * 100)
        before, versions = bytes(buffer.ciphertext), buffer.versions
        with pytest.raises(errors.IntegrityError):
            buffer.write(b"x", 2 * page_size + 5)
        assert bytes(buffer.ciphertext) == before and (buffer.versions == versions).all()
        support.damage(buffer, 2, 8 * 100)
        buffer.write(b"x", 2 * page_size + 5)
        buffer.rekey()
        at = 2 * page_size + 5
        assert buffer.read() == data[:at] + b"x" + data[at + 1 :]


def test_it_stops_at_a_damaged_page_and_goes_on(key: Key) -> None:
    pages = 700
    data = bytearray(noise(pages * PAGE))
    with EncryptedBuffer.from_data(data, key=key, cipher=AEGIS, name="weights") as buffer:
        support.damage(buffer, 600, 99)
        with pytest.raises(errors.IntegrityError, match="Page 600 of buffer 'weights'") as caught:
            buffer.rekey()
        assert caught.value.page == 600
        use = buffer.key_use()
        assert use.moving and 576 <= use.pages_moved <= 600
        # Both keys are usable, on either side of it, and the page is refused as before.
        assert buffer.read(0, 600 * PAGE) == data[: 600 * PAGE]
        assert buffer.read(601 * PAGE) == data[601 * PAGE :]
        with pytest.raises(errors.IntegrityError):
            buffer.read(600 * PAGE, 1)
        buffer.write(b"y" * 10, 5 * PAGE)
        buffer.write(b"y" * 10, 690 * PAGE)
        with pytest.raises(errors.IntegrityError):
            buffer.rekey()
        buffer.write(memoryview(data)[600 * PAGE : 601 * PAGE], 600 * PAGE)
        buffer.rekey()
        assert not buffer.key_use().moving
        data[5 * PAGE : 5 * PAGE + 10] = data[690 * PAGE : 690 * PAGE + 10] = b"y" * 10
        assert buffer.read() == data


@pytest.mark.parametrize("what", ["word", "copy", "lock"])
def test_a_damaged_version_is_told_before_anything_changes(key: Key, what: str) -> None:
    with EncryptedBuffer.from_data(noise(4 * PAGE), key=key, cipher=AEGIS) as buffer:
        version, _ = support.records(buffer)
        copies = support.copies(buffer)
        where = copies if what == "copy" else version
        where[2] = 77 if what != "lock" else 1 << 63 | 1
        before = bytes(buffer.ciphertext)
        with pytest.raises(errors.IntegrityError) as caught:
            buffer.rekey()
        assert caught.value.page == 2
        assert bytes(buffer.ciphertext) == before and not buffer.key_use().moving
        buffer.write(bytes(PAGE), 2 * PAGE)
        buffer.rekey()
        assert buffer.read(2 * PAGE, 8) == bytes(8)


def test_an_interrupt_between_two_steps(key: Key, other: Key) -> None:
    size = 3 * STEP + 5 * PAGE
    data = noise(size)
    seen: list[tuple[int, int]] = []

    def progress(done: int, total: int) -> None:
        seen.append((done, total))
        if len(seen) == 2:
            raise KeyboardInterrupt

    with EncryptedBuffer.from_data(data, key=key) as buffer:
        with pytest.raises(KeyboardInterrupt):
            buffer.rekey(progress=progress)
        assert seen == [(STEP, size), (2 * STEP, size)]
        use = buffer.key_use()
        assert use.moving and use.pages_moved * PAGE == 2 * STEP
        assert buffer.read() == data
        slots = lib.ccmem_secret_slots()
        buffer.rekey()  # goes on, and does no more
        assert not buffer.key_use().moving and lib.ccmem_secret_slots() == slots
        assert buffer.read() == data
        seen.clear()
        with pytest.raises(KeyboardInterrupt):
            buffer.rekey(progress=progress)
        seen.clear()
        seen.append((0, 0))
        seen.append((0, 0))
        buffer.rekey(other, progress=progress)  # goes on, and then from the beginning
        assert sum(1 for _ in seen[2:]) == 2 + 4
        assert buffer.read() == data


def test_what_is_refused(key: Key) -> None:
    with EncryptedBuffer.from_data(noise(4 * PAGE), key=key) as buffer:
        begin(buffer)
        assert lib.ccmem_store_rekey(handle(buffer), ffi.NULL) == lib.CCMEM_ERR_REKEY
        buffer.rekey()
        for bad, error in ((0, errors.ArgumentError), ("x", errors.ArgumentTypeError)):
            with pytest.raises(error):
                buffer.rekey(bytes_per_second=bad)  # type: ignore[arg-type]
        with pytest.raises(errors.ArgumentTypeError):
            buffer.rekey(b"0" * 32)  # type: ignore[arg-type]
        closed = Key.generate()
        closed.close()
        with pytest.raises(errors.ClosedError):
            buffer.rekey(closed)
    with pytest.raises(errors.ClosedError):
        buffer.rekey()
    with pytest.raises(errors.ClosedError):
        buffer.key_use()
    with pytest.raises(errors.ArgumentTypeError, match="rekey_module"):
        Rekeying(object())  # type: ignore[arg-type]
    with EncryptedBuffer(0, key=key) as empty:
        empty.rekey()
        assert empty.key_use().pages == 0


def test_no_plaintext_is_kept_and_little_at_a_time(key: Key) -> None:
    data = noise(8 << 20)
    with EncryptedBuffer.from_data(data, key=key) as buffer:
        before = pyccmem.stats()["plain_in_use"]
        buffer.rekey()
        after = pyccmem.stats()
        assert after["plain_in_use"] == before
        pyccmem.set_plaintext_budget(32 << 10)
        try:
            with pytest.raises(errors.PlaintextBudgetError):
                buffer.rekey()
            assert buffer.key_use().moving
            pyccmem.set_plaintext_budget(96 << 10)
            buffer.rekey()
        finally:
            pyccmem.set_plaintext_budget(None)
        assert not buffer.key_use().moving and buffer.read(0, 99) == data[:99]


@linux_only
def test_a_fork_half_way(key: Key) -> None:
    data = noise(64 * PAGE)
    with EncryptedBuffer.from_data(data, key=key) as buffer:
        begin(buffer)
        assert move(buffer, 20) == OK

        def child() -> None:
            for use in (buffer.rekey, buffer.read, buffer.key_use):
                with pytest.raises(errors.ForkError):
                    use()

        support.in_forked_child(child)
        buffer.rekey()
        assert buffer.read() == data


#: Buffers under one key, of which nothing else is left; then under another.
HOLDER = """
import sys
from pyccmem import Arena, EncryptedBuffer, EncryptedTensor, Key, set_num_threads
old, new, action = sys.argv[1:]
set_num_threads(2)
with Key.from_file(old) as key, Key.from_file(new) as other:
    buffers = [EncryptedBuffer(1 << 20, key=key, cipher=cipher, page_size=size)
               for cipher in ("aegis-128x2", "aes-128-xts", "aes-256-xts", "sm4-xts")
               for size in (4096, 65536)]
    buffers += [EncryptedBuffer(1 << 20, key=key)]
    data = bytes(range(256)) * (1 << 12)
    for buffer in buffers:
        buffer.write(data)
        assert buffer.read(5, 90) == data[5:95]
    buffers[-1].freeze()
    if action == "rekey":
        for buffer in buffers:
            buffer.rekey(other)
            assert buffer.read() == data
print("ready", flush=True)
input()
assert buffers[0].read(5, 90) == data[5:95]
"""


@linux_only
@support.not_sanitized
def test_the_old_key_is_gone(fixed_random: dict[str, str], tmp_path: Path) -> None:
    """No part of a schedule of the old keys is in the memory of the process, locked memory
    included. Controls: they are there without rekey(), and those of the new key with it."""
    keys = [os.urandom(32), os.urandom(32)]
    paths = [tmp_path / "old", tmp_path / "new"]
    for path, one in zip(paths, keys, strict=True):
        path.write_bytes(one)
        path.chmod(0o600)
    left = {}
    for action in ("hold", "rekey"):
        script = WITHOUT_MEMFD_SECRET + HOLDER
        environment = fixed_random | {"LD_BIND_NOW": "1"}
        with child(script, *map(str, paths), action, environment=environment) as pid:
            old, new = secrets_of(keys[0]), secrets_of(keys[1])
            found = find(pid, old | {f"new {name}": one for name, one in new.items()})
        left[action] = {name for name, _ in found}
    assert {name.split("/")[0] for name in left["hold"]} == {
        "aegis-128x2",
        "aes-128-xts",
        "aes-256-xts",
        "sm4-xts",
    }
    assert {name.split("/")[0] for name in left["rekey"]} == {
        "new aegis-128x2",
        "new aes-128-xts",
        "new aes-256-xts",
        "new sm4-xts",
    }


# ---- frozen buffers, arenas, quantised tensors ----


def test_a_frozen_buffer_stays_frozen(key: Key, other: Key, cipher: str) -> None:
    data = noise(5 * PAGE + 77)
    with EncryptedBuffer.from_data(data, key=key, cipher=cipher) as buffer:
        buffer.freeze()
        before = bytes(buffer.ciphertext)
        for new in (None, other):
            buffer.rekey(new)
            assert buffer.frozen and buffer.read() == data and bytes(buffer.ciphertext) != before
            before = bytes(buffer.ciphertext)
        with buffer.map(), pytest.raises(errors.MappingConflictError):
            buffer.rekey()
        with pytest.raises(errors.FrozenError):
            buffer.write(b"x")
        buffer.thaw()
        buffer.write(b"x")


@pytest.mark.parametrize("cipher", [AEGIS, XTS])
def test_an_arena_while_tensors_come_and_go(key: Key, cipher: str) -> None:
    rng = np.random.default_rng(5)
    going = threading.Event()
    going.set()
    with Arena(key=key, cipher=cipher) as arena:
        arrays = [rng.standard_normal(rng.integers(1, 6000)) for _ in range(60)]
        tensors = [EncryptedTensor.from_numpy(a, arena=arena) for a in arrays]
        for dropped in (3, 4, 20):
            tensors[dropped].close()
        count = [0]

        def churn() -> None:
            while going.is_set() or count[0] < 20:
                array = rng.standard_normal(1 + count[0] * 37 % 5000)
                with EncryptedTensor.from_numpy(array, arena=arena) as tensor:
                    assert (tensor[...] == array).all()
                    tensor[0] = 3.0
                    assert tensor[0] == 3.0
                with EncryptedTensor.zeros(2000, arena=arena) as zeros:
                    assert not zeros[...].any()
                count[0] += 1

        def check() -> None:
            for at, (array, tensor) in enumerate(zip(arrays, tensors, strict=True)):
                if not tensor.closed:
                    assert (tensor[...] == array).all(), at

        def rekeyer() -> None:
            try:
                for _ in range(12):
                    arena.rekey()
                    check()
            finally:
                going.clear()

        run_threads([churn, rekeyer])
        check()
        assert arena.key_use().pages_moved == arena.key_use().pages
        with pytest.raises(errors.ArgumentError, match="arena"):
            tensors[0].rekey()
        tensors[0][0] = 1.0
        assert cipher == XTS or all(not t.verify() for t in tensors if not t.closed)


def test_tensors_of_a_frozen_arena_move_to_another(key: Key, other: Key) -> None:
    rng = np.random.default_rng(5)
    arena = Arena(key=key, frozen=True)
    arrays = [rng.standard_normal(n) for n in (3, 9000, 500, 1 << 18)]
    tensors = [EncryptedTensor.from_numpy(a, arena=arena) for a in arrays]
    with pytest.raises(errors.FrozenError, match="tensors"):
        arena.rekey()
    seen: list[int] = []
    with Rekeying(*tensors, tensors[0], key=other, progress=lambda n, _: seen.append(n)) as work:
        pass
    assert work.finished and seen[-1] == work.total == sum(a.nbytes for a in arrays)
    for array, tensor in zip(arrays, tensors, strict=True):
        assert tensor.frozen and (tensor[...] == array).all()
    tensors[1].rekey()
    assert (tensors[1][...] == arrays[1]).all()
    with pytest.raises(errors.FrozenError):
        tensors[1][0] = 8.0
    twin = frozen_twin(tensors[0])
    assert twin is not None
    with Rekeying(tensors[0], twin):
        pass
    assert tensors[0].buffer._opened() is twin.buffer._opened()
    assert (twin[...] == arrays[0]).all()
    with tensors[2].map(), pytest.raises(errors.MappingConflictError):
        tensors[2].rekey()
    assert (tensors[2][...] == arrays[2]).all()
    tensors[1].thaw()
    tensors[1][0] = arrays[1][0] = 8.0
    with Rekeying(*tensors):
        pass
    for array, tensor in zip(arrays, tensors, strict=True):
        assert (tensor[...] == array).all()
    for tensor in tensors:
        tensor.close()


def test_blocks_of_a_few_bits(key: Key, other: Key) -> None:
    rng = np.random.default_rng(5)
    array = rng.standard_normal((64, 512)).astype(np.float32)
    x = rng.standard_normal((2, 512)).astype(np.float32)
    for kind in ("q4_k", "int8_row"):
        with QuantizedTensor.from_numpy(array, kind, key=key) as tensor:
            values, product = tensor[...], pyccmem.linear(x, tensor)
            before = bytes(tensor.raw.buffer.ciphertext)
            tensor.rekey(other)
            assert (tensor[...] == values).all() and (pyccmem.linear(x, tensor) == product).all()
            assert bytes(tensor.raw.buffer.ciphertext) != before
            with Rekeying(tensor) as work:
                pass
            assert work.total == sum(
                one.buffer.nbytes for one in (tensor.raw, tensor.scale) if one is not None
            )
            assert (tensor[...] == values).all() and tensor.key_use().fraction < 1


# ---- in a thread ----


def test_pause_resume_cancel(key: Key, other: Key) -> None:
    data = noise(8 * STEP)
    with EncryptedBuffer.from_data(data, key=key) as buffer, EncryptedBuffer(STEP, key=key) as more:
        reached, go = threading.Event(), threading.Event()

        def progress(done: int, total: int) -> None:
            assert total == 9 * STEP
            if done == 2 * STEP:
                reached.set()
                assert go.wait(60)

        work = Rekeying(buffer, buffer, more, key=other, progress=progress)
        assert reached.wait(60)
        work.pause()
        go.set()
        assert not work.wait(0.2) and work.running and work.paused and not work.closed
        assert "paused" in repr(work) and work.done == 2 * STEP
        assert buffer.key_use().moving and buffer.read(0, 99) == data[:99]
        other.close()
        work.resume()
        assert work.wait() and work.finished and not work.running and work.done == work.total
        assert buffer.read() == data and not buffer.key_use().moving

        reached.clear(), go.clear()
        work = Rekeying(buffer, more, progress=progress)
        assert reached.wait(60)
        work.pause()
        go.set()
        work.cancel()
        assert not work.wait() and not work.finished and "cancelled" in repr(work)
        assert buffer.key_use().moving and buffer.read() == data
        with pytest.raises(RuntimeError, match="mine"), Rekeying(buffer) as work:
            raise RuntimeError("mine")
        assert not work.running
        with Rekeying(buffer, more):
            pass
        assert not buffer.key_use().moving and buffer.read() == data


def test_no_faster_than_asked(key: Key) -> None:
    with EncryptedBuffer.from_data(noise(2 * STEP), key=key) as buffer:
        waits: list[float] = []
        assert run(iter([STEP, STEP]), bytes_per_second=STEP, wait=waits.append) == 2 * STEP
        assert 0.9 < waits[0] <= 1 and 1.9 < waits[1] <= 2
        begun = time.monotonic()
        buffer.rekey(bytes_per_second=4 * STEP)
        assert time.monotonic() - begun >= 0.5


def test_a_failure_in_the_thread_is_told(key: Key) -> None:
    with EncryptedBuffer.from_data(noise(8 * PAGE), key=key, cipher=AEGIS, name="b") as buffer:
        support.damage(buffer, 3)
        work = Rekeying(buffer)
        for _ in range(2):
            with pytest.raises(errors.IntegrityError, match="Page 3") as caught:
                work.wait()
            assert (caught.value.page, caught.value.name) == (3, "b")
        assert "failed" in repr(work) and not work.finished
        support.damage(buffer, 3)
        with Rekeying(buffer):
            pass
        assert not buffer.key_use().moving


@pytest.mark.parametrize("state", ["writable", "frozen", "paused"])
def test_closing_ends_it_and_leaves_no_key(key: Key, state: str) -> None:
    buffer = EncryptedBuffer.from_data(noise(4 * STEP), key=key)
    if state == "frozen":
        buffer.freeze()
    native = weakref.ref(handle(buffer))
    work = Rekeying(buffer, bytes_per_second=1)  # so slow that it waits after the first step
    while not work.done:
        time.sleep(0.01)
    if state == "paused":
        work.pause()
    buffer.close()
    with pytest.raises(errors.ClosedError):
        work.wait(20)
    gc.collect()
    assert not work.running and native() is None


@pytest.mark.parametrize("given", [True, False])
def test_freezing_half_way(key: Key, other: Key, given: bool) -> None:
    data = noise(4 * STEP)
    with EncryptedBuffer.from_data(data, key=key) as buffer:
        native = weakref.ref(handle(buffer))
        work = Rekeying(buffer, key=other if given else None, bytes_per_second=8 * STEP)
        while not work.done:
            time.sleep(0.01)
        buffer.freeze()
        frozen = handle(buffer)
        assert work.wait(20) and buffer.read() == data and buffer.frozen
        del work
        gc.collect()
        assert native() is None
        # freeze() takes a random key, so that only a key that was asked for needs another store.
        assert (handle(buffer) is not frozen) == given


@pytest.mark.parametrize("timeout", [float("nan"), 1e300, float("inf")])
def test_times_that_no_wait_can_have(key: Key, timeout: float) -> None:
    with EncryptedBuffer(PAGE, key=key) as buffer, Rekeying(buffer) as work:
        with pytest.raises(errors.ArgumentError, match="timeout"):
            work.wait(timeout)
        assert work.wait(-1) in (True, False)


@linux_only
def test_a_child_has_no_such_thread(key: Key) -> None:
    with EncryptedBuffer.from_data(noise(4 * STEP), key=key) as buffer:
        work = Rekeying(buffer, bytes_per_second=STEP)

        def child() -> None:
            with pytest.raises(errors.ForkError):
                work.wait()

        support.in_forked_child(child)
        work.cancel()


def test_pages_of_a_file_are_refused(key: Key, tmp_path: Path) -> None:
    pin = save_file({"w": np.arange(9.0)}, tmp_path / "w", key=key)
    tensor = load_file(tmp_path / "w", key=key, expect=pin)["w"]
    for use in (tensor.rekey, tensor.key_use, lambda: Rekeying(tensor)):
        with pytest.raises(errors.ReadOnlyError, match="rotate"):
            use()
    with tensor.copy(key=key) as mine:
        mine.rekey()
        assert (mine[...] == np.arange(9.0)).all()
    tensor.close()
