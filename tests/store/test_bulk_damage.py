# SPDX-License-Identifier: Apache-2.0
"""Bulk reads take pages in batches, whose bad ones come back as bits of a mask: each place of a
batch, written or never written, is noticed, with no other page blamed and nothing released."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest
import support
from support import AEGIS

import pyccmem
from pyccmem import EncryptedBuffer, errors
from pyccmem.binding import ffi, lib

PAGE = 4096
BATCH = 64  # pages
PAGES = 2 * BATCH + 5


@pytest.fixture(scope="module")
def half() -> Iterator[tuple[EncryptedBuffer, bytes]]:
    """A buffer whose first batch is written; of the second every other run of 5 pages."""
    with pyccmem.Key.generate() as key, EncryptedBuffer(PAGES * PAGE, key=key, cipher=AEGIS) as b:
        content = bytearray(random.Random(1).randbytes(PAGES * PAGE))
        for page in range(PAGES):
            if page >= BATCH and page // 5 % 2:
                content[page * PAGE : (page + 1) * PAGE] = bytes(PAGE)
            else:
                b.write(content[page * PAGE : (page + 1) * PAGE], page * PAGE)
        yield b, bytes(content)


def read(buffer: EncryptedBuffer, first: int, count: int) -> bytes | int:
    """What a bulk read gives, or the number of the page that it refuses."""
    out = ffi.new("uint8_t[]", b"\x77" * (count * PAGE))
    status = lib.ccmem_store_read(buffer._opened(), first * PAGE, out, count * PAGE)
    data = bytes(ffi.buffer(out, count * PAGE))
    if status == lib.CCMEM_OK:
        return data
    assert status == lib.CCMEM_ERR_INTEGRITY and data == bytes(count * PAGE)
    return int(lib.ccmem_last_failure().page)


@pytest.mark.parametrize("threads", [1, 3])
def test_each_place_of_a_batch(half: tuple[EncryptedBuffer, bytes], threads: int) -> None:
    buffer, content = half
    _, tags = support.records(buffer)
    before = pyccmem.get_num_threads()
    pyccmem.set_num_threads(threads)
    try:
        for first in (0, 1, 60):
            count = PAGES - first
            assert read(buffer, first, count) == content[first * PAGE :]
            for page in range(first, PAGES):
                tags[16 * page + page % 16] ^= 1 << page % 8
                assert read(buffer, first, count) == page
                tags[16 * page + page % 16] ^= 1 << page % 8
        assert read(buffer, 0, PAGES) == content
    finally:
        pyccmem.set_num_threads(before)


def test_each_place_of_a_batch_that_was_never_written() -> None:
    """A tag where none should be."""
    with pyccmem.Key.generate() as key, EncryptedBuffer(PAGES * PAGE, key=key, cipher=AEGIS) as b:
        _, tags = support.records(b)
        for page in range(PAGES):
            tags[16 * page + page % 16] ^= 1 << page % 8
            assert read(b, 0, PAGES) == page
            tags[16 * page + page % 16] ^= 1 << page % 8
        assert read(b, 0, PAGES) == bytes(PAGES * PAGE)


def test_the_first_of_two_is_named(half: tuple[EncryptedBuffer, bytes]) -> None:
    buffer, _ = half
    _, tags = support.records(buffer)
    for pair in ((0, 63), (31, 32), (62, 63), (63, 64), (70, 127), (64, 132)):
        for page in pair:
            tags[16 * page] ^= 1
        with pytest.raises(errors.IntegrityError) as caught:
            buffer.read(0, PAGES * PAGE)
        assert caught.value.page == pair[0]
        assert buffer.verify() == list(pair)
        for page in pair:
            tags[16 * page] ^= 1
