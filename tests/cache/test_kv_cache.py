# SPDX-License-Identifier: Apache-2.0
"""KVCache: its interface, what it refuses, threads, and the life and death of its key."""

from __future__ import annotations

import copy
import gc
import os
import pickle
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from kv_support import data_of, tables_of
from support import check_python, in_forked_child, linux_only, not_sanitized, run_threads

import pyccmem
from pyccmem import Key, KVCache, errors
from pyccmem.binding import lib

HEADS, SIZE = 2, 64


def rows(tokens: int, seed: int = 0, heads: int = HEADS, size: int = SIZE) -> tuple[Any, Any]:
    rng = np.random.default_rng(seed)
    return tuple(rng.standard_normal((heads, tokens, size)).astype("f4") for _ in "kv")


def made(tokens: int = 0, layers: int = 1, sequences: int = 1, **options: Any) -> KVCache:
    options.setdefault("dtype", "float32")
    cache = KVCache(layers, HEADS, SIZE, sequences=sequences, **options)
    for layer in range(layers if tokens else 0):
        for sequence in range(sequences):
            cache.append(layer, *rows(tokens, 10 * layer + sequence), sequence=sequence)
    return cache


def query(rows: int = 1, sequences: int | None = None) -> np.ndarray:
    shape = (2 * HEADS, rows, SIZE) if sequences is None else (sequences, 2 * HEADS, rows, SIZE)
    return np.random.default_rng(7).standard_normal(shape).astype("f4")


# ---- interface -----------------------------------------------------------------------------------


def test_shapes_go_out_as_they_come_in() -> None:
    cache = made()
    k, v = rows(5)
    cache.append(0, k[:, :3], v[:, :3])
    cache.append(0, k[:, 3], v[:, 3])
    cache.append(0, k[None, :, 4:], v[None, :, 4:])
    assert cache.length() == len(cache) == 5 and np.array_equal(cache.read(0, "k")[0], k)
    assert np.array_equal(cache.read(0, "v", sequence=0, start=1, stop=3), v[:, 1:3])
    assert cache.read(0, "k", start=5).shape == (1, HEADS, 0, SIZE)
    q = query(3)
    wanted = cache.attend(0, q)
    assert wanted.shape == (4, 3, SIZE)
    assert cache.attend(0, q[None]).shape == (1, 4, 3, SIZE)
    assert cache.attend(0, q[:, 2]).shape == (4, SIZE)
    assert np.array_equal(cache.attend(0, q[:, 2]), wanted[:, 2])
    assert cache.attend(0, q[:, :0]).shape == (4, 0, SIZE)
    cache.append(0, k[:, :0], v[:, :0])
    assert cache.length() == 5


def test_sequences_and_layers() -> None:
    cache = KVCache(2, [2, 3], [64, 32], [16, 32], dtype="float32", sequences=2)
    rng = np.random.default_rng(0)
    k, v = rng.standard_normal((2, 2, 7, 64)), rng.standard_normal((2, 2, 7, 16))
    cache.append(0, k, v)
    k1, v1 = rows(9, 1, 3, 32)
    cache.append(1, k1, v1, sequence=1)
    assert [[cache.length(layer, s) for s in range(2)] for layer in range(2)] == [[7, 7], [0, 9]]
    q = query(2, 2)
    both = cache.attend(0, q)
    assert both.shape == (2, 4, 2, 16)
    assert np.array_equal(cache.attend(0, q[1], sequence=1), both[1])
    assert np.array_equal(cache.read(1, "v", sequence=1), v1)
    with pytest.raises(errors.ArgumentError, match="different tokens"):
        cache.read(1, "v")
    assert (cache.layers, cache.sequences, cache.dtype) == (2, 2, "float32")
    assert bool(KVCache(1, 1, 1)) and len(KVCache(1, 1, 1)) == 0


def test_results_lie_in_memory_that_is_wiped() -> None:
    cache = made(10)
    before = pyccmem.stats()["plain_blocks"]
    found, read = cache.attend(0, query()), cache.read(0, "k")
    assert pyccmem.stats()["plain_blocks"] == before + 2
    del found, read
    assert pyccmem.stats()["plain_blocks"] == before


def test_conversions_leave_nothing() -> None:
    """What is converted on its way in is wiped when the call ends, though an error keeps it."""
    cache = made(10)
    before = pyccmem.stats()["plain_blocks"]
    k, v = rows(3)
    cache.append(0, k.astype("f8"), v.astype("f8"))
    cache.attend(0, query().astype("f8"))
    assert pyccmem.stats()["plain_blocks"] == before
    try:
        cache.append(0, k.astype("f8"), v[:, :2].astype("f8"))
    except errors.ArgumentError as error:
        kept = error
    assert pyccmem.stats()["plain_blocks"] > before  # the traceback has them
    frame = kept.__traceback__
    found = []
    while frame is not None:
        found += [
            value.array for value in frame.tb_frame.f_locals.values() if hasattr(value, "copied")
        ]
        frame = frame.tb_next
    assert found and not any(array.any() for array in found)


def test_name_and_repr_say_nothing_secret() -> None:
    cache = made(3, name="chat")
    assert repr(cache) == "<pyccmem.KVCache 'chat', 1 layers, float32, open>"
    assert cache.fork().name == cache.name == "chat"
    cache.close()
    assert repr(cache) == "<pyccmem.KVCache 1 layers, float32, closed>"
    assert repr(KVCache.__new__(KVCache)) == "<pyccmem.KVCache, never made>"
    assert KVCache(1, 1, 1).name != KVCache(1, 1, 1).name
    with Key.from_bytes(b"Zq" * 16) as key:
        text = repr(KVCache(1, 1, 1, key=key))
        assert "Zq" not in text and key.id not in text


def test_stats_and_nbytes() -> None:
    cache = made(33, layers=2)
    stats = cache.stats()
    block = tables_of(cache).block_tokens(0)
    assert stats["blocks"] == 2 * 2 * HEADS * (33 // block)
    assert stats["records"] == 2 * (33 % block)
    plain = 2 * 33 * HEADS * 2 * SIZE * 4
    assert cache.nbytes == stats["memory_bytes"] >= stats["ciphertext_bytes"] >= plain


def test_open_caches_are_counted() -> None:
    gc.collect()
    before = pyccmem.stats()["caches"]
    cache = made(3)
    fork = cache.fork()
    assert pyccmem.stats()["caches"] == before + 2
    fork.close()
    assert pyccmem.stats()["caches"] == before + 1
    cache.erase()
    assert pyccmem.stats()["caches"] == before


def test_erased_evicted_and_cropped_memory_is_used_again() -> None:
    cache = made()
    cache.append(0, *rows(4000))
    most = cache.nbytes
    for _ in range(5):
        cache.crop(0)
        assert cache.stats()["ciphertext_bytes"] == 0
        cache.append(0, *rows(4000))
    assert cache.nbytes <= most * 1.2


# ---- beams and beginnings ------------------------------------------------------------------------


def test_beams_share_what_they_have() -> None:
    cache = made(64)
    one = cache.stats()
    cache.repeat(4)
    assert cache.sequences == 4 and cache.stats()["blocks"] == one["blocks"]
    assert cache.stats()["sealed"] == one["sealed"]
    for beam in range(4):
        cache.append(0, *rows(1, 50 + beam), sequence=beam)
    cache.reorder([3, 3, 0])
    wanted = [rows(1, 50 + beam)[0] for beam in (3, 3, 0)]
    for s in range(3):
        assert np.array_equal(cache.read(0, "k", sequence=s, start=64), wanted[s])
        assert np.array_equal(cache.read(0, "k", sequence=s, stop=64), rows(64)[0])
    cache.reorder([1])
    assert cache.sequences == 1


def test_a_shared_beginning() -> None:
    prefix = made(100, layers=2)
    sealed = prefix.stats()["sealed"]
    chats = [prefix.fork() for _ in range(5)]
    assert prefix.stats()["sealed"] == sealed
    for at, chat in enumerate(chats):
        chat.append(1, *rows(3, at))
        assert chat.length(1) == 103 and prefix.length(1) == 100
    assert [np.array_equal(c.read(1, "v", start=100)[0], rows(3, at)[1])
            for at, c in enumerate(chats)] == [True] * 5  # fmt: skip
    chats[2].erase()
    for cache in (*chats, prefix):
        with pytest.raises(errors.ClosedError):
            cache.attend(0, query())


def test_what_fails_in_one_layer_is_undone_in_all(monkeypatch: pytest.MonkeyPatch) -> None:
    cache = made(20, layers=3, sequences=2)
    tables = type(tables_of(cache))
    for name, call in (
        ("crop", lambda: cache.crop(5)),
        ("crop", lambda: cache.crop([7, 3])),
        ("reorder", lambda: cache.repeat(3)),
        ("reorder", lambda: cache.reorder([1])),
    ):
        real, calls = getattr(tables, name), []

        def failing(
            self: Any, layer: int, *rest: Any, real: Any = real, calls: Any = calls
        ) -> None:
            calls.append(layer)
            if layer == 2:
                raise errors.OutOfMemoryError("no memory")
            real(self, layer, *rest)

        monkeypatch.setattr(tables, name, failing)
        with pytest.raises(errors.OutOfMemoryError):
            call()
        monkeypatch.undo()
        assert {0, 1, 2} <= set(calls)
        assert [cache.length(layer, s) for layer in range(3) for s in range(2)] == [20] * 6
        assert [cache._opened().sequences(layer) for layer in range(3)] == [2] * 3
        cache.append(0, np.ones((2, HEADS, 1, SIZE), "f4"), np.ones((2, HEADS, 1, SIZE), "f4"))
        cache.crop(20, layer=0)


# ---- refusals ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [
        {"layers": 0}, {"layers": -1}, {"layers": 1 << 20}, {"layers": 10**40},
        {"heads": 0}, {"heads": 1 << 17}, {"heads": [1, 2]}, {"heads": []},
        {"key_size": 0}, {"key_size": 4097}, {"value_size": -3}, {"value_size": [64, 64]},
        {"dtype": "float64"}, {"dtype": "int4"}, {"sequences": 0}, {"sequences": 65537},
        {"level": "none"}, {"require": "most"},
    ],
    ids=str,
)  # fmt: skip
def test_caches_that_cannot_be(arguments: dict[str, Any]) -> None:
    gc.collect()
    slots = lib.ccmem_secret_slots()
    whole = {"layers": 1, "heads": 2, "key_size": 8, **arguments}
    with pytest.raises(errors.ArgumentError):
        KVCache(**whole)
    assert lib.ccmem_secret_slots() == slots


@pytest.mark.parametrize(
    "arguments",
    [
        {"layers": "1"}, {"layers": 1.0}, {"layers": True}, {"heads": None}, {"heads": ["a"]},
        {"key_size": b"8"}, {"dtype": np.float32}, {"dtype": None}, {"sequences": None},
        {"key": b"k" * 32}, {"key": "words"}, {"name": 5}, {"level": 3},
    ],
    ids=str,
)  # fmt: skip
def test_arguments_of_other_types(arguments: dict[str, Any]) -> None:
    gc.collect()
    slots = lib.ccmem_secret_slots()
    whole = {"layers": 1, "heads": 2, "key_size": 8, **arguments}
    with pytest.raises(errors.ArgumentTypeError):
        KVCache(**whole)
    assert lib.ccmem_secret_slots() == slots


def _refused_appends() -> dict[str, Callable[[KVCache], None]]:
    k, v = rows(3)
    return {
        "a layer": lambda c: c.append(1, k, v),
        "a negative layer": lambda c: c.append(-1, k, v),
        "a sequence": lambda c: c.append(0, k, v, sequence=2),
        "no sequence": lambda c: c.append(0, k, v),
        "heads": lambda c: c.append(0, k[:1], v[:1], sequence=0),
        "other tokens": lambda c: c.append(0, k, v[:, :2], sequence=0),
        "a size": lambda c: c.append(0, k[..., :60], v, sequence=0),
        "a size of v": lambda c: c.append(0, k, v[..., :60], sequence=0),
        "one axis": lambda c: c.append(0, k[0, 0], v[0, 0], sequence=0),
        "no axis": lambda c: c.append(0, 1.0, 2.0, sequence=0),
        "five axes": lambda c: c.append(0, k[None, None], v[None, None], sequence=0),
        "several sequences": lambda c: c.append(0, np.stack([k] * 3), np.stack([v] * 3)),
        "other axes": lambda c: c.append(0, k[0], v, sequence=1),
        "strings": lambda c: c.append(0, k.astype(str), v, sequence=0),
        "integers": lambda c: c.append(0, k.astype(int), v.astype(int), sequence=0),
        "complex": lambda c: c.append(0, k.astype(complex), v, sequence=0),
        "objects": lambda c: c.append(0, k.astype(object), v, sequence=0),
        "bytes": lambda c: c.append(0, b"abc", v, sequence=0),
        "nothing": lambda c: c.append(0, None, v, sequence=0),  # type: ignore[arg-type]
        "a text for a layer": lambda c: c.append("0", k, v, sequence=0),  # type: ignore[arg-type]
        "ragged lists": lambda c: c.append(0, [[1.0], [1.0, 2.0]], v, sequence=0),
    }


@pytest.mark.parametrize("what", _refused_appends())
def test_appends_that_are_refused(what: str) -> None:
    cache = made(5, sequences=2)
    before = cache.stats()
    with pytest.raises((errors.ArgumentError, errors.ArgumentTypeError)) as caught:
        _refused_appends()[what](cache)
    assert str(caught.value).endswith(".") and cache.stats() == before
    assert [cache.length(0, s) for s in range(2)] == [5, 5]


def _refused_attentions() -> dict[str, Callable[[KVCache], Any]]:
    q, out = query(), np.zeros((4, 1, SIZE), "f4")
    locked = out.copy()
    locked.flags.writeable = False
    calls: dict[str, dict[str, Any]] = {
        "a layer": {"layer": 3},
        "a sequence": {"sequence": 1},
        "heads": {"q": q[:3]},
        "no heads": {"q": q[:0]},
        "a size": {"q": q[..., :63]},
        "one axis": {"q": q[0, 0]},
        "two sequences": {"q": np.stack([q, q])},
        "integers": {"q": q.astype(int)},
        "a window": {"window": 0},
        "a negative window": {"window": -4},
        "a window of half": {"window": 0.5},
        "a scale": {"scale": float("nan")},
        "an endless scale": {"scale": float("inf")},
        "a large scale": {"scale": 1e300},
        "a text of scale": {"scale": "large"},
        "a softcap": {"softcap": -1.0},
        "softcap that is no number": {"softcap": float("nan")},
        "a mask": {"mask": np.zeros(9, bool)},
        "a mask of five axes": {"mask": np.zeros((1, 1, 1, 1, 10), bool)},
        "a mask of heads": {"mask": np.zeros((3, 1, 10), np.float32)},
        "a mask of integers": {"mask": np.zeros(10, int)},
        "sinks": {"sinks": np.zeros(3)},
        "texts of sinks": {"sinks": ["a"] * 4},
        "lengths": {"lengths": [1, 2]},
        "a negative length": {"lengths": -1},
        "starts": {"starts": [[1]]},
        "starts of half": {"starts": 1.5},
        "a list": {"out": out.tolist()},
        "a shape": {"out": out[0]},
        "a type": {"out": out.astype("f8")},
        "read-only": {"out": locked},
        "not dense": {"out": np.zeros((4, 1, 2 * SIZE), "f4")[..., ::2]},
        "q itself": {"out": q},
    }
    return {
        name: lambda c, call=call: c.attend(**{"layer": 0, "q": q, **call})
        for name, call in calls.items()
    }


@pytest.mark.parametrize("what", _refused_attentions())
def test_attentions_that_are_refused(what: str) -> None:
    cache = made(10)

    with pytest.raises((errors.ArgumentError, errors.ArgumentTypeError)) as caught:
        _refused_attentions()[what](cache)
    assert str(caught.value).endswith(".")
    assert cache.attend(0, query()).any()


def test_lists_that_are_refused() -> None:
    cache = made(40, sequences=2)
    cache.evict(16)
    calls: list[tuple[Callable[[], Any], type[Exception]]] = [
        (lambda: cache.crop(41), errors.RangeError),
        (lambda: cache.crop(3), errors.RangeError),
        (lambda: cache.crop(-1), errors.ArgumentError),
        (lambda: cache.crop([40]), errors.ArgumentError),
        (lambda: cache.crop(None), errors.ArgumentTypeError),  # type: ignore[arg-type]
        (lambda: cache.crop(1.5), errors.ArgumentTypeError),  # type: ignore[arg-type]
        (lambda: cache.crop(20, layer=1), errors.ArgumentError),
        (lambda: cache.evict(-1), errors.ArgumentError),
        (lambda: cache.evict([1, 2, 3]), errors.ArgumentError),
        (lambda: cache.reorder([]), errors.ArgumentError),
        (lambda: cache.reorder([2]), errors.ArgumentError),
        (lambda: cache.reorder([-1]), errors.ArgumentError),
        (lambda: cache.reorder([0.5]), errors.ArgumentTypeError),  # type: ignore[list-item]
        (lambda: cache.reorder([0] * 70_000), errors.ArgumentError),
        (lambda: cache.repeat(0), errors.ArgumentError),
        (lambda: cache.repeat(1 << 40), errors.ArgumentError),
        (lambda: cache.read(0, "q"), errors.ArgumentError),
        (lambda: cache.read(0, "k", start=0, stop=1), errors.RangeError),
        (lambda: cache.read(0, "k", start=30, stop=41), errors.RangeError),
        (lambda: cache.read(0, "k", start=30, stop=20), errors.ArgumentError),
        (lambda: cache.read(0, "k", start=-1), errors.ArgumentError),
        (lambda: cache.length(0, 2), errors.ArgumentError),
        (lambda: cache.length(0, None), errors.ArgumentTypeError),  # type: ignore[arg-type]
        (lambda: cache.first(1), errors.ArgumentError),
    ]
    for at, (call, kind) in enumerate(calls):
        with pytest.raises(kind):
            call()
        assert cache.length() == 40 and cache.sequences == 2, at
    cache.crop(16)
    assert cache.length() == cache.first() == 16
    cache.append(0, np.ones((2, HEADS, 1, SIZE)), np.ones((2, HEADS, 1, SIZE)))
    assert cache.attend(0, query(1, 2)).any()


def test_no_copies() -> None:
    cache = made(3)
    for refused in (copy.copy, copy.deepcopy, pickle.dumps):
        with pytest.raises(errors.NotPicklableError, match="fork"):
            refused(cache)


# ---- the life of the key -------------------------------------------------------------------------


def _uses(cache: KVCache) -> dict[str, Callable[[], Any]]:
    k, v = rows(1)
    return {
        "append": lambda: cache.append(0, k, v),
        "attend": lambda: cache.attend(0, query()),
        "read": lambda: cache.read(0, "k"),
        "crop": lambda: cache.crop(5),
        "reorder": lambda: cache.reorder([0]),
        "repeat": lambda: cache.repeat(2),
        "fork": cache.fork,
        "export": lambda: cache.export("/nonexistent/file"),
    }


@pytest.mark.parametrize("use", _uses(made()))
def test_after_erase_every_use_is_refused(use: str) -> None:
    cache = made(20)
    cache.erase()
    cache.erase()
    with pytest.raises(errors.ClosedError, match="erased"):
        _uses(cache)[use]()
    assert cache.erased and not cache.closed
    cache.close()
    assert cache.erased and cache.closed
    with pytest.raises(errors.ClosedError, match="closed"):
        _uses(cache)[use]()


def test_the_key_goes_with_erase_close_and_the_last_reference() -> None:
    gc.collect()
    slots = lib.ccmem_secret_slots()
    for end in (KVCache.erase, KVCache.close, lambda cache: None):
        cache = made(20)
        assert lib.ccmem_secret_slots() == slots + 1
        fork = cache.fork()
        assert lib.ccmem_secret_slots() == slots + 1
        end(cache)
        if end is KVCache.erase:
            assert lib.ccmem_secret_slots() == slots
        else:
            assert fork.read(0, "k").any()
            end(fork)
        del cache, fork
        gc.collect()
        assert lib.ccmem_secret_slots() == slots


def test_a_key_of_its_own_goes_with_it() -> None:
    slots = lib.ccmem_secret_slots()
    cache = made(20)
    fork = cache.fork()
    own = cache.key
    assert own is cache.key is fork.key and lib.ccmem_secret_slots() == slots + 2
    cache.close()
    assert not own.closed
    fork.erase()
    assert own.closed and lib.ccmem_secret_slots() == slots
    with pytest.raises(errors.ClosedError, match="erased"):
        fork.key  # noqa: B018
    other = made(20)
    own = other.key
    other.close()
    assert own.closed
    with Key.generate() as given:
        with made(20, key=given) as cache:
            assert cache.key is given
        cache = made(3, key=given)
        cache.erase()
        assert not given.closed


def test_erase_of_a_large_cache() -> None:
    cache = made()
    cache.append(0, *rows(40_000))
    took = _time(cache.fork().erase)
    print(f"erase of {cache.nbytes >> 20} MiB: {took * 1e6:.0f} us")
    with pytest.raises(errors.ClosedError):
        cache.read(0, "k", stop=1)


def _time(call: Callable[[], Any]) -> float:
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def test_closing_while_a_call_runs() -> None:
    cache = made(3000)
    q = query(50)
    wanted = cache.attend(0, q)
    stop: list[int] = []

    def attending() -> None:
        try:
            while not stop:
                assert np.array_equal(cache.attend(0, q), wanted)
        except errors.ClosedError:
            pass

    def erasing(end: Callable[[], None]) -> Callable[[], None]:
        def work() -> None:
            time.sleep(0.05)
            end()
            stop.append(1)

        return work

    run_threads([attending, attending, erasing(cache.erase)])
    cache = made(3000)
    stop.clear()
    run_threads([attending, attending, erasing(cache.close)])


@linux_only
def test_levels() -> None:
    assert made(3, level="mlock").read(0, "k").any()
    if pyccmem.cpu_info() and lib.ccmem_secret_probe() == lib.CCMEM_SECRET_MEMFD:
        assert made(3, require="secretmem").read(0, "k").any()
    with pytest.raises(errors.ArgumentError, match="exclude"):
        made(level="mlock", require="secretmem")


def test_in_a_forked_child(key: Key) -> None:
    cache = made(20, key=key)

    def child() -> None:
        for name, use in _uses(cache).items():
            with pytest.raises(errors.ForkError, match="belongs to the process"):
                use()
            assert name
        for use in (cache.erase, cache.stats, lambda: cache.length(), lambda: cache.erased):
            with pytest.raises(errors.ForkError):
                use()
        assert "KVCache" in repr(cache)
        new = made(5)
        assert new.read(0, "k").any()
        cache.close()
        gc.collect()

    in_forked_child(child)
    assert cache.read(0, "k").any()


def test_a_fork_is_warned_of(key: Key) -> None:
    cache = made(3, name="a chat")
    with pytest.warns(errors.ForkWarning, match="'a chat' .a key-value cache"):
        pid = os.fork()
        if not pid:
            os._exit(0)
    os.waitpid(pid, 0)
    cache.erase()


AT_EXIT = """
import atexit, sys
import numpy as np
from pyccmem import KVCache
from pyccmem.binding import lib
from pyccmem.core import kv_tables

def show():
    print("slots", lib.ccmem_secret_slots(), flush=True)

# What is registered last runs first.
atexit.unregister(kv_tables._erase_all)
atexit.register(show)
if sys.argv[1] == "with":
    atexit.register(kv_tables._erase_all)
cache = KVCache(1, 1, 8, dtype="float32")
cache.append(0, np.ones((1, 5, 8)), np.ones((1, 5, 8)))
show()
"""


def test_erased_at_exit() -> None:
    """And the control: without the hook, the key is there until the process is gone."""
    assert check_python(AT_EXIT, "with").split() == ["slots", "1", "slots", "0"]
    assert check_python(AT_EXIT, "without").split() == ["slots", "1", "slots", "1"]


# ---- threads -------------------------------------------------------------------------------------


def test_eight_conversations_in_eight_threads() -> None:
    def conversation(seed: int) -> Callable[[], None]:
        def work() -> None:
            k, v = rows(120, seed)
            q = query()
            with made(layers=2) as cache, made(120) as plain:
                plain.crop(0)
                plain.append(0, k, v)
                wanted = plain.attend(0, q)
                for turn in range(20):
                    part = slice(6 * turn, 6 * turn + 6)
                    for layer in range(2):
                        cache.append(layer, k[:, part], v[:, part])
                    cache.append(1, k[:, :3], v[:, :3])
                    cache.crop(6 * turn + 6)
                    cache.attend(turn % 2, q)
                for layer in range(2):
                    assert np.array_equal(cache.read(layer, "k")[0], k)
                    assert np.allclose(cache.attend(layer, q), wanted, atol=1e-6)

        return work

    run_threads([conversation(seed) for seed in range(8)])


def test_eight_threads_on_one_cache() -> None:
    cache = made(layers=1, sequences=8)

    def work(s: int) -> Callable[[], None]:
        def append() -> None:
            k, v = rows(90, s)
            for t in range(0, 90, 3):
                cache.append(0, k[:, t : t + 3], v[:, t : t + 3], sequence=s)
                cache.append(0, k[:, :2], v[:, :2], sequence=s)
                tables_of(cache).crop(0, s, t + 3)
                cache.attend(0, query(), sequence=s)
            assert np.array_equal(cache.read(0, "v", sequence=s), v)

        return append

    run_threads([work(s) for s in range(8)])
    numbers = [
        (place.number, data_of(place).tobytes())
        for s in range(8)
        for place in tables_of(cache).places(0, s)
    ]
    assert len({number for number, _ in numbers}) == len(numbers)


def test_eight_forks_in_eight_threads() -> None:
    """They have a key, its numbers and the memory of slots in common, and locks of their own."""
    prefix = made(100)
    forks = [prefix.fork() for _ in range(8)]
    sealed: list[int] = []

    def work(at: int) -> Callable[[], None]:
        def append() -> None:
            k, v = rows(60, at)
            for t in range(0, 60, 3):
                forks[at].append(0, k[:, t : t + 3], v[:, t : t + 3])
                forks[at].attend(0, query())
                sealed.extend(place.number for place in tables_of(forks[at]).places(0, 0)[-3:])
            assert np.array_equal(forks[at].read(0, "v", start=100)[0], v)
            forks[at].crop(100)

        return append

    run_threads([work(at) for at in range(8)])
    own = {place.number for place in tables_of(prefix).places(0, 0)}
    assert len(set(sealed) - own) == len(sealed)
    assert np.array_equal(prefix.read(0, "k"), forks[3].read(0, "k"))


def test_the_gil_is_free_meanwhile() -> None:
    cache = made()
    cache.append(0, *rows(20_000))
    q = query(64)
    count, stop = [0], []

    def counting() -> None:
        while not stop:
            count[0] += 1

    def attending() -> None:
        for _ in range(3):
            cache.attend(0, q)
        stop.append(1)

    run_threads([counting, attending])
    assert count[0] > 1000


@linux_only
@not_sanitized
def test_caches_leave_no_memory_behind() -> None:
    def life() -> None:
        with made(500, layers=2) as cache:
            fork = cache.fork()
            fork.append(0, *rows(5))
            cache.attend(0, query())
            fork.close()

    for _ in range(30):
        life()
    gc.collect()
    before = _resident()
    for _ in range(300):
        life()
    gc.collect()
    assert _resident() - before < 8 << 20


def _resident() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
