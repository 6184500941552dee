# SPDX-License-Identifier: Apache-2.0
"""Ciphertext that somebody changes: every way to open it raises IntegrityError and hands out zeros,
and the cache is as it was; put back, it opens."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from kv_support import DTYPES, data_of, numpy_type, tables_of, tag_of

from pyccmem import KVCache, errors
from pyccmem.core.kv_tables import Place

HEADS, SIZE = 2, 128


def filled(dtype: str = "float32", tokens: int = 21, seed: int = 0, sequences: int = 1) -> KVCache:
    """Of one layer, with blocks and with records."""
    rng = np.random.default_rng(seed)
    cache = KVCache(1, HEADS, SIZE, dtype=dtype, sequences=sequences, name="kv")
    for s in range(sequences):
        k, v = (rng.standard_normal((HEADS, tokens, SIZE)).astype(numpy_type(dtype)) for _ in "kv")
        cache.append(0, k, v, sequence=s)
    return cache


def places(cache: KVCache, sequence: int = 0) -> list[Place]:
    return tables_of(cache).places(0, sequence)


def query(seed: int = 1, rows: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((4, rows, SIZE)).astype("f4")


def assert_refused(cache: KVCache, place: Place, whole: bool = True) -> None:
    """That nothing which needs the place gives anything, and nothing changes."""
    before = cache.length(), cache.stats()
    for rows in (1, 20) if whole else (1,):
        out = np.ones((4, rows, SIZE), np.float32)
        with pytest.raises(errors.IntegrityError, match="cache 'kv'") as caught:
            cache.attend(0, query(rows=rows), out=out)
        assert not out.any() and caught.value.name == "kv"
    which = "kv"[place.which % 2]
    tables = tables_of(cache)
    if whole:
        with pytest.raises(errors.IntegrityError):
            cache.read(0, which)
        if place.which == 2 and before[0] % tables.block_tokens(0) > 0:
            new = np.ones((HEADS, tables.block_tokens(0), SIZE), numpy_type(cache.dtype))
            with pytest.raises(errors.IntegrityError):
                cache.append(0, new, new)
        if place.which != 2:
            with pytest.raises(errors.IntegrityError):
                cache.crop(place.first + 3)
    assert cache.length() == before[0]
    after = cache.stats()
    assert after["integrity_failures"] > before[1]["integrity_failures"]
    for name in ("blocks", "records", "ciphertext_bytes"):
        assert after[name] == before[1][name], name


class Damage:
    """Changes something, and puts it back."""

    def __init__(self, cache: KVCache, places: list[Place], change: Callable[..., None]) -> None:
        self.arrays = [of(place) for place in places for of in (data_of, tag_of)]
        self.kept = [array.copy() for array in self.arrays]
        self.cache, self.wanted = cache, cache.attend(0, query())
        change(*self.arrays)

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: Any) -> None:
        for array, kept in zip(self.arrays, self.kept, strict=True):
            array[...] = kept
        assert np.array_equal(self.cache.attend(0, query()), self.wanted)


def flips(place: Place, step: int) -> list[tuple[int, int]]:
    """Bits to flip: (byte, bit); bytes from nbytes on are the tag's."""
    data = [(at, at // step % 8) for at in range(0, place.nbytes, step)]
    return data + [(place.nbytes + at, bit) for at in range(16) for bit in range(8)]


def flip_all(cache: KVCache, step: int) -> int:
    count = 0
    for place in places(cache):
        data, tag = data_of(place), tag_of(place)
        for byte, bit in flips(place, step):
            array, at = (data, byte) if byte < len(data) else (tag, byte - len(data))
            array[at] ^= 1 << bit
            assert_refused(cache, place, whole=False)
            array[at] ^= 1 << bit
            count += 1
        with Damage(cache, [place], lambda data, tag: data.__setitem__(0, data[0] ^ 1)):
            assert_refused(cache, place)
    return count


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_bit_of_each_block_record_and_tag(dtype: str) -> None:
    tokens = {"float32": 21, "int8": 70}.get(dtype, 37)
    cache = filled(dtype, tokens)
    kinds = {place.which for place in places(cache)}
    assert kinds == {0, 1, 2}
    assert flip_all(cache, 113) > 1500


@pytest.mark.full
def test_every_bit_of_every_byte() -> None:
    cache = filled("float32", 9)
    for bit in range(8):
        for place in places(cache):
            data = data_of(place)
            for at in range(place.nbytes):
                data[at] ^= 1 << bit
                assert_refused(cache, place, whole=False)
                data[at] ^= 1 << bit


def test_zeros_and_truncated_blocks() -> None:
    cache = filled()
    for place in places(cache):
        for change in (
            lambda data, tag: data.fill(0),
            lambda data, tag: tag.fill(0),
            lambda data, tag: (data.fill(0), tag.fill(0)),
            lambda data, tag: data[len(data) // 2 :].fill(0),
            lambda data, tag: data[-1:].fill(data[-1] ^ 0x80),
        ):
            with Damage(cache, [place], change):
                assert_refused(cache, place)


def swap(data: Any, tag: Any, other_data: Any, other_tag: Any) -> None:
    for one, other in ((data, other_data), (tag, other_tag)):
        kept = one.copy()
        one[...] = other
        other[...] = kept


def test_blocks_and_records_in_each_others_place() -> None:
    """With their tags: of another head, of K for V, of other tokens, of another sequence."""
    cache = filled(tokens=37, sequences=2)
    first, second = places(cache, 0), places(cache, 1)
    pairs = [(one, other) for at, one in enumerate(first) for other in first[at + 1 :]]
    pairs += [(one, other) for one in first for other in second]
    tried = 0
    for one, other in pairs:
        if one.nbytes != other.nbytes:
            continue
        arrays = [of(place) for place in (one, other) for of in (data_of, tag_of)]
        swap(*arrays)
        with pytest.raises(errors.IntegrityError):
            cache.attend(0, np.stack([query(), query()]))
        swap(*arrays)
        tried += 1
    assert tried > 60
    cache.attend(0, np.stack([query(), query()]))


def test_what_was_there_before_does_not_come_back() -> None:
    """Older ciphertext and its tag, of the same tokens of the same sequence."""
    cache = filled(tokens=24)
    old = {
        (place.first, place.head, place.which): (data_of(place).copy(), tag_of(place).copy())
        for place in places(cache)
    }
    cache.crop(0)
    rng = np.random.default_rng(9)
    k, v = (rng.standard_normal((HEADS, 24, SIZE)).astype("f4") for _ in "kv")
    cache.append(0, k, v)
    count = 0
    for place in places(cache):
        data, tag = old[place.first, place.head, place.which]

        def replay(now: Any, now_tag: Any, data: Any = data, tag: Any = tag) -> None:
            now[...], now_tag[...] = data, tag

        with Damage(cache, [place], replay):
            assert_refused(cache, place)
        count += 1
    assert count == 3 * 2 * HEADS
    # The same for a token that was rejected and written again, as a record.
    cache.append(0, k[:, :2], v[:, :2])
    record = places(cache)[-1]
    data, tag = data_of(record).copy(), tag_of(record).copy()
    cache.crop(25)
    cache.append(0, k[:, 1:2], v[:, 1:2])  # the same contents, even
    again = places(cache)[-1]
    assert again.number != record.number and not np.array_equal(data_of(again), data)

    def replay_record(now: Any, now_tag: Any) -> None:
        now[...], now_tag[...] = data, tag

    with Damage(cache, [again], replay_record):
        assert_refused(cache, again)


def test_another_caches_ciphertext_does_not_open() -> None:
    """Of the same number, place and contents, under another key."""
    one, other = filled(), filled()
    for place, theirs in zip(places(one), places(other), strict=True):
        assert place.number == theirs.number and place.data != theirs.data
        assert not np.array_equal(data_of(place), data_of(theirs))
        data, tag = data_of(theirs), tag_of(theirs)

        def put(now: Any, now_tag: Any, data: Any = data, tag: Any = tag) -> None:
            now[...], now_tag[...] = data, tag

        with Damage(one, [place], put):
            assert_refused(one, place)


def test_what_is_not_needed_is_not_looked_at() -> None:
    """The control of the rest: damage to a block that no row sees is no failure."""
    cache = filled(tokens=40)  # 16 a block
    first = places(cache)[0]
    wanted = cache.attend(0, query(), window=8)
    data_of(first)[0] ^= 1
    assert np.array_equal(cache.attend(0, query(), window=8), wanted)
    with pytest.raises(errors.IntegrityError):
        cache.attend(0, query())
    tail = cache.read(0, "v", start=16, stop=40)
    assert tail.any()
    with pytest.raises(errors.IntegrityError):
        cache.read(0, "k", start=15, stop=40)
    cache.crop(32)
    cache.append(0, np.ones((HEADS, 9, SIZE), "f4"), np.ones((HEADS, 9, SIZE), "f4"))
    cache.evict(16)
    assert cache.attend(0, query()).any()


def test_a_changed_record_stops_the_append_that_needs_it() -> None:
    cache = filled(tokens=31)  # one more token fills a block
    record = places(cache)[-1]
    one = np.ones((HEADS, SIZE), "f4")
    data_of(record)[7] ^= 1
    before = cache.length(), [place.number for place in places(cache)]
    with pytest.raises(errors.IntegrityError):
        cache.append(0, one, one)
    assert before == (cache.length(), [place.number for place in places(cache)])
    data_of(record)[7] ^= 1
    cache.append(0, one, one)
    assert cache.length() == 32 and {place.which for place in places(cache)} == {0, 1}


def test_nothing_of_the_plaintext_is_in_the_ciphertext() -> None:
    rng = np.random.default_rng(3)
    k, v = (rng.standard_normal((HEADS, 29, SIZE)).astype("f4") for _ in "kv")
    cache = KVCache(1, HEADS, SIZE, dtype="float32")
    cache.append(0, k, v)
    stored = b"".join(data_of(place).tobytes() for place in places(cache))
    plain = k.tobytes() + v.tobytes()
    assert len(stored) == len(plain)
    assert not any(plain[at : at + 16] in stored for at in range(0, len(plain), 64))
    again = KVCache(1, HEADS, SIZE, dtype="float32")
    again.append(0, k, v)
    other = b"".join(data_of(place).tobytes() for place in places(again))
    assert other != stored and not any(
        stored[at : at + 16] in other for at in range(0, len(stored), 64)
    )
