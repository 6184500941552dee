# SPDX-License-Identifier: Apache-2.0
"""What one encrypted torch tensor and all its aliases share: the ciphertext, its type, its key."""

from __future__ import annotations

import math
import os
import threading
import weakref
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import torch

from .. import _plain, errors
from .._forks import Lock
from .._lib import OK, check, ffi, lib
from ..keys import Key
from ..tensor import EncryptedTensor as Core

__all__ = [
    "NATIVE",
    "Stored",
    "converted",
    "core_of_ciphertext",
    "numpy_dtype",
    "pointer",
    "spare_key",
    "torch_dtype",
    "usable",
    "wiped_like",
]

#: Element types that the native kernel of products takes.
NATIVE = {
    torch.float32: lib.CCMEM_F32,
    torch.float16: lib.CCMEM_F16,
    torch.bfloat16: lib.CCMEM_BF16,
}

#: numpy's types by torch's; those that numpy lacks are named and come from ml_dtypes.
_NUMPY: dict[torch.dtype, Any] = {
    torch.bool: np.bool_,
    torch.uint8: np.uint8,
    torch.int8: np.int8,
    torch.int16: np.int16,
    torch.int32: np.int32,
    torch.int64: np.int64,
    torch.float16: np.float16,
    torch.float32: np.float32,
    torch.float64: np.float64,
    torch.complex64: np.complex64,
    torch.complex128: np.complex128,
    torch.bfloat16: "bfloat16",
}
for _torch_name, _numpy_type in (
    ("uint16", np.uint16),
    ("uint32", np.uint32),
    ("uint64", np.uint64),
    ("float8_e4m3fn", "float8_e4m3fn"),
    ("float8_e5m2", "float8_e5m2"),
    ("float8_e4m3fnuz", "float8_e4m3fnuz"),
    ("float8_e5m2fnuz", "float8_e5m2fnuz"),
    ("float8_e8m0fnu", "float8_e8m0fnu"),
):
    if hasattr(torch, _torch_name):
        _NUMPY[getattr(torch, _torch_name)] = _numpy_type

_TORCH_BY_NAME: dict[str, torch.dtype] = {
    (given if isinstance(given, str) else np.dtype(given).name): kind
    for kind, given in _NUMPY.items()
}

#: Plaintext bytes held at once where a whole tensor is converted or copied.
_BLOCK = 1 << 20

_cast = ffi.cast
_BYTES = ffi.typeof("uint8_t *")


def pointer(tensor: torch.Tensor) -> Any:
    """The first byte of a plain tensor, which the caller keeps alive, for a native call."""
    return _cast(_BYTES, tensor.data_ptr())


def numpy_dtype(kind: torch.dtype) -> np.dtype[Any]:
    """numpy's dtype for one of torch. Raises ArgumentTypeError for one that has none,
    MissingPackageError for one that needs ml_dtypes."""
    given = _NUMPY.get(kind)
    if given is None:
        raise errors.ArgumentTypeError(
            f"A tensor of {kind} cannot be encrypted; convert it to one of "
            f"{', '.join(str(known) for known in _NUMPY)}."
        )
    if not isinstance(given, str):
        known: np.dtype[Any] = np.dtype(given)
        return known
    try:
        import ml_dtypes

        found: np.dtype[Any] = np.dtype(getattr(ml_dtypes, given))
        return found
    except (ImportError, AttributeError):
        raise errors.MissingPackageError(
            f"A tensor of {kind} needs the package ml_dtypes, in a version that has {given}; "
            f"pip install 'pyccmem[torch]'."
        ) from None


def torch_dtype(kind: np.dtype[Any]) -> torch.dtype:
    """torch's dtype for one of numpy. Raises ArgumentTypeError."""
    found = _TORCH_BY_NAME.get(kind.name)
    if found is None or not kind.isnative:
        raise errors.ArgumentTypeError(
            f"torch has no type for elements of {kind}; use one of {', '.join(_TORCH_BY_NAME)}."
        )
    return found


# ---- keys for what is made of an encrypted tensor ----------------------------------------------

_spare: tuple[int, Key] | None = None
_spare_lock = threading.Lock()


def spare_key() -> Key:
    """A random key of this process, for copies of tensors whose own key is not at hand: what lies
    in memory alone needs no key that anyone knows. Raises what Key.generate() raises."""
    global _spare
    with _spare_lock:
        if _spare is None or _spare[0] != os.getpid():
            _spare = (os.getpid(), Key.generate())
        return _spare[1]


def _reset_lock() -> None:
    """A fork may find the lock held by a thread that the child does not have."""
    global _spare_lock, _views_lock
    _spare_lock = threading.Lock()
    _views_lock = threading.RLock()


os.register_at_fork(after_in_child=_reset_lock)


# ---- the ciphertext as a tensor ------------------------------------------------------------------


class _Ciphertext(np.ndarray[Any, Any]):
    """A view of a store's pages that keeps the store, too: what holds this memory can open it."""

    core: Core
    place: int  # its address


#: The ciphertext views by the torch storage that holds each, and some that are gone: without
#: callbacks, since an interrupt could come in one. A view lives as long as its storage, and no
#: other storage has that identity meanwhile. An address would not do: an arena gives the pages of a
#: tensor that was closed to another, while views of both live.
_views: dict[int, weakref.ref[_Ciphertext]] = {}
_views_lock = threading.RLock()  # of those who change it

#: Those that are gone are removed when there are this many.
_sweep_at = 1024


def _identity(sealed: torch.Tensor) -> int:
    """What tells its storage from all others that live; aliases share it."""
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


def _ciphertext_tensor(core: Core) -> torch.Tensor:
    """The pages of a core tensor as a tensor of uint8, which nothing must write to. Raises
    ClosedError, ForkError."""
    view = np.frombuffer(core.buffer.ciphertext, np.uint8)
    if not view.size:
        return torch.empty(0, dtype=torch.uint8)
    place = view.ctypes.data
    # As writable, since torch warns of others; the mapping stays as it is.
    memory = ffi.buffer(ffi.cast("uint8_t *", place), view.size)
    array = np.frombuffer(memory, np.uint8).view(_Ciphertext)
    array.core, array.place = core, place
    array.owner = view  # type: ignore[attr-defined]
    sealed = torch.from_numpy(array)
    _note_view(sealed, array)
    return sealed


def core_of_ciphertext(sealed: torch.Tensor) -> Core:
    """The core tensor whose pages `sealed` is. Raises ArgumentError for any other tensor."""
    reference = _views.get(_identity(sealed))
    view = None if reference is None else reference()
    if view is None or view.place != sealed.data_ptr():
        raise errors.ArgumentError(
            "This tensor is not the ciphertext of an EncryptedTensor of this process; pyccmem's "
            "operators take no other."
        )
    return view.core


# ---- the shared part -----------------------------------------------------------------------------


class Stored:
    """The store behind an EncryptedTensor of torch and behind all aliases and views of it.

    A product takes `core` once and works with that; a write that needs another store puts a new
    core in its place, so that readers in other threads see the one or the other.
    """

    __slots__ = (
        "__weakref__",
        "_lock",
        "core",
        "dtype",
        "itemsize",
        "key",
        "native",
        "payload",
        "sealed",
    )

    def __init__(self, core: Core, dtype: torch.dtype, key: Key | None) -> None:
        self.core = core
        self.dtype = dtype
        self.itemsize = dtype.itemsize
        self.native: int | None = NATIVE.get(dtype)
        self.key = key
        self._lock = Lock()
        self.sealed: torch.Tensor | None = None
        #: What torch.save() writes for it, for as long as somebody, such as a running torch.save(),
        #: has that: what shares data is written once. A reference to it, and what it was made of.
        self.payload: tuple[Any, Core, int, str] | None = None

    @property
    def lock(self) -> AbstractContextManager[Any]:
        """Held by who changes it."""
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
        **options: Any,
    ) -> Stored:
        """Zeros; the cipher, page size and name are those of `like` unless given."""
        if like is not None:
            options = {
                "cipher": like.cipher,
                "page_size": like.page_size,
                "name": like.name,
                **options,
            }
        good = key if key is not None and usable(key) else spare_key()
        core = Core.zeros(shape, numpy_dtype(dtype), key=good, **options)
        return cls(core, dtype, key)

    def copied(self, dtype: torch.dtype) -> Stored:
        """The same values in a store of its own, as another type if asked; 1 MiB of plaintext at a
        time."""
        source = self.core
        new = Stored.empty(source.shape, dtype, key=self.key, like=source)
        count = source.size
        step = _BLOCK // max(self.itemsize, dtype.itemsize)
        try:
            for at in range(0, count, step):
                part = self.opened_run(source, at, min(step, count - at))
                if dtype != self.dtype:
                    part = converted(part, dtype)
                new.write_run(new.core, at, part)
        except BaseException:
            new.core.close()
            raise
        return new

    # ---- reading and writing ----

    def opened_run(self, core: Core, first: int, count: int) -> torch.Tensor:
        """`count` elements from element `first` in memory that is wiped when its last user goes.
        Raises IntegrityError, ClosedError, ForkError, OutOfMemoryError."""
        nbytes = count * self.itemsize
        if not nbytes:
            check(lib.ccmem_store_check(core._opened()), subject="tensor")
            return torch.empty(0, dtype=self.dtype)
        block, memory = _plain.block(nbytes)
        offset = core._offset + first * self.itemsize
        status = lib.ccmem_store_read(core._opened(), offset, block, nbytes)
        if status != OK:
            core._buffer._fail(status, offset, nbytes)
        return torch.frombuffer(memory, dtype=self.dtype)

    def write_run(self, core: Core, first: int, values: torch.Tensor) -> None:
        """Encrypts a contiguous tensor of this type to element `first` on. Raises IntegrityError,
        ClosedError, ForkError, VersionExhaustedError, ReadOnlyError."""
        nbytes = values.numel() * self.itemsize
        if not nbytes:
            return
        offset = core._offset + first * self.itemsize
        status = lib.ccmem_store_write(core._opened(), offset, pointer(values), nbytes)
        if status != OK:
            core._buffer._fail(status, offset, nbytes)

    def write_any(self, core: Core, first: int, values: torch.Tensor) -> None:
        """The same for a tensor of this type that need not be contiguous: what has to be put in
        order is, 1 MiB at a time, in memory that is wiped."""
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
        """Raises ClosedError; ForkError, before a lock that a thread of the parent may have held is
        waited for."""
        check(lib.ccmem_store_check(self.core._opened()), subject="tensor")

    def writable(self) -> Core:
        """The core to write to, with the lock held: where the store is read-only (of a file), a
        copy takes its place."""
        core = self.core
        if core.writable:
            return core
        self.core = self.copied(self.dtype).core
        self.sealed = None
        return self.core

    def replace(self, values: torch.Tensor) -> None:
        """Encrypts new values for all of it, contiguous and of this type and number."""
        self.check()
        with self.lock:
            core = self.core
            if not core.writable:
                new = Stored.empty(core.shape, self.dtype, key=self.key, like=core)
                new.write_run(new.core, 0, values)
                self.core, self.sealed = new.core, None
            else:
                self.write_run(core, 0, values)

    def ciphertext(self) -> torch.Tensor:
        """The pages as a tensor of uint8, the same each time. Raises ClosedError, ForkError."""
        sealed = self.sealed
        if sealed is None:
            self.check()
            with self.lock:
                sealed = self.sealed
                if sealed is None:
                    sealed = self.sealed = _ciphertext_tensor(self.core)
        return sealed


def usable(key: Key) -> bool:
    """True for a key that is open and of this process, or read again from its file."""
    try:
        key._opened()
    except (errors.ClosedError, errors.ForkError):
        return False
    return True


def wiped_like(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """A contiguous tensor of zeros in memory that is wiped when its last user goes."""
    count = math.prod(shape)
    if not count:
        return torch.empty(shape, dtype=dtype)
    _, memory = _plain.block(count * dtype.itemsize)
    return torch.frombuffer(memory, dtype=dtype).view(shape)


def converted(values: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """`values` as another type, in memory that is wiped."""
    new = wiped_like(tuple(values.shape), dtype)
    new.copy_(values)
    return new
