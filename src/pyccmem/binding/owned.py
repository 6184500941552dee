# SPDX-License-Identifier: Apache-2.0
"""Owners of what the native library and the system hand out, which no interrupt can come before.

A signal's handler, Ctrl-C's among them, may raise between any two steps of Python code: after a
call has made something and before a variable has it, and also within a destructor that is a Python
function, whose rest then never runs. It cannot raise while C code runs. So what a call makes goes
into a cell, which owns it and was made before the call; it moves on to its last owner within one
call of C code; and every destructor is a C function, or a partial() of one.
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
    """Returns what `make(argument)` returns, a pointer, with its destructor, both functions of C:
    one step, in which no handler can raise. map() calls the one with what the other returned, and
    no Python code runs in between."""
    return next(map(_gc, map(make, (argument,)), (destructor,)))


def keeping(pointer: Any, kept: Any) -> Any:
    """Returns a pointer that keeps the native object `kept` alive."""
    return _gc(pointer, partial(lib.ccmem_nothing, kept))


def pointer_to(store: Any) -> Any:
    """Returns a store as a field of a native struct takes it: one in an arena lies in a Python
    object, which only a native function takes for a pointer. The caller keeps `store` alive."""
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
        """Returns room for the object that a call makes: the argument for its `out`. Frees what is
        in it when the last reference to it goes."""
        return _gc(_new(self._type), self._drop)

    def own(self, cell: Any) -> Any:
        """Returns the object in the cell, which is empty from now on. Frees it when the last
        reference goes."""
        return made(self._take, cell, self._free)


class _Region(Kind):
    """Regions of one store, which lives as long as they do."""

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
    """Returns the kind of regions of this store."""
    return _Region(store)


def pin(region: Any) -> Any:
    """Returns room for a pinned range of the region, which is unpinned when the last reference
    goes."""
    return _gc(_new(_PIN), partial(lib.ccmem_pin_drop_before, region))


_DESCRIPTOR = ffi.typeof("int *")


class Descriptor(Closing):
    """A file descriptor that is closed when the last reference goes, or by close(), or at the end
    of a `with` block, which it gives its number."""

    __slots__ = ("_cell",)

    def __init__(self, make: Callable[..., int], *arguments: Any) -> None:
        """What `make(*arguments)`, a function of C, opens. Raises what it raises."""
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
        """os.open()."""
        return cls(partial(os.open, dir_fd=dir_fd), path, flags, mode)

    @property
    def number(self) -> int:
        """The descriptor; -1 after close()."""
        return int(self._cell[0])

    def close(self) -> None:
        """May be repeated. An error of close(2), which tells of writes that did not get to the
        disk, is not raised: who has to know has called fsync(2) before."""
        lib.ccmem_descriptor_drop(self._cell)

    def __enter__(self) -> int:  # type: ignore[override]
        return self.number


_KEPT_FILE = ffi.typeof("ccmem_kept_file *")


class KeptFile:
    """A duplicate of a file's descriptor, kept for as long as this object lives. Somebody may close
    it, as a process does with all that it does not know when it becomes a daemon; the number, which
    may be another file's then, is neither used nor closed."""

    __slots__ = ("_cell",)

    def __init__(self, descriptor: int | None) -> None:
        """None keeps nothing. Raises OSError."""
        self._cell = _gc(_new(_KEPT_FILE, {"fd": -1}), lib.ccmem_kept_file_drop)
        number = 0 if descriptor is None else lib.ccmem_kept_file_open(self._cell, descriptor)
        if number:
            raise OSError(number, os.strerror(number))

    @property
    def number(self) -> int:
        """The descriptor; -1 when there is none any more."""
        return int(lib.ccmem_kept_file_number(self._cell))
