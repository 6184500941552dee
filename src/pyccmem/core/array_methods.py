# SPDX-License-Identifier: Apache-2.0
"""The methods and attributes of np.ndarray that EncryptedTensor has, and what to use instead of
those that it has not.

What NumPy computes is a plain array, or a number. What NumPy would give as a view, so that writing
to it changes the array, is a tensor over the same bytes where C order allows it (ravel, squeeze,
flat, reshape, view), else a plain array that is read-only (T, diagonal, real). What NumPy changes
in place is changed in the tensor.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import numpy.typing as npt

from .. import errors
from ..binding import wiped
from .flags import Flags
from .number_methods import NumberMethods
from .tiles import lines, tiles

__all__ = ["INSTEAD", "ArrayMethods"]

Array = npt.NDArray[Any]
_Self = TypeVar("_Self", bound="ArrayMethods")

_POINTER = (
    "its bytes are ciphertext, and nothing in the clear can be pointed to; `with t.map() as array` "
    "or `with t.open() as array` gives an array that has it"
)
_SAVES = (
    "it would write plaintext; pyccmem.safetensors.save_file() writes a sealed file, and t[...] is "
    "a plain array that has it"
)
_PROTOCOL = "NumPy asks __array_ufunc__, __array_function__ and __array__ instead"

#: What to use instead of the attributes of np.ndarray, of NumPy 1 and 2, that a tensor has not.
INSTEAD = {
    "base": "t.buffer holds the ciphertext, which other tensors may share",
    "ctypes": _POINTER,
    "data": _POINTER,
    "__buffer__": _POINTER,
    "__array_interface__": _POINTER,
    "__array_struct__": _POINTER,
    "__dlpack__": _POINTER,
    "__dlpack_device__": _POINTER,
    "dump": _SAVES,
    "dumps": _SAVES,
    "tofile": _SAVES,
    "getfield": "t['name'] reads a field, and t.view(dtype) the same bytes as another type",
    "setfield": "t['name'] = values writes a field, and t.view(dtype)[...] = values the bytes",
    "setflags": "t.writable tells whether it can be written; t.copy(key=key) makes one that can",
    "resize": "a tensor keeps its size; t.reshape(shape) gives the same elements in another shape, "
    "and np.resize(t, shape) a plain array",
    "itemset": "t[index] = value writes an element",
    "newbyteorder": "t.view(t.dtype.newbyteorder()) reads the same bytes in the other order",
    "ptp": "np.ptp(t) computes it",
    "tostring": "t.tobytes() returns the bytes",
    "__array_finalize__": _PROTOCOL,
    "__array_priority__": _PROTOCOL,
    "__array_wrap__": _PROTOCOL,
    "__array_namespace__": "NumPy's own functions take a tensor; np.asarray(t) has it",
    "__class_getitem__": "EncryptedTensor is not generic",
    "__setstate__": "a tensor is not pickled; pyccmem.safetensors.save_file() keeps it in a file",
}


class ArrayMethods(NumberMethods):
    """The methods, for EncryptedTensor."""

    __slots__ = ()

    _instead: Mapping[str, str] = INSTEAD

    if TYPE_CHECKING:
        _ghost: Array
        shape: Any
        dtype: Any
        ndim: Any
        size: Any
        itemsize: Any
        page_size: Any
        writable: Any

        def __array__(self, dtype: Any = None, copy: Any = None) -> Array: ...

        def _opened_as(self, writable: bool) -> AbstractContextManager[Array]: ...

        def __getitem__(self, index: Any) -> Any: ...

        def __setitem__(self, index: Any, value: Any) -> None: ...

        def reshape(self: _Self, *shape: Any) -> _Self: ...

    # ---- some elements, as a plain array ----

    def diagonal(self, offset: Any = 0, axis1: Any = 0, axis2: Any = 1) -> Array:
        """Returns the diagonal as a plain array, opening its pages alone. It is read-only, as
        NumPy's is."""
        return np.diagonal(self, offset, axis1, axis2)

    def take(self, indices: Any, axis: Any = None, out: Any = None, mode: Any = "raise") -> Any:
        """Returns the elements at these places as a plain array, opening their pages alone."""
        return np.take(self, indices, axis, out, mode)

    def compress(self, condition: Any, axis: Any = None, out: Any = None) -> Array:
        """Returns the elements for which the condition is true as a plain array."""
        return np.compress(condition, self, axis, out)

    def item(self, *args: Any) -> Any:
        """Returns one element as Python's own number, text or bytes: the only one, that with this
        number in C order, or that with these numbers along the axes."""
        if not args:
            if self.size != 1:
                raise ValueError("can only convert an array of size 1 to a Python scalar")
            return self.reshape(-1)[0].item()
        if len(args) == 1 and isinstance(args[0], tuple):
            args = args[0]
        if len(args) not in (1, self.ndim):
            raise ValueError("incorrect number of indices for array")
        source = self.reshape(-1) if len(args) == 1 and self.ndim != 1 else self
        return source[tuple(operator.index(one) for one in args)].item()

    # ---- all elements, as a plain array ----

    @property
    def T(self) -> Array:
        """The transposed tensor as a plain array, opened as a whole. It is read-only: NumPy's would
        be a view, and what is written to it would be lost here. For products use
        pyccmem.linear(x, t), which is x @ t.T and opens tiles."""
        return np.asarray(self.__array__().T)

    @property
    def mT(self) -> Array:
        """The last two axes exchanged; as T."""
        if self.ndim < 2:
            raise ValueError("matrix transpose with ndim < 2 is undefined")
        return np.swapaxes(self.__array__(), -1, -2)

    def transpose(self, *axes: Any) -> Array:
        """Returns the transposed tensor as a plain array that is read-only; as T."""
        return np.asarray(self.__array__().transpose(*axes))

    def swapaxes(self, axis1: Any, axis2: Any) -> Array:
        """Returns the tensor with two axes exchanged as a plain array that is read-only; as T."""
        return np.asarray(self.__array__().swapaxes(axis1, axis2))

    def astype(
        self,
        dtype: Any,
        order: Any = "K",
        casting: Any = "unsafe",
        subok: bool = True,
        copy: bool = True,
    ) -> Array:
        """Returns all elements converted to `dtype` as a plain array, which is always a copy of
        your own in memory that is wiped. Opens 1 MiB at a time besides it.

        EncryptedTensor.from_numpy(t.astype(dtype), key=key) encrypts them again."""
        wanted = np.dtype(dtype)
        np.zeros((), self.dtype).astype(wanted, order, casting, subok, copy)  # NumPy's errors
        if not wanted.itemsize or wanted.hasobject or wanted.subdtype or order == "F":
            return self.__array__().astype(wanted, order, casting, subok, copy)
        converted = wiped.empty(self.shape, wanted)
        if not self.size:
            self.__array__()  # raises if the tensor is closed
        else:
            for index in tiles(self.shape, self.itemsize):
                part: Any = (*index, ...)  # also of no dimensions an array
                np.copyto(converted[part], self[index], casting=casting)
        return converted

    def flatten(self, order: Any = "C") -> Array:
        """Returns all elements in one dimension as a plain array, a copy of your own. ravel() gives
        a tensor."""
        if order == "C":
            return np.asarray(self.reshape(-1)[...])
        return self.__array__().flatten(order)

    def tolist(self) -> Any:
        """Returns all elements as lists of Python's numbers, which are not wiped."""
        return self.__array__().tolist()

    def tobytes(self, order: Any = "C") -> bytes:
        """Returns all elements' bytes in the clear, in an object that is not wiped."""
        return self.__array__().tobytes(order)

    @property
    def real(self) -> Any:
        """The real parts as a plain array that is read-only. Assigning writes them to the
        tensor."""
        return self.__array__().real

    @real.setter
    def real(self, values: Any) -> None:
        with self._opened_as(True) as array:
            array.real = _plain(values)

    @property
    def imag(self) -> Any:
        """The imaginary parts; as real."""
        return self.__array__().imag

    @imag.setter
    def imag(self, values: Any) -> None:
        with self._opened_as(True) as array:
            array.imag = _plain(values)

    def conj(self) -> Any:
        """Returns the complex conjugates as a plain array."""
        return self.conjugate()

    def conjugate(self) -> Any:
        """Returns the complex conjugates as a plain array."""
        return self.__array__().conjugate()

    def clip(self, min: Any = None, max: Any = None, out: Any = None, **options: Any) -> Any:
        """Returns np.clip() of the whole tensor."""
        return np.clip(self, min, max, out, **options)

    def round(self, decimals: Any = 0, out: Any = None) -> Any:
        """Returns np.round() of the whole tensor."""
        return np.round(self, decimals, out)

    def cumsum(self, axis: Any = None, dtype: Any = None, out: Any = None) -> Any:
        """Returns np.cumsum() of the whole tensor."""
        return np.cumsum(self, axis, dtype, out)

    def cumprod(self, axis: Any = None, dtype: Any = None, out: Any = None) -> Any:
        """Returns np.cumprod() of the whole tensor."""
        return np.cumprod(self, axis, dtype, out)

    def repeat(self, repeats: Any, axis: Any = None) -> Array:
        """Returns np.repeat() of the whole tensor."""
        return np.repeat(self, repeats, axis)

    def argsort(self, axis: Any = -1, kind: Any = None, order: Any = None, **options: Any) -> Any:
        """Returns np.argsort() of the whole tensor."""
        return np.argsort(self, axis, kind, order, **options)

    def argpartition(
        self, kth: Any, axis: Any = -1, kind: Any = "introselect", order: Any = None
    ) -> Any:
        """Returns np.argpartition() of the whole tensor."""
        return np.argpartition(self, kth, axis, kind, order)

    def searchsorted(self, v: Any, side: Any = "left", sorter: Any = None) -> Any:
        """Returns np.searchsorted() in the whole tensor."""
        return np.searchsorted(self, v, side, sorter)

    def nonzero(self) -> tuple[Array, ...]:
        """Returns np.nonzero() of the whole tensor."""
        return self.__array__().nonzero()

    def choose(self, choices: Any, out: Any = None, mode: Any = "raise") -> Any:
        """Returns np.choose() with the whole tensor as the numbers of choices."""
        return np.choose(self, choices, out, mode)

    def dot(self, b: Any, out: Any = None) -> Any:
        """Returns np.dot(t, b). Vectors and matrices of float32 and float64 are multiplied as by
        `@`, which opens tiles; others as a whole."""
        return np.dot(self, b) if out is None else np.dot(self, b, out)

    # ---- the same bytes in another form ----

    def ravel(self: _Self, order: Any = "C") -> _Self:
        """Returns a tensor of one dimension over the same buffer. Moves no data. Raises
        ArgumentError for an order in which the bytes do not lie."""
        if order not in ("C", "A", "K"):
            raise errors.ArgumentError(
                f"order is {order!r}, and a tensor's bytes lie in C order; flatten({order!r}) "
                f"returns a plain array."
            )
        return self.reshape(-1)

    def squeeze(self: _Self, axis: Any = None) -> _Self:
        """Returns a tensor without the axes of length 1 over the same buffer. Moves no data. Raises
        what np.squeeze() raises."""
        return self.reshape(np.squeeze(self._ghost, axis=axis).shape)

    @property
    def flat(self: _Self) -> _Self:
        """The elements in C order, as a tensor of one dimension over the same buffer, to read,
        write and iterate over. Assigning writes values to all elements, and repeats them as often
        as it takes."""
        return self.reshape(-1)

    @flat.setter
    def flat(self, values: Any) -> None:
        given = np.asarray(values).reshape(-1)
        if not self.size:
            return
        if not given.size:
            raise ValueError("Can't copy empty array")
        line = self.reshape(-1)
        line[...] = given[0] if given.size == 1 else np.resize(given, line.shape)

    # ---- changes in place ----

    def fill(self, value: Any) -> None:
        """Writes one value to all elements, encrypting 1 MiB at a time. Raises what NumPy raises
        for a value that is not one, and ReadOnlyError."""
        one = wiped.empty((), self.dtype)
        one.fill(_plain(value))
        self[...] = one

    def put(self, indices: Any, values: Any, mode: Any = "raise") -> None:
        """Writes values to the elements with these numbers in C order, repeating them as often as
        it takes, as np.put() does; opens and encrypts their pages alone. Raises IndexError for a
        number that is too large, before it writes; ReadOnlyError."""
        places = np.asarray(indices).astype(np.intp).reshape(-1)
        np.put(np.zeros(1), [], 0, mode)  # NumPy's errors
        if places.size and not self.size:
            raise IndexError("cannot replace elements of an empty array")
        given = np.asarray(values, None if hasattr(values, "dtype") else self.dtype)
        staged = wiped.empty(given.shape, self.dtype)
        np.copyto(staged, given, casting="unsafe")
        if not staged.size or not places.size:
            return
        if mode == "wrap":
            places = places % self.size
        elif mode == "clip":
            places = np.clip(places, 0, self.size - 1)
        self.reshape(-1)[places] = np.resize(staged, places.shape)

    def sort(self, axis: Any = -1, kind: Any = None, order: Any = None, **options: Any) -> None:
        """Sorts the tensor in place along an axis. Opens whole lines along the axis, as many as fit
        in 1 MiB and at least one: the whole of a tensor of one dimension. Along another axis than
        the last, at least a page across.

        Each part is encrypted when it is sorted; an error leaves the parts after it as they
        were. Raises what np.sort() raises, and ReadOnlyError."""
        self._by_lines("sort", (), axis, kind, order, options)

    def partition(
        self, kth: Any, axis: Any = -1, kind: Any = "introselect", order: Any = None
    ) -> None:
        """Partitions the tensor in place along an axis, as np.partition() does; as sort()."""
        self._by_lines("partition", (kth,), axis, kind, order, {})

    def _by_lines(
        self, name: str, first: tuple[Any, ...], axis: Any, kind: Any, order: Any, options: Any
    ) -> None:
        work = getattr(np.ndarray, name)
        lengths = [1] * self.ndim
        along = operator.index(axis)
        if -self.ndim <= along < self.ndim:
            lengths[along] = self.shape[along]
        probe = np.broadcast_to(np.zeros((), self.dtype), lengths)
        work(probe.copy(), *first, axis, kind, order, **options)  # NumPy's errors
        if not self.size:
            return
        for index in lines(self.shape, self.itemsize, along % self.ndim, self.page_size):
            part = self[index]
            work(part, *first, axis, kind, order, **options)
            self[index] = part

    def byteswap(self: _Self, inplace: bool = False) -> Any:
        """Returns the elements with their bytes in reverse order as a plain array; with `inplace`
        changes the tensor, and returns it."""
        if not inplace:
            return self.__array__().byteswap()
        with self._opened_as(True) as array:
            array.byteswap(True)
        return self

    def __delitem__(self, index: Any) -> None:
        raise errors.ArgumentError("Elements of a tensor cannot be deleted; np.delete(t, ...) "
                                   "returns a plain array without them.")  # fmt: skip

    def __contains__(self, value: object) -> bool:
        """Returns True when any element equals `value`, as `(t == value).any()`. Opens 1 MiB at a
        time, unless `value` is an array."""
        plain = _plain(value)
        if isinstance(plain, (np.ndarray, list, tuple)) or not self.ndim:
            return bool(np.any(self.__array__() == plain))
        if not self.size:
            return bool(np.any(self[...] == plain))
        parts = tiles(self.shape, self.itemsize)
        return any(bool(np.any(self[index] == plain)) for index in parts)

    # ---- what it is ----

    @property
    def flags(self) -> Flags:
        """What NumPy's flags tell: C_CONTIGUOUS, WRITEABLE and the others. They cannot be set."""
        return Flags(self.shape, self.writable)

    @property
    def device(self) -> str:
        """ "cpu"."""
        return "cpu"

    def to_device(self: _Self, device: Any, /, *, stream: Any = None) -> _Self:
        """Returns the tensor itself for "cpu". Raises ValueError for another device."""
        if stream is not None:
            raise ValueError("The stream argument in to_device() is not supported")
        if device != "cpu":
            raise ValueError(f"Unsupported device: {device}. Only 'cpu' is accepted.")
        return self


def _plain(value: Any) -> Any:
    """Returns a tensor's values as a plain array, any other value as it is."""
    return value.__array__() if isinstance(value, ArrayMethods) else value
