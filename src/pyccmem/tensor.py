# SPDX-License-Identifier: Apache-2.0
"""EncryptedTensor: an n-dimensional array that lies in memory as ciphertext, and is read and
written by numpy's index expressions."""

from __future__ import annotations

import math
import operator
import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from inspect import Signature
from typing import TYPE_CHECKING, Any, overload

import numpy as np
import numpy.typing as npt

from . import errors
from .binding import DEFAULT_CIPHER, OK, TENSOR_PAGE_SIZE, check, ffi, lib, wiped
from .binding.arguments import BYTES, integer, plain_array
from .buffer import EncryptedBuffer, verify
from .core import maker
from .core.array_methods import ArrayMethods
from .core.block_formats import FORMATS, BlockFormat
from .core.block_maker import block_format_of
from .core.block_maker import maker as block_maker
from .core.form import Form
from .core.index_types import Parts, Places
from .core.indexing import (
    TABLE_ROW_BYTES,
    How,
    Offsets,
    Selection,
    names_several,
    phantom,
    refuse,
    reshaped,
    select,
)
from .core.maker import TensorMaker
from .core.operand import Operand, place_of
from .core.rekey import KeyUse
from .core.replaced import put_of, transfer
from .core.resource import Resource
from .core.runs import Layout, flat_bytes, gather, read, write
from .core.store import TENSOR, check_open, check_writable, fail, handle, is_exposed
from .keys import Key
from .mapping import Mapping
from .product.linear import matmul

if TYPE_CHECKING:
    from .arena import Arena

__all__ = ["Cache", "EncryptedTensor", "adopted", "checked_form", "copy_into", "of_form"]

Array = npt.NDArray[Any]

_block = wiped.block
_store_read = lib.ccmem_store_read
_store_write = lib.ccmem_store_write
_ndarray = np.ndarray

#: numpy's own integer types. np.integer would not do: it is a base of np.timedelta64 too.
_INTEGERS = frozenset(np.dtype(code).type for code in "bBhHiIlLqQ")

#: Values that must be converted before they are written are converted this many bytes at a time.
STAGING_BYTES = 1 << 20

#: Stands for an argument that was not given: None is a dtype, NumPy's float64.
_SAME: Any = object()

#: Assigning 0 to an element of such a type is the cheapest way to clear a scalar's bytes.
_WORDS = {1: "u1", 2: "u2", 4: "u4", 8: "u8"}


def _checked_shape(shape: Any) -> tuple[int, ...]:
    """Returns a shape as a tuple of ints. Raises ArgumentError, ArgumentTypeError."""
    if isinstance(shape, (tuple, list)):
        lengths = tuple(integer("a length in shape", n) for n in shape)
    else:
        lengths = (integer("shape", shape),)
    if any(n < 0 for n in lengths):
        raise errors.ArgumentError(f"shape is {lengths}; its lengths must be at least 0.")
    return lengths


def _checked_dtype(dtype: Any) -> np.dtype[Any]:
    """Returns `dtype` as NumPy's, if its items have a fixed size and hold no objects. Raises
    ArgumentTypeError."""
    try:
        kind: np.dtype[Any] = np.dtype(dtype)
    except (TypeError, ValueError, SyntaxError) as error:
        more = (
            f" Block formats are {', '.join(FORMATS)}."
            if isinstance(dtype, str) and "not understood" in str(error)
            else ""
        )
        raise errors.ArgumentTypeError(
            f"dtype is not a dtype: {str(error).rstrip('.')}.{more}"
        ) from None
    if kind.hasobject:
        raise errors.ArgumentTypeError(
            f"dtype {kind} holds references to Python objects, not data; use one of fixed size."
        )
    if kind.itemsize == 0:
        raise errors.ArgumentTypeError(
            f"dtype {kind!r} has items of no size; give it one, as in 'S8'."
        )
    return kind


def checked_form(shape: Any, dtype: Any) -> tuple[Array, np.dtype[Any]]:
    """Returns the phantom of a tensor of this shape and dtype, and its dtype. As in numpy, a dtype
    of arrays adds their dimensions to the shape. Raises ArgumentError, ArgumentTypeError."""
    lengths, kind = _checked_shape(shape), _checked_dtype(dtype)
    if kind.subdtype is not None:
        kind, inner = kind.subdtype
        lengths += inner
    try:
        return phantom(lengths, kind.itemsize), kind
    except (ValueError, OverflowError) as error:
        raise errors.ArgumentError(
            f"No array can have shape {lengths} and dtype {kind}: {str(error).rstrip('.')}."
        ) from None


def maker_of(
    *, arena: Any, key: Any, cipher: Any, page_size: Any, fresh: Any, name: Any = None
) -> TensorMaker:
    """Returns the arena, if none of what the arena sets is also given. Raises ArgumentError,
    ArgumentTypeError."""
    if not isinstance(arena, TensorMaker):
        raise errors.ArgumentTypeError(
            f"arena must be a pyccmem.Arena, not {type(arena).__name__}; make one with "
            f"Arena(key=...)."
        )
    given = ("key", key), ("cipher", cipher), ("page_size", page_size), ("fresh", fresh or None)
    for what, asked in given:
        if asked is not None:
            raise errors.ArgumentError(
                f"{what} and arena are both given, and the arena has a {what} already; leave "
                f"{what} out, or leave arena out for a tensor of its own."
            )
    return arena


def _of_form(name: str) -> Any:
    return property(operator.attrgetter(f"_form.{name}"))


class Cache:
    """What a tensor keeps for its next reads, and further fields of a tensor in an arena."""

    __slots__ = ("buffer", "exposed", "name", "scratch", "table")

    def __init__(self) -> None:
        self.scratch: list[tuple[Array, Array, Any]] = []
        self.table: Offsets | None = None
        self.name: str | None = None
        self.exposed: tuple[int, int] | None = None
        self.buffer: weakref.ref[EncryptedBuffer] | None = None


class EncryptedTensor(Operand, ArrayMethods, Resource):
    """An n-dimensional C-contiguous array held as ciphertext, of any dtype of fixed size, including
    those of ml_dtypes if it is installed.

    Made by from_numpy(), empty() or zeros(). `t[index]` decrypts what `index` names and returns an
    ordinary array (a scalar where numpy returns one), `t[index] = values` encrypts, with numpy's
    rules for shapes, broadcasting and casting. Every array it returns is a copy in memory that is
    wiped when the last reference to it goes. Errors and repr() call the tensor `name`.

    reshape() and view() give tensors that share the buffer; close() closes it for all of them.

    All methods may be called from several threads at once. A read during a write may see some pages
    before and some after it.
    """

    # No more than these, because there may be a million tensors; arena.py uses two of them
    # otherwise.
    __slots__ = ("_buffer", "_cache", "_form")

    _instead_of_a_copy = "make a new one with copy(key=...)"

    _product = staticmethod(matmul)

    _buffer: EncryptedBuffer
    _form: Form
    _cache: Any  # a Cache, or None as long as there is nothing in it

    # What follows from the form, for code that need not be fast.
    _ghost: Array = _of_form("ghost")
    _address: int = _of_form("address")
    _shape: tuple[int, ...] = _of_form("shape")
    _strides: tuple[int, ...] = _of_form("strides")
    _dtype: np.dtype[Any] = _of_form("dtype")
    _itemsize: int = _of_form("itemsize")
    _nbytes: int = _of_form("nbytes")
    _ndim: int = _of_form("ndim")
    _length: int = _of_form("length")
    _row_shape: tuple[int, ...] = _of_form("row_shape")
    _row_nbytes: int = _of_form("row_nbytes")
    _offset: int = _of_form("offset")

    #: Nothing can be given to the constructor; who tries is told what to call.
    __signature__ = Signature()

    def __init__(self, *arguments: object, **options: object) -> None:
        """Raises ArgumentTypeError: from_numpy(), zeros(), empty() and others make tensors."""
        raise errors.ArgumentTypeError(
            "EncryptedTensor() makes no tensor; use EncryptedTensor.from_numpy(array, key=...), "
            ".zeros(shape, dtype, key=...) or .empty(shape, dtype, key=...)."
        )

    # ---- making ----

    @classmethod
    def from_numpy(
        cls,
        array: npt.ArrayLike,
        *,
        dtype: Any = None,
        key: Key | None = None,
        cipher: str | None = None,
        page_size: int | None = None,
        name: str | None = None,
        arena: Arena | None = None,
        fresh: bool = False,
    ) -> EncryptedTensor:
        """Returns a tensor with the contents, shape and dtype of `array` (or of what numpy makes of
        it), which stays unchanged: overwrite it yourself. A C-contiguous array is encrypted without
        a copy in between. With `dtype` the elements are converted to that type, some at a time; a
        block format such as "q4_k" gives a QuantizedTensor. With `arena` the tensor is encrypted
        together with others, under the arena's key, cipher and page size; see Arena. With `fresh`
        it keeps the versions of its pages in locked memory; see EncryptedBuffer.

        Raises ArgumentTypeError for a dtype of objects or of no size, and what EncryptedBuffer
        raises; for a block format what QuantizedTensor raises when rows are assigned.
        """
        if dtype is not None:
            format = block_format_of(dtype)
            if format is not None:
                return block_maker().encrypted(  # type: ignore[no-any-return]
                    array,
                    format,
                    key=key,
                    cipher=cipher,
                    page_size=page_size,
                    name=name,
                    arena=arena,
                    fresh=fresh,
                )
        source = plain_array("array", array)
        kind = source.dtype if dtype is None else _checked_dtype(dtype)
        if arena is not None:
            place = maker_of(arena=arena, key=key, cipher=cipher, page_size=page_size, fresh=fresh)
            if dtype is not None and kind != source.dtype:
                put = maker.put_as(kind)
                return maker.in_order(place, source.shape, kind, source, put, name)  # type: ignore[no-any-return]
            return maker.encrypted(place, source, name)  # type: ignore[no-any-return]
        self = cls.zeros(
            source.shape,
            kind,
            key=key,
            cipher=cipher,
            page_size=page_size,
            name=name,
            fresh=fresh,
        )
        try:
            self[...] = source
        except BaseException:
            self.close()
            raise
        return self

    @classmethod
    def zeros(
        cls,
        shape: int | tuple[int, ...],
        dtype: npt.DTypeLike | BlockFormat = np.float64,
        *,
        key: Key | None = None,
        cipher: str | None = None,
        page_size: int | None = None,
        name: str | None = None,
        arena: Arena | None = None,
        fresh: bool = False,
    ) -> EncryptedTensor:
        """Returns a tensor whose bytes are all zero. A page takes memory when it is first written.
        A block format as `dtype`, such as "q4_k", gives a QuantizedTensor. `arena` and `fresh` are
        as for from_numpy().

        Raises ArgumentError for a shape that cannot be, ArgumentTypeError for a dtype of objects
        or of no size, and what EncryptedBuffer raises.
        """
        format = block_format_of(dtype)
        if format is not None:
            return block_maker().zeros(  # type: ignore[no-any-return]
                shape,
                format,
                key=key,
                cipher=cipher,
                page_size=page_size,
                name=name,
                arena=arena,
                fresh=fresh,
            )
        if arena is not None:
            place = maker_of(arena=arena, key=key, cipher=cipher, page_size=page_size, fresh=fresh)
            return maker.zeros(place, shape, dtype, name)  # type: ignore[no-any-return]
        ghost, kind = checked_form(shape, dtype)
        nbytes = ghost.size * kind.itemsize
        buffer = EncryptedBuffer(
            nbytes,
            key=key,  # type: ignore[arg-type]  # it raises the error for None
            cipher=DEFAULT_CIPHER if cipher is None else cipher,
            page_size=TENSOR_PAGE_SIZE if page_size is None else page_size,
            name=name,
            fresh=fresh,
        )
        return cls._of(buffer, ghost, kind, 0)

    @classmethod
    def empty(
        cls,
        shape: int | tuple[int, ...],
        dtype: npt.DTypeLike | BlockFormat = np.float64,
        *,
        key: Key | None = None,
        cipher: str | None = None,
        page_size: int | None = None,
        name: str | None = None,
        arena: Arena | None = None,
        fresh: bool = False,
    ) -> EncryptedTensor:
        """Returns the same as zeros(): bytes that were never written read as zeros and take no
        memory."""
        return cls.zeros(
            shape,
            dtype,
            key=key,
            cipher=cipher,
            page_size=page_size,
            name=name,
            arena=arena,
            fresh=fresh,
        )

    def copy(
        self,
        *,
        key: Key | None = None,
        cipher: str | None = None,
        page_size: int | None = None,
        name: str | None = None,
        arena: Arena | None = None,
        fresh: bool = False,
    ) -> EncryptedTensor:
        """Returns a tensor of the same contents, shape and dtype in a buffer of its own, which can
        be written even if this one cannot (see `writable`). Key, cipher, page size and name that
        are not given are as in this tensor. Opens and seals 1 MiB at a time, in memory that is
        wiped. `arena` and `fresh` are as for from_numpy().

        Raises IntegrityError when one of the pages was changed, ClosedError, ForkError,
        OutOfMemoryError, and what EncryptedBuffer raises.
        """
        if arena is not None:
            place = maker_of(arena=arena, key=key, cipher=cipher, page_size=page_size, fresh=fresh)
            name = self.name if name is None else name
            return maker.copied(place, self, name)  # type: ignore[no-any-return]
        if key is None:
            raise errors.ArgumentTypeError(
                "copy() makes an encrypted copy, for which it needs key= or arena=; t[...] and "
                "np.array(t) are plain copies."
            )
        buffer = EncryptedBuffer(
            self._nbytes,
            key=key,
            cipher=self.cipher if cipher is None else cipher,
            page_size=self.page_size if page_size is None else page_size,
            name=self.name if name is None else name,
            fresh=fresh,
        )
        try:
            copy_into(self, buffer)
        except BaseException:
            buffer.close()
            raise
        return self._of(buffer, self._ghost, self._dtype, 0)

    @classmethod
    def _adopt(
        cls, buffer: EncryptedBuffer, shape: Any, dtype: Any, offset: int = 0
    ) -> EncryptedTensor:
        """Returns a tensor over the bytes that `buffer` already holds from `offset` on. Raises
        RangeError if there are too few."""
        ghost, kind = checked_form(shape, dtype)
        nbytes = ghost.size * kind.itemsize
        offset = integer("offset", offset)
        if offset < 0 or offset + nbytes > buffer.nbytes:
            raise errors.RangeError(
                f"A tensor of {nbytes} bytes at offset {offset} reaches outside the buffer "
                f"of {buffer.nbytes} bytes."
            )
        return cls._of(buffer, ghost, kind, offset)

    @classmethod
    def _of(
        cls, buffer: EncryptedBuffer, ghost: Array, dtype: np.dtype[Any], offset: int
    ) -> EncryptedTensor:
        return cls._over(buffer, Form(ghost, dtype, offset))

    @classmethod
    def _over(cls, buffer: EncryptedBuffer, form: Form) -> EncryptedTensor:
        self = object.__new__(EncryptedTensor)
        self._buffer, self._form, self._cache = buffer, form, None
        return self

    # ---- reading ----

    @overload
    def __getitem__(self, index: Places) -> Any: ...

    @overload
    def __getitem__(self, index: Parts) -> Array: ...

    def __getitem__(self, index: Any) -> Any:
        """Returns what numpy's `array[index]` would give, decrypted: basic indexing, integer and
        boolean arrays, names of fields. Only the pages that hold it are decrypted.

        Always gives a copy, where numpy may give a view. Raises IndexingError, ArgumentError,
        ArgumentTypeError where numpy raises IndexError, ValueError, TypeError; IntegrityError if
        one of the pages was changed, and then returns nothing; ClosedError, ForkError,
        OutOfMemoryError.
        """
        run = self._run(index)
        if run is not None:
            offset, shape, nbytes = run
            if shape is None:
                return self._read_scalar(offset)
            return self._read_run(offset, shape, nbytes)
        if type(index) is np.ndarray and self._row_table() is not None and index.dtype.kind == "i":
            return self._read_rows(index)
        return self._read_selection(index)

    def _run(self, index: Any) -> tuple[int, tuple[int, ...] | None, int] | None:
        """Returns the offset in the buffer, shape (None: a scalar) and size of the single run of
        bytes that an index names, for the fast way: a number, a slice of step 1, an Ellipsis or a
        tuple of numbers, which names at least one byte. None for any other."""
        kind, form = type(index), self._form
        if kind is int:
            n = form.length
            if not -n <= index < n:
                return None
            at = form.offset + (index if index >= 0 else index + n) * form.row_nbytes
            return at, form.row_shape if form.ndim > 1 else None, form.row_nbytes
        if not form.nbytes:
            return None
        if kind is tuple:
            depth = len(index)
            if depth > form.ndim:
                return None
            at = form.offset
            for item, n, stride in zip(index, form.shape, form.strides):  # noqa: B905
                if type(item) is not int or not -n <= item < n:
                    return None
                at += (item if item >= 0 else item + n) * stride
            if depth == form.ndim:
                return at, None, form.itemsize
            nbytes = form.strides[depth - 1] if depth else form.nbytes
            return at, form.shape[depth:], nbytes
        if index is Ellipsis:
            return form.offset, form.shape, form.nbytes
        if kind is slice and form.ndim:
            try:
                start, stop, step = index.indices(form.length)
            except (TypeError, ValueError):
                return None
            if step != 1 or stop <= start:
                return None
            nbytes = (stop - start) * form.row_nbytes
            return form.offset + start * form.row_nbytes, (stop - start, *form.row_shape), nbytes
        return self._run(int(index)) if kind in _INTEGERS else None

    def _read_run(self, offset: int, shape: tuple[int, ...], nbytes: int) -> Array:
        """Returns one run of the buffer as an array."""
        pointer, memory = _block(nbytes)
        status = _store_read(self._buffer._store or self._opened(), offset, pointer, nbytes)
        if status != OK:
            fail(self._buffer, status, offset, nbytes)
        array: Array = _ndarray(shape, self._form.dtype, memory)
        return array

    def _read_scalar(self, offset: int) -> Any:
        """Returns the element at an offset of the buffer, as a numpy scalar."""
        nbytes = self._form.itemsize
        if self._form.dtype.kind == "V":
            # numpy's scalars of this kind refer to the memory that they were made from.
            return self._read_run(offset, (), nbytes)[()]
        scratch = self._scratch()
        try:
            place = scratch.pop()
        except IndexError:
            place = self._new_scratch()
        array, words, pointer = place
        status = _store_read(self._buffer._store or self._opened(), offset, pointer, nbytes)
        element = array[()] if status == OK else None
        words[...] = 0
        scratch.append(place)
        if status != OK:
            fail(self._buffer, status, offset, nbytes)
        return element

    def _scratch(self) -> list[tuple[Array, Array, Any]]:
        """Places for one element each that no call uses now; see _new_scratch()."""
        cache = self._cache or self._kept()
        return cache.scratch

    def _new_scratch(self) -> tuple[Array, Array, Any]:
        """Returns a place for one element, for one call at a time: as an array, as words to clear
        it, as a pointer."""
        itemsize = self._form.itemsize
        pointer, memory = _block(itemsize)
        word = _WORDS.get(itemsize)
        words = _ndarray(() if word else (itemsize,), word or "u1", memory)
        return _ndarray((), self._form.dtype, memory), words, pointer

    def _kept(self) -> Cache:
        """Returns what the tensor keeps for its next reads."""
        cache: Cache | None = self._cache
        if cache is None:
            cache = self._cache = Cache()
        return cache

    def _opened(self) -> Any:
        """Returns the native store, for one call. Raises ClosedError."""
        return handle(self._buffer)

    def _read_selection(self, index: Any) -> Any:
        """Returns what any index names, by the general way."""
        chosen = select(index, self._ghost, self._address, self._dtype)
        layout = Layout(chosen)
        shape = chosen.full_shape
        if layout.nbytes == 0:
            return self._nothing(shape, chosen.dtype)
        pointer, memory = _block(layout.nbytes)
        read(self._buffer, self._offset, layout, pointer)
        array: Array = _ndarray(shape, chosen.dtype, memory)
        return array[()] if chosen.how is How.ELEMENT else array

    def _row_table(self) -> Offsets | None:
        """Returns the offsets of the rows in the buffer if the rows are large, so that the table is
        small beside them; else None."""
        form = self._form
        if form.row_nbytes < TABLE_ROW_BYTES:
            return None
        cache = self._kept()
        if cache.table is None:
            rows = np.arange(form.length, dtype=np.int64)
            cache.table = rows * form.row_nbytes + form.offset
        return cache.table

    def _read_rows(self, numbers: Array) -> Array:
        """Returns the rows that an array of numbers names, by one native call."""
        table = self._row_table()
        assert table is not None
        try:
            offsets = table[numbers]
        except IndexError as error:
            raise refuse(error, "The index", self._shape) from None
        nbytes = offsets.size * self._row_nbytes
        if not nbytes:
            return self._nothing((*numbers.shape, *self._row_shape), self._dtype)
        pointer, memory = _block(nbytes)
        gather(self._buffer, offsets, self._row_nbytes, pointer)
        array: Array = _ndarray(numbers.shape + self._row_shape, self._dtype, memory)
        return array

    def _nothing(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        """Returns an array of no bytes, if the tensor is open."""
        check(lib.ccmem_store_check(self._opened()), TENSOR)
        return wiped.empty(shape, dtype)

    def __array__(self, dtype: npt.DTypeLike | None = None, copy: bool | None = None) -> Array:
        """Returns the whole tensor as a plain array, for np.asarray() and np.array(). The array is
        read-only unless a copy is asked for (np.array()), so that no function writes into a copy
        that is then lost. `copy=False` raises ArgumentError, which is a ValueError as NumPy 2
        wants: there is no plaintext to share.

        np.array() of NumPy 1 copies this array once more, to memory that is never wiped;
        np.asarray() does not.
        """
        if copy is False:
            raise errors.ArgumentError(
                "A plain array of an EncryptedTensor is always a copy; use copy=None or copy=True."
            )
        array: Array = self[...]
        wanted = array.dtype if dtype is None else np.dtype(dtype)
        if wanted != array.dtype:
            if not wanted.itemsize or wanted.hasobject:  # numpy finds the size, or makes objects
                array = array.astype(wanted)
            else:
                converted = wiped.empty(array.shape, wanted)
                np.copyto(converted, array, casting="unsafe")
                array = converted
        array.flags.writeable = bool(copy)
        return array

    def __len__(self) -> int:
        if not self._ndim:
            raise errors.ArgumentTypeError("A tensor of no dimensions has no length.")
        return self._shape[0]

    def __bool__(self) -> bool:
        if self.size != 1:
            raise errors.ArgumentError(
                f"The truth of a tensor of {self.size} elements is ambiguous; read it and use "
                f"any() or all()."
            )
        return bool(self[...])

    def __iter__(self) -> Iterator[Any]:
        """Yields t[0], t[1], ..., each decrypted when it is asked for."""
        if not self._ndim:
            raise errors.ArgumentTypeError("A tensor of no dimensions cannot be iterated over.")
        return map(self.__getitem__, range(self._shape[0]))

    def blocks(self, nbytes: int = 1 << 20) -> Iterator[Array]:
        """Returns the tensor in order along its first axis, as arrays of as many whole rows as fit
        in `nbytes` bytes; the last may have fewer. Keep at most one of them at a time to stay
        within twice `nbytes` of plaintext.

        Raises ArgumentError when not even one row fits (reshape(-1) makes rows of one element),
        ArgumentTypeError for a tensor of no dimensions.
        """
        nbytes = integer("nbytes", nbytes)
        if not self._ndim:
            raise errors.ArgumentTypeError(
                "A tensor of no dimensions has no rows; use reshape(1) first."
            )
        row = math.prod(self._shape[1:]) * self._itemsize
        if nbytes < max(row, 1):
            raise errors.ArgumentError(
                f"nbytes is {nbytes}; one row of this tensor takes {row} bytes, so use at least "
                f"{max(row, 1)}, or reshape(-1) first."
            )
        rows = nbytes // row if row else max(self._shape[0], 1)
        return (self[at : at + rows] for at in range(0, self._shape[0], rows))

    # ---- writing ----

    def __setitem__(self, index: Any, value: Any) -> None:
        """Encrypts `value` to the elements that `index` names, converted and broadcast as numpy
        does. If an index names an element twice, the last value stays.

        Values that need no conversion are encrypted from where they lie; others are converted in
        memory that is wiped. Raises as __getitem__() does: IntegrityError for a changed page of
        which the elements cover a part, while a page that they cover as a whole is replaced. Also
        raises ArgumentError and ArgumentTypeError where numpy raises ValueError and TypeError for
        the value, VersionExhaustedError, ReadOnlyError.
        """
        try:
            run = self._run(index)
            if run is not None and run[2] <= STAGING_BYTES:
                self._write_run(run, value)
                return
            if names_several(index) is not None:
                raise IndexError("assign to one field at a time")
            self._write_selection(select(index, self._ghost, self._address, self._dtype), value)
        except errors.PyccmemError:
            raise
        except (IndexError, TypeError, ValueError) as error:
            raise refuse(error, "The assignment", self._shape) from None

    def _is_stored(self, value: Any, shape: tuple[int, ...], dtype: np.dtype[Any]) -> bool:
        """Returns True for an array whose bytes can be encrypted as they are for a selection of
        this shape and dtype. False for all arrays once a view of the ciphertext exists, which could
        be the array."""
        return (
            type(value) is np.ndarray
            and value.shape == shape
            and value.dtype == dtype
            and value.flags.c_contiguous
            and not is_exposed(self._buffer)
        )

    def _as_stored(self, value: Any, chosen: Selection) -> Array:
        """Returns `value` as a C-contiguous array of the selection's shape and dtype: itself if it
        is one, else converted in memory that is wiped, by numpy's rule for this kind of index."""
        shape = chosen.full_shape
        if self._is_stored(value, shape, chosen.dtype):
            same: Array = value
            return same
        staging = wiped.empty(shape, chosen.dtype)
        if chosen.how is How.VIEW:
            staging[...] = value
        elif chosen.how is How.ELEMENT:
            staging.reshape(1)[0] = value
        elif chosen.how is How.MASK:
            staging[np.ones(shape, np.bool_)] = value
        else:
            rows = np.arange(len(chosen.outer))
            staging.reshape(len(rows), *chosen.shape)[rows.reshape(chosen.outer_shape)] = value
        return staging

    def _write_run(self, run: tuple[int, tuple[int, ...] | None, int], value: Any) -> None:
        """Writes `value` to one run of the buffer."""
        offset, shape, nbytes = run
        if shape is None or not self._is_stored(value, shape, self._dtype):
            pointer, memory = _block(nbytes)
            if shape is None:
                _ndarray(1, self._dtype, memory)[0] = value
            else:
                _ndarray(shape, self._dtype, memory)[...] = value
        else:
            pointer = ffi.from_buffer(BYTES, flat_bytes(value))
        try:
            status = _store_write(self._buffer._store or self._opened(), offset, pointer, nbytes)
        finally:
            del pointer
        if status != OK:
            fail(self._buffer, status, offset, nbytes)

    def _write_selection(self, chosen: Selection, value: Any) -> None:
        """Writes `value` to a selection."""
        check_writable(self._buffer)
        shape, nbytes = chosen.full_shape, chosen.nbytes
        if chosen.how is How.VIEW and nbytes > STAGING_BYTES:
            if isinstance(value, (bool, int, float, complex, np.generic)):
                one = wiped.empty((), chosen.dtype)
                one[...] = value
                value = one
            if type(value) is np.ndarray and not self._is_stored(value, shape, chosen.dtype):
                while value.ndim > len(shape) and value.shape[0] == 1:
                    value = value[0]
                self._write_pieces(chosen, np.broadcast_to(value, shape))
                return
        source = self._as_stored(value, chosen)
        check(lib.ccmem_store_check(self._opened()), TENSOR)
        if nbytes:
            with ffi.from_buffer(BYTES, flat_bytes(source)) as memory:
                write(self._buffer, self._offset, Layout(chosen), memory)

    def _write_pieces(self, chosen: Selection, value: Array) -> None:
        """Writes an array of the selection's shape that must be converted, some rows at a time
        along the first axis, or along the next axis if one row is too large."""
        if chosen.nbytes <= STAGING_BYTES:
            self._write_selection(chosen, value)
            return
        n, *rest = chosen.shape
        step, *strides = chosen.strides
        rows = STAGING_BYTES * n // chosen.nbytes
        for at in range(0, n, max(rows, 1)):
            outer = chosen.outer + at * step
            if rows > 1:
                part = value[at : at + rows]
                self._write_pieces(chosen._replace(outer=outer, shape=part.shape), part)
            else:
                row = chosen._replace(outer=outer, shape=tuple(rest), strides=tuple(strides))
                self._write_pieces(row, value[at, ...])

    @contextmanager
    def _opened_as(self, writable: bool) -> Iterator[Array]:
        if writable:
            check_writable(self._buffer)
        if not self._nbytes:
            yield self[...]
            return
        nbytes = self._nbytes
        pointer, memory = _block(nbytes)
        array = _ndarray(self._shape, self._dtype, memory)
        try:
            self._buffer.read_into(memory, self._offset)
            array.flags.writeable = writable
            yield array
            if writable:
                self._buffer.write(memory, self._offset)
        finally:
            lib.ccmem_wipe(pointer, nbytes)  # inline: a call could be interrupted

    def open(self, mode: str = "r") -> AbstractContextManager[Array]:
        """Returns the whole tensor as a plain array for the length of a `with` block.

        With "r" the array is read-only. With "r+" it is written back when the block ends without an
        exception, and dropped when it ends with one. In either case it is overwritten with zeros at
        the end, even if references to it remain. With "r+", what others write to the tensor
        meanwhile is lost.

        Raises ArgumentError for another mode, ReadOnlyError for "r+" if the tensor lies in a sealed
        file.
        """
        if not isinstance(mode, str) or mode not in ("r", "r+"):
            raise errors.ArgumentError(f"mode is {mode!r}; it must be 'r' or 'r+'.")
        return self._opened_as(mode == "r+")

    def map(
        self, *, window: int | str = "64MiB", mode: str = "r", system_calls: bool = True
    ) -> Mapping:
        """Returns a Mapping: a context manager that gives an ordinary array over the tensor. At
        most `window` bytes of it lie in the clear at a time, whatever reads it.

        Raises ArgumentError for another mode, or for a window that is not a size or holds too few
        blocks; PlaintextBudgetError, FaultMechanismError, MappingConflictError, ReadOnlyError for
        "r+" if the tensor lies in a sealed file, ClosedError, ForkError, OutOfMemoryError.
        """
        return Mapping(
            self._buffer, self._offset, self._shape, self._dtype, window, mode, system_calls
        )

    def verify(self) -> list[int]:
        """Checks the pages in which the tensor's bytes lie against their tags, in several threads.
        Returns the numbers, in the buffer, of the pages that do not match; an empty list if all are
        as they were written. Raises NotAuthenticatedError for a cipher without tags, ClosedError,
        ForkError."""
        return verify(self._buffer, self._offset, self._nbytes)

    # ---- freshness ----

    def freeze(self) -> None:
        """Seals each page once more, under a random key that seals nothing else, so that nothing
        that was ever in memory can be put back; see EncryptedBuffer.freeze(). Writes raise
        FrozenError until thaw(). Tensors that share the buffer are frozen with it.

        Raises ArgumentError for a tensor in an arena, whose pages share a key with others: make it
        in an Arena with frozen=True, or freeze a copy(). Otherwise raises what
        EncryptedBuffer.freeze() raises."""
        self._buffer.freeze()

    def thaw(self) -> None:
        """Makes a frozen tensor writable, and those that share its buffer; see
        EncryptedBuffer.thaw(). One of a frozen arena goes to another arena, with a random key.
        Raises what EncryptedBuffer.thaw() raises."""
        self._buffer.thaw()

    # ---- another key ----

    def rekey(
        self,
        key: Key | None = None,
        *,
        bytes_per_second: int | None = None,
        progress: Callable[[int, int], object] | None = None,
    ) -> None:
        """Seals every page of the tensor's buffer under another key while it may be used, and wipes
        the old one; see EncryptedBuffer.rekey(). Tensors that share the buffer are rekeyed with it.
        A tensor of a frozen arena goes to another arena.

        Raises ArgumentError for a tensor in an arena that can be written, whose tensors share a
        key: call Arena.rekey(). Otherwise raises what EncryptedBuffer.rekey() raises."""
        self._buffer.rekey(key, bytes_per_second=bytes_per_second, progress=progress)

    def key_use(self) -> KeyUse:
        """Returns how much the key of the tensor's buffer, or of its arena, has sealed; see
        EncryptedBuffer.key_use()."""
        return self._buffer.key_use()

    # ---- the same bytes in another form ----

    def reshape(self, *shape: Any, order: str = "C", copy: bool | None = None) -> EncryptedTensor:
        """Returns a tensor of another shape over the same buffer, in C order; one length may be -1.
        Moves no data. Raises ArgumentError, also for another order and for `copy=True`, which would
        move data; ArgumentTypeError."""
        if order not in ("C", "A") or copy:
            raise errors.ArgumentError(
                f"reshape() moves no data, and order={order!r}, copy={copy!r} would; "
                f"np.reshape(t, ...) returns a plain array."
            )
        wanted = shape[0] if len(shape) == 1 else shape
        try:
            lengths = reshaped(self._shape, wanted)
        except (TypeError, ValueError) as error:
            raise refuse(error, "The new shape", self._shape) from None
        return self._of(self._buffer, phantom(lengths, self._itemsize), self._dtype, self._offset)

    def view(self, dtype: npt.DTypeLike = _SAME) -> EncryptedTensor:
        """Returns a tensor over the same buffer whose bytes are read as another dtype, the same one
        if none is given. If the size
        of items differs, the last axis gets shorter or longer, as in numpy. Moves no data. Raises
        ArgumentError, ArgumentTypeError."""
        kind = self._dtype if dtype is _SAME else _checked_dtype(dtype)
        shape = self._shape
        if kind.itemsize != self._itemsize:
            last = shape[-1] * self._itemsize if shape else 0
            if not shape or last % kind.itemsize:
                raise errors.ArgumentError(
                    f"dtype {kind} of {kind.itemsize} bytes does not fit a tensor of shape "
                    f"{shape} and items of {self._itemsize} bytes: the last axis must hold a whole "
                    f"number of its items."
                )
            shape = (*shape[:-1], last // kind.itemsize)
        ghost, kind = checked_form(shape, kind)
        return self._of(self._buffer, ghost, kind, self._offset)

    # ---- what it is ----

    @property
    def shape(self) -> tuple[int, ...]:
        """The lengths of the dimensions."""
        return self._shape

    @property
    def strides(self) -> tuple[int, ...]:
        """Bytes from one element to the next along each axis."""
        return self._strides

    @property
    def dtype(self) -> np.dtype[Any]:
        """The type of the elements."""
        return self._dtype

    @property
    def ndim(self) -> int:
        """The number of dimensions."""
        return self._ndim

    @property
    def size(self) -> int:
        """The number of elements."""
        return self._ghost.size

    @property
    def itemsize(self) -> int:
        """Bytes of an element."""
        return self._itemsize

    @property
    def nbytes(self) -> int:
        """Bytes of all elements in the clear."""
        return self._nbytes

    @property
    def name(self) -> str:
        """The tensor's name in errors, which is its buffer's."""
        return self._buffer.name

    @property
    def writable(self) -> bool:
        """False for a tensor that lies in a sealed file, or is frozen. Writing to it raises
        ReadOnlyError; copy() makes a tensor that can be written."""
        return self._buffer.writable

    @property
    def frozen(self) -> bool:
        """True after freeze(), until thaw()."""
        return self._buffer.frozen

    @property
    def fresh(self) -> bool:
        """True when a page that is put back from an earlier time, with its tag and version, raises
        IntegrityError; see EncryptedBuffer.fresh. Raises ClosedError."""
        return self._buffer.fresh

    @property
    def cipher(self) -> str:
        """Name of the cipher suite."""
        return self._buffer.cipher

    @property
    def authenticated(self) -> bool:
        """True when each page has a tag, so that a change raises IntegrityError."""
        return self._buffer.authenticated

    @property
    def page_size(self) -> int:
        """Bytes of the unit of encryption."""
        return self._buffer.page_size

    @property
    def buffer(self) -> EncryptedBuffer:
        """The buffer that holds the ciphertext, which other tensors may share."""
        return self._buffer

    @property
    def closed(self) -> bool:
        """True after close() of this tensor or of another that shares its buffer."""
        return self._buffer.closed

    def _description(self) -> str:
        kind = "" if self.writable else ", frozen" if self.frozen else ", read-only"
        return f"{self.name!a} of shape {self._shape}, {self._dtype}, {self.cipher}{kind}"

    # ---- lifetime ----

    def close(self) -> None:
        """Closes the buffer for every tensor that shares it: wipes the keys, frees the ciphertext.
        Arrays that were returned stay valid. May be repeated."""
        self._buffer.close()


def adopted(buffer: EncryptedBuffer, shape: Any, dtype: Any, offset: int = 0) -> EncryptedTensor:
    """Returns a tensor over the bytes that `buffer` already holds from `offset` on. Raises
    RangeError if there are too few."""
    return EncryptedTensor._adopt(buffer, shape, dtype, offset)


def of_form(buffer: EncryptedBuffer, form: Form) -> EncryptedTensor:
    """Returns a tensor of this form over the bytes of a buffer, which has enough of them."""
    return EncryptedTensor._over(buffer, form)


def copy_into(tensor: EncryptedTensor, buffer: EncryptedBuffer) -> None:
    """Fills a new buffer of the tensor's size with its bytes, 1 MiB of plaintext at a time. Raises
    IntegrityError, ClosedError, ForkError, OutOfMemoryError."""
    store, offset = place_of(tensor)
    check_open(store, "tensor")
    target = handle(buffer)
    put = put_of(lib.ccmem_store_freshness(target))
    transfer(store, offset, tensor.nbytes, target, put, buffer)
