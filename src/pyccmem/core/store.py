# SPDX-License-Identifier: Apache-2.0
"""Store: bytes that lie in memory as ciphertext, for all code that reads, maps or multiplies them.

A buffer is a store. Other modules use a store through the functions here, such as handle(), which
gives the native object for a call, and fail(), which raises for a call that failed.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NoReturn

from .. import errors
from ..binding import OK, Call, anchor, check, lib
from ..binding.status import BufferCall
from .forks import Origin
from .registry import Registry
from .resource import Resource

__all__ = [
    "BUFFER",
    "TENSOR",
    "SharedPages",
    "Store",
    "check_open",
    "check_writable",
    "disown_inherited",
    "exchange",
    "fail",
    "forget",
    "handle",
    "is_exposed",
    "is_usable",
    "origin_of",
    "register",
    "registered",
    "shared_by",
    "take_over",
    "waiting_for",
]


#: Contexts of calls for which an error must name only the subject.
BUFFER = Call(subject="buffer")
TENSOR = Call(subject="tensor")


class Store(Resource):
    """The Python object of one native store. Base of EncryptedBuffer, which makes them."""

    __slots__ = (
        "_anchor",
        "_cipher",
        "_exposed",
        "_fresh",
        "_frozen",
        "_level",
        "_name",
        "_nbytes",
        "_origin",
        "_page_size",
        "_store",
        "_writable",
    )

    _store: Any  # None when closed, and in a forked child until `_origin` has opened it anew
    _anchor: Any  # None when closed
    _origin: Origin | None
    _exposed: tuple[int, int] | None  # where views of the ciphertext show it; None: there was none
    _writable: bool
    _frozen: bool  # by freeze(), and not thawed since
    _fresh: bool  # keeps its versions in locked memory, or will when it is thawed
    _nbytes: int
    _page_size: int
    _cipher: str
    _level: str
    _name: str

    # ---- what it is ----

    @property
    def name(self) -> str:
        """The buffer's name in errors."""
        return self._name

    @property
    def nbytes(self) -> int:
        """Size in bytes of the plaintext."""
        return self._nbytes

    @property
    def page_size(self) -> int:
        """Size in bytes of the unit of encryption."""
        return self._page_size

    @property
    def writable(self) -> bool:
        """False for pages in a sealed file, and for a frozen buffer. Other processes may have
        loaded the file too, and two that wrote the same page would use a nonce twice."""
        return self._writable

    @property
    def frozen(self) -> bool:
        """True after freeze(), until thaw()."""
        return self._frozen

    @property
    def closed(self) -> bool:
        """True after close()."""
        return self._anchor is None

    # ---- calls ----

    def _opened(self) -> Any:
        """Returns the native store for one call; the caller's reference keeps it alive. In a forked
        child, first opens a buffer of a sealed file anew. Raises ClosedError, ForkError, and what
        Origin.reopen() raises."""
        store = self._store
        if store is None and self._anchor is not None and self._origin is not None:
            self._origin.reopen()
            store = self._store
        if store is None:
            raise errors.ClosedError("This buffer is closed; read what you need before close().")
        return store

    def _fail(self, status: int, offset: int, length: int) -> NoReturn:
        check(
            status,
            BufferCall(
                f"{length} bytes at offset {offset}",
                self._name,
                nbytes=self._nbytes,
                page_size=self._page_size,
                store=self._store,
                offset=offset,
                length=length,
            ),
        )
        raise AssertionError("check() returned for a status that is not CCMEM_OK")

    def _check_writable(self) -> None:
        """Raises ReadOnlyError for a read-only buffer, FrozenError for a frozen one; ClosedError or
        ForkError comes first."""
        if not self._writable:
            check(lib.ccmem_store_check(self._opened()), BUFFER)
            self._fail(lib.CCMEM_ERR_FROZEN if self._frozen else lib.CCMEM_ERR_READONLY, 0, 0)

    def _usable(self) -> bool:
        """Returns True while the store is open, in the process that made it."""
        store = self._store
        return store is not None and lib.ccmem_store_check(store) == OK

    def _take_store(self, other: Store) -> None:
        """Replaces the parent's native store by that of `other`, which is over the same pages."""
        self._level, self._anchor = other._level, other._anchor
        self._store = other._store
        other.close()


class SharedPages:
    """What the stores over one file share. They keep it as their anchor."""

    __slots__ = ()

    def overhead(self) -> int:
        """Returns the bytes that it takes, besides those of each store."""
        raise NotImplementedError


# ---- what others use of a store ------------------------------------------------------------------


def handle(store: Store) -> Any:
    """Returns the native store for one call; the caller's reference keeps it alive. Raises
    ClosedError; in a forked child ForkError and what Origin.reopen() raises."""
    return store._store or store._opened()


def fail(store: Store, status: int, offset: int, length: int) -> NoReturn:
    """Raises the exception for the `status` of a native call for `length` bytes from `offset`
    on."""
    store._fail(status, offset, length)


def check_open(store: Store, subject: str = "buffer") -> None:
    """Raises ClosedError or ForkError for a store that cannot be used. Errors call it `subject`."""
    check(lib.ccmem_store_check(store._opened()), TENSOR if subject == "tensor" else BUFFER)


def check_writable(store: Store) -> None:
    """Raises ReadOnlyError for a store in a sealed file, FrozenError for a frozen one; ClosedError
    or ForkError comes first."""
    store._check_writable()


def is_exposed(store: Store) -> bool:
    """Returns True once a view of the ciphertext exists: a caller may then pass that view as the
    data to write."""
    return store._exposed is not None


def shared_by(store: Store) -> SharedPages | None:
    """Returns what the store shares with others over the same file; None if it shares nothing."""
    anchor = store._anchor
    return anchor if isinstance(anchor, SharedPages) else None


def exchange(store: Store, native: Any, new: Any) -> None:
    """Puts the native store `new` in the place of `native`. Raises ClosedError if `store` has none
    or another one by now."""
    kept = anchor(new)
    if store._store is not native:
        raise errors.ClosedError("This buffer was closed meanwhile; read what you need before.")
    store._store, store._anchor, store._exposed = new, kept, None


def is_usable(store: Store) -> bool:
    """Returns True while the store is open, in the process that made it."""
    return store._usable()


# ---- all stores of the process -------------------------------------------------------------------

#: Every open store of the process, those inherited from a parent among them.
_registry: Registry[Store] = Registry(1024)


def register(store: Store) -> None:
    """Adds an open store to those that registered() yields."""
    _registry.add(store)


def forget(store: Store) -> None:
    """Removes a store that register() added."""
    _registry.discard(store)


def registered() -> Iterator[Any]:
    """Yields the stores that are neither closed nor gone, including those inherited from a
    parent."""
    yield from _registry


def origin_of(store: Store) -> Origin | None:
    """Returns where the store can be opened from once more; None if it cannot."""
    return store._origin


def waiting_for(origin: Origin) -> list[Any]:
    """Returns the stores of an origin that have no native store in this process; see
    disown_inherited()."""
    return [store for store in registered() if store._origin is origin and store._store is None]


def take_over(store: Store, new: Store) -> None:
    """Gives a store that waits for its origin the native store of `new`, which is over the same
    pages, and closes `new`."""
    if not store.closed:
        store._take_store(new)


def disown_inherited() -> None:
    """In a forked child: takes the parent's native stores away from all stores that can be opened
    anew, so that the next use of one opens it."""
    for store in registered():
        if store._origin is not None:
            store._store = None
