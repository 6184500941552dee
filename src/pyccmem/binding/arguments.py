# SPDX-License-Identifier: Apache-2.0
"""Turns the arguments of callers into integers and native buffers, or says what is wrong with them.

A function that holds a native buffer must release it before an exception leaves the function, by
`with` or by `del` in a `finally`: a traceback must never keep one. CPython up to 3.12 clears a
cycle of an exception, a frame, a memoryview and a buffer over it in an order that ends the process:
the memoryview releases its memory while the buffer still uses it.
"""

from __future__ import annotations

import operator
import re
from typing import Any

import numpy as np
import numpy.typing as npt

from .. import errors
from .native import ffi, lib

__all__ = [
    "byte_count",
    "checked_page_size",
    "exact_bytes",
    "input_buffer",
    "integer",
    "output_buffer",
]

#: cffi's from_buffer with this type gives an array whose len() is its size in bytes.
BYTES = ffi.typeof("uint8_t[]")

_TOO_LARGE = 2**128

#: Types whose buffers hold bytes and nothing else.
_PLAIN = (bytes, bytearray)

# The field names of a struct format, such as ":Ok:" in "T{d:Ok:}", are not type codes.
_FIELD_NAME = re.compile(r":[^:]*:")


def integer(name: str, value: Any) -> int:
    """Returns `value` as an int. Takes anything that has __index__, NumPy's integers too, except
    booleans. No size or offset needs more than 64 bits, and Python refuses to print much longer
    integers."""
    if isinstance(value, (bool, np.bool_)):
        raise errors.ArgumentTypeError(f"{name} must be an integer, not {type(value).__name__}.")
    try:
        number = operator.index(value)
    except TypeError:
        raise errors.ArgumentTypeError(
            f"{name} must be an integer, not {type(value).__name__}."
        ) from None
    if not -_TOO_LARGE < number < _TOO_LARGE:
        raise errors.ArgumentError(
            f"{name} is an integer of {number.bit_length()} bits; it must fit in 64."
        )
    return number


_SIZE = re.compile(r"([0-9]{1,18}) ?(B|KiB|MiB|GiB|TiB)", re.ASCII)
_UNITS = {"B": 0, "KiB": 10, "MiB": 20, "GiB": 30, "TiB": 40}


def plain_array(name: str, value: Any) -> npt.NDArray[Any]:
    """Returns what NumPy makes of `value`, which opens an encrypted one. Raises ArgumentTypeError
    for what is no array, such as rows of several lengths."""
    try:
        array: npt.NDArray[Any] = np.asarray(value)
    except errors.PyccmemError:  # from an encrypted one; some are also a ValueError
        raise
    except (TypeError, ValueError, RuntimeError) as error:
        raise errors.ArgumentTypeError(
            f"{name} is not an array of numbers: {str(error).rstrip('.')}."
        ) from None
    return array


def byte_count(name: str, value: Any) -> int:
    """Returns the number of bytes, from 1 to 2^63 - 1, that an integer or a text such as "64MiB"
    gives. Raises ArgumentError, ArgumentTypeError."""
    if isinstance(value, str):
        match = _SIZE.fullmatch(value)
        if match is None:
            raise errors.ArgumentError(
                f"{name} is {value[:40]!a}; it must be a number of bytes, or text such as '64MiB' "
                f"(B, KiB, MiB, GiB, TiB)."
            )
        number = int(match[1]) << _UNITS[match[2]]
    else:
        number = integer(name, value)
    if not 0 < number < 2**63:
        raise errors.ArgumentError(f"{name} is {number} bytes; it must be at least 1.")
    return number


def checked_page_size(value: Any) -> int:
    """Returns `value` as a size that pages may have, in bytes. Raises PageSizeError,
    ArgumentTypeError."""
    size = integer("page_size", value)
    smallest, largest = int(lib.CCMEM_PAGE_SIZE_MIN), int(lib.CCMEM_PAGE_SIZE_MAX)
    if not smallest <= size <= largest or size & (size - 1):
        raise errors.PageSizeError(
            f"page_size is {size}; it must be a power of two from {smallest} to {largest}."
        )
    return size


def holds_objects(value: Any) -> bool:
    """Returns True for a buffer of references to Python objects, whose bytes are no data."""
    if isinstance(value, np.ndarray):
        return bool(value.dtype.hasobject)
    if type(value) is memoryview:
        view = value  # another view of it would cost more than a small read
    else:
        try:
            view = memoryview(value)
        except (TypeError, ValueError, BufferError):
            return False
    return "O" in view.format and "O" in _FIELD_NAME.sub("", view.format)


def _refused(name: str, value: Any, writable: bool) -> errors.BufferTypeError:
    """Returns the exception for a value that is not a C-contiguous buffer, or not a writable one
    where `writable` asks for it."""
    kind = type(value).__name__
    can = "writable " if writable else ""
    if isinstance(value, str):
        fix = "use a bytearray" if writable else "encode it to bytes first"
        return errors.BufferTypeError(f"{name} is a str, which has no fixed bytes; {fix}.")
    examples = (
        "a bytearray, memoryview or NumPy array"
        if writable
        else "bytes, bytearray, a memoryview or a NumPy array"
    )
    if isinstance(value, np.ndarray):
        contiguous, readonly = bool(value.flags.c_contiguous), not value.flags.writeable
    else:
        try:
            with memoryview(value) as view:
                contiguous, readonly = view.c_contiguous, view.readonly
        except (TypeError, ValueError, BufferError):
            return errors.BufferTypeError(
                f"{name} must be a {can}buffer of bytes such as {examples}, not {kind}."
            )
    if holds_objects(value):
        return errors.BufferTypeError(
            f"{name} holds references to Python objects, not data; use a buffer of plain numbers "
            f"or bytes."
        )
    if writable and readonly:
        return errors.ReadOnlyOutputError(
            f"{name} is a read-only {kind}; use a writable buffer such as {examples}."
        )
    if not contiguous:
        fix = (
            "use a contiguous one and copy from it"
            if writable
            else "copy it first, for example with numpy.ascontiguousarray()"
        )
        return errors.NonContiguousError(
            f"{name} does not lie in one piece in memory in C order; {fix}."
        )
    return errors.BufferTypeError(
        f"{name} must be a {can}buffer of bytes such as {examples}, not {kind}."
    )


def input_buffer(name: str, value: Any) -> Any:
    """Returns `value`'s bytes as a cffi array that keeps them alive, for a `with` statement. Raises
    BufferTypeError."""
    try:
        buffer = ffi.from_buffer(BYTES, value)
    except (TypeError, ValueError, BufferError):
        raise _refused(name, value, writable=False) from None
    try:
        if type(value) not in _PLAIN and holds_objects(value):
            raise _refused(name, value, writable=False)
        return buffer
    finally:
        del buffer


def output_buffer(name: str, value: Any) -> Any:
    """Returns `value`'s writable bytes as a cffi array that keeps them alive, for a `with`
    statement. Raises BufferTypeError."""
    try:
        buffer = ffi.from_buffer(BYTES, value, True)
    except (TypeError, ValueError, BufferError):
        raise _refused(name, value, writable=True) from None
    try:
        if type(value) not in _PLAIN and holds_objects(value):
            raise _refused(name, value, writable=True)
        return buffer
    finally:
        del buffer


def exact_bytes(
    name: str, value: Any, sizes: tuple[int, ...], error: type[errors.ArgumentError]
) -> Any:
    """Returns input_buffer() of a value whose size in bytes is one of `sizes`. Raises `error` for
    any other size."""
    buffer = input_buffer(name, value)
    try:
        if len(buffer) not in sizes:
            right = " or ".join(", ".join(map(str, sizes)).rsplit(", ", 1))
            raise error(f"{name} has {len(buffer)} bytes; it must have {right}.")
        return buffer
    finally:
        del buffer
