# SPDX-License-Identifier: Apache-2.0
"""Arena: many tensors that are encrypted together, where a buffer for each would be too many.

A tensor in an arena is one Python object. Its native store lies in the memory of another object,
and its pages lie in one of a few large mappings. What the tensors of an arena share (cipher, key,
page size) is in their form, which all tensors of the same shape and dtype share.
"""

from __future__ import annotations

import itertools
import math
import operator
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from . import errors
from .binding import (
    AUTHENTICATED,
    CIPHERS,
    DEFAULT_CIPHER,
    LEVELS,
    OK,
    TENSOR_PAGE_SIZE,
    Call,
    anchor,
    check,
    ffi,
    lib,
    wiped,
)
from .binding.arguments import BYTES
from .binding.owned import ARENA
from .buffer import (
    LARGEST,
    EncryptedBuffer,
    check_options,
    check_tweak_cache,
    freshness,
    native_key,
)
from .core.fork_warning import name_also
from .core.forks import Lock
from .core.form import Form, Shared, remember
from .core.maker import TensorMaker, put_as
from .core.rekey import KeyUse, Native, Steps, checked_rate, run
from .core.replaced import BLOCK, transfer_steps
from .core.runs import flat_bytes, flat_parts
from .core.store import TENSOR
from .keys import Key
from .tensor import Cache, EncryptedTensor, checked_form, copy_into

__all__ = [
    "Arena",
    "frozen_twin",
    "is_fresh",
    "moving",
    "native_arena",
    "open_arenas",
    "place_for_writes",
    "rekey_steps",
    "shared_of",
    "totals",
]

_add = lib.ccmem_arena_add
_from_buffer = ffi.from_buffer
_new = object.__new__
_NULL = ffi.NULL
_SIZE = int(lib.CCMEM_STORE_SIZE)

#: Numbers for arenas without a name.
_numbers = itertools.count(1)


#: What the tensors of each arena of the process share; some arenas are gone. See core/store.py.
_registry: set[weakref.ref[Shared]] = set()


def _arenas() -> Iterator[tuple[Shared, Any]]:
    """Yields what the tensors of each arena of this process share, and how much they take."""
    for reference in list(_registry):
        shared = reference()
        if shared is None:
            _registry.discard(reference)
            continue
        found = ffi.new("ccmem_arena_totals *")
        if lib.ccmem_arena_get_totals(shared.native[()], found) == OK and found.stores:
            yield shared, found


#: Held while a tensor is thawed.
_thawing = Lock()


def is_fresh(shared: Shared) -> bool:
    """Returns True for an arena whose pages raise IntegrityError when they are put back from an
    earlier time with all that lies beside them."""
    return shared.cipher in AUTHENTICATED and (shared.frozen or shared.fresh)


def open_arenas() -> list[Shared]:
    """Returns what tensors in use share: a name, a cipher and a level for each arena of theirs."""
    return [shared for shared, _ in _arenas()]


def totals() -> dict[str, int]:
    """Returns what the tensors of all arenas of this process take: `stores`, `bytes`,
    `ciphertext_bytes`, `overhead_bytes`, `integrity_failures`; `fresh_bytes`, see
    EncryptedTensor.fresh."""
    names = dir(ffi.new("ccmem_arena_totals *"))
    sums = dict.fromkeys((*names, "fresh_bytes"), 0)
    for shared, found in _arenas():
        for name in names:
            sums[name] += int(getattr(found, name))
        if is_fresh(shared):
            sums["fresh_bytes"] += int(found.bytes)
    return sums


def _lost_at_fork() -> list[str]:
    """Returns this process's arenas that have tensors, as a warning names them."""
    return [f"{shared.name!a} (tensors encrypted in memory)" for shared, _ in _arenas()]


name_also(_lost_at_fork)


class _Store(bytes):
    """The memory of a native store, and its owner. It is made as zeros before the call that makes
    the store, and only C code uses it from then on.

    Native functions take the object itself in place of a pointer. The destructor runs no Python
    code, in which an interrupt could come: looking up `__del__` calls the native function, and
    calling what that returned does nothing. The garbage collector may run it before other
    finalizers of a cycle use the tensor; they then get ClosedError.
    """

    __slots__ = ()

    __del__ = property(lib.ccmem_arena_remove)


class _Tensor(EncryptedTensor):
    """A tensor in an arena. It is its own buffer too, in no more memory than the base class
    takes."""

    __slots__ = ()

    _store: Any = EncryptedTensor.__dict__["_buffer"]  # the base's slot under a name that fits

    @property
    def _buffer(self) -> EncryptedBuffer:  # type: ignore[override]
        return _Buffer._of_tensor(self)

    def _kept(self) -> Cache:
        cache = self._cache
        if type(cache) is not Cache:
            made = Cache()
            made.name = cache
            cache = self._cache = made
        return cache

    def _scratch(self) -> list[Any]:
        return self._form.scratch

    def _opened(self) -> Any:
        store = self._store
        if store is None:
            raise errors.ClosedError("This tensor is closed; read what you need before close().")
        return store

    @property
    def buffer(self) -> EncryptedBuffer:
        """The tensor's bytes as a buffer. Closing it closes the tensor."""
        cache = self._kept()
        found = None if cache.buffer is None else cache.buffer()
        if found is None:
            found = self._buffer
            cache.buffer = weakref.ref(found)
        return found

    @property
    def name(self) -> str:
        """The tensor's name in errors: its own, or the arena's with the number of the tensor's
        first page."""
        cache = self._cache
        name: str | None = cache.name if type(cache) is Cache else cache
        if name is not None:
            return name
        store, shared = self._store, self._form.shared
        assert shared is not None, "a form of an arena"
        return f"{shared.name}[{'closed' if store is None else lib.ccmem_arena_place(store)}]"

    @property
    def writable(self) -> bool:
        """False for a tensor in a frozen arena, until thaw()."""
        return not self._form.shared.frozen  # type: ignore[union-attr]

    @property
    def frozen(self) -> bool:
        """True for a tensor in a frozen arena, until thaw()."""
        return self._form.shared.frozen  # type: ignore[union-attr]

    @property
    def fresh(self) -> bool:
        """True when a page that is put back from an earlier time, with its tag and version, raises
        IntegrityError: of a tensor in a frozen or fresh arena. Never with a cipher without
        tags."""
        return is_fresh(self._form.shared)  # type: ignore[arg-type]

    def freeze(self) -> None:
        """Does nothing for a tensor that is frozen. Raises ArgumentError for any other,
        ClosedError, ForkError."""
        check(lib.ccmem_store_check(self._opened()), TENSOR)
        if not self.frozen:
            raise errors.ArgumentError(
                f"Tensor {self.name!a} lies in an arena, whose tensors share a key, so that its "
                f"pages cannot be sealed anew alone; make it in an Arena with frozen=True, or "
                f"freeze() a copy()."
            )

    def thaw(self) -> None:
        """Moves a frozen tensor to another arena, with a random key and with versions, where it can
        be written. Does nothing for any other. Raises IntegrityError, MappingConflictError while a
        mapping is open, OutOfMemoryError, LockedMemoryError, ClosedError, ForkError; nothing has
        changed then."""
        with _thawing.here():
            store = self._opened()
            check(lib.ccmem_store_check(store), TENSOR)
            if self.writable:
                return
            if lib.ccmem_store_mapped(store) != lib.CCMEM_UNMAPPED:
                raise errors.MappingConflictError(
                    f"A mapping of {self.name!a} is open, and thaw() puts other pages in the place "
                    f"of those that it shows; leave the mapping first."
                )
            new: Any = _thawed_arena(self._form.shared)._copied(self, None)
            if self._store is not store:
                raise errors.ClosedError(
                    "This tensor was closed meanwhile; read what you need before."
                )
            cache = self._cache
            if type(cache) is Cache:
                cache.exposed = None
            # Either form fits either store, for calls that come between the two assignments.
            self._form, self._store = new._form, new._store

    def _rekey_steps(self, key: Key | None) -> Steps:
        check(lib.ccmem_store_check(self._opened()), TENSOR)
        shared: Any = self._form.shared
        if not shared.frozen:
            raise errors.ArgumentError(
                f"Tensor {self.name!a} lies in an arena, whose tensors share a key, so that it "
                f"cannot have another one alone; rekey() the arena, or use pyccmem.Rekeying, which "
                f"does."
            )
        return frozen_steps([self], _frozen_arena(shared, key))

    @property
    def cipher(self) -> str:
        """Name of the cipher suite."""
        return self._form.shared.cipher  # type: ignore[union-attr]

    @property
    def authenticated(self) -> bool:
        """True when each page has a tag, so that a change raises IntegrityError."""
        return self.cipher in AUTHENTICATED

    @property
    def page_size(self) -> int:
        """Bytes of the unit of encryption."""
        return self._form.shared.page_size  # type: ignore[union-attr]

    @property
    def closed(self) -> bool:
        """True after close() of this tensor or of another that shares its bytes."""
        return self._store is None

    def close(self) -> None:
        """Discards the ciphertext, for every tensor that shares it, at once or when the last call
        that uses it returns. Arrays that were returned stay valid. May be repeated."""
        self._store = None


_Tensor.__name__ = _Tensor.__qualname__ = EncryptedTensor.__name__


def _of_tensor(path: str) -> Any:
    return property(operator.attrgetter(f"_tensor.{path}"))


class _Buffer(EncryptedBuffer):
    """A tensor of an arena as a buffer, for the code that reads and writes buffers."""

    __slots__ = ("_tensor",)

    _tensor: _Tensor

    # These replace the fields of an ordinary buffer.
    _store = _of_tensor("_store")
    _anchor = None
    _origin = None
    _name = _of_tensor("name")
    _nbytes = _of_tensor("_form.nbytes")
    _cipher = _of_tensor("_form.shared.cipher")
    _page_size = _of_tensor("_form.shared.page_size")
    _level = _of_tensor("_form.shared.level")
    _writable = _of_tensor("writable")
    _frozen = _of_tensor("frozen")
    _fresh = _of_tensor("_form.shared.fresh")

    @classmethod
    def _of_tensor(cls, tensor: _Tensor) -> _Buffer:
        self = _new(cls)
        self._tensor = tensor
        return self

    @property
    def _exposed(self) -> tuple[int, int] | None:
        cache = self._tensor._cache
        return cache.exposed if type(cache) is Cache else None

    @_exposed.setter
    def _exposed(self, where: tuple[int, int] | None) -> None:
        self._tensor._kept().exposed = where

    def _opened(self) -> Any:
        return self._tensor._opened()

    @property
    def fresh(self) -> bool:
        """As of the tensor."""
        return self._tensor.fresh

    def freeze(self) -> None:
        """Does what the tensor's does."""
        self._tensor.freeze()

    def thaw(self) -> None:
        """Does what the tensor's does."""
        self._tensor.thaw()

    def _rekey_steps(self, key: Key | None) -> Steps:
        return self._tensor._rekey_steps(key)

    def _native(self, store: Any) -> Native:
        return native_arena(self._tensor._form.shared)

    @property
    def closed(self) -> bool:
        """True after close() of the tensor."""
        return self._tensor.closed

    def close(self) -> None:
        """Closes the tensor."""
        self._tensor.close()


def _arena_like(shared: Any, key: Key | None, *, frozen: bool) -> Arena:
    """Returns an empty arena of the same cipher, page size and name, under `key` or a random key of
    the same level."""
    options = {
        "cipher": shared.cipher,
        "page_size": shared.page_size,
        "name": shared.name,
        "fresh": shared.fresh,
        "frozen": frozen,
    }
    if key is not None:
        return Arena(key=key, **options)
    wanted = {"level": "mlock"} if shared.level == "mlock" else {"require": shared.level}
    with Key.generate(**wanted) as random:
        return Arena(key=random, **options)


def _thawed_arena(shared: Any) -> Arena:
    """Returns the arena for what is thawed of another, with a random key of the same level. The
    caller holds the lock."""
    arena: Arena | None = shared.thawed
    if arena is None:
        arena = shared.thawed = _arena_like(shared, None, frozen=False)
    return arena


def _frozen_arena(shared: Any, key: Key | None) -> Arena:
    """Returns an empty frozen arena for tensors of another."""
    return _arena_like(shared, key, frozen=True)


def shared_of(tensor: EncryptedTensor) -> Any:
    """Returns what the tensor shares with others of its arena; None for a tensor in a buffer of its
    own."""
    return tensor._form.shared if isinstance(tensor, _Tensor) else None


def native_arena(shared: Any) -> Native:
    """Returns the arena of such tensors, to be moved to another key where it lies."""
    return Native(
        "arena",
        shared.native[()],
        name=shared.name,
        cipher=shared.cipher,
        page_size=shared.page_size,
    )


def moving(tensors: list[EncryptedTensor], key: Key | None) -> Steps:
    """Returns the steps that give the tensors of one frozen arena a new one. Raises what Arena
    raises."""
    return frozen_steps(tensors, _frozen_arena(shared_of(tensors[0]), key))


def frozen_steps(tensors: list[Any], arena: Arena) -> Steps:
    """Moves tensors of a frozen arena to another, one after the other, 1 MiB of plaintext at a
    time; those that share pages go on to share them. One that was thawed or closed meanwhile is
    left alone. Raises IntegrityError, MappingConflictError, ClosedError, ForkError,
    OutOfMemoryError: tensors are where they were, or moved."""
    pages: dict[int, list[Any]] = {}
    for tensor in tensors:
        pages.setdefault(id(tensor._opened()), []).append(tensor)
    while pages:
        alike = pages.pop(next(iter(pages)))
        first = alike[0]
        store = first._store
        if store is None or first.writable:
            continue
        check(lib.ccmem_store_check(store), TENSOR)
        new: Any = arena._make(arena._form(first.shape, first.dtype), None, None)
        try:
            yield from transfer_steps(
                first._buffer, 0, first.nbytes, new._store, lib.ccmem_store_fill, new._buffer
            )
            with _thawing.here():
                if lib.ccmem_store_mapped(store) != lib.CCMEM_UNMAPPED:
                    raise errors.MappingConflictError(
                        f"A mapping of {first.name!a} is open, and rekey() puts other pages in the "
                        f"place of those that it shows; leave the mapping first."
                    )
                for tensor in alike:
                    if tensor._store is store:
                        cache = tensor._cache
                        if type(cache) is Cache:
                            cache.exposed = None
                        # Either form fits either store, as in thaw().
                        tensor._form = arena._form(tensor.shape, tensor.dtype)
                        tensor._store = new._store
        finally:
            new._store = None
            del store


def place_for_writes(tensor: EncryptedTensor) -> Arena | None:
    """Returns the arena that thaw() would move a frozen arena's tensor to; None for any other
    tensor. Raises OutOfMemoryError, LockedMemoryError."""
    if not isinstance(tensor, _Tensor) or tensor.writable:
        return None
    with _thawing.here():
        return _thawed_arena(tensor._form.shared)


def frozen_twin(tensor: EncryptedTensor) -> EncryptedTensor | None:
    """Returns another tensor over the pages of a frozen arena's, which thaw() of one of the two
    leaves to the other; None for any other tensor."""
    if not isinstance(tensor, _Tensor) or tensor.writable:
        return None
    twin = _new(_Tensor)
    twin._form, twin._cache, twin._store = tensor._form, tensor._kept().name, tensor._opened()
    return twin


_Buffer.__name__ = _Buffer.__qualname__ = EncryptedBuffer.__name__


class Arena(TensorMaker):
    """Memory for many tensors that are encrypted together.

        arena = pyccmem.Arena(key=key)
        tensors = [pyccmem.EncryptedTensor.from_numpy(a, arena=arena) for a in arrays]

    The tensors share one subkey, derived from `key` when the arena is made; `key` may be closed
    afterwards. They lie in a few large mappings: a tensor takes whole pages of ciphertext, 32 bytes
    for each page and some 200 more, but no locked memory and no mapping of its own. Each page has a
    number of its own in the arena, from which its nonce is made, so tensors are as separate as in
    buffers of their own. A tensor reads and writes only its own bytes.

    A tensor that is closed or dropped gives its pages back for others, and its contents cannot be
    read any more. A view of its `ciphertext` stays valid, but may then show zeros or another
    tensor's ciphertext. Counters (`buffer.stats()`) are those of the whole arena.

    With `frozen` each page is sealed once, when the tensor is made, and no page is ever given to
    another tensor: there are no versions, and nothing that was ever in memory can be put back.
    Writes raise FrozenError until thaw(), which moves a tensor to another arena, with a random key.
    With `fresh` the versions of what can be written lie in locked memory; see EncryptedBuffer.

    After close() no more tensors can be made. Existing tensors stay; keys and memory go with the
    last of them. All methods may be called from several threads at once.
    """

    __slots__ = ("_anchor", "_arena", "_forms", "_shared")

    _instead_of_a_copy = "make another one"

    def __init__(
        self,
        *,
        key: Key,
        cipher: str = DEFAULT_CIPHER,
        page_size: int = TENSOR_PAGE_SIZE,
        tweak_cache: int = 4096,
        name: str | None = None,
        frozen: bool = False,
        fresh: bool = False,
        _version_limit: int = 0,
    ) -> None:
        """Makes an arena without tensors.

        Raises ArgumentError (PageSizeError for the page size), ArgumentTypeError, ClosedError or
        ForkError for the key, OutOfMemoryError, LockedMemoryError, EntropyError.
        """
        self._arena = self._anchor = None
        page_size = check_options(cipher, page_size, name)
        tweak_cache = check_tweak_cache(tweak_cache)
        place = freshness(fresh, cipher, frozen)
        self._forms: dict[Any, Form] = {}
        native = native_key(key)
        out = ARENA.cell()
        status = lib.ccmem_arena_new(
            native, CIPHERS[cipher], page_size, _version_limit, tweak_cache, place, out
        )
        check(status, Call("an arena", "key"))
        self._arena = ARENA.own(out)
        self._anchor = anchor(self._arena)
        level = LEVELS[lib.ccmem_arena_level(self._arena)]
        name = f"arena-{next(_numbers)}" if name is None else name
        self._shared = Shared(self._anchor, cipher, page_size, level, name, frozen, fresh)
        _registry.add(weakref.ref(self._shared))

    # ---- tensors ----

    def _encrypted(self, source: npt.NDArray[Any], name: Any) -> EncryptedTensor:
        """Returns a tensor with the contents of an array."""
        kind = source.dtype
        form = self._forms.get((source.shape, kind, kind.char))
        if form is None:
            form = self._form(source.shape, kind)
        if (source.nbytes and not source.flags.c_contiguous) or source.dtype != form.dtype:
            if self._shared.frozen:
                put = put_as(form.dtype)
                return self._in_order(source.shape, form.dtype, source, put, name)
            tensor = self._make(form, None, name)
            try:
                tensor[...] = source
            except BaseException:
                tensor.close()
                raise
            return tensor
        return self._make(form, source, name)

    def _zeros(self, shape: Any, dtype: Any, name: Any) -> EncryptedTensor:
        ghost, kind = checked_form(shape, dtype)
        if self._shared.frozen:
            zero = np.broadcast_to(np.zeros((), kind), ghost.shape)
            return self._in_order(ghost.shape, kind, zero, put_as(kind), name)
        return self._make(self._form(ghost.shape, kind), None, name)

    def _in_order(
        self, shape: Any, dtype: Any, source: Any, put: Any, name: Any
    ) -> EncryptedTensor:
        """Opens 1 MiB of plaintext at a time, in memory that is wiped: whole pages, as a frozen
        arena has them sealed. Where no whole pages of that size hold whole elements, the tensor is
        made where it can be written, and copied."""
        form = self._form(shape, dtype)
        unit = math.lcm(self.page_size, form.itemsize)
        if unit > BLOCK:
            with self._written()._in_parts(form, unit, source, put, None) as written:
                return self._copied(written, name)
        return self._in_parts(form, BLOCK // unit * unit, source, put, name)

    def _in_parts(
        self, form: Form, nbytes: int, source: Any, put: Any, name: Any
    ) -> EncryptedTensor:
        """Returns a tensor of the elements of `source`, `nbytes` bytes of them at a time."""
        tensor: Any = self._make(form, None, name)
        if not form.nbytes:
            return tensor  # type: ignore[no-any-return]
        native = lib.ccmem_store_fill if self.frozen else lib.ccmem_store_write
        nbytes = max(min(nbytes, BLOCK) // form.itemsize, 1) * form.itemsize
        pointer, memory = wiped.block(min(nbytes, form.nbytes))
        try:
            for at in range(0, form.nbytes, nbytes):
                count = min(nbytes, form.nbytes - at)
                first, size = at // form.itemsize, count // form.itemsize
                for place, part in flat_parts(source, form.shape, first, size):
                    put(memory, place * form.itemsize, part)
                status = native(tensor._store, at, pointer, count)
                check(status, Call(f"a tensor of {form.nbytes} bytes", "tensor"))
        except BaseException:
            tensor.close()
            raise
        finally:
            wiped.wipe(memory)
        return tensor  # type: ignore[no-any-return]

    def _written(self) -> Arena:
        """Returns the arena for what is thawed of this one."""
        with _thawing.here():
            return _thawed_arena(self._shared)

    def _sealed(self, shape: Any, dtype: Any, data: Any, name: Any) -> EncryptedTensor:
        return self._make(self._form(shape, dtype), data, name)

    def _copied(self, source: EncryptedTensor, name: Any) -> EncryptedTensor:
        """Returns a tensor with the contents of another."""
        tensor = self._make(self._form(source.shape, source.dtype), None, name)
        try:
            copy_into(source, tensor.buffer)
        except BaseException:
            tensor.close()
            raise
        return tensor

    def _form(self, shape: Any, dtype: Any) -> Form:
        """Returns the form for tensors of this arena with a shape and dtype. Raises ArgumentError,
        ArgumentTypeError."""
        # NumPy's int64 and longlong are equal as dtypes, and their elements are of two types.
        key = shape, dtype, dtype.char
        form = self._forms.get(key)
        if form is None:
            ghost, kind = checked_form(shape, dtype)
            form = remember(self._forms, key, Form(ghost, kind, 0, self._shared))
        return form

    def _make(self, form: Form, source: Any, name: Any) -> EncryptedTensor:
        """Returns a tensor of zeros (in a frozen arena: yet to be filled), or of the bytes of a
        contiguous array, or at a native pointer."""
        if not (name is None or isinstance(name, str)):
            raise errors.ArgumentTypeError(
                f"name must be a str or None, not {type(name).__name__}."
            )
        nbytes = form.nbytes
        if nbytes > LARGEST:
            check(lib.CCMEM_ERR_NOMEM, Call(f"a tensor of {nbytes} bytes"))
        store = _Store(_SIZE)
        native = self._arena
        if native is None:
            self._opened()
        if source is None or not nbytes:
            status = _add(native, nbytes, _NULL, store)
        elif isinstance(source, ffi.CData):
            status = _add(native, nbytes, source, store)
        else:
            with _from_buffer(BYTES, flat_bytes(source)) as data:
                status = _add(native, nbytes, data, store)
        if status != OK:
            check(status, Call(f"a tensor of {nbytes} bytes", "arena"))
        tensor: Any = _new(_Tensor)
        tensor._form, tensor._cache, tensor._store = form, name, store
        return tensor  # type: ignore[no-any-return]

    # ---- what it is ----

    @property
    def name(self) -> str:
        """The arena's name. Errors call a tensor without a name by this and a number."""
        return self._shared.name

    @property
    def cipher(self) -> str:
        """Name of the cipher suite."""
        return self._shared.cipher

    @property
    def page_size(self) -> int:
        """Bytes of the unit of encryption."""
        return self._shared.page_size

    @property
    def frozen(self) -> bool:
        """True when its tensors are sealed once, when they are made."""
        return self._shared.frozen

    @property
    def fresh(self) -> bool:
        """True when pages of its tensors that are put back from an earlier time, with their tags
        and versions, raise IntegrityError."""
        return is_fresh(self._shared)

    @property
    def level(self) -> str:
        """The secret-memory level of the arena's subkey: "secretmem" or "mlock"."""
        return self._shared.level

    # ---- another key ----

    def rekey(
        self,
        key: Key | None = None,
        *,
        bytes_per_second: int | None = None,
        progress: Callable[[int, int], object] | None = None,
    ) -> None:
        """Seals every page of every tensor of the arena under another key, and wipes the old one,
        while tensors are made, used and closed; see EncryptedBuffer.rekey(). May be called after
        close().

        Raises FrozenError for a frozen arena, whose tensors go to another arena: rekey() these, or
        all of them with Rekeying. Otherwise raises what EncryptedBuffer.rekey() raises."""
        rate = checked_rate(bytes_per_second)
        steps = rekey_steps(self, key)
        total = native_arena(self._shared).nbytes
        run(steps, total=total, bytes_per_second=rate, progress=progress)

    def key_use(self) -> KeyUse:
        """Returns how much the arena's key has sealed; see EncryptedBuffer.key_use(). Raises
        ForkError."""
        return native_arena(self._shared).use().warn(self.name)

    def _rekey_steps(self, key: Key | None) -> Steps:
        if self._shared.frozen:
            raise errors.FrozenError(
                f"Arena {self.name!a} is frozen: each of its pages is sealed once. Call rekey() of "
                f"its tensors, which moves them to another arena, or give them to "
                f"pyccmem.Rekeying."
            )
        return native_arena(self._shared).steps(None if key is None else native_key(key))

    # ---- lifetime ----

    @property
    def closed(self) -> bool:
        """True after close()."""
        return self._arena is None

    def close(self) -> None:
        """Makes no more tensors. May be repeated."""
        self._arena = self._anchor = None

    def _opened(self) -> Any:
        native = self._arena
        if native is None:
            raise errors.ClosedError("This arena is closed; make another one for more tensors.")
        return native

    def _description(self) -> str:
        kind = ", frozen" if self.frozen else ", fresh" if self.fresh else ""
        return f"{self.name!a}, {self.cipher}, pages of {self.page_size}{kind}"


def rekey_steps(arena: Arena, key: Key | None) -> Steps:
    """Does Arena.rekey() step by step. Checks the arguments at once."""
    return arena._rekey_steps(key)
