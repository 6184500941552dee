# SPDX-License-Identifier: Apache-2.0
"""Caches as sealed files: what was exported is loaded, under a key that was never used before; and
what became of the file's key decides who can."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from kv_support import DTYPES, data_of, numpy_type, tables_of
from support import child_environment, linux_only, not_sanitized

import pyccmem
from pyccmem import Key, KVCache, errors
from pyccmem.safetensors import Passphrase, decrypt_file, inspect_file, load_file, save_file

HEADS, SIZE = 2, 64


def filled(dtype: str = "float32", lengths: Any = ((40, 7), (33, 0)), **options: Any) -> KVCache:
    """Of layers of different shapes, and sequences of different lengths."""
    rng = np.random.default_rng(3)
    cache = KVCache(2, [HEADS, 3], [SIZE, 24], [40, 16], dtype=dtype, sequences=2, **options)
    for layer, (heads, key, value) in enumerate(((HEADS, SIZE, 40), (3, 24, 16))):
        for s, tokens in enumerate(lengths[layer]):
            k, v = (
                rng.standard_normal((heads, tokens, size)).astype(numpy_type(dtype))
                for size in (key, value)
            )
            cache.append(layer, k, v, sequence=s)
    return cache


def assert_same(one: KVCache, other: KVCache) -> None:
    assert (one.layers, one.sequences, one.dtype) == (other.layers, other.sequences, other.dtype)
    for layer in range(one.layers):
        for s in range(one.sequences):
            assert one.length(layer, s) == other.length(layer, s)
            assert one.first(layer, s) == other.first(layer, s)
            for which in "kv":
                a, b = (cache.read(layer, which, sequence=s) for cache in (one, other))
                assert a.dtype == b.dtype and a.shape == b.shape
                assert a.tobytes() == b.tobytes()


# ---- there and back ------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_was_exported_is_loaded(dtype: str, key: Key, tmp_path: Path) -> None:
    cache = filled(dtype)
    pin = cache.export(tmp_path / "chat", key=key)
    with KVCache.load(tmp_path / "chat", key, expect=pin, name="again") as other:
        assert other.name == "again" and other.key is key
        assert_same(cache, other)
        q = np.random.default_rng(1).standard_normal((2, 4, 1, SIZE)).astype("f4")
        assert np.allclose(cache.attend(0, q), other.attend(0, q), atol=1e-5)
        other.append(0, *(np.ones((2, HEADS, 1, size), numpy_type(dtype)) for size in (SIZE, 40)))
        assert other.length() == 41 and cache.length() == 40


def test_a_file_is_bound_to_a_context(key: Key, tmp_path: Path) -> None:
    path, tenant = tmp_path / "chat", {"tenant": "a"}
    with filled("float32") as cache:
        cache.export(path, key=key, context=tenant)
        for context in (None, tenant):
            with KVCache.load(path, key, context=context) as other:
                assert_same(cache, other)
        with pytest.raises(errors.ContextError, match="tenant=b is needed"):
            KVCache.load(path, key, context={"tenant": "b"})
        with pytest.raises(errors.ArgumentError, match=r"pyccmem\."):
            cache.export(path, key=key, context={"pyccmem.file_id": "0"})


def test_int8_of_all_magnitudes(key: Key, tmp_path: Path) -> None:
    """What was opened is quantised to the same bytes and scales again: (m / 127) * 127 is m for
    every float32 m, rounded as it is."""
    cache = KVCache(1, 1, 64, dtype="int8")
    rng = np.random.default_rng(4)
    sizes = 2.0 ** rng.uniform(-140, 127, (3000, 1))  # below, scales are 0
    rows = (rng.uniform(-1, 1, (3000, 64)) * sizes).astype("f4")
    cache.append(0, rows[None], rows[None, ::-1])
    cache.export(tmp_path / "file", key=key)
    with KVCache.load(tmp_path / "file", key) as other:
        assert_same(cache, other)


def test_nothing_at_all(key: Key, tmp_path: Path) -> None:
    cache = filled(lengths=((0, 0), (0, 0)))
    cache.export(tmp_path / "empty", key=key)
    other = KVCache.load(tmp_path / "empty", key)
    assert_same(cache, other)
    assert len(other) == 0


def test_evicted_tokens_keep_their_places(key: Key, tmp_path: Path) -> None:
    cache = filled(lengths=((500, 100), (300, 40)))
    cache.evict([450, 64], layer=0)
    cache.evict(300, layer=1)
    firsts = [[cache.first(layer, s) for s in range(2)] for layer in range(2)]
    assert all(all(pair) for pair in firsts[:1])
    cache.export(tmp_path / "window", key=key)
    other = KVCache.load(tmp_path / "window", key)
    assert_same(cache, other)
    q = np.random.default_rng(1).standard_normal((2, 4, 3, SIZE)).astype("f4")
    for options in ({}, {"window": 20}, {"starts": [460, 70]}):
        assert np.allclose(cache.attend(0, q, **options), other.attend(0, q, **options), atol=1e-6)


def test_more_than_a_window(key: Key, tmp_path: Path) -> None:
    """Of what passes through plaintext at a time, each way."""
    cache = KVCache(1, 3, 100, 70, dtype="float16")
    rng = np.random.default_rng(0)
    k, v = (rng.standard_normal((3, 9000, size)).astype("f2") for size in (100, 70))
    cache.append(0, k, v)
    seen: list[tuple[int, int]] = []
    cache.export(tmp_path / "long", key=key, progress=lambda *at: seen.append(at))
    assert seen[-1][0] == seen[-1][1] == k.nbytes + v.nbytes and len(seen) > 4
    seen.clear()
    other = KVCache.load(tmp_path / "long", key, progress=lambda *at: seen.append(at))
    assert seen[-1][0] == seen[-1][1] == k.nbytes + v.nbytes
    assert np.array_equal(other.read(0, "k")[0], k) and np.array_equal(other.read(0, "v")[0], v)


@linux_only
@not_sanitized
def test_plaintext_is_bounded_and_wiped(key: Key, tmp_path: Path) -> None:
    cache = KVCache(1, 8, 128, dtype="float16")
    block = np.ones((8, 20_000, 128), np.float16)
    cache.append(0, block, block)  # 40 MB each
    before = pyccmem.stats()
    pyccmem.set_plaintext_budget(before["plaintext_reserved"] + (24 << 20))
    try:
        cache.export(tmp_path / "file", key=key)
        other = KVCache.load(tmp_path / "file", key)
        assert other.length() == 20_000
    finally:
        pyccmem.set_plaintext_budget(None)
    assert pyccmem.stats()["plain_in_use"] == before["plain_in_use"]


def test_a_file_is_what_the_cache_was_when_it_began(key: Key, tmp_path: Path) -> None:
    cache = filled()

    def change(done: int, total: int) -> None:
        if cache.length() == 40:
            cache.append(0, *(np.ones((2, HEADS, 30, size), "f4") for size in (SIZE, 40)))
            cache.crop(3, layer=1) if cache.length(1, 1) >= 3 else cache.evict(32, layer=1)

    wanted = filled()
    cache.export(tmp_path / "file", key=key, progress=change)
    assert cache.length() == 70
    assert_same(wanted, KVCache.load(tmp_path / "file", key))


def test_passphrases_open_files_too(tmp_path: Path) -> None:
    phrase = Passphrase("words of mine", n=16)
    cache = filled(key=phrase)
    cache.export(tmp_path / "file")
    assert_same(cache, KVCache.load(tmp_path / "file", Passphrase("words of mine", n=16)))
    with pytest.raises(errors.InvalidKeyError):
        KVCache.load(tmp_path / "file", Passphrase("other words", n=16))


# ---- keys ----------------------------------------------------------------------------------------


def test_a_loaded_cache_seals_as_no_other_did(key: Key, tmp_path: Path) -> None:
    """Restart and rollback: the same file twice, continued alike, has no ciphertext in common."""
    cache = filled()
    cache.export(tmp_path / "file", key=key)
    loaded = [KVCache.load(tmp_path / "file", key) for _ in range(2)]
    more = [np.ones((2, HEADS, 20, size), "f4") for size in (SIZE, 40)]
    for one in (cache, *loaded):
        one.append(0, *more)
    stored = [
        {(p.number, data_of(p).tobytes()) for s in range(2) for p in tables_of(one).places(0, s)}
        for one in (cache, *loaded)
    ]
    numbers = [{number for number, _ in of} for of in stored]
    assert numbers[1] == numbers[2] and len(numbers[0]) > 10
    contents = [{data for _, data in of} for of in stored]
    assert not contents[0] & contents[1] and not contents[1] & contents[2]
    assert len(contents[1]) == len(stored[1])


def test_an_export_dies_with_the_caches_own_key(key: Key, tmp_path: Path) -> None:
    cache = filled()
    cache.export(tmp_path / "mine")
    cache.export(tmp_path / "kept", key=key)
    own = cache.key
    assert_same(cache, KVCache.load(tmp_path / "mine", own))
    cache.erase()
    for dead in (own,):
        with pytest.raises(errors.ClosedError):
            KVCache.load(tmp_path / "mine", dead)
    for other in (Key.generate(), key):
        with pytest.raises(errors.InvalidKeyError):
            KVCache.load(tmp_path / "mine", other)
    assert KVCache.load(tmp_path / "kept", key).length() == 40


def test_another_key_opens_nothing(key: Key, tmp_path: Path) -> None:
    filled(key=key).export(tmp_path / "file")
    raw = (tmp_path / "file").read_bytes()
    with Key.generate() as other, pytest.raises(errors.InvalidKeyError):
        KVCache.load(tmp_path / "file", other)
    cache = filled()
    for layer in range(2):
        for which in "kv":
            plain = cache.read(layer, which, sequence=0).tobytes()
            assert not any(plain[at : at + 16] in raw for at in range(0, len(plain), 64))
    for word in (b"0.0.k", b"float32", b"extents"):
        assert word not in raw


# ---- other files, and broken ones ----------------------------------------------------------------


def test_files_that_are_no_caches(key: Key, tmp_path: Path) -> None:
    path = tmp_path / "file"
    with pytest.raises(errors.FileReadError):
        KVCache.load(path, key)
    path.write_bytes(b"x" * 5000)
    with pytest.raises(errors.FileFormatError):
        KVCache.load(path, key)
    save_file({"a": np.ones(3)}, path, key=key)
    with pytest.raises(errors.FileFormatError, match="not of a key-value cache"):
        KVCache.load(path, key)
    plain = tmp_path / "plain"
    decrypt_file(path, plain, key)
    with pytest.raises((errors.FileFormatError, errors.IntegrityError)):
        KVCache.load(plain, key)
    filled().export(path, key=key)
    assert len(load_file(path, key=key)) == 8  # and any reader of sealed files takes it
    assert inspect_file(path).page_size == 4096


GOOD = {
    "format": "pyccmem key-value cache",
    "version": "1",
    "dtype": "float32",
    "layers": "[[1, 8, 4]]",
    "extents": "[[[2, 0]]]",
}


@pytest.mark.parametrize(
    "change",
    [
        {"version": "2"}, {"version": None}, {"dtype": "float64"}, {"dtype": "float16"},
        {"dtype": None}, {"layers": None}, {"layers": "[]"}, {"layers": "[[1, 8]]"},
        {"layers": "[[1, 8, 4], [1, 8, 4]]"}, {"layers": "{}"}, {"layers": "5"},
        {"layers": "[[1.0, 8, 4]]"}, {"layers": "[[1, 8, 4]"}, {"layers": "[[1, 8, 5]]"},
        {"layers": "[[-1, 8, 4]]"}, {"layers": "[" * 100_000}, {"layers": "[[true, 8, 4]]"},
        {"extents": None}, {"extents": "[]"}, {"extents": "[[]]"}, {"extents": "[[[3, 0]]]"},
        {"extents": "[[[2, 3]]]"}, {"extents": "[[[2, -1]]]"}, {"extents": "[[[2, 0.0]]]"},
        {"extents": "[[[2, 0], [2, 0]]]"}, {"extents": "[[[2]]]"}, {"extents": "[[2, 0]]"},
        {"extents": "[[[1e99, 0]]]"}, {"extents": f"[[[{10**300}, {10**300 - 2}]]]"},
    ],
    ids=lambda change: str(change)[:40],
)  # fmt: skip
def test_files_that_say_what_cannot_be(change: Any, key: Key, tmp_path: Path) -> None:
    """Only who has the key can make one; it is refused all the same."""
    metadata = {name: text for name, text in {**GOOD, **change}.items() if text is not None}
    tensors = {"0.0.k": np.ones((2, 1, 8), "f4"), "0.0.v": np.ones((2, 1, 4), "f4")}
    save_file(tensors, tmp_path / "good", key=key, metadata=GOOD)
    assert KVCache.load(tmp_path / "good", key).length() == 2  # the control
    save_file(tensors, tmp_path / "bad", key=key, metadata=metadata)
    with pytest.raises(errors.FileFormatError, match=r"KVCache\.export|knows version"):
        KVCache.load(tmp_path / "bad", key)


def test_other_tensors_are_refused(key: Key, tmp_path: Path) -> None:
    good = {"0.0.k": np.ones((2, 1, 8), "f4"), "0.0.v": np.ones((2, 1, 4), "f4")}
    for change in (
        {"0.0.v": np.ones((2, 1, 8), "f4")},
        {"0.0.v": np.ones((2, 1, 4), "f8")},
        {"0.1.k": np.ones((2, 1, 8), "f4")},
    ):
        save_file({**good, **change}, tmp_path / "bad", key=key, metadata=GOOD)
        with pytest.raises(errors.FileFormatError):
            KVCache.load(tmp_path / "bad", key)
    save_file({"0.0.k": good["0.0.k"]}, tmp_path / "bad", key=key, metadata=GOOD)
    with pytest.raises(errors.FileFormatError):
        KVCache.load(tmp_path / "bad", key)


def test_a_changed_or_an_older_file(key: Key, tmp_path: Path) -> None:
    path = tmp_path / "file"
    cache = filled()
    first = cache.export(path, key=key)
    older = path.read_bytes()
    slots = pyccmem.binding.lib.ccmem_secret_slots()
    second = cache.export(path, key=key)
    assert first != second
    with pytest.raises(errors.IntegrityError):
        KVCache.load(path, key, expect=first)
    path.write_bytes(older)
    with pytest.raises(errors.IntegrityError):
        KVCache.load(path, key, expect=second)
    pick = random.Random(1)
    for _ in range(60):
        raw = bytearray(older)
        raw[pick.randrange(len(raw))] ^= 1 << pick.randrange(8)
        path.write_bytes(raw)
        try:
            found = KVCache.load(path, key)
        except errors.PyccmemError:
            continue
        assert_same(cache, found)  # a bit of what fills up a page
        found.close()
    path.write_bytes(older[: len(older) // 2])
    with pytest.raises((errors.FileFormatError, errors.FileReadError)):
        KVCache.load(path, key)
    assert pyccmem.binding.lib.ccmem_secret_slots() == slots


def test_exports_that_are_refused(key: Key, tmp_path: Path) -> None:
    cache = filled()
    for options, kind in (
        ({"key": b"k" * 32}, errors.ArgumentTypeError),
        ({"progress": 5}, errors.ArgumentTypeError),
    ):
        with pytest.raises(kind):
            cache.export(tmp_path / "file", **{"key": key, **options})  # type: ignore[arg-type]
    with pytest.raises(errors.FileWriteError):
        cache.export(tmp_path / "no" / "file", key=key)
    place = tables_of(cache).places(0, 0)[0]
    data_of(place)[0] ^= 1
    with pytest.raises(errors.IntegrityError):
        cache.export(tmp_path / "file", key=key)
    data_of(place)[0] ^= 1
    with Key.generate() as closed:
        pass
    with pytest.raises(errors.ClosedError):
        cache.export(tmp_path / "file", key=closed)
    assert list(tmp_path.iterdir()) == []


# ---- killed --------------------------------------------------------------------------------------

KILLED = """
import sys
import numpy as np
from pyccmem import Key, KVCache
key = Key.from_bytes(bytes(range(32)))
cache = KVCache(2, 2, 64, dtype="float32")
for token in range(100_000):
    row = np.full((2, 64), token, np.float32)
    for layer in range(2):
        cache.append(layer, row, -row)
    if token % 3 == 2:
        cache.export(sys.argv[1], key=key)
        if token == 2:
            print("begun", flush=True)
"""


@linux_only
def test_kill_9_and_load(key: Key, tmp_path: Path) -> None:
    """What is there is a whole export, however the process ended."""
    pick, found = random.Random(2), set()
    for at in range(6):
        path = tmp_path / f"{at}"
        path.mkdir()
        with subprocess.Popen(
            [sys.executable, "-c", KILLED, str(path / "chat")],
            env=child_environment(),
            stdout=subprocess.PIPE,
        ) as child:
            assert child.stdout is not None and child.stdout.readline() == b"begun\n"
            time.sleep(pick.random() * 0.3)
            os.kill(child.pid, signal.SIGKILL)
        cache = KVCache.load(path / "chat", key)
        tokens = cache.length()
        assert tokens % 3 == 0 and tokens == cache.length(1) > 0
        wanted = np.broadcast_to(np.arange(tokens, dtype="f4")[:, None], (2, tokens, 64))
        for layer in range(2):
            assert np.array_equal(cache.read(layer, "k")[0], wanted)
            assert np.array_equal(cache.read(layer, "v")[0], -wanted)
        cache.append(0, np.ones((2, 64)), np.ones((2, 64)))
        cache.export(path / "chat", key=key)
        assert [entry.name for entry in path.iterdir()] == ["chat"]
        found.add(tokens)
    assert len(found) > 1
