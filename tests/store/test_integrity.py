# SPDX-License-Identifier: Apache-2.0
"""Pages under AEGIS-128X2: whatever is done to ciphertext, tags and versions is noticed, and
nothing of a changed page comes out or is written back; what AES-XTS does not notice; and that no
nonce is used twice."""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import support
from support import not_sanitized

import pyccmem
from pyccmem import EncryptedBuffer, Key, errors
from pyccmem.binding import ffi, lib

PAGE = 4096
LOCK = 1 << 63
PATTERN = 0x77
OK, INTEGRITY = lib.CCMEM_OK, lib.CCMEM_ERR_INTEGRITY

State = tuple[bytes, bytes, int]  # of a page: ciphertext, tag, version


class Stored:
    """What a buffer keeps of its pages, laid open to be damaged, and reads that look at what comes
    back when they are refused."""

    def __init__(self, buffer: EncryptedBuffer) -> None:
        self.buffer = buffer
        self.store = buffer._opened()
        self.page_size = buffer.page_size
        self.view = buffer.ciphertext  # keeps the mapping
        self.ciphertext = ffi.cast("uint8_t *", ffi.from_buffer(self.view))
        self.versions, tags = support.records(buffer)
        self.tags = ffi.cast("uint8_t *", tags)
        self.room = 4 * buffer.page_size
        self.out = ffi.new("uint8_t[]", self.room)
        self.pattern = bytes([PATTERN]) * self.room
        self.zeros = bytes(self.room)

    def get(self, page: int) -> State:
        size = self.page_size
        text = bytes(ffi.buffer(self.ciphertext + page * size, size))
        tag = bytes(ffi.buffer(self.tags + 16 * page, 16)) if self.tags else b""
        return text, tag, int(self.versions[page])

    def put(self, page: int, state: State) -> None:
        text, tag, version = state
        ffi.memmove(self.ciphertext + page * self.page_size, text, self.page_size)
        if self.tags:
            ffi.memmove(self.tags + 16 * page, tag, 16)
        self.versions[page] = version

    def snapshot(self) -> tuple[bytes, bytes, bytes]:
        pages = len(self.view) // self.page_size
        return (
            bytes(self.view),
            bytes(ffi.buffer(self.tags, 16 * pages)),
            bytes(ffi.buffer(self.versions, 8 * pages)),
        )

    def read(self, offset: int, n: int) -> bytes | None:
        """n bytes; None when they are refused with every byte of the output zero and none around
        it touched. Anything between fails the test."""
        ffi.memmove(self.out, self.pattern, n + 1)
        status = lib.ccmem_store_read(self.store, offset, self.out, n)
        assert self.out[n] == PATTERN
        if status == OK:
            return bytes(ffi.buffer(self.out, n))
        assert status == INTEGRITY, status
        assert ffi.buffer(self.out, n) == self.zeros[:n], "plaintext was released"
        return None


@pytest.fixture(params=[1, 3])
def native_threads(request: pytest.FixtureRequest) -> Iterator[int]:
    """Runs a test with native threads off and on."""
    before = pyccmem.get_num_threads()
    pyccmem.set_num_threads(request.param)
    yield request.param
    pyccmem.set_num_threads(before)


def within(seconds: float, work: Callable[[], Any]) -> Any:
    """What work() returns; the test fails when it takes longer, which is a wait without end."""
    results: list[Any] = []
    failures: list[BaseException] = []

    def guarded() -> None:
        try:
            results.append(work())
        except BaseException as error:  # handed to the test's own thread
            failures.append(error)

    thread = threading.Thread(target=guarded, daemon=True)
    thread.start()
    thread.join(seconds)
    assert not thread.is_alive(), "the call does not come back"
    if failures:
        raise failures[0]
    return results[0]


# ---- every bit -------------------------------------------------------------------------------

#: Page size -> pages of it whose every bit is flipped, 100 in all; of the largest every third.
FLIPPED = {4096: 96, 8192: 2, 16384: 1, 32768: 1, 65536: 1}


@pytest.mark.parametrize("size", FLIPPED)
def test_every_flipped_bit_is_noticed(key: Key, size: int) -> None:
    """Each bit of the page, of its tag and of its version: refused, nothing released, and good
    again when the bit is back. Reads of a part, of the whole page, of a part without the bit."""
    seed = random.Random(size)
    step = 61 if support.SANITIZED else 3 if size == 65536 else 1
    flips = refused = 0
    for _ in range(FLIPPED[size]):
        pages, page, before = 3, seed.randrange(3), flips
        with EncryptedBuffer(pages * size, key=key, page_size=size) as buffer:
            for _ in range(seed.randint(1, 4)):
                content = seed.randbytes(pages * size)
                buffer.write(content)
            stored = Stored(buffer)
            first = page * size
            good = content[first : first + size]
            assert stored.read(first, size) == good
            spans = [(first, size), (first + 1, 1), (first + size // 2 - 40, 64), (first, 100)]
            tag = stored.tags + 16 * page
            word = ffi.cast("uint8_t *", stored.versions + page)
            places = [(stored.ciphertext + first, 8 * size, step), (tag, 128, 1), (word, 64, 1)]
            for start, bits, every in places:
                for bit in range(seed.randrange(every), bits, every):
                    start[bit >> 3] ^= 1 << (bit & 7)
                    span = spans[bit & 3]
                    if bits == 64 and bit == 63:  # nobody holds this lock, nor will ever drop it
                        refused += within(60, lambda s=stored, a=span: s.read(*a)) is None
                    else:
                        refused += stored.read(*span) is None
                    start[bit >> 3] ^= 1 << (bit & 7)
                    flips += 1
                    if bit % 1024 == 1023:
                        assert stored.read(first, size) == good
                assert stored.read(first, size) == good
            assert buffer.stats()["integrity_failures"] == flips - before
            assert buffer.read() == content and buffer.verify() == []
    least = FLIPPED[size] * (8 * size // step + 192)
    assert refused == flips >= least


# ---- pages that were good once, somewhere --------------------------------------------------------

PAGES, HISTORY, ATTACKS = 48, 5, 10_000


class World:
    """Three buffers of equal form, the last under another key, with every state that each of their
    pages was ever in: states[buffer][page][version - 1]."""

    def __init__(self, key: Key, other: Key, cipher: str) -> None:
        self.seed = random.Random(cipher)
        self.stored: list[Stored] = []
        self.states: list[list[list[State]]] = []
        for root in (key, key, other):
            buffer = EncryptedBuffer(PAGES * PAGE, key=root, cipher=cipher)
            stored = Stored(buffer)
            states: list[list[State]] = [[] for _ in range(PAGES)]
            for _ in range(HISTORY):
                self.content = self.seed.randbytes(PAGES * PAGE)
                buffer.write(self.content)
                for page in range(PAGES):
                    states[page].append(stored.get(page))
            self.stored.append(stored)
            self.states.append(states)
            if root is key and len(self.stored) == 1:
                self.target = stored
                self.plain = self.content
        assert {s[2] for pages in self.states for p in pages for s in p} == set(range(1, 6))

    def now(self, page: int, buffer: int = 0) -> State:
        return self.states[buffer][page][-1]

    def old(self, page: int, buffer: int = 0) -> State:
        return self.states[buffer][page][self.seed.randrange(HISTORY - 1)]


@pytest.fixture
def world(request: pytest.FixtureRequest, key: Key) -> Iterator[World]:
    cipher = getattr(request, "param", support.AEGIS)
    with Key.generate() as other:
        made = World(key, other, cipher)
        yield made
        for stored in made.stored:
            stored.buffer.close()


Changes = dict[int, State]  # the pages to damage and what to put there


def _replay(w: World, page: int) -> Changes:
    text, tag, _ = w.old(page)
    return {page: (text, tag, w.now(page)[2])}


def _replay_text(w: World, page: int) -> Changes:
    return {page: (w.old(page)[0], *w.now(page)[1:])}


def _replay_tag(w: World, page: int) -> Changes:
    text, _, version = w.now(page)
    return {page: (text, w.old(page)[1], version)}


def _another(w: World, page: int) -> int:
    return (page + w.seed.randrange(1, PAGES)) % PAGES


def _swap_text(w: World, page: int) -> Changes:
    other = _another(w, page)
    a, b = w.now(page), w.now(other)
    return {page: (b[0], *a[1:]), other: (a[0], *b[1:])}


def _swap_text_and_tag(w: World, page: int) -> Changes:
    other = _another(w, page)
    a, b = w.now(page), w.now(other)
    return {page: (*b[:2], a[2]), other: (*a[:2], b[2])}


def _swap_all(w: World, page: int) -> Changes:
    """Also of an earlier time, so that the versions that are swapped differ."""
    other = _another(w, page)
    return {page: w.old(other), other: w.now(page)}


def _splice(buffer: int) -> Callable[[World, int], Changes]:
    return lambda w, page: {page: w.now(page, buffer)}


def _splice_old(buffer: int) -> Callable[[World, int], Changes]:
    return lambda w, page: {page: w.old(page, buffer)}


def _splice_text(w: World, page: int) -> Changes:
    return {page: (w.now(page, 1)[0], *w.now(page)[1:])}


def _truncate(filler: Callable[[World, int], bytes]) -> Callable[[World, int], Changes]:
    def change(w: World, page: int) -> Changes:
        text, tag, version = w.now(page)
        while True:
            at = w.seed.randrange(PAGE)
            cut = text[:at] + filler(w, page)[at:]
            if cut != text:  # a last byte may be what it is to become
                return {page: (cut, tag, version)}

    return change


def _beginning(w: World, page: int) -> Changes:
    """Truncation from the other side: an older beginning."""
    text, tag, version = w.now(page)
    at = w.seed.randrange(16, PAGE)
    return {page: (w.old(page)[0][:at] + text[at:], tag, version)}


def _rolled_back(to: Callable[[World], int], with_tag: bool) -> Callable[[World, int], Changes]:
    def change(w: World, page: int) -> Changes:
        text, tag, _ = w.now(page)
        version = to(w)
        if with_tag:  # a page that was never written has a tag of zeros
            tag = w.states[0][page][version - 1][1] if version else bytes(16)
        return {page: (text, tag, version)}

    return change


def _by_one(w: World) -> int:
    return HISTORY - 1


def _to_any(w: World) -> int:
    return w.seed.randrange(1, HISTORY)


def _to_zero(w: World) -> int:
    return 0


def _forward(w: World, page: int) -> Changes:
    return {page: (*w.now(page)[:2], w.now(page)[2] + w.seed.randrange(1, 1 << 62))}


MIXED: dict[str, Callable[[World, int], Changes]] = {
    "an old page with its old tag": _replay,
    "an old page": _replay_text,
    "an old tag": _replay_tag,
    "two pages swapped": _swap_text,
    "two pages swapped with their tags": _swap_text_and_tag,
    "two pages swapped with tags and versions": _swap_all,
    "a page of another buffer of the key": _splice(1),
    "an old page of another buffer of the key": _splice_old(1),
    "ciphertext of another buffer": _splice_text,
    "a page of another key": _splice(2),
    "an old page of another key": _splice_old(2),
    "truncated to zeros": _truncate(lambda w, page: bytes(PAGE)),
    "truncated to what was there before": _truncate(lambda w, page: w.old(page)[0]),
    "an older beginning": _beginning,
    "version rolled back by one": _rolled_back(_by_one, False),
    "version rolled back by one, old tag": _rolled_back(_by_one, True),
    "version rolled back": _rolled_back(_to_any, False),
    "version rolled back, old tag": _rolled_back(_to_any, True),
    "version rolled back to 0": _rolled_back(_to_zero, False),
    "version rolled back to 0, no tag": _rolled_back(_to_zero, True),
    "version moved forward": _forward,
}


@pytest.mark.parametrize("attack", MIXED.values(), ids=MIXED)
def test_pages_put_together_from_good_parts_are_refused(world: World, attack: Callable) -> None:
    """10,000 times each, with reads of a part, of the page, and of a range over its neighbours."""
    target, seed = world.target, world.seed
    size = PAGES * PAGE
    made = missed = failures = 0
    for turn in range(ATTACKS):
        page = seed.randrange(PAGES)
        changes = attack(world, page)
        for where, state in changes.items():
            assert state != world.now(where)
            target.put(where, state)
        for where in changes:
            first = where * PAGE
            kind = turn % 4
            if kind == 0:
                offset, n = first, PAGE
            elif kind == 1:
                offset, n = first + seed.randrange(PAGE - 64), seed.randint(1, 64)
            elif kind == 2:
                offset, n = max(first - 100, 0), PAGE + 200
            else:
                offset, n = max(first - PAGE, 0), 3 * PAGE
            n = min(n, size - offset)
            missed += target.read(offset, n) is not None
            made += 1
        failures += len(changes)
        if turn % 500 == 0:
            assert target.buffer.verify() == sorted(changes)
            failures += len(changes)
        for where in changes:
            target.put(where, world.now(where))
        assert target.read(page * PAGE, 64) == world.plain[page * PAGE :][:64]
    assert made >= ATTACKS and missed == 0
    assert target.buffer.stats()["integrity_failures"] == failures
    assert target.buffer.read() == world.plain and target.buffer.verify() == []


def test_out_of_reach_an_older_state_as_a_whole(world: World) -> None:
    """The limit of it: page, tag and version of an earlier time, together, are what the buffer held
    then, and no read tells them from what it holds now; verify() does, as the copies of the
    versions were not put back. Versions and tags lie in memory that only the process itself can
    write; who can write it is not one of those that tags are against."""
    target = world.target
    for page in range(PAGES):
        for state in world.states[0][page]:
            target.put(page, state)
            assert target.read(page * PAGE, PAGE) is not None
        target.put(page, world.states[0][page][0])
    assert target.buffer.read() != world.plain
    assert target.buffer.verify() == list(range(PAGES))
    copies = support.copies(target.buffer)
    for page in range(PAGES):
        copies[page] = target.versions[page]
    assert target.buffer.verify() == []


def test_no_version_is_used_again_after_a_rollback(world: World) -> None:
    """A version that was put back must not make a later write seal under a nonce that was used:
    two ciphertexts of one nonce tell the exclusive or of their first blocks, and more."""
    target, seen = world.target, set()
    for page in range(PAGES):
        for text, _, version in world.states[0][page]:
            seen.add((page, version))
            assert len(text) == PAGE
        seal_under = [0, 1, HISTORY - 1, HISTORY]
        for back in seal_under:
            version = target.get(page)[2]
            target.versions[page] = min(back, version)
            target.buffer.write(world.content[:PAGE], page * PAGE)
            assert (page, target.get(page)[2]) not in seen
            seen.add((page, target.get(page)[2]))
            target.put(page, world.states[0][page][1])  # all of an earlier time
            target.buffer.write(b"some", page * PAGE)
            assert (page, target.get(page)[2]) not in seen
            seen.add((page, target.get(page)[2]))
    assert target.buffer.verify() == []


# ---- the copy of the version -----------------------------------------------------------------

ONES = 2**64 - 1
LAST = 7  # the version that the pages of these tests were sealed under last


def most_versions(buffer: EncryptedBuffer) -> int:
    """The highest version a page may have, as docs/design/page-format.md says: a nonce of GCM has
    48 bits for it."""
    return 2**48 - 1 if buffer.cipher.endswith("gcm") else 2**63 - 1


@pytest.fixture
def sealed_often(key: Key, cipher: str) -> Iterator[tuple[Stored, Any]]:
    """Two pages at version LAST, laid open, and the copies of their versions."""
    with EncryptedBuffer(2 * PAGE, key=key, cipher=cipher) as buffer:
        for number in range(LAST):
            buffer.write(bytes([number]) * (2 * PAGE))
        yield Stored(buffer), support.copies(buffer)


@pytest.mark.parametrize("written", [False, True], ids=["never written", "written"])
def test_every_bit_of_the_copy(key: Key, cipher: str, written: bool) -> None:
    """verify() lists the page, a write of the whole page mends it, whichever bit was flipped, and
    no version up to the last one is used again. A page that was written can be read meanwhile."""
    last = LAST if written else 0
    for bit in range(64):
        with EncryptedBuffer(2 * PAGE, key=key, cipher=cipher) as buffer:
            for number in range(last):
                buffer.write(bytes([number]) * (2 * PAGE))
            versions, _ = support.records(buffer)
            copies = support.copies(buffer)
            assert copies[0] == copies[1] == last
            copies[1] ^= 1 << bit
            if written:
                assert buffer.read(PAGE, 3) == bytes([LAST - 1]) * 3
            if buffer.authenticated:
                assert buffer.verify() == [1]
                failures = buffer.stats()["integrity_failures"]
                assert buffer.verify() == [1]
                assert buffer.stats()["integrity_failures"] == failures + 1
            buffer.write(b"\xee" * PAGE, PAGE)
            # A number that no version can be is damage: the page's own version goes on.
            upward = not last >> bit & 1 and last + 2**bit < most_versions(buffer)
            assert versions[1] == copies[1] == last + upward * 2**bit + 1
            if buffer.authenticated:
                assert buffer.verify() == []
            before = bytes([LAST - 1 if written else 0]) * PAGE
            assert buffer.read() == before + b"\xee" * PAGE
            buffer.write(b"part", PAGE)
            assert versions[1] == copies[1] == last + upward * 2**bit + 2
            assert buffer.read(PAGE, 6) == b"part\xee\xee"


@pytest.mark.parametrize("write", ["page", "part", "all"])
@pytest.mark.parametrize("word", [ONES, ONES - 1, LOCK | 2, LOCK - 2, 0, 3, LAST + 1])
def test_a_copy_of_any_value_is_mended(
    sealed_often: tuple[Stored, Any], word: int, write: str
) -> None:
    """Whatever it says, the page is written under a version above the last one."""
    stored, copies = sealed_often
    buffer = stored.buffer
    copies[0] = word
    if buffer.authenticated:
        assert buffer.verify() == [0]
    data = {"page": b"a" * PAGE, "part": b"a" * 9, "all": b"a" * (2 * PAGE)}[write]
    within(60, lambda: buffer.write(data, 0))
    number = word % 2**63
    used = max(LAST, number) if number < most_versions(buffer) else LAST
    assert stored.versions[0] == copies[0] == used + 1
    assert stored.versions[1] == copies[1] == LAST + (write == "all")
    assert buffer.read() == data + bytes([LAST - 1]) * (2 * PAGE - len(data))
    if buffer.authenticated:
        assert buffer.verify() == []


def test_a_version_of_ones_is_mended(sealed_often: tuple[Stored, Any]) -> None:
    """A word that no page can have tells nothing; the copy is the version that was used last."""
    stored, copies = sealed_often
    stored.versions[1] = ONES
    with pytest.raises(errors.IntegrityError):
        within(60, lambda: stored.buffer.read(PAGE, 1))
    within(60, lambda: stored.buffer.write(b"a" * PAGE, PAGE))
    assert stored.versions[1] == copies[1] == LAST + 1
    assert stored.buffer.read(PAGE, PAGE) == b"a" * PAGE


def test_without_a_witness_nothing_is_written(sealed_often: tuple[Stored, Any]) -> None:
    """Where nothing tells which versions were used, a write is refused and changes nothing, as the
    next version might be one that was used. A tag is a witness; without tags, one of the two
    numbers has to do."""
    stored, copies = sealed_often
    buffer, plain = stored.buffer, bytes([LAST - 1]) * PAGE

    def flip() -> None:
        stored.ciphertext[PAGE + 5] ^= 1

    def refused() -> None:
        before = bytes(stored.view), list(stored.versions[0:2]), list(copies[0:2])
        for data, offset in ((b"a" * PAGE, PAGE), (b"a" * (2 * PAGE), 0)):
            with pytest.raises(errors.VersionExhaustedError, match="nothing tells"):
                within(60, lambda data=data, offset=offset: buffer.write(data, offset))
            now = bytes(stored.view), list(stored.versions[0:2]), list(copies[0:2])
            assert now == before

    top = most_versions(buffer)
    for version, copy in ((ONES, ONES), (ONES, ONES - 1), (top, ONES), (ONES, top),
                          (LAST, top), (top, LAST)):  # fmt: skip
        stored.versions[1], copies[1] = version, copy
        refused()
    for version, copy in ((ONES, LAST), (LAST, ONES)):
        stored.versions[1], copies[1] = version, copy
        if buffer.authenticated:
            flip()
            refused()
            flip()
            for wrong in (LAST - 1, 0):
                stored.versions[1], copies[1] = (
                    wrong if word == LAST else word for word in (version, copy)
                )
                refused()
    stored.versions[1], copies[1] = LAST, LAST
    assert buffer.read(PAGE, PAGE) == plain
    buffer.write(b"a" * PAGE, PAGE)
    assert stored.versions[1] == LAST + 1


@pytest.mark.parametrize("world", support.XTS_CIPHERS, indirect=True)
def test_what_xts_does_not_notice(world: World) -> None:
    """The same under AES-XTS: every read returns, nothing says that anything was changed. A changed
    block becomes other bytes, the rest of the page stays; a page from elsewhere or under another
    version becomes noise; an older page with its version is what was there before."""
    target, seed = world.target, world.seed
    size = target.page_size
    silent = 0

    def blocks_alike(a: bytes, b: bytes) -> list[int]:
        x, y = (np.frombuffer(data, np.uint8).reshape(-1, 16) for data in (a, b))
        return np.flatnonzero((x == y).all(axis=1)).tolist()

    for _ in range(2_000):
        page = seed.randrange(PAGES)
        good = world.plain[page * size : (page + 1) * size]
        bit = seed.randrange(8 * size)
        target.ciphertext[page * size + bit // 8] ^= 1 << bit % 8
        got = target.read(page * size, size)
        assert got is not None
        assert blocks_alike(got, good) == [n for n in range(size // 16) if n != bit // 128]
        target.put(page, world.now(page))
        silent += 1
    for name, attack in MIXED.items():
        if name in ("an old tag", "truncated to zeros", "truncated to what was there before",
                    "an older beginning"):  # fmt: skip
            continue
        for _ in range(100):
            changes = attack(world, seed.randrange(PAGES))
            for where, state in changes.items():
                target.put(where, state)
            for where, state in changes.items():
                got = target.read(where * size, size)
                assert got is not None
                if state[2]:
                    assert blocks_alike(got, world.plain[where * size :][:size]) == []
                else:
                    assert got == bytes(size)
                silent += 1
            for where in changes:
                target.put(where, world.now(where))
    assert silent >= 2_000 + 17 * 100
    target.put(0, world.states[0][0][0])
    assert target.read(0, size) not in (None, world.plain[:size])
    assert target.buffer.stats()["integrity_failures"] == 0
    with pytest.raises(errors.NotAuthenticatedError):
        target.buffer.verify()


# ---- every way in and out ------------------------------------------------------------------------

BULK_PAGES = 1200  # 4.7 MiB: several threads, and stores that go around the caches
DAMAGE: dict[str, Callable[[Stored, int], None]] = {
    "ciphertext": lambda s, page: s.ciphertext.__setitem__(
        page * s.page_size + 99, s.ciphertext[page * s.page_size + 99] ^ 4
    ),
    "tag": lambda s, page: s.tags.__setitem__(16 * page + 15, s.tags[16 * page + 15] ^ 0x80),
    "version": lambda s, page: s.versions.__setitem__(page, s.versions[page] ^ 6),
    "lock bit": lambda s, page: s.versions.__setitem__(page, s.versions[page] ^ LOCK),
}
"""Called twice, each puts back what it did."""


@pytest.fixture(scope="module")
def bulk() -> Iterator[tuple[Stored, bytes]]:
    with Key.generate() as root, EncryptedBuffer(BULK_PAGES * PAGE, key=root) as buffer:
        content = random.Random(1).randbytes(buffer.nbytes)
        buffer.write(content)
        yield Stored(buffer), content


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_bulk_reads_release_nothing(
    bulk: tuple[Stored, bytes], native_threads: int, damage: Callable
) -> None:
    """Ranges that begin and end anywhere, to outputs at any alignment, with the changed page in
    their head, among their whole pages, or in their tail: refused when they touch it, else right.
    """
    stored, content = bulk
    buffer, size = stored.buffer, len(content)
    seed = random.Random(native_threads)
    room = np.empty(size + 256, np.uint8)
    refused = 0
    ranges = [(0, size), (1, size - 1), (0, size - 1), (PAGE - 1, size - 2 * PAGE + 2)]
    ranges += [(PAGE, 70 * PAGE), (5 * PAGE + 77, 3 * PAGE), (BULK_PAGES * PAGE - 5000, 5000)]
    for number, (offset, n) in enumerate(ranges):
        first, last = offset // PAGE, (offset + n - 1) // PAGE
        inside = {first, last, (first + last) // 2, first + 1}
        for page in sorted(inside | {(last + 1) % BULK_PAGES, 600}):
            misalign = (0, 1, 16, 33, 64)[seed.randrange(5)]
            start = -room.ctypes.data % 64 + misalign
            out = room[start : start + n]
            touches = first <= page <= last
            room.fill(PATTERN)
            damage(stored, page)
            try:
                before = buffer.stats()
                if touches:
                    with pytest.raises(errors.IntegrityError) as caught:
                        within(60, lambda out=out, offset=offset: buffer.read_into(out, offset))
                    assert caught.value.page == page and caught.value.offset == page * PAGE
                    assert not out.any()
                    assert buffer.stats()["integrity_failures"] > before["integrity_failures"]
                    assert buffer.stats()["bytes_read"] == before["bytes_read"]
                    refused += 1
                else:
                    assert buffer.read_into(out, offset) == n
                    assert out.tobytes() == content[offset : offset + n]
                    assert buffer.stats()["integrity_failures"] == before["integrity_failures"]
                assert (room[:start] == PATTERN).all() and (room[start + n :] == PATTERN).all()
            finally:
                damage(stored, page)
        assert buffer.read(offset, n) == content[offset : offset + n], number
    assert refused >= 2 * len(ranges)
    assert buffer.verify() == []


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_verify_finds_any_damage(
    bulk: tuple[Stored, bytes], native_threads: int, damage: Callable
) -> None:
    """Just the damaged pages, at the cost of no version."""
    stored, content = bulk
    seed = random.Random(native_threads)
    before, versions = stored.buffer.stats(), stored.buffer.versions.tolist()
    pages = sorted({0, BULK_PAGES - 1, *seed.sample(range(BULK_PAGES), 60)})
    for page in pages:
        damage(stored, page)
    assert within(60, stored.buffer.verify) == pages
    for page in pages:
        damage(stored, page)
    assert stored.buffer.verify() == []
    after = stored.buffer.stats()
    assert after["integrity_failures"] - before["integrity_failures"] == len(pages)
    assert after["pages_sealed"] == before["pages_sealed"]
    assert stored.buffer.versions.tolist() == versions
    assert stored.buffer.read() == content


@pytest.mark.parametrize("run", [1, 64, 100, 4096, 5000, 9000])
def test_gather_releases_nothing(bulk: tuple[Stored, bytes], native_threads: int, run: int) -> None:
    """Also with enough bytes for several threads: one changed page, and not one byte comes out."""
    stored, content = bulk
    seed = random.Random(run)
    for count in (1, 5, 700 if run < 64 else (1 << 20) // run):
        offsets = [seed.randrange(len(content) - run) for _ in range(count)]
        want = b"".join(content[at : at + run] for at in offsets)
        chosen = ffi.new("uint64_t[]", offsets)
        out = ffi.new("uint8_t[]", count * run + 1)
        for victim in (0, count - 1, seed.randrange(count)):
            ffi.memmove(out, bytes([PATTERN]) * (count * run + 1), count * run + 1)
            page = offsets[victim] // PAGE
            support.damage(stored.buffer, page, 5)
            status = lib.ccmem_store_gather(stored.store, chosen, count, run, out)
            failure = lib.ccmem_last_failure()
            support.damage(stored.buffer, page, 5)
            assert status == INTEGRITY
            assert (failure.page, failure.version) == (page, 1)
            assert bytes(ffi.buffer(out, count * run)) == bytes(count * run)
            assert out[count * run] == PATTERN
            assert lib.ccmem_store_gather(stored.store, chosen, count, run, out) == OK
            assert bytes(ffi.buffer(out, count * run)) == want


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_refused_write_changes_nothing(key: Key, native_threads: int, damage: Callable) -> None:
    """A page to be covered in part was changed: one write inside it, one that ends in it, one that
    begins in it, over few pages and over many."""
    pages, size = 600, 600 * PAGE
    with EncryptedBuffer(size, key=key) as buffer:
        content = random.Random(2).randbytes(size)
        buffer.write(content)
        stored = Stored(buffer)
        calls = 0
        for page in (0, 7, pages - 1):
            inside = [(page * PAGE + 5, 10), (page * PAGE, PAGE - 1), (page * PAGE + 1, PAGE - 1)]
            ends = [(0, page * PAGE + 9), (max(page - 3, 0) * PAGE + 5, 2 * PAGE + 50)]
            begins = [(page * PAGE + 9, size - page * PAGE - 9), (page * PAGE + 9, PAGE + 50)]
            for offset, n in inside + ends + begins:
                if offset + n > size:
                    continue
                first, last = offset // PAGE, (offset + n - 1) // PAGE
                whole_first = not offset % PAGE and n >= PAGE
                whole_last = not (offset + n) % PAGE and last > first
                if (
                    page not in (first, last)
                    or (page == first and whole_first)
                    or (page == last and whole_last)
                ):
                    continue
                damage(stored, page)
                before, sealed = stored.snapshot(), buffer.stats()["pages_sealed"]
                writes = buffer.stats()["writes"]
                with pytest.raises(errors.IntegrityError) as caught:
                    within(60, lambda o=offset, n=n: buffer.write(b"\xee" * n, o))
                assert caught.value.page == page
                assert stored.snapshot() == before, (page, offset, n)
                assert buffer.stats()["pages_sealed"] == sealed
                assert buffer.stats()["writes"] == writes
                damage(stored, page)
                calls += 1
        assert calls >= 12
        assert buffer.read() == content and buffer.verify() == []


def test_scatter_stops_at_a_changed_page(key: Key) -> None:
    """What comes before it may be written, what comes after it is not, and the page itself stays as
    it is; the versions tell the same."""
    with EncryptedBuffer(64 * PAGE, key=key) as buffer:
        content = random.Random(3).randbytes(64 * PAGE)
        buffer.write(content)
        stored = Stored(buffer)
        for run, gap in ((8, 24), (100, 3000), (5000, 9000)):
            offsets = list(range(50, 64 * PAGE - run, gap))
            before = stored.snapshot()
            support.damage(buffer, 30, 8)
            damaged = stored.get(30)
            data = b"\xdd" * (len(offsets) * run)
            status = lib.ccmem_store_scatter(
                stored.store, ffi.new("uint64_t[]", offsets), len(offsets), run, data
            )
            assert status == INTEGRITY and lib.ccmem_last_failure().page == 30
            assert stored.get(30) == damaged
            support.damage(buffer, 30, 8)
            assert buffer.verify() == []
            versions = np.frombuffer(before[2], np.uint64)
            assert (buffer.versions[:28] > versions[:28]).any()
            assert (buffer.versions[30:] == versions[30:]).all()
            after = buffer.read()
            assert after[30 * PAGE :] == content[30 * PAGE :]
            content = after


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_write_of_the_whole_page_replaces_it(
    key: Key, native_threads: int, damage: Callable
) -> None:
    """Whatever became of it, alone or among many pages, and under a version never used before."""
    pages = 700
    with EncryptedBuffer(pages * PAGE, key=key) as buffer:
        content = bytearray(random.Random(4).randbytes(pages * PAGE))
        for _ in range(7):
            buffer.write(content)
        stored = Stored(buffer)
        damage(stored, 3)
        assert buffer.verify() == [3]
        within(60, lambda: buffer.write(b"\x11" * PAGE, 3 * PAGE))
        content[3 * PAGE : 4 * PAGE] = b"\x11" * PAGE
        assert buffer.read() == content and buffer.verify() == []
        chosen = [0, 1, 2, 64, 65, 300, pages - 1]
        for page in chosen:
            damage(stored, page)
        content[PAGE - 100 :] = bytes(b ^ 0xFF for b in content[PAGE - 100 :])
        with pytest.raises(errors.IntegrityError):
            within(60, lambda: buffer.write(content[PAGE - 100 :], PAGE - 100))
        assert buffer.verify() == chosen
        within(60, lambda: buffer.write(content))
        assert buffer.read() == content and buffer.verify() == []
        assert int(buffer.versions.min()) >= 8


def test_a_lock_bit_is_found_while_others_write(key: Key) -> None:
    """Writers that come and go elsewhere must not keep a reader, a writer or verify() waiting for a
    writer that is not there."""
    with EncryptedBuffer(300 * PAGE, key=key) as buffer:
        buffer.write(b"\x42" * (300 * PAGE))
        stored = Stored(buffer)
        stop = threading.Event()
        written = [0, 0, 0]

        def write(index: int) -> None:
            data = bytes([index]) * (64 * PAGE)
            while not stop.is_set():
                buffer.write(data, (20 + 80 * index) * PAGE)
                written[index] += 1

        threads = [threading.Thread(target=write, args=(i,), daemon=True) for i in range(3)]
        for thread in threads:
            thread.start()
        try:
            for page in (5, 19, 299):
                stored.versions[page] ^= LOCK
                for call in (
                    lambda page=page: buffer.read(page * PAGE, 10),
                    lambda page=page: buffer.read(page * PAGE - 9, 10),
                    lambda page=page: buffer.write(b"x", page * PAGE),
                    lambda page=page: buffer.write(b"x" * 9, page * PAGE - 8),
                ):
                    with pytest.raises(errors.IntegrityError) as caught:
                        within(60, call)
                    assert caught.value.page == page
                assert within(60, buffer.verify) == [page]
                stored.versions[page] ^= LOCK
                assert buffer.read(page * PAGE, 10) == b"\x42" * 10
        finally:
            stop.set()
            for thread in threads:
                thread.join(60)
        assert all(written) and buffer.verify() == []


# ---- no false alarm ------------------------------------------------------------------------------


def goes_on(began: float, seconds: float, enough: bool) -> bool:
    """Whether a test that runs for some seconds shall run further: a loaded machine may let a
    thread wait for longer than that, and is given a minute."""
    passed = time.monotonic() - began
    return passed < seconds or (not enough and passed < 60)


@pytest.mark.parametrize("small", [False, True], ids=["few pages", "one page"])
def test_no_alarm_while_nothing_is_damaged(key: Key, native_threads: int, small: bool) -> None:
    """Readers and writers of the same pages, more than there are processors, of all sizes: no
    IntegrityError, and a range that one call wrote alone is read whole."""
    pages = 1 if small else 150
    size = pages * PAGE
    threads, began = 6, time.monotonic()
    with EncryptedBuffer(size, key=key) as buffer:
        buffer.write(bytes(size))
        failures: list[BaseException] = []
        counts = [0] * threads

        def work(index: int) -> None:
            seed = random.Random(index)
            out = np.empty(size, np.uint8)
            try:
                while not failures and goes_on(began, 2, min(counts) > 3):
                    most = size if seed.random() < 0.3 else 200
                    n = seed.randint(1, most)
                    offset = seed.randrange(size - n + 1)
                    if index % 2:
                        buffer.write(bytes([index]) * n, offset)
                    elif seed.random() < 0.1:
                        assert buffer.verify() == []
                    else:
                        buffer.read_into(out[:n], offset)
                        assert set(np.unique(out[:n]).tolist()) <= {0, 1, 3, 5}
                    counts[index] += 1
            except BaseException as error:
                failures.append(error)

        workers = [threading.Thread(target=work, args=(i,), daemon=True) for i in range(threads)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join(120)
        assert not any(worker.is_alive() for worker in workers), "a thread hangs"
        assert not failures, failures[0]
        assert min(counts) > 3
        assert buffer.verify() == [] and buffer.stats()["integrity_failures"] == 0
        assert int(buffer.versions.sum()) == buffer.stats()["pages_sealed"]


def test_one_damaged_page_stops_only_those_that_touch_it(key: Key) -> None:
    """Beside writers of the pages around it."""
    pages, bad = 40, 17
    began = time.monotonic()
    with EncryptedBuffer(pages * PAGE, key=key) as buffer:
        buffer.write(bytes(pages * PAGE))
        support.damage(buffer, bad, 12345)
        failures: list[BaseException] = []
        refused, passed = [0] * 4, [0] * 4

        def work(index: int) -> None:
            seed = random.Random(index)
            try:
                while not failures and goes_on(began, 1.5, min(refused + passed) > 0):
                    n = seed.randint(1, 3 * PAGE)
                    offset = seed.randrange(pages * PAGE - n + 1)
                    touches = offset // PAGE <= bad <= (offset + n - 1) // PAGE
                    if offset <= bad * PAGE and offset + n >= (bad + 1) * PAGE and index % 2:
                        continue  # a write that would replace it
                    try:
                        if index % 2:
                            buffer.write(bytes([index]) * n, offset)
                        else:
                            buffer.read(offset, n)
                    except errors.IntegrityError as error:
                        assert touches and error.page == bad
                        refused[index] += 1
                    else:
                        assert not touches
                        passed[index] += 1
            except BaseException as error:
                failures.append(error)

        workers = [threading.Thread(target=work, args=(i,), daemon=True) for i in range(4)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join(120)
        assert not any(worker.is_alive() for worker in workers), "a thread hangs"
        assert not failures, failures[0]
        assert min(refused) and min(passed)
        assert buffer.verify() == [bad]


@pytest.mark.parametrize("misalign", [0, 16, 1])
def test_a_source_that_changes_meanwhile_makes_a_good_page(key: Key, misalign: int) -> None:
    """Each byte of the source is looked at once. A page whose ciphertext and tag came of different
    bytes could never be read again."""
    size = 64 * PAGE
    room = np.zeros(size + 128, np.uint8)
    start = -room.ctypes.data % 64 + misalign
    source = room[start : start + size]
    stop = threading.Event()
    turns = [0]

    def change() -> None:
        while not stop.is_set():
            source.fill(1)
            source.fill(0xFE)
            turns[0] += 1

    thread = threading.Thread(target=change, daemon=True)
    mixed = 0
    with EncryptedBuffer(size, key=key) as buffer:
        thread.start()
        try:
            began = time.monotonic()
            while goes_on(began, 1.5, turns[0] > 10 and mixed > 0):
                buffer.write(source)
                assert buffer.verify() == []
                mixed += len(set(buffer.read())) == 2
        finally:
            stop.set()
            thread.join(60)
    assert turns[0] > 10 and mixed, "the source never changed during a write"


# ---- versions, nonces, processes -----------------------------------------------------------------


def test_running_out_of_versions_is_an_error(key: Key) -> None:
    """Every way to write is refused and changes nothing, and the page can still be read."""
    with EncryptedBuffer(3 * PAGE, key=key, _version_limit=3) as buffer:
        for number in range(3):
            buffer.write(bytes([number]) * PAGE, PAGE)
        stored = Stored(buffer)
        before = stored.snapshot()
        offsets = ffi.new("uint64_t[]", [PAGE + 5, PAGE + 50])
        for call in (
            lambda: buffer.write(b"x" * PAGE, PAGE),
            lambda: buffer.write(b"x", PAGE + 7),
            lambda: buffer.write(b"x" * (3 * PAGE)),
            lambda: buffer.write(b"x" * 10, 2 * PAGE - 5),
        ):
            with pytest.raises(errors.VersionExhaustedError):
                call()
            assert stored.snapshot() == before
        status = lib.ccmem_store_scatter(stored.store, offsets, 2, 4, b"x" * 8)
        assert status == lib.CCMEM_ERR_VERSION and stored.snapshot() == before
        assert buffer.read(PAGE, PAGE) == b"\x02" * PAGE and buffer.verify() == []
        buffer.write(b"x", 0)


def test_the_highest_version_of_all(key: Key) -> None:
    """2^63 - 1 is used, and nothing after it: the next would be a lock, then nonces used before."""
    with EncryptedBuffer(PAGE, key=key) as buffer:
        stored = Stored(buffer)
        buffer.write(b"\x01" * PAGE)
        stored.versions[0] = 2**63 - 2
        buffer.write(b"\x02" * PAGE)
        assert buffer.versions.tolist() == [2**63 - 1]
        before = stored.snapshot()
        for data in (b"\x03" * PAGE, b"part"):
            with pytest.raises(errors.VersionExhaustedError):
                buffer.write(data)
            assert stored.snapshot() == before
        assert buffer.read() == b"\x02" * PAGE and buffer.verify() == []


def test_a_nonce_is_never_used_twice(key: Key, native_threads: int) -> None:
    """Writes of every form, all of zeros, refused ones among them: each change of a page comes with
    one version, and equal contents under another version never give equal ciphertext or tags."""
    pages = 80
    seed = random.Random(native_threads)
    with EncryptedBuffer(pages * PAGE - 50, key=key) as buffer:
        stored = Stored(buffer)
        seen: dict[bytes, tuple[int, int]] = {}
        versions = [0] * pages
        for _ in range(400):
            n = seed.choice((1, 60, PAGE, 3 * PAGE, 70 * PAGE))
            offset = seed.randrange(buffer.nbytes - n)
            if seed.random() < 0.3:
                offset -= offset % PAGE
            kind = seed.randrange(3)
            if kind == 0:
                buffer.write(bytes(n), offset)
            elif kind == 1:
                places = sorted(seed.sample(range(buffer.nbytes - 8), 20))
                chosen = ffi.new("uint64_t[]", places)
                assert lib.ccmem_store_scatter(stored.store, chosen, 20, 8, bytes(160)) == OK
            else:
                page = seed.randrange(pages)
                if versions[page]:
                    support.damage(buffer, page, 3)
                    with pytest.raises(errors.IntegrityError):
                        buffer.write(b"\0", page * PAGE)
                    support.damage(buffer, page, 3)
            for page in range(pages):
                text, tag, version = stored.get(page)
                if version == versions[page]:
                    assert version == 0 or seen[tag] == (page, version)
                    assert version == 0 or seen[text[:32]] == (page, version)
                    continue
                assert version > versions[page]
                versions[page] = version
                assert tag not in seen and text[:32] not in seen
                seen[tag] = seen[text[:32]] = (page, version)
        assert sum(versions) == buffer.stats()["pages_sealed"] > 400
        assert buffer.read() == bytes(buffer.nbytes)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_child_can_neither_seal_nor_open(key: Key) -> None:
    """Every native function refuses before it touches anything, and versions and tags are not even
    there; the parent goes on."""
    with EncryptedBuffer(5 * PAGE, key=key) as buffer:
        buffer.write(b"\x31" * (5 * PAGE))
        stored = Stored(buffer)
        before = stored.snapshot()
        store = stored.store
        out = ffi.new("uint8_t[]", PAGE)
        words = ffi.new("uint64_t[]", 5)
        addresses = [int(ffi.cast("uintptr_t", p)) for p in (stored.versions, stored.tags)]
        assert all(mapped(address) for address in addresses)

        def child() -> None:
            assert not any(mapped(address) for address in addresses)
            offsets = ffi.new("uint64_t[]", [0, PAGE])
            ffi.memmove(out, stored.pattern, PAGE)
            pointers = ffi.new("uint64_t **"), ffi.new("uint8_t **")
            seconds = ffi.new("double *")
            for status in (
                lib.ccmem_store_read(store, 0, out, 10),
                lib.ccmem_store_read(store, 0, out, 0),
                lib.ccmem_store_write(store, 0, out, 10),
                lib.ccmem_store_write(store, 0, out, PAGE),
                lib.ccmem_store_gather(store, offsets, 2, 5, out),
                lib.ccmem_store_scatter(store, offsets, 2, 5, out),
                lib.ccmem_store_verify(store, 0, 5, out, words),
                lib.ccmem_store_versions(store, 0, 5, words),
                lib.ccmem_store_records(store, *pointers),
                lib.ccmem_store_copies(store, pointers[0]),
                lib.ccmem_store_stats(store, ffi.new("ccmem_stats *")),
                lib.ccmem_store_check(store),
                lib.ccmem_measure_random_reads(store, 1, 0, seconds),
                lib.ccmem_measure_open_to_scratch(store, out, PAGE, seconds),
            ):
                assert status == lib.CCMEM_ERR_FORK
            assert bytes(ffi.buffer(out)) == stored.pattern[:PAGE]
            for use in (buffer.read, buffer.verify, buffer.stats, lambda: buffer.write(b"x")):
                with pytest.raises(errors.ForkError):
                    use()

        support.in_forked_child(child)
        assert stored.snapshot() == before
        buffer.write(b"on", 5)
        assert buffer.read(4, 4) == b"1on1" and buffer.verify() == []


def mapped(address: int) -> bool:
    """True when this process has memory at an address."""
    with open("/proc/self/maps", encoding="ascii", errors="replace") as lines:
        for line in lines:
            low, high = (int(part, 16) for part in line.split()[0].split("-"))
            if low <= address < high:
                return True
    return False


def flags_at(address: int) -> set[str]:
    """VmFlags of the mapping at an address."""
    inside = False
    with open("/proc/self/smaps", encoding="ascii", errors="replace") as lines:
        for line in lines:
            head = line.split()[0]
            if not head.endswith(":"):
                low, high = (int(part, 16) for part in head.split("-"))
                inside = low <= address < high
            elif head == "VmFlags:" and inside:
                return set(line.split()[1:])
    raise AssertionError("nothing is mapped there")


@support.linux_only
def test_versions_and_tags_are_neither_dumped_nor_inherited(key: Key) -> None:
    with EncryptedBuffer(3000 * PAGE, key=key) as buffer:
        stored = Stored(buffer)
        for pointer in (stored.versions, stored.tags):
            address = int(ffi.cast("uintptr_t", pointer))
            for at in (address, address + 8 * 2999):
                assert {"dd", "dc"} <= flags_at(at)
        assert "dc" not in flags_at(int(ffi.cast("uintptr_t", stored.out)))  # the control


# ---- threads with little stack -------------------------------------------------------------------

SMALL_STACK = """
import sys, threading, pyccmem
from pyccmem import EncryptedBuffer
cipher, page_size = sys.argv[1], int(sys.argv[2])
threading.stack_size(int(sys.argv[3]))
done = []
def work():
    with pyccmem.Key.generate() as key:
        with EncryptedBuffer(200_000, key=key, cipher=cipher, page_size=page_size) as buffer:
            buffer.write(bytes(200_000))
            buffer.write(b"abc", 70_000)
            assert buffer.read(69_999, 5) == b"\\0abc\\0"
            done.append(1)
thread = threading.Thread(target=work)
thread.start()
thread.join()
sys.exit(not done)
"""


@not_sanitized
@pytest.mark.parametrize(
    "page_size, stack", [(4096, 64 << 10), (16384, 64 << 10), (65536, 192 << 10)]
)
def test_partial_writes_in_a_thread_with_a_small_stack(page_size: int, stack: int) -> None:
    """A page that is written in part goes through scratch of its size, not of the largest one."""
    sizes = (str(page_size), str(stack))
    control = support.run_python(SMALL_STACK, "aes-128-xts", *sizes)
    if control.returncode:
        pytest.skip("this interpreter itself needs more stack")
    done = support.run_python(SMALL_STACK, support.AEGIS, *sizes)
    assert done.returncode == 0, f"{done.returncode}: {done.stderr}"
