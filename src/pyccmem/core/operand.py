# SPDX-License-Identifier: Apache-2.0
"""Python's operators and NumPy's functions for EncryptedTensor.

They follow one rule: the result is NumPy's for the plain array, as a plain array. Reductions open a
block at a time (blockwise). If NumPy would write into an argument, the tensor is opened as a whole,
changed and encrypted again. Where NumPy
does not say that it writes (np.nditer, functions that only convert their arguments), it gets a
read-only array of the tensor, and refuses.
"""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import cache, partial
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from .. import errors
from . import blockwise, reductions
from .matrix import Matrix
from .store import Store, handle

__all__ = ["Operand", "formats_number", "matrix_of", "place_of"]

Array = npt.NDArray[Any]


class Operand:
    """The operators and protocols, for EncryptedTensor."""

    __slots__ = ()

    if TYPE_CHECKING:
        _buffer: Store
        _offset: int
        shape: Any
        dtype: Any
        nbytes: Any
        ndim: Any

        def __array__(self, dtype: Any = None, copy: Any = None) -> Array: ...

        def _opened_as(self, writable: bool) -> AbstractContextManager[Array]: ...

        def __getitem__(self, index: Any) -> Any: ...

    @staticmethod
    def _product(a: Any, b: Any) -> Array:
        """Returns np.matmul() of two arguments of which one or both are tensors."""
        raise NotImplementedError

    # ---- NumPy's protocols ----

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **options: Any) -> Any:
        """Applies a ufunc of NumPy: np.matmul() as `@` does, reduce() by blocks, any other to the
        whole tensor in the clear. Writes to a tensor that is `out`, or the first argument of
        `at`."""
        if ufunc is np.matmul and method == "__call__" and len(inputs) == 2 and not options:
            return self._product(*inputs)
        out = options.get("out", ())
        targets = [target for target in out if isinstance(target, Operand)]
        if method == "at" and isinstance(inputs[0], Operand):
            targets.append(inputs[0])
        if method == "reduce" and isinstance(inputs[0], Operand):
            work = partial(reductions.reduce, ufunc)
            result = _applied(work, inputs, options, targets, _as_it_is)
            if result is not NotImplemented:
                return result
        return _applied(getattr(ufunc, method), inputs, options, targets)

    def __array_function__(self, function: Any, types: Any, args: Any, kwargs: Any) -> Any:
        """Applies another function of NumPy: by blocks, to the whole tensor in the clear, or to its
        shape alone. Writes to a tensor that the function writes into.

        Raises ArgumentError for a function that tries to write into an argument without saying so.
        """
        if function in _OF_FORM:
            first, *more = args or (kwargs[_OF_FORM[function]],)
            kwargs = {name: value for name, value in kwargs.items() if args or value is not first}
            more, kwargs = _changed((more, kwargs), _opened)
            return function(_form(first), *more, **kwargs)
        first = args[0] if args else kwargs.get("a")
        if function in blockwise.IN_PLACE and isinstance(first, Operand):
            return blockwise.IN_PLACE[function](*args, **kwargs)
        overwrite = "overwrite_input"
        if kwargs.get(overwrite):
            # NumPy may do as it likes with the argument, which is a copy.
            kwargs = {**kwargs, overwrite: False}
        targets = [found for found in _targets(function, args, kwargs) if found is not None]
        if function is np.dot and len(args) == 2 and not kwargs and _is_product(*args):
            return self._product(*args)
        work = blockwise.BOUNDED.get(function)
        if work is not None and isinstance(first, Operand):
            result = _applied(work, args, kwargs, targets, _as_it_is)
            if result is not NotImplemented:
                return result
        try:
            return _applied(function, args, kwargs, targets)
        except ValueError as error:
            if isinstance(error, errors.PyccmemError) or "read-only" not in str(error):
                raise
            raise errors.ArgumentError(
                f"np.{function.__name__} would write into the array of an EncryptedTensor, which "
                f"is read-only ({error}); give it the array of `with tensor.open('r+') as array`, "
                f"which encrypts what is written."
            ) from None

    # ---- operators ----

    __hash__ = object.__hash__  # by identity, although == compares elements

    def __matmul__(self, other: Any) -> Array:
        """Returns self @ other, as np.matmul does. Opens a matrix a tile at a time; see
        pyccmem.linear()."""
        return self._product(self, other)

    def __rmatmul__(self, other: Any) -> Array:
        """Returns other @ self, in the same way."""
        return self._product(other, self)

    def __eq__(self, other: object) -> Any:
        return operator.eq(*_opened_both(self, other))

    def __ne__(self, other: object) -> Any:
        return operator.ne(*_opened_both(self, other))

    def __int__(self) -> int:
        return int(self.__array__())

    def __float__(self) -> float:
        return float(self.__array__())

    def __complex__(self) -> complex:
        return complex(self.__array__())

    def __index__(self) -> int:
        if self.ndim:  # tell without opening the tensor
            raise errors.ArgumentTypeError(
                f"Only an integer tensor of no dimensions is an index, not one of {self.ndim}."
            )
        return operator.index(self.__array__())

    def __format__(self, spec: str) -> str:
        """Returns the formatted element of a tensor of no dimensions, if `spec` is a number's
        format; else what str() says, which shows no data."""
        if formats_number(spec) and not self.ndim:
            return format(self[()], spec)
        return object.__format__(self, spec)


def place_of(tensor: Operand) -> tuple[Store, int]:
    """Returns the store in which the tensor's bytes lie, and the offset of the first of them."""
    return tensor._buffer, tensor._offset


def matrix_of(tensor: Operand) -> Matrix:
    """Returns the Matrix of a tensor of two dimensions, for products."""
    rows, cols = tensor.shape
    return Matrix(tensor._buffer, tensor._offset, rows, cols, tensor.dtype)


def formats_number(spec: str) -> bool:
    """Returns True for a format that a text cannot have: one with a number's type or a
    precision."""
    return spec[-1:] in tuple("bcdeEfFgGnoxX%") or "." in spec


def _opened_both(one: Any, other: Any) -> tuple[Any, Any]:
    return _opened(one), _opened(other)


def _opened(value: Any) -> Any:
    """Returns a tensor's values as a read-only array; any other value as it is."""
    return value.__array__() if isinstance(value, Operand) else value


def _as_it_is(value: Any) -> Any:
    return value


def _is_product(a: Any, b: Any) -> bool:
    """Returns True for arguments for which np.dot() is np.matmul(), and `@` opens a matrix by
    tiles."""
    both = [one if isinstance(one, Operand) else np.asarray(one) for one in (a, b)]
    return all(one.ndim in (1, 2) and one.dtype.char in "fd" for one in both)


def _form(value: Any) -> Any:
    """Returns an array with the tensor's shape and dtype and no values, for functions that need no
    more."""
    if not isinstance(value, Operand):
        return value
    return np.broadcast_to(np.zeros((), value.dtype), value.shape)


def _unary(name: str) -> Callable[[Any], Any]:
    work = getattr(operator, name)

    def method(self: Operand) -> Any:
        return work(self.__array__())

    return method


def _binary(work: Any) -> tuple[Callable[[Any, Any], Any], Callable[[Any, Any], Any]]:
    def method(self: Operand, other: Any) -> Any:
        return work(*_opened_both(self, other))

    def reflected(self: Operand, other: Any) -> Any:
        return work(*_opened_both(other, self))

    return method, reflected


def _in_place(work: Any) -> Callable[[Any, Any], Any]:
    def method(self: Operand, other: Any) -> Any:
        with self._opened_as(True) as array:
            result = work(array, _opened(other))
            if result is not array:
                array[...] = result
        return self

    return method


def _define(name: str, method: Any, what: str) -> None:
    method.__name__, method.__qualname__, method.__doc__ = name, f"Operand.{name}", what
    setattr(Operand, name, method)


for _name in ("neg", "pos", "abs", "invert"):
    _define(f"__{_name}__", _unary(_name), "NumPy's answer, a plain array.")
for _name in ("lt", "le", "gt", "ge"):
    _define(f"__{_name}__", _binary(getattr(operator, _name))[0], "NumPy's answer, a plain array.")
for _name in (
    "add", "sub", "mul", "truediv", "floordiv", "mod", "pow",
    "lshift", "rshift", "and", "or", "xor", "divmod",
):  # fmt: skip
    _function = divmod if _name == "divmod" else getattr(operator, f"__{_name}__")
    for _prefix, _method in zip(("", "r"), _binary(_function), strict=True):
        _define(f"__{_prefix}{_name}__", _method, "NumPy's answer, a plain array.")
for _name in (
    "add", "sub", "mul", "truediv", "floordiv", "mod", "pow",
    "lshift", "rshift", "and", "or", "xor", "matmul",
):  # fmt: skip
    _work = _in_place(getattr(operator, f"__i{_name}__"))
    _define(f"__i{_name}__", _work, "What NumPy writes to an array is written to the tensor.")


# ---- functions -----------------------------------------------------------------------------------

#: Functions that look at the shape and dtype of their first argument and at none of its elements,
#: with the argument's name.
_OF_FORM = {
    np.shape: "a",
    np.ndim: "a",
    np.size: "a",
    np.iscomplexobj: "x",
    np.isrealobj: "x",
    np.empty_like: "prototype",
    np.zeros_like: "a",
    np.ones_like: "a",
    np.full_like: "a",
}

#: Functions that write into their first argument, with its name.
_INTO_FIRST = {
    np.copyto: "dst",
    np.put: "a",
    np.place: "arr",
    np.putmask: "a",
    np.fill_diagonal: "a",
    np.put_along_axis: "arr",
}

#: Functions whose signature does not tell the position of `out`; the last four are NumPy 1's. NumPy
#: does not always check that its output is writable.
_OUT_AT = {
    getattr(np, name): at
    for name, at in {
        "dot": 2,
        "concatenate": 2,
        "is_busday": 4,
        "busday_offset": 5,
        "busday_count": 5,
        "cumproduct": 3,
        "product": 3,
        "sometrue": 2,
        "alltrue": 2,
    }.items()
    if name in vars(np)
}


@cache
def _out_at(function: Any) -> int | None:
    """Returns the position of the argument named out; None if there is none or its position is not
    known."""
    known = _OUT_AT.get(function)
    if known is not None:
        return known
    try:
        names = list(inspect.signature(function).parameters)
    except (TypeError, ValueError):
        return None
    return names.index("out") if "out" in names else None


def _targets(function: Any, args: Any, kwargs: Any) -> Iterator[Operand | None]:
    """Yields the tensors that a function writes into, None for other arguments."""
    found: list[Any] = [kwargs.get("out")]
    at = _out_at(function)
    if at is not None and at < len(args):
        found.append(args[at])
    first = _INTO_FIRST.get(function)
    if function is np.nan_to_num and not kwargs.get("copy", args[1] if len(args) > 1 else True):
        first = "x"
    if first is not None:
        found.append(args[0] if args else kwargs.get(first))
    for value in found:
        for one in value if isinstance(value, tuple) else (value,):
            yield one if isinstance(one, Operand) else None


def _changed(value: Any, change: Callable[[Any], Any]) -> Any:
    """Returns the arguments with `change` applied to each, also within lists, tuples and dicts."""
    if type(value) is list:
        return [_changed(item, change) for item in value]
    if type(value) is tuple:
        return tuple([_changed(item, change) for item in value])
    if type(value) is dict:
        return {name: _changed(item, change) for name, item in value.items()}
    return change(value)


@contextmanager
def _written(targets: list[Operand]) -> Iterator[dict[int, Array]]:
    """Opens the tensors as writable arrays, by the tensors' ids, and encrypts them again when the
    block ends without an exception. Raises ArgumentError if two of them share bytes."""
    distinct = list({id(target): target for target in targets}.values())
    for at, one in enumerate(distinct):
        for other in distinct[:at]:
            apart = (
                one._offset + one.nbytes <= other._offset
                or other._offset + other.nbytes <= one._offset
            )
            if handle(one._buffer) is handle(other._buffer) and not apart:
                raise errors.ArgumentError(
                    "Two tensors that a function writes into share bytes; do one at a time."
                )
    with ExitStack() as stack:
        yield {id(target): stack.enter_context(target._opened_as(True)) for target in distinct}


def _applied(
    function: Any,
    args: Any,
    options: Any,
    targets: list[Operand],
    opened: Callable[[Any], Any] = _opened,
) -> Any:
    """Returns the result of a function for what `opened` makes of its arguments: the plain values.
    If it returns an array that it wrote into, the result is the tensor."""
    if not targets:
        args, options = _changed((args, options), opened)
        return function(*args, **options)
    with _written(targets) as arrays:

        def plain(value: Any) -> Any:
            found = arrays.get(id(value))
            return opened(value) if found is None else found

        args, options = _changed((args, options), plain)
        result = function(*args, **options)
        tensors = {id(arrays[id(target)]): target for target in targets}

        def back(value: Any) -> Any:
            found = tensors.get(id(value))
            if found is not None:
                return found
            if isinstance(value, np.ndarray) and any(
                np.may_share_memory(value, array) for array in arrays.values()
            ):
                return value.copy()  # the array is wiped when the block ends
            return value

        return _changed(result, back)
