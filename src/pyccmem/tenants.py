# SPDX-License-Identifier: Apache-2.0
"""TenantKeys: a key for each tenant of a server, and the caches that were made under it."""

from __future__ import annotations

import weakref
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from . import errors
from .binding.arguments import integer
from .core.forks import Lock
from .core.resource import Resource
from .keys import Key, check_open
from .kv_cache import KVCache

__all__ = ["TenantKeys"]


class _Tenant:
    """One tenant's key, and its caches: references without callbacks, since an interrupt could come
    in one."""

    __slots__ = ("caches", "id", "key", "sweep_at")

    def __init__(self, key: Key) -> None:
        self.key, self.id = key, key.id
        self.caches: set[weakref.ref[KVCache]] = set()
        self.sweep_at = 64

    def add(self, cache: KVCache) -> None:
        self.caches.add(weakref.ref(cache))
        if len(self.caches) >= self.sweep_at:
            self.caches = {one for one in self.caches if one() is not None}
            self.sweep_at = max(64, 2 * len(self.caches))

    def usable(self) -> bool:
        """Returns False after close() of the key, and in a forked child that cannot read it
        again."""
        try:
            check_open(self.key)
        except (errors.ClosedError, errors.ForkError):
            return False
        return True

    def erase(self) -> None:
        """Destroys the caches' keys and what they hold, and closes the tenant's key."""
        for reference in list(self.caches):  # to which another thread may add
            cache = reference()
            if cache is None:
                continue
            try:
                cache.erase()
            except (errors.ClosedError, errors.ForkError):  # closed meanwhile, or the parent's
                continue
        self.key.close()


class TenantKeys(Resource):
    """Keys by the names of tenants, and the caches of each.

        tenants = pyccmem.TenantKeys(capacity=1000)
        cache = tenants.cache("alice", layers=2, heads=8, key_size=128)
        ...
        tenants.forget("alice")         # erases what she has said, at once

    No two tenants share a key, nor a block of a cache: each cache has a random key of its own
    anyway, and what it exports is sealed under its tenant's. Of more than `capacity` tenants the
    one that was not used for longest is forgotten: its caches are erased, and its key is closed.

    `factory` makes the key of a name: from a key service, say. None: Key.generate(), so that what
    was exported under a key cannot be opened once the tenant was forgotten. It runs outside of any
    lock, and may be called twice for one name by two threads at once, of which one's key is closed.
    A name is a str that is not empty; "a" and "a " are two tenants.

    All methods may be called from several threads at once. In a forked child tenants get new keys.
    """

    __slots__ = ("_capacity", "_factory", "_lock", "_tenants")

    _instead_of_a_copy = "make another one with a factory that finds the same keys"

    _tenants: OrderedDict[str, _Tenant] | None

    def __init__(self, capacity: int = 256, factory: Callable[[str], Key] | None = None) -> None:
        """Nobody's keys yet. Raises ArgumentError, ArgumentTypeError."""
        self._tenants = None
        self._capacity = integer("capacity", capacity)
        if not 1 <= self._capacity < 2**31:
            raise errors.ArgumentError(
                f"capacity is {self._capacity}; it must be from 1 to {2**31 - 1}."
            )
        if not (factory is None or callable(factory)):
            raise errors.ArgumentTypeError(
                f"factory must be a function of a name, or None, not {type(factory).__name__}."
            )
        self._factory, self._lock = factory, Lock()
        self._tenants = OrderedDict()

    # ---- keys and caches ----

    def key(self, name: str) -> Key:
        """Returns the tenant's key, and makes it if there is none. Raises ArgumentTypeError,
        ArgumentError, and what making a key raises."""
        return self._tenant(name).key

    def cache(self, name: str, /, *arguments: Any, **options: Any) -> KVCache:
        """Makes a KVCache under the tenant's key, with the arguments of KVCache() but `key`."""
        return self._noted(name, lambda key: KVCache(*arguments, **options, key=key))

    def load(self, name: str, path: Any, /, **options: Any) -> KVCache:
        """Loads a file of the tenant's, as KVCache.load() does with these options."""
        return self._noted(name, lambda key: KVCache.load(path, key, **options))

    def _noted(self, name: str, make: Callable[[Key], KVCache]) -> KVCache:
        tenant = self._tenant(name)
        cache = make(tenant.key)
        with self._lock.here():
            tenant.add(cache)
            forgotten = self._opened().get(name) is not tenant
        if forgotten:  # meanwhile, by another thread
            tenant.erase()
        return cache

    def _tenant(self, name: Any) -> _Tenant:
        _check_name(name)
        found = self._found(name)
        if found is not None:
            return found
        key = Key.generate() if self._factory is None else self._factory(name)
        if not isinstance(key, Key):
            raise errors.ArgumentTypeError(
                f"factory returned a {type(key).__name__} for {name!a}; it must return a Key."
            )
        new = _Tenant(key)
        dropped: list[_Tenant] = []
        with self._lock.here():
            tenants = self._opened()
            found = tenants.get(name)
            if found is not None and found.usable():
                dropped.append(new)
            else:
                for other, one in tenants.items():
                    if one.id == new.id and other != name:
                        raise errors.ArgumentError(
                            f"factory returned the key of tenant {other!a} for {name!a}; it must "
                            f"return another one for each name."
                        )
                if found is not None:  # its key was closed, or stayed in the parent process
                    new.caches |= found.caches
                tenants[name] = found = new
            tenants.move_to_end(name)
            while len(tenants) > self._capacity:
                dropped.append(tenants.popitem(last=False)[1])
        for tenant in dropped:
            if tenant.key is not found.key:
                tenant.erase()
        return found

    def _found(self, name: str) -> _Tenant | None:
        with self._lock.here():
            tenants = self._opened()
            found: _Tenant | None = tenants.get(name)
            if found is None or not found.usable():
                return None
            tenants.move_to_end(name)
            return found

    def forget(self, name: str) -> bool:
        """Erases the tenant's caches and closes its key. Returns False when there is no such
        tenant."""
        _check_name(name)
        with self._lock.here():
            tenant = self._opened().pop(name, None)
        if tenant is not None:
            tenant.erase()
        return tenant is not None

    def names(self) -> list[str]:
        """Returns the tenants that have a key, the one that was not used for longest first."""
        with self._lock.here():
            return list(self._opened())

    def __contains__(self, name: object) -> bool:
        with self._lock.here():
            return name in self._opened()

    def __len__(self) -> int:
        with self._lock.here():
            return len(self._opened())

    def __bool__(self) -> bool:
        """Returns True, also while there is no tenant."""
        return True

    # ---- lifetime ----

    @property
    def closed(self) -> bool:
        """True after close()."""
        return self._tenants is None

    def close(self) -> None:
        """Forgets all tenants. May be repeated."""
        with self._lock.here():
            tenants, self._tenants = self._tenants, None
        for tenant in () if tenants is None else tenants.values():
            tenant.erase()

    def _opened(self) -> Any:
        if self._tenants is None:
            raise errors.ClosedError("These keys are closed; make new ones.")
        return self._tenants

    def _description(self) -> str:
        tenants = self._tenants
        return f"of {0 if tenants is None else len(tenants)} of {self._capacity} tenants"


def _check_name(name: Any) -> None:
    if not isinstance(name, str):
        raise errors.ArgumentTypeError(f"A tenant's name must be a str, not {type(name).__name__}.")
    if not name:
        raise errors.ArgumentError("A tenant's name must not be empty.")
