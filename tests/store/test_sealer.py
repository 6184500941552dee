# SPDX-License-Identifier: Apache-2.0
"""The sealer of a file's pages: what it makes is the documented page format at version 1, and no
page is sealed twice, whatever threads, forks and wrong calls do."""

from __future__ import annotations

import copy
import os
import pickle
import random
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import support
from support import AEGIS, PAGE_SIZES, not_sanitized

from pyccmem import EncryptedBuffer, Key, errors
from pyccmem.safetensors._sealer import Sealer

ID = bytes(range(50, 66))
PAGE = 4096


@pytest.fixture
def sealer(key: Key) -> Sealer:
    return Sealer(key, ID, PAGE)


def opened(key: Key, path: Path, pages: Any, tags: bytes, page_size: int = PAGE) -> bytes:
    """What the pages hold."""
    path.write_bytes(pages)
    count = len(pages) // page_size
    with open(path, "rb") as file:
        buffer = EncryptedBuffer._mapped(
            file.fileno(),
            0,
            len(pages),
            key=key,
            cipher=AEGIS,
            store_id=ID,
            page_size=page_size,
            versions=np.ones(count, np.uint64),
            tags=tags,
            name="file",
        )
    with buffer:
        return buffer.read()


@pytest.mark.parametrize("page_size", PAGE_SIZES)
def test_seals_the_documented_format(key: Key, page_size: int) -> None:
    """Subkey by SP 800-108 of the key and the id; AEGIS-128X2 with nonce page || 1; by others'
    implementations. Several calls, and pages passed over."""
    oracle = pytest.importorskip("oracle", reason="needs the [test] extra's cryptography")
    seed = random.Random(page_size)
    subkey = oracle.subkey(AEGIS, ID, page_size)
    with Sealer(key, ID, page_size) as sealer:
        for first, count in ((0, 1), (1, 3), (4, 70), (1000, 2), (2**40, 1), (2**48 - 1, 1)):
            plain = seed.randbytes(count * page_size)
            out = bytearray(len(plain))
            tags = sealer.seal(first, plain, out)
            assert len(tags) == 16 * count
            for i in {0, count // 2, count - 1}:
                part = slice(i * page_size, (i + 1) * page_size)
                expected = oracle.seal_page(AEGIS, subkey, first + i, 1, plain[part])
                assert (bytes(out[part]), tags[16 * i : 16 * i + 16]) == expected, (first, i)


@pytest.mark.parametrize("nbytes", [0, 1, 15, 4095, 4096, 4097, 12288, 1 << 20, (1 << 20) + 77])
def test_the_last_page_is_filled_up_with_zeros(
    key: Key, sealer: Sealer, tmp_path: Path, nbytes: int
) -> None:
    plain = random.Random(nbytes).randbytes(nbytes)
    count = -(-nbytes // PAGE)
    out = bytearray(count * PAGE)
    tags = sealer.seal(0, plain, out)
    if not nbytes:
        assert tags == b""
        return
    assert opened(key, tmp_path / "file", out, tags) == plain.ljust(count * PAGE, b"\0")


def test_seals_in_place(key: Key, sealer: Sealer, tmp_path: Path) -> None:
    plain = random.Random(5).randbytes(300 * PAGE)
    pages = bytearray(plain)
    tags = sealer.seal(0, pages, pages)
    assert pages != plain
    assert opened(key, tmp_path / "file", pages, tags) == plain


def test_any_buffer_will_do(key: Key, tmp_path: Path) -> None:
    plain = np.arange(2048, dtype=np.float32).reshape(2, 1024)
    for source in (plain, plain.tobytes(), memoryview(plain.tobytes())):
        out = np.empty(2 * PAGE, np.uint8)
        tags = Sealer(key, ID, PAGE).seal(0, source, out)
        assert opened(key, tmp_path / "file", out, tags) == plain.tobytes()


def test_no_page_is_sealed_twice(sealer: Sealer) -> None:
    """A page at or below one that was sealed is refused, and nothing is written."""
    out = bytearray(4 * PAGE)
    sealer.seal(0, bytes(4 * PAGE), out)
    sealer.seal(10, bytes(PAGE), bytearray(PAGE))
    pattern = b"\x77" * 4 * PAGE
    out[:] = pattern
    for first in (0, 1, 3, 4, 7, 9, 10):
        for nbytes in (1, PAGE, 4 * PAGE):
            part = memoryview(out)[: -(-nbytes // PAGE) * PAGE]
            with pytest.raises(errors.ArgumentError, match=f"Page {first} is not above"):
                sealer.seal(first, bytes(nbytes), part)
    assert out == pattern
    sealer.seal(11, bytes(4 * PAGE), out)
    assert out != pattern


def test_threads_never_seal_one_page_twice(key: Key) -> None:
    """Of many threads that want the same pages, one gets them."""
    nthreads, rounds = 4, 200
    sealer = Sealer(key, ID, PAGE)
    won = [[0] * rounds for _ in range(nthreads)]
    barrier = threading.Barrier(nthreads)
    plain = bytes(8 * PAGE)

    def work(mine: list[int]) -> None:
        out = bytearray(len(plain))
        for i in range(rounds):
            barrier.wait(60)
            try:
                sealer.seal(8 * i, plain, out)
                mine[i] = 1
            except errors.ArgumentError:
                pass

    threads = [threading.Thread(target=work, args=(mine,)) for mine in won]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [sum(column) for column in zip(*won, strict=True)] == [1] * rounds


def test_a_source_that_changes_meanwhile_can_still_be_opened(key: Key, tmp_path: Path) -> None:
    """Ciphertext and tag are of the same bytes: each page opens, and each of its bytes is one that
    the source held at some moment."""
    count, rounds = 64, 30
    source = np.zeros(count * PAGE, np.uint8)
    stop = threading.Event()

    def flip() -> None:
        while not stop.is_set():
            np.bitwise_not(source, out=source)

    flipper = threading.Thread(target=flip)
    flipper.start()
    mixed = 0
    try:
        for _ in range(rounds):
            out = bytearray(source.nbytes)
            tags = Sealer(key, ID, PAGE).seal(0, source, out)
            held = np.frombuffer(opened(key, tmp_path / "file", out, tags), np.uint8)
            assert set(np.unique(held)) <= {0, 255}
            mixed += len(np.unique(held)) == 2
    finally:
        stop.set()
        flipper.join()
    if not mixed:
        pytest.skip("the source never changed while it was sealed")


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_child_cannot_seal(key: Key, sealer: Sealer, tmp_path: Path) -> None:
    """It would seal the same pages as its parent, under the same nonces."""
    sealer.seal(0, bytes(PAGE), bytearray(PAGE))

    def child() -> None:
        out = bytearray(PAGE)
        for first in (0, 1, 5):
            with pytest.raises(errors.ForkError, match="sealer"):
                sealer.seal(first, bytes(PAGE), out)
            with pytest.raises(errors.ForkError):
                sealer.seal(first, b"", bytearray())
        assert out == bytes(PAGE)
        with pytest.raises(errors.ForkError):
            Sealer(key, ID, PAGE)
        sealer.close()

    support.in_forked_child(child)
    out = bytearray(PAGE)
    sealer.seal(1, b"parent", out)
    assert out != bytes(PAGE)


WRONG: dict[str, tuple[Callable[[Key], Any], type[Exception], str]] = {
    "id": (lambda k: Sealer(k, bytes(15), PAGE), errors.ArgumentError, "16"),
    "id type": (lambda k: Sealer(k, "x" * 16, PAGE), errors.BufferTypeError, "store_id"),
    "page size": (lambda k: Sealer(k, ID, 5000), errors.PageSizeError, "5000"),
    "small pages": (lambda k: Sealer(k, ID, 2048), errors.PageSizeError, "4096"),
    "large pages": (lambda k: Sealer(k, ID, 131072), errors.PageSizeError, "65536"),
    "page size type": (lambda k: Sealer(k, ID, 4096.0), errors.ArgumentTypeError, "page_size"),
    "xts": (lambda k: Sealer(k, ID, PAGE, cipher="aes-128-xts"), errors.ArgumentError, "no tags"),
    "cipher": (lambda k: Sealer(k, ID, PAGE, cipher="rot13"), errors.ArgumentError, "rot13"),
    "key": (lambda k: Sealer(bytes(32), ID, PAGE), errors.ArgumentTypeError, "Key"),
    "first page": (
        lambda k: Sealer(k, ID, PAGE).seal(-1, b"", bytearray()),
        errors.ArgumentError,
        "first_page",
    ),
    "far page": (
        lambda k: Sealer(k, ID, PAGE).seal(2**48, bytes(1), bytearray(PAGE)),
        errors.ArgumentError,
        "first_page",
    ),
    "first page type": (
        lambda k: Sealer(k, ID, PAGE).seal("0", b"", bytearray()),
        errors.ArgumentTypeError,
        "first_page",
    ),
    "small out": (
        lambda k: Sealer(k, ID, PAGE).seal(0, bytes(PAGE + 1), bytearray(PAGE + 1)),
        errors.ArgumentError,
        "8192",
    ),
    "large out": (
        lambda k: Sealer(k, ID, PAGE).seal(0, bytes(PAGE), bytearray(2 * PAGE)),
        errors.ArgumentError,
        "4096",
    ),
    "read-only out": (
        lambda k: Sealer(k, ID, PAGE).seal(0, bytes(PAGE), bytes(PAGE)),
        errors.ReadOnlyOutputError,
        "out",
    ),
    "no buffer": (
        lambda k: Sealer(k, ID, PAGE).seal(0, None, bytearray(PAGE)),
        errors.BufferTypeError,
        "plain",
    ),
}


@pytest.mark.parametrize("case", WRONG.values(), ids=WRONG)
def test_wrong_arguments(key: Key, case: tuple[Callable[[Key], Any], type[Exception], str]) -> None:
    use, error, words = case
    with pytest.raises(error, match=words):
        use(key)


def test_overlapping_memory_is_refused(sealer: Sealer) -> None:
    memory = memoryview(bytearray(4 * PAGE))
    for plain, out in (
        (memory[:PAGE], memory[1 : PAGE + 1]),
        (memory[1 : PAGE + 1], memory[:PAGE]),
        (memory[: 2 * PAGE], memory[PAGE : 3 * PAGE]),
        (memory[: PAGE - 1], memory[:PAGE]),
    ):
        with pytest.raises(errors.ArgumentError, match="overlaps"):
            sealer.seal(0, plain, out)
    assert not any(memory)
    sealer.seal(0, memory[:PAGE], memory[PAGE : 2 * PAGE])
    assert any(memory[PAGE : 2 * PAGE])


def test_a_sealer_is_closed_and_never_copied(key: Key) -> None:
    with Sealer(key, ID, PAGE) as sealer:
        assert "open" in repr(sealer)
        for use in (copy.copy, copy.deepcopy, pickle.dumps):
            with pytest.raises(errors.NotPicklableError, match="store id"):
                use(sealer)
    assert sealer.closed and "closed" in repr(sealer)
    with pytest.raises(errors.ClosedError, match="store id"):
        sealer.seal(0, b"", bytearray())
    sealer.close()
    closed = Key.generate()
    closed.close()
    with pytest.raises(errors.ClosedError):
        Sealer(closed, ID, PAGE)


@not_sanitized
def test_sealers_leave_nothing_behind(key: Key) -> None:
    """Neither locked memory nor descriptors, of those that were made and of those that were not."""

    def held() -> tuple[int, int]:
        return support.status_field("VmLck"), len(os.listdir("/proc/self/fd"))

    def work() -> None:
        for _ in range(500):
            Sealer(key, ID, PAGE).seal(0, b"x", bytearray(PAGE))
            with pytest.raises(errors.ArgumentError):
                Sealer(key, ID, PAGE, cipher="aes-256-xts")

    work()
    before = held()
    work()
    assert held() == before
