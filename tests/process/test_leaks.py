# SPDX-License-Identifier: Apache-2.0
"""10,000 keys and buffers made and dropped: memory, descriptors and mappings stay as they were."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import support
from support import linux_only, not_sanitized, resources

import pyccmem
from pyccmem import EncryptedBuffer, EncryptedTensor, Key, errors

pytestmark = linux_only

CYCLES = 10_000


def assert_no_growth(work: Callable[[], None], cycles: int = CYCLES) -> None:
    """After a warm-up, `cycles` calls may move none of the four by more than noise."""
    for _ in range(200):
        work()
    before = resources()
    for _ in range(cycles):
        work()
    after = resources()
    resident, locked, descriptors, mappings = (b - a for a, b in zip(before, after, strict=True))
    assert resident < 2 << 20, f"resident memory grew by {resident} bytes"
    assert locked <= 0, f"locked memory grew by {locked} bytes"
    assert descriptors <= 0, f"{descriptors} descriptors were left open"
    assert mappings <= 3, f"{mappings} mappings were left"


@not_sanitized
def test_keys() -> None:
    def work() -> None:
        Key.generate().close()

    assert_no_growth(work)


@not_sanitized
def test_keys_dropped_without_close() -> None:
    def work() -> None:
        Key.from_bytes(support.KEY_BYTES)

    assert_no_growth(work)


@not_sanitized
def test_buffers(key: pyccmem.Key) -> None:
    def work() -> None:
        with EncryptedBuffer(20_000, key=key) as buffer:
            buffer.write(b"x" * 5000, 4000)
            buffer.read(0, 10_000)

    assert_no_growth(work)


@not_sanitized
def test_buffers_dropped_with_views_and_snapshots(key: pyccmem.Key) -> None:
    def work() -> None:
        buffer = EncryptedBuffer(5000, key=key, cipher="aes-256-xts", page_size=8192)
        view, part = buffer.ciphertext, buffer.ciphertext[10:20]
        assert buffer.versions[0] == 0 and buffer.stats()["reads"] == 0
        assert len(view) == 8192 and len(part) == 10

    assert_no_growth(work)


@not_sanitized
def test_keys_and_buffers_together() -> None:
    def work() -> None:
        with Key.generate() as key:
            buffers = [EncryptedBuffer(n, key=key) for n in (0, 1, 70_000)]
        buffers[2].write(bytes(70_000))

    assert_no_growth(work)


@not_sanitized
def test_failures(key: pyccmem.Key, tmp_path: Path) -> None:
    """What is refused half way gives back what it had taken."""
    bad = tmp_path / "bad"
    bad.write_bytes(b"not a key")
    buffer = EncryptedBuffer(1000, key=key)
    changed = EncryptedBuffer.from_data(bytes(100_000), key=key)
    support.damage(changed, 9)
    tensor = EncryptedTensor._adopt(changed, (1000, 100), "u1")

    def work() -> None:
        assert changed.verify() == [9]
        for call in (
            lambda: EncryptedBuffer(1 << 62, key=key),
            lambda: EncryptedBuffer((1 << 63) - (1 << 20), key=key, page_size=65536),
            lambda: Key.from_file(bad),
            lambda: Key.from_file(tmp_path),
            lambda: buffer.read_into(bytearray(2000)),
            lambda: buffer.write("text"),
            changed.read,
            lambda: changed.write(b"part", 9 * 4096 + 1),
            lambda: tensor[...],
            lambda: tensor[::2, ::3],
            lambda: tensor[9 * 4096 // 100 + 1, 5],
        ):
            with pytest.raises(errors.PyccmemError):
                call()

    assert_no_growth(work, 2000)


@not_sanitized
def test_reads_and_writes(key: pyccmem.Key) -> None:
    buffer = EncryptedBuffer(1 << 20, key=key)
    data, out = bytes(1 << 20), bytearray(1 << 20)

    def work() -> None:
        buffer.write(data)
        buffer.read_into(out)
        buffer.read(100, 10_000)

    assert_no_growth(work, 300)


@not_sanitized
def test_many_alive_at_once_come_and_go(key: pyccmem.Key) -> None:
    def work() -> None:
        keys = [Key.generate() for _ in range(300)]
        buffers = [EncryptedBuffer(100, key=key) for _ in range(100)]
        del keys, buffers

    assert_no_growth(work, 30)
