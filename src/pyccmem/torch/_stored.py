# SPDX-License-Identifier: Apache-2.0
"""Stored: what an encrypted torch tensor and all its aliases share, that is ciphertext, type and
key."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import torch

from .. import errors, keys
from ..arena import frozen_twin, place_for_writes
from ..binding import OK, ffi, lib, wiped
from ..core.block_matrix import BlockMatrix
from ..core.forks import Lock
from ..core.maker import sealed
from ..core.matrix import Matrix
from ..core.operand import place_of
from ..core.store import Store, check_open, fail, handle
from ..keys import Key
from ..tensor import EncryptedTensor as Core
from ._results import converted
from ._rows import gathered
from .dtypes import numpy_dtype
from .path import Form

__all__ = [
    "Stored",
    "pointer",
    "put_in_order",
    "spare_key",
    "stored_of_ciphertext",
    "usable",
]

#: Plaintext bytes held at once when a whole tensor is converted or copied.
_BLOCK = 1 << 20

_cast = ffi.cast
_BYTES = ffi.typeof("uint8_t *")


def pointer(tensor: torch.Tensor) -> Any:
    """Returns a native pointer to a plain tensor's first byte. The caller keeps the tensor
    alive."""
    return _cast(_BYTES, tensor.data_ptr())


def put_in_order(memory: Any, offset: int, part: torch.Tensor) -> None:
    """Writes the elements of a tensor to a buffer from byte `offset` on, in C order."""
    count = part.numel()
    out = torch.frombuffer(memory, dtype=part.dtype, count=count, offset=offset)
    out.view(part.shape).copy_(part)


# ---- keys for what is made of an encrypted tensor ----------------------------------------------

_spare: tuple[int, Key] | None = None
_spare_lock = threading.Lock()


def spare_key() -> Key:
    """Returns a random key of this process, for copies of tensors whose own key is not known: what
    lies only in memory can have a key that is never stored. Raises what Key.generate() raises."""
    global _spare
    with _spare_lock:
        if _spare is None or _spare[0] != os.getpid():
            _spare = (os.getpid(), Key.generate())
        return _spare[1]


def _reset_lock() -> None:
    """Replaces the lock: a thread that the child does not have may have held it at the fork."""
    global _spare_lock, _views_lock
    _spare_lock = threading.Lock()
    _views_lock = threading.RLock()


os.register_at_fork(after_in_child=_reset_lock)


# ---- the ciphertext as a tensor ------------------------------------------------------------------


class _Ciphertext(np.ndarray[Any, Any]):
    """A view of a store's pages that also keeps the store, so that the memory can be opened as long
    as it exists."""

    core: Core
    place: int  # the address of its memory
    wipe_results: bool  # that of its Stored
    make: Callable[[Core, torch.dtype], Stored]  # makes a Stored of the core again


#: The ciphertext views, by the torch storage that holds each; some are gone. The references have no
#: callbacks, because an interrupt could come in one. A view lives as long as its storage, and no
#: other storage has that identity meanwhile. An address would not do: an arena gives the pages of a
#: closed tensor to another one while views of both live.
_views: dict[int, weakref.ref[_Ciphertext]] = {}
_views_lock = threading.RLock()  # held while the dict is changed

#: Once there are this many, views that are gone are removed.
_sweep_at = 1024


def _identity(sealed: torch.Tensor) -> int:
    """Returns a number that tells a tensor's storage from all others that live; aliases share
    it."""
    identity: int = sealed.untyped_storage()._cdata
    return identity


def _note_view(sealed: torch.Tensor, view: _Ciphertext) -> None:
    global _sweep_at
    with _views_lock:
        _views[_identity(sealed)] = weakref.ref(view)
        if len(_views) >= _sweep_at:
            for at, reference in list(_views.items()):
                if reference() is None and _views.get(at) is reference:
                    del _views[at]
            _sweep_at = max(1024, 2 * len(_views))


def _ciphertext_tensor(stored: Stored) -> torch.Tensor:
    """Returns the pages of a tensor as a tensor of uint8, which must never be written. Raises
    ClosedError, ForkError."""
    core, wipe_results = stored.core, stored.wipe_results
    view = np.frombuffer(stored.pages(), np.uint8)
    if not view.size:
        return torch.empty(0, dtype=torch.uint8)
    place = view.ctypes.data
    # Declared writable, because torch warns of read-only arrays; the mapping itself stays as it is.
    memory = ffi.buffer(ffi.cast("uint8_t *", place), view.size)
    array = np.frombuffer(memory, np.uint8).view(_Ciphertext)
    array.core, array.place, array.wipe_results = core, place, wipe_results
    array.make = stored.maker()
    array.owner = view  # type: ignore[attr-defined]
    sealed = torch.from_numpy(array)
    _note_view(sealed, array)
    return sealed


def _view_of(sealed: torch.Tensor) -> _Ciphertext | None:
    """Returns the view of a store whose memory a tensor has; None for any other tensor."""
    reference = _views.get(_identity(sealed))
    view = None if reference is None else reference()
    return None if view is None or view.place != sealed.data_ptr() else view


def stored_of_ciphertext(sealed: torch.Tensor, dtype: torch.dtype) -> Stored:
    """Returns the stored tensor whose pages `sealed` is, read as elements of `dtype`. Raises
    ArgumentError for any other tensor."""
    view = _view_of(sealed)
    if view is None:
        raise errors.ArgumentError(
            "This tensor is not the ciphertext of an EncryptedTensor of this process; pyccmem's "
            "operators take no other."
        )
    stored = view.make(view.core, dtype)
    stored.wipe_results = view.wipe_results
    return stored


# ---- the shared part -----------------------------------------------------------------------------


class Stored:
    """The store behind an EncryptedTensor of torch and behind all aliases and views of it.

    A product reads `core` once and works with that. A write that needs another store puts a new
    core in its place, so that readers in other threads see either the old or the new one.
    """

    __slots__ = (
        "__weakref__",
        "_lock",
        "core",
        "dtype",
        "itemsize",
        "key",
        "matrix",
        "payload",
        "sealed",
        "wipe_results",
    )

    def __init__(
        self, core: Core, dtype: torch.dtype, key: Key | None, *, wipe_results: bool = False
    ) -> None:
        self.dtype = dtype
        self.itemsize = dtype.itemsize
        self.key = key
        self._set(core)
        self._lock = Lock()
        self.sealed: torch.Tensor | None = None
        #: A weak reference to what torch.save() writes for it, and the core it was made from. While
        #: a torch.save() runs it keeps this alive, so that shared data is written once.
        self.payload: tuple[Any, Core, int, str] | None = None
        #: Puts plain results of operations with it into memory that is wiped when it is freed.
        self.wipe_results = wipe_results

    def _set(self, core: Core) -> None:
        """Makes `core` the tensor that is read and written."""
        self.core = core
        #: The Matrix for products; None unless the tensor has two dimensions, and of blocks.
        self.matrix: Matrix | None = None
        if core.ndim == 2:
            (store, offset), (height, width) = self.place(), core.shape
            self.matrix = Matrix(store, offset, height, width, self.dtype)

    @property
    def format(self) -> str | None:
        """The block format; None for elements as they are."""
        return None

    def place(self) -> tuple[Store, int]:
        """Returns the store in which the bytes lie, and the offset of the first of them."""
        return place_of(self.core)

    def nbytes(self) -> int:
        """Returns how many bytes lie there."""
        return self.core.nbytes

    def form(self) -> Form:
        """Returns what compiled code must know."""
        return Form(self.place()[1], self.core.shape, self.dtype)

    def matrix_at(self, first: int, shape: tuple[int, ...]) -> Matrix | BlockMatrix | None:
        """Returns the matrix of this shape from element `first` on; None where there is none."""
        if len(shape) != 2:
            return None
        store, offset = self.place()
        return Matrix(store, offset + first * self.itemsize, *shape, self.dtype)

    def rows_at(
        self, first: int, shape: tuple[int, ...], numbers: torch.Tensor, *, wrap: bool
    ) -> torch.Tensor | None:
        """Returns rows of the table of `shape` from element `first` on, by their numbers; see
        gathered(). None, with nothing done, where rows cannot be taken alone."""
        store, offset = self.place()
        offset += first * self.itemsize
        return gathered(store, offset, shape, self.dtype, numbers, wrap=wrap)

    @property
    def lock(self) -> AbstractContextManager[Any]:
        """The lock that a change holds."""
        return self._lock.here()

    # ---- making ----

    @classmethod
    def empty(
        cls,
        shape: tuple[int, ...],
        dtype: torch.dtype,
        *,
        key: Key | None,
        like: Core | None = None,
        wipe_results: bool = False,
        **options: Any,
    ) -> Stored:
        """Makes zeros, with the cipher, page size and name of `like` unless given."""
        if like is not None:
            options = {
                "cipher": like.cipher,
                "page_size": like.page_size,
                "name": like.name,
                **options,
            }
        good = key if key is not None and usable(key) else spare_key()
        core = Core.zeros(shape, numpy_dtype(dtype), key=good, **options)
        return cls(core, dtype, key, wipe_results=wipe_results)

    def copied(self, dtype: torch.dtype) -> Stored:
        """Returns the same values in a store of their own, as type `dtype`. Opens 1 MiB of
        plaintext at a time."""
        source = self.core
        new = Stored.empty(
            source.shape, dtype, key=self.key, like=source, wipe_results=self.wipe_results
        )
        self._copy_to(new)
        return new

    def _copy_to(self, new: Stored) -> None:
        """Writes all elements to the beginning of another. Closes that if it fails."""
        source = self.core
        count = source.size
        step = _BLOCK // max(self.itemsize, new.itemsize)
        try:
            for at in range(0, count, step):
                part = self.opened_run(source, at, min(step, count - at))
                if new.dtype != self.dtype:
                    part = converted(part, new.dtype)
                new.write_run(new.core, at, part)
        except BaseException:
            new.core.close()
            raise

    def resized(self, shape: tuple[int, ...]) -> Stored:
        """Returns the same elements and zeros after them, in a store of their own."""
        source = self.core
        new = Stored.empty(
            shape, self.dtype, key=self.key, like=source, wipe_results=self.wipe_results
        )
        self._copy_to(new)
        return new

    def twin(self) -> Stored:
        """Returns the same values, independent of these: the same pages as long as neither can be
        written to, which those of a file and frozen ones cannot, else a copy."""
        core = self.core
        twin = frozen_twin(core)
        if twin is not None:
            core = twin
        elif core.writable or core.frozen:
            return self.copied(self.dtype)
        return Stored(core, self.dtype, self.key, wipe_results=self.wipe_results)

    # ---- reading and writing ----

    def opened_run(self, core: Core, first: int, count: int) -> torch.Tensor:
        """Returns `count` elements from element `first` in memory that is wiped when its last user
        goes. Raises IntegrityError, ClosedError, ForkError, OutOfMemoryError."""
        nbytes = count * self.itemsize
        store, offset = place_of(core)
        if not nbytes:
            check_open(store, "tensor")
            return torch.empty(0, dtype=self.dtype)
        block, memory = wiped.block(nbytes)
        offset += first * self.itemsize
        status = lib.ccmem_store_read(handle(store), offset, block, nbytes)
        if status != OK:
            fail(store, status, offset, nbytes)
        return torch.frombuffer(memory, dtype=self.dtype)

    def write_run(self, core: Core, first: int, values: torch.Tensor) -> None:
        """Encrypts a contiguous tensor of this type to the elements from `first` on. Raises
        IntegrityError, ClosedError, ForkError, VersionExhaustedError, ReadOnlyError."""
        nbytes = values.numel() * self.itemsize
        if not nbytes:
            return
        store, offset = place_of(core)
        offset += first * self.itemsize
        status = lib.ccmem_store_write(handle(store), offset, pointer(values), nbytes)
        if status != OK:
            fail(store, status, offset, nbytes)

    def write_any(self, core: Core, first: int, values: torch.Tensor) -> None:
        """Does write_run() for a tensor of this type that need not be contiguous. Puts elements in
        order 1 MiB at a time, in memory that is wiped."""
        plain = not (values.is_conj() or values.is_neg())
        if plain and values.is_contiguous():
            self.write_run(core, first, values)
            return
        nbytes = values.numel() * self.itemsize
        if nbytes <= _BLOCK:
            self.write_run(core, first, converted(values, self.dtype))
            return
        row = values[0].numel()
        rows = _BLOCK // (row * self.itemsize)
        for at in range(0, values.shape[0], max(rows, 1)):
            part = values[at : at + rows] if rows else values[at]
            self.write_any(core, first + at * row, part)

    def check(self) -> None:
        """Raises ClosedError or ForkError, before this waits for a lock that a thread of the parent
        may have held."""
        check_open(self.place()[0], "tensor")

    def writable(self) -> Core:
        """Returns the core to write to, for a caller that holds the lock. If the store is read-only
        (of a file, or frozen), first puts a copy in its place: others may share the pages, and read
        them now."""
        core = self.core
        if core.writable:
            return core
        arena = place_for_writes(core)
        self._replace(self.copied(self.dtype).core if arena is None else core.copy(arena=arena))
        return self.core

    def _replace(self, core: Core) -> None:
        """Puts another core in the place of the one that is read. A compiled program that has the
        ciphertext as a constant of its own reads the new one too."""
        view = None if self.sealed is None else _view_of(self.sealed)
        self._set(core)
        self.sealed = None
        if view is not None:
            view.core = core

    def replace(self, values: torch.Tensor) -> None:
        """Encrypts new values for the whole tensor, which are contiguous and of the same type and
        number."""
        self.check()
        with self.lock:
            core = self.core
            if not core.writable:
                arena = place_for_writes(core)
                if arena is None:
                    made = Stored.empty(core.shape, self.dtype, key=self.key, like=core)
                    made.write_run(made.core, 0, values)
                    self._replace(made.core)
                else:
                    new = sealed(arena, core.shape, core.dtype, pointer(values), core.name)
                    self._replace(new)
            else:
                self.write_run(core, 0, values)

    def pages(self) -> Any:
        """Returns the pages of the store, in a buffer. Raises ClosedError, ForkError."""
        return self.core.buffer.ciphertext

    def maker(self) -> Callable[[Core, torch.dtype], Stored]:
        """Returns the function that makes another of its kind over a core."""
        return _over

    def ciphertext(self) -> torch.Tensor:
        """Returns the pages as a tensor of uint8, the same tensor each time. Raises ClosedError,
        ForkError."""
        sealed = self.sealed
        if sealed is None:
            self.check()
            with self.lock:
                sealed = self.sealed
                if sealed is None:
                    sealed = self.sealed = _ciphertext_tensor(self)
        return sealed

    def set_wipe_results(self, wanted: bool) -> None:
        """Changes where results lie, in compiled programs as well. Raises ClosedError,
        ForkError."""
        self.check()
        with self.lock:
            self.wipe_results = wanted
            view = None if self.sealed is None else _view_of(self.sealed)
            if view is not None:
                view.wipe_results = wanted


def _over(core: Core, dtype: torch.dtype) -> Stored:
    return Stored(core, dtype, None)


def usable(key: Key) -> bool:
    """Returns True for a key that is open and belongs to this process, or was read again from its
    file."""
    try:
        keys.check_open(key)
    except (errors.ClosedError, errors.ForkError):
        return False
    return True
