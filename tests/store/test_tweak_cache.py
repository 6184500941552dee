# SPDX-License-Identifier: Apache-2.0
"""The cache of encrypted tweaks: what makes an entry fit, looked at in the entries themselves; that
nothing but speed depends on it; and that it goes wiped."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import pytest
import support
from support import XTS_CIPHERS, linux_only, not_sanitized

from pyccmem import EncryptedBuffer, Key
from pyccmem.binding import ffi

pytestmark = linux_only

PAGE = 4096
Words = npt.NDArray[np.uint64]


def memory() -> Iterator[tuple[int, Words]]:
    """The small mappings of this process that are neither dumped nor inherited and can be written,
    as words of 8 bytes. Ordinary memory is no place to look: arrays of entries that a test copied
    may still lie there."""
    with open("/proc/self/smaps", encoding="ascii") as lines:
        text = lines.readlines()
    begin = end = 0
    for line in text:
        words = line.split()
        if "-" in words[0] and not words[0].endswith(":"):
            begin, end = (int(part, 16) for part in words[0].split("-"))
        elif words[0] == "VmFlags:":
            private = {"rd", "wr", "dd", "dc"} <= set(words) and "lo" not in words
            if private and end - begin <= 1 << 20:
                found = np.frombuffer(ffi.buffer(ffi.cast("char *", begin), end - begin), np.uint64)
                yield begin, found


def entries(pages: dict[int, int]) -> dict[int, Words]:
    """The cached entries of these pages (number to version), to be read and written: each is
    name[2], tweak[2]. Those of other buffers must be closed before."""
    found: dict[int, Words] = {}
    for _, words in memory():
        rows = words.reshape(-1, 4)
        mix = rows[:, 2] ^ rows[:, 3]
        for page, version in pages.items():
            fits = (rows[:, 0] ^ mix == page) & (rows[:, 1] ^ mix == version) & (mix != 0)
            for at in np.flatnonzero(fits):
                found[page] = rows[at]
    return found


@pytest.fixture(params=XTS_CIPHERS)
def xts(request: pytest.FixtureRequest) -> str:
    return request.param


@not_sanitized
def test_only_a_whole_entry_fits(key: Key, xts: str) -> None:
    """Name and tweak of two entries, mixed in every way in which words of 8 bytes can be torn,
    entries of other pages and of other versions: the tweak is computed again, and the page read."""
    content = random.Random(2).randbytes(4 * PAGE)
    with EncryptedBuffer(4 * PAGE, key=key, cipher=xts, tweak_cache=64) as buffer:

        def warm() -> None:
            for page in range(4):
                assert buffer.read(page * PAGE + 16, 16) == content[page * PAGE + 16 :][:16]

        buffer.write(content)
        warm()
        one = {page: entry.copy() for page, entry in entries(dict.fromkeys(range(4), 1)).items()}
        assert sorted(one) == [0, 1, 2, 3]
        buffer.write(content)
        warm()
        now = entries(dict.fromkeys(range(4), 2))
        two = {page: entry.copy() for page, entry in now.items()}
        assert sorted(two) == [0, 1, 2, 3]
        before = buffer.stats()
        warm()
        after = buffer.stats()
        assert after["tweak_hits"] - before["tweak_hits"] == 4
        assert after["tweak_misses"] == before["tweak_misses"]
        others = [one[0], one[1], two[1], two[2], one[3]]
        for other in others:
            for words in range(1, 16):  # which of the four come from the other
                if words == 15 and other is one[0]:
                    continue  # what the cache held once: it names version 1
                for at in range(4):
                    now[0][at] = other[at] if words >> at & 1 else two[0][at]
                if (now[0] == two[0]).all():
                    continue
                misses = buffer.stats()["tweak_misses"]
                assert buffer.read(32, 64) == content[32:96], f"{words:04b}"
                assert buffer.stats()["tweak_misses"] == misses + 1
                assert (now[0] == two[0]).all(), "not entered again"


def test_pages_that_share_an_entry(key: Key, xts: str) -> None:
    """With one entry each page drives out the one before; writes of whole pages, of parts and reads
    in turn. An entry left from a version before must not be used."""
    seed = random.Random(3)
    content = bytearray(8 * PAGE)
    for size in (1, 2, 8):
        with EncryptedBuffer(8 * PAGE, key=key, cipher=xts, tweak_cache=size) as buffer:
            buffer.write(content)
            for _ in range(400):
                page = seed.randrange(8)
                kind = seed.randrange(3)
                n = PAGE if kind == 0 else 16 * seed.randint(1, 4)
                offset = page * PAGE + (0 if kind == 0 else 16 * seed.randrange(200))
                if kind < 2:
                    content[offset : offset + n] = seed.randbytes(n)
                    buffer.write(content[offset : offset + n], offset)
                assert buffer.read(offset, n) == content[offset : offset + n]


@not_sanitized
def test_the_memory_is_private(key: Key, xts: str) -> None:
    """Neither dumped nor inherited: entries() looks in no other memory."""
    with EncryptedBuffer(PAGE, key=key, cipher=xts, tweak_cache=64) as buffer:
        buffer.write(b"x" * PAGE)
        assert not entries({0: 1})
        buffer.read(0, 16)
        assert len(entries({0: 1})) == 1


CLOSED = """
import gc, os, sys
sys.path.append(sys.argv[2])
import fault_injection, test_tweak_cache as t
from pyccmem import EncryptedBuffer, Key
injector = fault_injection.Injector()
with Key.generate() as key:
    buffer = EncryptedBuffer(t.PAGE, key=key, cipher=sys.argv[1], tweak_cache=64)
    buffer.write(b"x" * t.PAGE)
    buffer.read(0, 16)
    (entry,) = t.entries({0: 1}).values()
    assert entry.any()
    with injector.failing(1, later=True, kinds=["munmap"]) as unmapping:
        buffer.close()
        del buffer
        gc.collect()
    assert unmapping.failed == "munmap", "nothing was unmapped"
    print("wiped" if not entry.any() else "left")
"""


@not_sanitized
def test_it_is_wiped_before_it_is_given_back(
    xts: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Looked at where munmap(2) is refused, since the memory is gone otherwise."""
    import fault_injection

    library = fault_injection.build(tmp_path_factory.mktemp("wiped"))
    environment = fault_injection.environment(library)
    assert (
        support.check_python(CLOSED, xts, os.path.dirname(__file__), environment=environment)
        == "wiped\n"
    )
