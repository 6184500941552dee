# SPDX-License-Identifier: Apache-2.0
"""pyccmem.measure: its loops do what they say they time, and refuse what they cannot use."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import support

from pyccmem import EncryptedBuffer, Key, KVCache, cpu_info, errors, measure

PAGE = 4096

TAGGED = sorted(name for name, suite in measure.SUITES.items() if suite.tag_size)


@pytest.fixture
def buffer(key: Key) -> Iterator[EncryptedBuffer]:
    """Random bytes under the default cipher, 16 pages."""
    with EncryptedBuffer.from_data(np.random.default_rng(1).bytes(16 * PAGE), key=key) as made:
        yield made


def zeros(nbytes: int) -> np.ndarray:
    return np.zeros(nbytes, np.uint8)


# ---- what is timed is done -----------------------------------------------------------------------


@pytest.mark.parametrize("cipher", measure.SUITES)
@pytest.mark.parametrize("operation", measure.OPERATIONS)
def test_every_page_is_sealed_or_opened(cipher: str, operation: str) -> None:
    source, out = np.arange(3 * PAGE, dtype=np.uint8), zeros(3 * PAGE)
    plain = source.copy()
    assert measure.pages(None, cipher, operation, source, out, 1) > 0
    if operation == "open" and cipher in TAGGED:
        assert np.array_equal(out, plain)
        assert not np.array_equal(source, plain)
    else:
        assert np.array_equal(source, plain)
        for page in range(3):
            pieces = out[page * PAGE : (page + 1) * PAGE].view(np.uint64)
            assert len(np.unique(pieces)) > 500, page


@pytest.mark.parametrize("cipher", measure.SUITES)
def test_pages_in_place(cipher: str) -> None:
    memory = zeros(2 * PAGE)
    assert measure.pages(None, cipher, "seal", memory, memory, 3) > 0
    assert len(np.unique(memory.view(np.uint64))) > 1000


def test_more_repeats_take_longer() -> None:
    """The control of all times here: they are of the loop, not of the call."""
    memory = zeros(16 * PAGE)

    def least(repeats: int) -> float:
        return min(
            measure.pages(None, "aes-128-xts", "seal", memory, memory, repeats) for _ in range(5)
        )

    assert least(64) > 8 * least(1)


def test_memcpy_copies(buffer: EncryptedBuffer) -> None:
    source, out = np.frombuffer(buffer.read(), np.uint8), zeros(buffer.nbytes)
    assert measure.memcpy(out, source) > 0
    assert np.array_equal(out, source)


def test_a_pass_through_scratch_ends_with_the_last_bytes(buffer: EncryptedBuffer) -> None:
    scratch = zeros(3 * PAGE)
    assert measure.open_to_scratch(buffer, scratch) > 0
    whole = buffer.read()
    assert scratch.tobytes() == whole[15 * PAGE :] + whole[13 * PAGE : 15 * PAGE]


def test_gathered_runs(buffer: EncryptedBuffer) -> None:
    offsets, out = np.array([5, 9000, 0, 65436], np.uint64), bytearray(400)
    measure.gather(buffer, offsets, 100, out)
    whole = buffer.read()
    assert out == b"".join(whole[at : at + 100] for at in offsets.tolist())
    measure.gather(buffer, offsets[:0], 100, bytearray())


@pytest.mark.parametrize("dependent", [True, False])
def test_walks(buffer: EncryptedBuffer, dependent: bool) -> None:
    assert measure.random_reads(buffer, 100, dependent=dependent) > 0
    assert measure.random_copies(bytes(64), 100, dependent=dependent) > 0


def test_a_read_of_memory_takes_as_long_as_it_is_large() -> None:
    memory = np.ones(1 << 24, np.uint8)

    def least(part: np.ndarray) -> float:
        return min(measure.plain_read(part) for _ in range(5))

    assert least(memory) > 8 * least(memory[: 1 << 18]) > 0
    assert measure.plain_read(b"") >= 0


def test_ceilings() -> None:
    assert measure.ceiling("portable", "aes-128-xts", 100) == 0
    for tier in cpu_info()["tiers"]:
        best = [
            max(measure.ceiling(tier, cipher, 1 << 14) for _ in range(50))
            for cipher in ("aes-128-xts", "aes-256-xts")
        ]
        # 10 and 14 rounds for each 16 bytes.
        assert tier == "portable" or 1.1 < best[0] / best[1] < 1.8


def test_a_mapping_in_blocks_as_asked(buffer: EncryptedBuffer) -> None:
    with measure.mapped(buffer, 1 << 20, "auto", block=8192) as array:
        assert array.tobytes() == buffer.read()


def test_a_cache_that_encrypts_nothing() -> None:
    """It gives what an encrypted one gives; its memory has what was appended, and the other's,
    which is the control, does not."""
    generator = np.random.default_rng(5)
    k, v = generator.standard_normal((2, 2, 100, 32), dtype=np.float32)
    q = generator.standard_normal((4, 3, 32), dtype=np.float32)
    found = {}
    for name, make in (("plain", measure.plain_cache), ("encrypted", KVCache)):
        with make(1, 2, 32, dtype="float32") as cache:
            assert cache.name.startswith("plain-cache-") == (name == "plain")
            cache.append(0, k, v)
            places = cache._opened().places(0, 0)
            memory = b"".join(ctypes.string_at(place.data, place.nbytes) for place in places)
            found[name] = cache.attend(0, q), [row.tobytes() in memory for row in v[1]]
    assert np.array_equal(found["plain"][0], found["encrypted"][0])
    assert all(found["plain"][1]) and not any(found["encrypted"][1])


def test_a_plain_cache_refuses_what_a_cache_does() -> None:
    with pytest.raises(errors.ArgumentError, match="heads is 0"):
        measure.plain_cache(1, 0, 32)
    with measure.plain_cache(1, 2, 32) as cache, pytest.raises(errors.ArgumentError, match="layer"):
        cache.append(1, np.zeros((2, 32), np.uint16), np.zeros((2, 32), np.uint16))


# ---- what is refused -----------------------------------------------------------------------------


def _pages(**changed: Any) -> None:
    memory = zeros(2 * PAGE)
    usual = {
        "tier": None,
        "cipher": "aes-128-xts",
        "operation": "seal",
        "source": memory,
        "out": memory,
        "repeats": 1,
        "page_size": PAGE,
    }
    measure.pages(**{**usual, **changed})


def overlapping() -> dict[str, Any]:
    memory = zeros(3 * PAGE)
    return {"source": memory[: 2 * PAGE], "out": memory[PAGE:]}


_OFFSETS = np.zeros(2, np.uint64)

REFUSED: list[tuple[type[errors.PyccmemError], str, Callable[[EncryptedBuffer], object]]] = [
    (errors.ArgumentTypeError, "tier", lambda _: _pages(tier=3)),
    (errors.TierError, "tier", lambda _: _pages(tier="sse9")),
    (errors.ArgumentTypeError, "cipher", lambda _: _pages(cipher=1)),
    (errors.ArgumentError, "'rot13'", lambda _: _pages(cipher="rot13")),
    (errors.ArgumentError, "'wipe'", lambda _: _pages(operation="wipe")),
    (errors.ArgumentTypeError, "operation", lambda _: _pages(operation=np.zeros(2))),
    (errors.ArgumentError, "repeats is 0", lambda _: _pages(repeats=0)),
    (errors.ArgumentError, "repeats", lambda _: _pages(repeats=2**63)),
    (errors.ArgumentTypeError, "repeats", lambda _: _pages(repeats=1.5)),
    (errors.PageSizeError, "page_size is 5000", lambda _: _pages(page_size=5000)),
    (errors.ArgumentError, "8192 bytes and out 4096", lambda _: _pages(out=zeros(PAGE))),
    (errors.ArgumentError, "whole pages", lambda _: _pages(source=bytearray(), out=bytearray())),
    (errors.ArgumentError, "whole pages", lambda _: _pages(source=zeros(9), out=zeros(9))),
    (errors.ReadOnlyOutputError, "source", lambda _: _pages(source=bytes(2 * PAGE))),
    (errors.ReadOnlyOutputError, "out", lambda _: _pages(out=bytes(2 * PAGE))),
    (errors.ArgumentError, "overlap", lambda _: _pages(**overlapping())),
    (errors.ArgumentError, "in place", lambda _: _pages(cipher=TAGGED[0], operation="open")),
    (errors.ArgumentError, "'rot13'", lambda _: measure.ceiling(None, "rot13", 1)),
    (errors.ArgumentError, "repeats", lambda _: measure.ceiling(None, "aes-128-xts", 0)),
    (errors.ArgumentError, "out 3", lambda _: measure.memcpy(bytearray(3), b"four")),
    (errors.ArgumentError, "overlap", lambda _: measure.memcpy(*[bytearray(64)] * 2)),
    (errors.BufferTypeError, "source", lambda _: measure.memcpy(bytearray(3), 3)),
    (errors.ArgumentError, "255 bytes", lambda _: measure.plain_read(bytes(255))),
    (errors.BufferTypeError, "memory", lambda _: measure.plain_read("text")),
    (
        errors.ArgumentError,
        "63 bytes",
        lambda _: measure.random_copies(bytes(63), 1, dependent=True),
    ),
    (
        errors.ArgumentError,
        "count is -1",
        lambda _: measure.random_copies(bytes(64), -1, dependent=True),
    ),
    (
        errors.ArgumentTypeError,
        "EncryptedBuffer",
        lambda _: measure.random_reads(bytearray(64), 1, dependent=True),  # type: ignore[arg-type]
    ),
    (errors.ArgumentError, "count", lambda b: measure.random_reads(b, 0, dependent=True)),
    (errors.ArgumentError, "empty", lambda b: measure.open_to_scratch(b, bytearray())),
    (errors.ReadOnlyOutputError, "scratch", lambda b: measure.open_to_scratch(b, bytes(8))),
    (
        errors.ArgumentTypeError,
        "int64",
        lambda b: measure.gather(b, _OFFSETS.astype(np.int64), 8, bytearray(16)),  # type: ignore[arg-type]
    ),
    (
        errors.ArgumentTypeError,
        "list",
        lambda b: measure.gather(b, [0], 8, bytearray(8)),  # type: ignore[arg-type]
    ),
    (errors.ArgumentError, "room", lambda b: measure.gather(b, _OFFSETS, 8, bytearray(17))),
    (errors.ArgumentError, "run", lambda b: measure.gather(b, _OFFSETS, 0, bytearray())),
    (errors.ArgumentError, "run", lambda b: measure.gather(b, _OFFSETS[:0], 2**70, bytearray())),
    (
        errors.NonContiguousError,
        "offsets",
        lambda b: measure.gather(b, np.zeros(4, np.uint64)[::2], 8, bytearray(16)),
    ),
    (
        errors.RangeError,
        "",
        lambda b: measure.gather(b, _OFFSETS + np.uint64(b.nbytes), 8, bytearray(16)),
    ),
    (errors.ArgumentError, "'magic'", lambda b: measure.mapped(b, 1 << 20, "magic")),
    (errors.ArgumentTypeError, "mechanism", lambda b: measure.mapped(b, 1 << 20, 0)),  # type: ignore[arg-type]
    (errors.ArgumentError, "block is 6000", lambda b: measure.mapped(b, 99, "auto", block=6000)),
    (errors.ArgumentError, "block is 64", lambda b: measure.mapped(b, 99, "auto", block=64)),
    (errors.ArgumentError, "of 8192", lambda b: measure.mapped(b, 99, "auto", block=8192)),
]


@pytest.mark.parametrize("number", range(len(REFUSED)))
def test_refused(buffer: EncryptedBuffer, number: int) -> None:
    error, words, call = REFUSED[number]
    with pytest.raises(error) as raised:
        call(buffer)
    assert words in str(raised.value)


def test_a_closed_buffer(buffer: EncryptedBuffer) -> None:
    buffer.close()
    for call in (
        lambda: measure.random_reads(buffer, 1, dependent=False),
        lambda: measure.open_to_scratch(buffer, bytearray(64)),
        lambda: measure.gather(buffer, _OFFSETS, 8, bytearray(16)),
        lambda: measure.gather(buffer, _OFFSETS[:0], 8, bytearray()),
        lambda: measure.mapped(buffer, 1 << 20, "auto"),
    ):
        with pytest.raises(errors.ClosedError):
            call()


def test_a_changed_page(buffer: EncryptedBuffer) -> None:
    support.damage(buffer, 5)
    for call in (
        lambda: measure.random_reads(buffer, 1000, dependent=False),
        lambda: measure.open_to_scratch(buffer, bytearray(PAGE)),
        lambda: measure.gather(buffer, np.full(2, 5 * PAGE, np.uint64), 8, bytearray(16)),
    ):
        with pytest.raises(errors.IntegrityError) as raised:
            call()
        assert raised.value.page == 5


def test_names_cannot_be_changed() -> None:
    assert next(iter(measure.SUITES)) == EncryptedBuffer.__init__.__kwdefaults__["cipher"]
    with pytest.raises(TypeError):
        measure.SUITES["none"] = measure.SUITES["aes-128-xts"]  # type: ignore[index]
