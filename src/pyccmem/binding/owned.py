# SPDX-License-Identifier: Apache-2.0
"""Owners of native objects and descriptors, which exist before what they own: no interrupt leaks
one.

A signal handler, such as that of Ctrl-C, may raise between any two steps of Python code: between
the call that makes an object and the assignment to a variable, and also within a destructor written
in Python, whose rest then never runs. It cannot raise while C code runs. So a call puts what it
makes into a cell, which owns it and was made before the call; one call of C code moves it on to its
last owner; and every destructor is a C function, or a partial() of one.
"""

from __future__ import annotations

import operator
import os
from collections.abc import Callable
from functools import partial
from typing import Any

from .closing import Closing
from .native import ffi, lib

__all__ = [
    "ARENA",
    "CACHE",
    "FILE",
    "KEY",
    "SAMPLES",
    "SEALER",
    "STORE",
    "Descriptor",
    "KeptFile",
    "Kind",
    "keeping",
    "made",
    "pin",
    "pointer_to",
    "region",
]

_cast = ffi.cast
_from_buffer = ffi.from_buffer
_gc = ffi.gc
_new = ffi.new
_STORE = ffi.typeof("ccmem_store *")


def made(make: Any, argument: Any, destructor: Any) -> Any:
    """Returns the pointer that `make(argument)` returns, with its destructor. Both are C functions,
    and map() calls one with what the other returned: no Python code runs in between, so no handler
    can raise."""
    return next(map(_gc, map(make, (argument,)), (destructor,)))


def keeping(pointer: Any, kept: Any) -> Any:
    """Returns a pointer that keeps the native object `kept` alive."""
    return _gc(pointer, partial(lib.ccmem_nothing, kept))


def pointer_to(store: Any) -> Any:
    """Returns a pointer to a store, for a field of a native struct. A store in an arena is a bytes
    object, which cffi converts for native functions only. The caller keeps `store` alive."""
    return _cast(_STORE, _from_buffer(store)) if isinstance(store, bytes) else store


class Kind:
    """A kind of native objects."""

    __slots__ = ("_drop", "_free", "_take", "_type")

    def __init__(self, name: str) -> None:
        self._type = ffi.typeof(f"ccmem_{name} **")
        self._drop, self._take, self._free = (
            getattr(lib, f"ccmem_{name}_{what}") for what in ("drop", "take", "free")
        )

    def cell(self) -> Any:
        """Returns an empty cell, the argument for `out` of a call that makes an object. The end of
        its last reference frees the object in it."""
        return _gc(_new(self._type), self._drop)

    def own(self, cell: Any) -> Any:
        """Returns the object in the cell, and leaves the cell empty. The end of its last reference
        frees the object."""
        return made(self._take, cell, self._free)


class _Region(Kind):
    """The kind of regions of one store. They keep the store alive."""

    __slots__ = ()

    def __init__(self, store: Any) -> None:
        self._type = _REGION
        self._drop = partial(lib.ccmem_region_drop_before, store)
        self._take = lib.ccmem_region_take
        self._free = partial(lib.ccmem_region_free_before, store)


_REGION = ffi.typeof("ccmem_region **")
_PIN = ffi.typeof("ccmem_pin *")

KEY = Kind("key")
STORE = Kind("store")
ARENA = Kind("arena")
FILE = Kind("file")
SEALER = Kind("sealer")
SAMPLES = Kind("samples")
CACHE = Kind("cache")


def region(store: Any) -> Kind:
    """Returns the kind of regions of `store`."""
    return _Region(store)


def pin(region: Any) -> Any:
    """Returns room for a pinned range of the region. The end of its last reference unpins the
    range."""
    return _gc(_new(_PIN), partial(lib.ccmem_pin_drop_before, region))


_DESCRIPTOR = ffi.typeof("int *")


class Descriptor(Closing):
    """A file descriptor, closed by close(), at the end of a `with` block, or with its last
    reference. The value of the `with` block is its number."""

    __slots__ = ("_cell",)

    def __init__(self, make: Callable[..., int], *arguments: Any) -> None:
        """Owns the descriptor that `make(*arguments)`, a C function, opens. Raises what it
        raises."""
        self._cell = _gc(_new(_DESCRIPTOR, -1), lib.ccmem_descriptor_drop)
        number = map(make, *((argument,) for argument in arguments))
        next(map(operator.setitem, (self._cell,), (0,), number))

    @classmethod
    def open(
        cls,
        path: str | bytes | os.PathLike[str],
        flags: int,
        mode: int = 0o777,
        *,
        dir_fd: int | None = None,
    ) -> Descriptor:
        """Owns what os.open() opens."""
        return cls(partial(os.open, dir_fd=dir_fd), path, flags, mode)

    @property
    def number(self) -> int:
        """The descriptor; -1 after close()."""
        return int(self._cell[0])

    def close(self) -> None:
        """Closes the descriptor. May be repeated. Does not raise the error by which close(2)
        reports writes that did not reach the disk: callers that must know call fsync(2) first."""
        lib.ccmem_descriptor_drop(self._cell)

    def __enter__(self) -> int:  # type: ignore[override]
        return self.number


_KEPT_FILE = ffi.typeof("ccmem_kept_file *")


class KeptFile:
    """A duplicate of a file's descriptor, kept for as long as this object lives. Other code may
    close it, as a process that becomes a daemon closes every descriptor it does not know. The
    number may then belong to another file, and is neither used nor closed."""

    __slots__ = ("_cell",)

    def __init__(self, descriptor: int | None) -> None:
        """Duplicates `descriptor`; None keeps nothing. Raises OSError."""
        self._cell = _gc(_new(_KEPT_FILE, {"fd": -1}), lib.ccmem_kept_file_drop)
        number = 0 if descriptor is None else lib.ccmem_kept_file_open(self._cell, descriptor)
        if number:
            raise OSError(number, os.strerror(number))

    @property
    def number(self) -> int:
        """The descriptor; -1 when there is none any more."""
        return int(lib.ccmem_kept_file_number(self._cell))
