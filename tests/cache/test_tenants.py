# SPDX-License-Identifier: Apache-2.0
"""TenantKeys: keys that no two tenants share, and what forgetting a tenant destroys."""

from __future__ import annotations

import copy
import gc
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from kv_support import tables_of
from support import in_forked_child, run_threads

from pyccmem import Key, KVCache, TenantKeys, errors
from pyccmem.binding import lib

SHAPE = {"layers": 1, "heads": 1, "key_size": 64, "dtype": "float32"}


def rows(tokens: int = 20, seed: int = 0) -> tuple[Any, Any]:
    rng = np.random.default_rng(seed)
    return tuple(rng.standard_normal((1, tokens, 64)).astype("f4") for _ in "kv")


def made(tenants: TenantKeys, name: str, seed: int = 0) -> KVCache:
    cache = tenants.cache(name, **SHAPE)
    cache.append(0, *rows(seed=seed))
    return cache


def test_each_tenant_has_a_key() -> None:
    with TenantKeys() as tenants:
        keys = {name: tenants.key(name) for name in ("a", "b", "a ", "A", "é", "e\u0301", "\udc80")}
        assert len({key.id for key in keys.values()}) == len(keys) == len(tenants)
        assert all(tenants.key(name) is key for name, key in keys.items())
        assert "a" in tenants and "c" not in tenants and 5 not in tenants
        assert tenants.names() == list(keys)
        assert repr(tenants) == "<pyccmem.TenantKeys of 7 of 256 tenants, open>"
    assert all(key.closed for key in keys.values()) and tenants.closed
    with pytest.raises(errors.ClosedError):
        tenants.key("a")


def test_two_tenants_share_no_block() -> None:
    tenants = TenantKeys()
    one, other, third = made(tenants, "a"), made(tenants, "b"), made(tenants, "a")
    stored = [{p.data for p in tables_of(c).places(0, 0)} for c in (one, other, third)]
    assert not stored[0] & stored[1] and not stored[0] & stored[2]
    assert one.key is third.key is tenants.key("a") is not other.key


def test_one_tenants_files_are_not_anothers(tmp_path: Path) -> None:
    tenants = TenantKeys()
    cache = made(tenants, "alice")
    cache.export(tmp_path / "chat")
    again = tenants.load("alice", tmp_path / "chat", name="again")
    assert np.array_equal(again.read(0, "k"), cache.read(0, "k"))
    with pytest.raises(errors.InvalidKeyError):
        tenants.load("bob", tmp_path / "chat")
    tenants.forget("alice")
    with pytest.raises(errors.InvalidKeyError):
        tenants.load("alice", tmp_path / "chat")  # she has another key now


def test_forgetting_erases() -> None:
    gc.collect()
    slots = lib.ccmem_secret_slots()
    tenants = TenantKeys()
    caches = [made(tenants, "alice", seed) for seed in range(3)]
    fork, kept = caches[0].fork(), made(tenants, "bob")
    key = tenants.key("alice")
    assert tenants.forget("alice") is True and tenants.forget("alice") is False
    assert key.closed and all(cache.erased for cache in (*caches, fork))
    for cache in (*caches, fork):
        with pytest.raises(errors.ClosedError, match="erased"):
            cache.read(0, "k")
    assert kept.read(0, "k").any() and len(tenants) == 1
    tenants.close()
    assert kept.erased and lib.ccmem_secret_slots() == slots
    tenants.close()


def test_the_least_recently_used_is_dropped() -> None:
    tenants = TenantKeys(capacity=3)
    caches = {name: made(tenants, name) for name in "abc"}
    tenants.key("a")
    made(tenants, "d")
    assert tenants.names() == ["c", "a", "d"]
    assert caches["b"].erased and not caches["a"].erased and not caches["c"].erased
    tenants.cache("c", **SHAPE)
    tenants.key("e")
    assert tenants.names() == ["d", "c", "e"] and caches["a"].erased
    assert len(TenantKeys(1)) == 0 and bool(TenantKeys(1))


def test_a_factory_finds_the_same_key_again(tmp_path: Path) -> None:
    asked: list[str] = []

    def factory(name: str) -> Key:
        asked.append(name)
        return Key.from_bytes(name.encode().ljust(32, b"\0"))

    tenants = TenantKeys(capacity=1, factory=factory)
    made(tenants, "alice").export(tmp_path / "chat")
    tenants.key("bob")
    assert tenants.load("alice", tmp_path / "chat").length() == 20
    assert asked == ["alice", "bob", "alice"]


def test_factories_that_are_wrong() -> None:
    shared = Key.generate()
    tenants = TenantKeys(factory=lambda name: shared)
    tenants.key("a")
    with pytest.raises(errors.ArgumentError, match="the key of tenant 'a' for 'b'"):
        tenants.key("b")
    assert not shared.closed and tenants.names() == ["a"]
    alike = TenantKeys(factory=lambda name: Key.from_bytes(bytes(32)))
    alike.key("a")
    with pytest.raises(errors.ArgumentError):
        alike.cache("b", **SHAPE)
    with pytest.raises(errors.ArgumentTypeError, match="NoneType"):
        TenantKeys(factory=lambda name: None).key("a")  # type: ignore[arg-type,return-value]
    with pytest.raises(ZeroDivisionError):
        TenantKeys(factory=lambda name: 1 // 0).key("a")  # type: ignore[arg-type,return-value]


def test_a_key_that_was_closed_is_made_anew() -> None:
    tenants = TenantKeys()
    cache = made(tenants, "a")
    before = tenants.key("a")
    before.close()
    assert tenants.key("a") is not before and len(tenants) == 1
    tenants.forget("a")
    assert cache.erased  # it is still hers


@pytest.mark.parametrize("name", [b"a", 5, None, ("a",), ""])
def test_names_that_are_none(name: Any) -> None:
    tenants = TenantKeys()
    for call in (tenants.key, tenants.forget, lambda name: tenants.cache(name, **SHAPE)):
        with pytest.raises((errors.ArgumentTypeError, errors.ArgumentError)):
            call(name)
    assert not len(tenants)


@pytest.mark.parametrize("capacity", [0, -1, 1 << 40, "2", 1.0, None, True])
def test_capacities_that_are_none(capacity: Any) -> None:
    with pytest.raises((errors.ArgumentTypeError, errors.ArgumentError)):
        TenantKeys(capacity)
    with pytest.raises(errors.ArgumentTypeError):
        TenantKeys(1, factory=5)  # type: ignore[arg-type]


def test_caches_that_cannot_be_leave_nothing() -> None:
    tenants = TenantKeys()
    with pytest.raises(errors.ArgumentError):
        tenants.cache("a", 0, 1, 1)
    with pytest.raises(TypeError):
        tenants.cache("a", **SHAPE, key=tenants.key("a"))
    for refused in (copy.copy, copy.deepcopy):
        with pytest.raises(errors.NotPicklableError):
            refused(tenants)
    assert "never made" in repr(TenantKeys.__new__(TenantKeys))


def test_caches_that_are_dropped_are_not_kept() -> None:
    gc.collect()
    slots = lib.ccmem_secret_slots()
    tenants = TenantKeys()
    for seed in range(300):
        made(tenants, "a", seed)
    gc.collect()
    assert lib.ccmem_secret_slots() == slots + 1


def test_many_threads() -> None:
    tenants = TenantKeys(capacity=4)
    found: list[tuple[str, str]] = []

    def work(at: int) -> Callable[[], None]:
        def use() -> None:
            for turn in range(40):
                name = f"tenant {(at + turn) % 6}"
                try:
                    cache = made(tenants, name, at)
                    assert np.array_equal(cache.read(0, "k")[0], rows(seed=at)[0])
                    found.append((name, cache.key.id))
                    if turn % 7 == 0:
                        tenants.forget(name)
                except errors.ClosedError:  # forgotten by another thread meanwhile
                    continue

        return use

    run_threads([work(at) for at in range(8)])
    assert len(tenants) <= 4
    owners: dict[str, set[str]] = {}
    for name, identity in found:
        owners.setdefault(identity, set()).add(name)
    assert found and all(len(names) == 1 for names in owners.values())


def test_two_threads_ask_for_one_name() -> None:
    """The loser's key is closed, and both get the same one."""
    barrier, given = threading.Barrier(2), []

    def factory(name: str) -> Key:
        key = Key.generate()
        given.append(key)
        barrier.wait(30)
        return key

    tenants, got = TenantKeys(factory=factory), []
    run_threads([lambda: got.append(tenants.key("a"))] * 2)
    assert got[0] is got[1] and len(given) == 2
    assert sorted(key.closed for key in given) == [False, True] and not got[0].closed


def test_a_forked_child_has_keys_of_its_own() -> None:
    tenants = TenantKeys()
    cache = made(tenants, "a")
    identity = tenants.key("a").id

    def child() -> None:
        with pytest.raises(errors.ForkError):
            cache.read(0, "k")
        assert tenants.key("a").id != identity
        assert made(tenants, "a").read(0, "k").any()
        tenants.forget("a")
        tenants.close()

    in_forked_child(child)
    assert cache.read(0, "k").any() and tenants.key("a").id == identity
