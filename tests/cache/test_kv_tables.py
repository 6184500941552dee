# SPDX-License-Identifier: Apache-2.0
"""KVTables, which adapters use: raw memory in, raw memory out, and an exception for each status."""

from __future__ import annotations

import gc
import mmap
import struct
import threading
import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from kv_support import data_of
from support import in_forked_child

from pyccmem import errors
from pyccmem.core.kv_tables import Attention, KVTables, Rows

HEADS, KEY, VALUE = 2, 32, 16


def address(array: np.ndarray) -> int:
    return array.__array_interface__["data"][0]


def rows(array: np.ndarray, dtype: str = "float32") -> Rows:
    """Of an array of four axes."""
    return Rows(address(array), dtype, *(stride // array.itemsize for stride in array.strides[:3]))


def made(sequences: int = 1, tokens: int = 0, name: str | None = "kv") -> KVTables:
    tables = KVTables(sequences, name=name)
    assert tables.add_layer("float32", HEADS, KEY, VALUE) == 0
    if tokens:
        append(tables, tokens)
    return tables


def numbers(sequences: int, tokens: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return tuple(  # type: ignore[return-value]
        rng.standard_normal((sequences, HEADS, tokens, size)).astype("f4") for size in (KEY, VALUE)
    )


def append(tables: KVTables, tokens: int, seed: int = 0, **where: int) -> None:
    k, v = numbers(where.get("sequences", tables.sequences(0)), tokens, seed)
    tables.append(0, rows(k), rows(v), tokens, **where)


def attention(q: np.ndarray, out: np.ndarray, **options: Any) -> Attention:
    steps = [stride // 4 for stride in q.strides[:3]]
    others = [stride // 4 for stride in out.strides[:3]]
    fields: dict[str, Any] = {
        "layer": 0,
        "sequences": q.shape[0],
        "query_heads": q.shape[1],
        "rows": q.shape[2],
        "q": address(q),
        "q_dtype": "float32",
        "q_sequence": steps[0],
        "q_head": steps[1],
        "q_row": steps[2],
        "out": address(out),
        "out_sequence": others[0],
        "out_head": others[1],
        "out_row": others[2],
        "scale": 0.25,
        **options,
    }
    return Attention(**fields)


def read(tables: KVTables, which: str, first: int, tokens: int, sequence: int = 0) -> np.ndarray:
    out = np.ones((1, HEADS, tokens, KEY if which == "k" else VALUE), "f4")
    tables.read(0, sequence, which, first, tokens, rows(out))
    return out[0]


# ---- what it does --------------------------------------------------------------------------------


def test_rows_by_strides() -> None:
    """Token-major, head-major and repeated memory give the same."""
    tables = KVTables(3)
    layer = tables.add_layer("float32", HEADS, KEY, VALUE)
    k, v = numbers(1, 20)
    turned = [np.ascontiguousarray(one.transpose(0, 2, 1, 3)) for one in (k, v)]
    tables.append(layer, rows(k), rows(v), 20, sequence=0, sequences=1)
    by_token = [rows(one.transpose(0, 2, 1, 3)) for one in turned]
    tables.append(layer, *by_token, 20, sequence=1, sequences=1)
    repeated = [rows(one)._replace(sequence=0) for one in (k, v)]
    tables.append(layer, *repeated, 20, sequence=2)
    for sequence in range(3):
        assert np.array_equal(read(tables, "k", 0, 20, sequence), k[0])
        assert np.array_equal(read(tables, "v", 3, 9, sequence), v[0, :, 3:12])
    with pytest.raises(errors.ArgumentError):
        tables.append(layer, *repeated, 20, sequence=2, sequences=2)


def test_attention_by_addresses() -> None:
    tables = made(2, 30)
    rng = np.random.default_rng(1)
    q = rng.standard_normal((2, 4, 3, KEY)).astype("f4")
    out = np.zeros((2, 4, 3, VALUE), "f4")
    tables.attend(attention(q, out))
    one = np.zeros((1, 4, 3, VALUE), "f4")
    tables.attend(attention(q[1:], one, sequence=1))
    assert np.array_equal(one[0], out[1])
    mask = rng.standard_normal(30).astype("f4")
    masked, other = np.zeros_like(out), np.zeros_like(out)
    tables.attend(attention(q, masked, mask=address(mask), mask_tokens=30))
    wide = np.ascontiguousarray(np.broadcast_to(mask, (2, 4, 3, 30)))
    steps = {"mask_sequence": 360, "mask_head": 90, "mask_row": 30}
    tables.attend(attention(q, other, mask=address(wide), mask_tokens=30, **steps))
    assert np.array_equal(masked, other) and not np.array_equal(masked, out)
    short = np.zeros_like(out)
    bounds = np.array([20, 25], np.uint64)
    tables.attend(attention(q, short, mask=address(mask), mask_tokens=20, to=bounds, causal=False))
    tables.attend(attention(q, other, mask=address(mask), mask_tokens=30, to=bounds, causal=False))
    assert np.array_equal(short[0], other[0]) and not np.array_equal(short[1], other[1])


def test_layers_of_different_shapes() -> None:
    tables = KVTables(1)
    shapes = [("float32", 2, 32, 16), ("int8", 5, 128, 128), ("bfloat16", 1, 576, 512)]
    assert [tables.add_layer(*shape) for shape in shapes] == [0, 1, 2]
    assert [tables.sequences(layer) for layer in range(3)] == [1, 1, 1]
    assert all(tables.block_tokens(layer) >= 8 for layer in range(3))
    assert tables.length(2, 0) == (0, 0)


def test_stats_and_places() -> None:
    tables = made(1, 0)
    block = tables.block_tokens(0)
    append(tables, block + 3)
    places = tables.places(0, 0)
    assert [place.which for place in places] == [0] * HEADS + [1] * HEADS + [2] * 3
    assert [place.head for place in places[: 2 * HEADS]] == [0, 1, 0, 1]
    assert [place.first for place in places[2 * HEADS :]] == [block, block + 1, block + 2]
    assert all(place.tokens == (1 if place.which == 2 else block) for place in places)
    assert len({place.number for place in places}) == len(places)
    stats = tables.stats()
    assert (stats["blocks"], stats["records"]) == (2 * HEADS, 3)
    assert stats["sealed"] == 2 * HEADS + 3 and stats["integrity_failures"] == 0
    assert stats["ciphertext_bytes"] >= sum(place.nbytes for place in places)
    assert stats["memory_bytes"] >= stats["ciphertext_bytes"]


def test_what_is_opened_is_counted() -> None:
    tables = made(1, 0)
    block = tables.block_tokens(0)
    append(tables, 3 * block + 3)
    seen = [tables.stats()["opened"]]

    def opened() -> int:
        seen.append(tables.stats()["opened"])
        return seen[-1] - seen[-2]

    assert seen == [0]
    read(tables, "k", 0, 3 * block + 3)
    assert opened() == 3 * HEADS + 3
    read(tables, "v", block + 1, 1)
    assert opened() == HEADS
    for count in (1, 40):
        q, out = np.ones((1, 4, count, KEY), "f4"), np.zeros((1, 4, count, VALUE), "f4")
        tables.attend(attention(q, out, causal=False))
        assert opened() == 2 * 3 * HEADS + 3
        tables.attend(attention(q, out, causal=False, to=np.array([block], np.uint64)))
        assert opened() == 2 * HEADS + 3
    append(tables, block)
    assert opened() == 3
    tables.crop(0, 0, block + 1)
    assert opened() == 2 * HEADS


def test_forks_share_until_they_differ() -> None:
    tables = made(1, 40)
    other = tables.fork()
    before = tables.stats()
    assert before["sealed"] == other.stats()["sealed"]
    assert [p.data for p in tables.places(0, 0)] == [p.data for p in other.places(0, 0)]
    append(other, 1, seed=5)
    assert (tables.length(0, 0), other.length(0, 0)) == ((40, 0), (41, 0))
    tables.close()
    assert not other.erased
    assert np.array_equal(read(other, "k", 0, 40), numbers(1, 40)[0][0])
    other.erase()
    with pytest.raises(errors.ClosedError, match="erased"):
        read(other, "k", 0, 40)


# ---- failures ------------------------------------------------------------------------------------


def test_each_status_has_its_words() -> None:
    tables = made(2, 20)
    with pytest.raises(errors.RangeError, match=r"'kv' \(layer 0, sequence 1\).*tokens 0 to 20"):
        tables.crop(0, 1, 21)
    with pytest.raises(errors.RangeError, match=r"read\(\) of 5 tokens from 17"):
        read(tables, "k", 17, 5)
    with pytest.raises(errors.ArgumentError, match="there is no layer 7"):
        tables.crop(7, 0, 0)
    with pytest.raises(errors.ArgumentError, match="has 2 sequences, and sequence 2 is none"):
        tables.length(0, 2)
    with pytest.raises(errors.ArgumentError, match="heads is 0"):
        tables.add_layer("float32", 0, 1, 1)
    with pytest.raises(errors.ArgumentError, match="dtype 'float64'"):
        tables.add_layer("float64", 1, 1, 1)
    with pytest.raises(errors.ArgumentError):
        tables.reorder(0, [])
    with pytest.raises(errors.ArgumentError):
        tables.reorder(0, [0, 5])
    place = tables.places(0, 1)[0]
    data_of(place)[0] ^= 1
    out = np.ones((2, 2, 1, VALUE), "f4")
    with pytest.raises(errors.IntegrityError, match=r"cache 'kv' \(layer 0, sequence 0\)"):
        tables.attend(attention(np.ones((2, 2, 1, KEY), "f4"), out))
    assert not out.any()
    rest = np.ones((1, HEADS, 20, KEY), "f4")
    with pytest.raises(errors.IntegrityError, match=r"\(layer 0, sequence 1\)"):
        tables.read(0, 1, "k", 0, 20, rows(rest))
    assert not rest.any()


HOSTILE = [-1, 2**32, 2**64, 2**100, "1", None, 1.5]


@pytest.mark.parametrize("value", HOSTILE)
def test_numbers_that_are_none(value: Any) -> None:
    tables = made(1, 20)
    k, v = numbers(1, 2)
    out = np.ones((1, 2, 1, VALUE), "f4")
    q = np.ones((1, 2, 1, KEY), "f4")
    calls = [
        lambda: tables.append(value, rows(k), rows(v), 2),
        lambda: tables.append(0, rows(k), rows(v), 2, sequence=value),
        lambda: tables.append(0, rows(k), rows(v), 2, sequences=value if value is not None else -1),
        lambda: tables.append(0, rows(k)._replace(dtype=value), rows(v), 2),
        lambda: tables.crop(value, 0, 1),
        lambda: tables.crop(0, value, 1),
        lambda: tables.evict(value, 0, 1),
        lambda: tables.reorder(value, [0]),
        lambda: tables.reorder(0, [value]),
        lambda: tables.read(0, 0, value, 0, 1, rows(k)),
        lambda: tables.read(value, 0, "k", 0, 1, rows(k)),
        lambda: tables.length(value, 0),
        lambda: tables.places(0, value),
        lambda: tables.block_tokens(value),
        lambda: tables.sequences(value),
        lambda: tables.add_layer("float32", 1, value, 1),
        lambda: tables.attend(attention(q, out, layer=value)),
        lambda: tables.attend(attention(q, out, query_heads=value)),
        lambda: tables.attend(attention(q, out, q_dtype=value)),
        lambda: KVTables(value),
    ]
    for at, call in enumerate(calls):
        try:
            call()
        except (errors.ArgumentError, errors.ArgumentTypeError) as error:
            assert str(error)
        else:
            raise AssertionError(f"call {at} took {value!r}")
    assert tables.length(0, 0) == (20, 0)


def test_bounds_that_are_none() -> None:
    tables = made(2, 20)
    q, out = np.ones((2, 2, 1, KEY), "f4"), np.ones((2, 2, 1, VALUE), "f4")
    for bounds in ([1, 2], np.zeros(2, np.int64), np.zeros(2, ">u8"), 5):
        with pytest.raises(errors.ArgumentTypeError):
            tables.attend(attention(q, out, from_=bounds))
    for bounds in (np.zeros(3, "u8"), np.zeros((2, 1), "u8"), np.zeros(4, "u8")[::2]):
        with pytest.raises(errors.ArgumentError):
            tables.attend(attention(q, out, to=bounds))


def test_what_no_memory_can_hold() -> None:
    tables = made(1, 20)
    k, v = numbers(1, 1)
    long = [rows(one)._replace(token=0) for one in (k, v)]
    with pytest.raises((errors.OutOfMemoryError, errors.ArgumentError)):
        tables.append(0, *long, 1 << 39)
    with pytest.raises(errors.ArgumentError):
        tables.append(0, *long, 1 << 63)
    assert tables.length(0, 0) == (20, 0) and tables.stats()["records"] <= 20


# ---- life ----------------------------------------------------------------------------------------


def test_closed_and_never_made() -> None:
    tables = made(1, 20)
    for _ in range(2):
        tables.close()
    k, v = numbers(1, 1)
    calls = [
        lambda: tables.append(0, rows(k), rows(v), 1),
        lambda: tables.crop(0, 0, 0),
        lambda: tables.evict(0, 0, 0),
        lambda: tables.reorder(0, [0]),
        lambda: tables.length(0, 0),
        lambda: tables.sequences(0),
        lambda: tables.fork(),
        lambda: tables.erase(),
        lambda: tables.stats(),
        lambda: tables.places(0, 0),
        lambda: read(tables, "k", 0, 1),
        lambda: tables.add_layer("float32", 1, 1, 1),
        lambda: tables.attend(attention(k, v)),
        lambda: tables.__enter__(),
    ]
    assert tables.closed and tables.erased and "closed" in repr(tables)
    for call in calls:
        with pytest.raises(errors.ClosedError):
            call()
    empty = KVTables.__new__(KVTables)
    assert "never made" in repr(empty)
    for call in (empty.stats, empty.erase, lambda: empty.erased, lambda: empty.length(0, 0)):
        with pytest.raises(errors.ClosedError, match="never made"):
            call()
    empty.close()


def test_a_cycle_that_is_collected() -> None:
    """A finalizer that comes after the collector has been there still finds the cache whole."""
    found: list[Any] = []

    class Kept:
        def __init__(self) -> None:
            self.tables, self.me = made(1, 20), self

        def __del__(self) -> None:
            found.append(self.tables.length(0, 0))

    for _ in range(3):
        Kept()
    gc.collect()
    assert found == [(20, 0)] * 3


# ---- forks of the process ------------------------------------------------------------------------


def _attend_for_long(tables: KVTables, times: int) -> Callable[[], None]:
    """Holds the cache's lock for reading."""
    q = np.zeros((1, HEADS, 4000 * times, KEY), "f4")
    out = np.zeros((1, HEADS, 4000 * times, VALUE), "f4")
    return lambda: tables.attend(attention(q, out, causal=False))


def _append_for_long(tables: KVTables, times: int) -> Callable[[], None]:
    """Holds it for writing. The tokens are one row of memory."""
    k, v = (
        np.broadcast_to(np.ones(size, "f4"), (1, HEADS, 40_000 * times, size))
        for size in (KEY, VALUE)
    )
    return lambda: tables.append(0, rows(k), rows(v), k.shape[2])


@pytest.mark.parametrize("held", [_attend_for_long, _append_for_long])
def test_a_child_waits_for_no_lock_that_was_held_at_the_fork(held: Any) -> None:
    """The thread that holds it is not in the child, so whoever asked for it there would wait for
    ever: each use finds out that it is in a child first."""
    tables = made(1, 2000)
    q, out = np.ones((1, HEADS, 1, KEY), "f4"), np.zeros((1, HEADS, 1, VALUE), "f4")
    k, v = numbers(1, 1)
    uses: dict[str, Callable[[], Any]] = {
        "append": lambda: tables.append(0, rows(k), rows(v), 1, sequences=1),
        "attend": lambda: tables.attend(attention(q, out)),
        "read": lambda: read(tables, "k", 0, 5),
        "crop": lambda: tables.crop(0, 0, 5),
        "evict": lambda: tables.evict(0, 0, 5),
        "reorder": lambda: tables.reorder(0, [0]),
        "fork": tables.fork,
        "length": lambda: tables.length(0, 0),
        "stats": tables.stats,
        "places": lambda: tables.places(0, 0),
        "add_layer": lambda: tables.add_layer("float32", 1, 8, 8),
        "erased": lambda: tables.erased,
        "erase": tables.erase,
    }

    forked = mmap.mmap(-1, 8)  # the child's clock, which is the parent's

    def child() -> None:
        forked[:] = struct.pack("d", time.monotonic())
        for name, use in uses.items():
            try:
                use()
            except errors.ForkError:
                continue
            raise AssertionError(f"{name} works in the child")
        tables.close()
        gc.collect()
        assert not made(1, 20).erased

    for times in (1, 4, 16, 64):
        call, clock = held(tables, times), []

        def work(call: Any = call, clock: list[float] = clock) -> None:
            clock.append(time.monotonic())
            call()
            clock.append(time.monotonic())

        thread = threading.Thread(target=work)
        thread.start()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", errors.ForkWarning)
                time.sleep(0.03)
                in_forked_child(child, timeout=20)
        finally:
            thread.join()
        if clock[0] + 0.01 < struct.unpack("d", forked)[0] < clock[1] - 0.01:
            return
    pytest.fail("no fork came while the lock was held")
