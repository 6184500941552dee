# SPDX-License-Identifier: Apache-2.0
"""Arrays as the native cache takes them: rows of dense elements at an address, with strides.

An array whose last axis is dense is taken as it is. Any other, and one of another type, is copied
into memory that is wiped.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from .. import errors
from ..binding import wiped
from ..binding.arguments import integer, plain_array
from ..core.indexing import address
from ..core.kv_tables import Rows

__all__ = [
    "FLOATS",
    "Operand",
    "array_type",
    "bounds",
    "four_axes",
    "mask_of",
    "output",
    "rows_of",
    "sinks_of",
    "taken",
]

Array = npt.NDArray[Any]

#: The types of rows that are not stored as they are, and of queries.
FLOATS = ("float32", "float16", "bfloat16")

#: Names of types, which `dtype.name` takes its time to find; uint16 holds bits.
_NAMES = {
    np.dtype(np.float32): "float32",
    np.dtype(np.float16): "float16",
    np.dtype(np.uint16): "bfloat16",
}


class Operand:
    """An array that a call takes, its type's name, and whether it is a copy."""

    __slots__ = ("array", "copied", "dtype")

    def __init__(self, array: Array, dtype: str, copied: bool) -> None:
        self.array, self.dtype, self.copied = array, dtype, copied

    def wipe(self) -> None:
        """Overwrites a copy, which an exception's traceback may keep alive."""
        if self.copied:
            self.array.fill(0)


def array_type(dtype: str) -> np.dtype[Any]:
    """Returns NumPy's type of this name. Raises MissingPackageError for bfloat16 without
    ml_dtypes."""
    if dtype == "bfloat16":
        from ..safetensors._dtypes import numpy_dtype

        return numpy_dtype("BF16", "of the cache")
    return np.dtype(dtype)


def taken(name: str, value: Any, types: tuple[str, ...]) -> Operand:
    """Returns `value` as an array of one of `types`, the last axis dense. Numbers of another type
    become the first of `types`. An array of uint16 holds the bits of bfloat16.

    Raises ArgumentTypeError, MissingPackageError, OutOfMemoryError.
    """
    array = plain_array(name, value)
    kind = _NAMES.get(array.dtype) or array.dtype.name
    if kind in types and array.dtype.isnative:
        if _is_dense(array):
            return Operand(array, kind, False)
        into = array.dtype
    elif array.dtype.kind == "f" or kind == "bfloat16":
        if kind not in types:
            kind = types[0]
        into = array_type(kind)
        if array.dtype == np.uint16:
            array = array.view(array_type("bfloat16"))
    else:
        raise errors.ArgumentTypeError(
            f"{name} is of {array.dtype}; it must be of {' or '.join(types)} (bfloat16 also as its "
            f"bits in uint16)."
        )
    copy = wiped.empty(array.shape, into)
    np.copyto(copy, array, casting="unsafe")
    return Operand(copy, kind, True)


def _is_dense(array: Array) -> bool:
    """Returns True when rows can be taken where they are."""
    size = array.itemsize
    if not array.flags.aligned:
        return False
    # Of types that are aligned to their size, NumPy has looked at the strides as well, but not at
    # those of axes of one element, which lead nowhere.
    if array.dtype.alignment != size and any(stride % size for stride in array.strides):
        return False
    return not array.ndim or array.shape[-1] <= 1 or array.strides[-1] == size


def four_axes(name: str, array: Array, sequences: int, wanted: str) -> Array:
    """Returns a view of shape [sequences, heads, tokens, size]. Where there is one sequence, its
    axis may be left out, and that of tokens as well. Raises ArgumentError, which says `wanted`."""
    if sequences == 1 and array.ndim == 3:
        array = array[None]
    elif sequences == 1 and array.ndim == 2:
        array = array[None, :, None]
    if array.ndim != 4 or array.shape[0] != sequences:
        raise errors.ArgumentError(
            f"{name} has shape {array.shape}; it must have shape {wanted} with {sequences} "
            f"sequences."
        )
    return array


def strides_of(array: Array) -> tuple[int, ...]:
    """Returns the strides of all axes but the last, in elements."""
    size = array.itemsize
    return tuple([stride // size for stride in array.strides[:-1]])  # faster than a generator


def rows_of(array: Array, dtype: str) -> Rows:
    """Returns an array of four axes as rows. The caller keeps it alive."""
    return Rows(address(array), dtype, *strides_of(array))


def output(out: Any, shape: tuple[int, ...], like: Operand) -> Array:
    """Returns where an attention's result goes: `out`, checked, or new memory that is wiped. Raises
    ArgumentError, ArgumentTypeError, OutOfMemoryError, PlaintextBudgetError."""
    kind = like.array.dtype
    if out is None:
        return wiped.empty(shape, kind)
    if not isinstance(out, np.ndarray):
        raise errors.ArgumentTypeError(f"out must be a NumPy array, not {type(out).__name__}.")
    if not out.flags.writeable:
        raise errors.ReadOnlyOutputError("out is read-only; use an array that can be written to.")
    if out.dtype != kind or out.shape != shape:
        raise errors.ArgumentError(
            f"out is of {out.dtype} and has shape {out.shape}; it must be of {kind}, as q is, and "
            f"have shape {shape}."
        )
    if not _is_dense(out):
        raise errors.NonContiguousError("out has a last axis that is not dense; use another array.")
    if out.size and np.may_share_memory(out, like.array):
        raise errors.ArgumentError("out overlaps q; use other memory.")
    return out


def bounds(name: str, value: Any, sequences: int) -> npt.NDArray[np.uint64] | None:
    """Returns a number of tokens for each sequence: `value` is one for all, or one for each. Raises
    ArgumentError, ArgumentTypeError."""
    if value is None:
        return None
    several = np.ndim(value) == 1
    found = [integer(name, one) for one in value] if several else [integer(name, value)] * sequences
    if len(found) != sequences:
        raise errors.ArgumentError(
            f"{name} has {len(found)} numbers for {sequences} sequences; give one for each."
        )
    if not all(0 <= one < 2**63 for one in found):
        raise errors.ArgumentError(f"{name} has {found}; its numbers must be at least 0.")
    return np.array(found, np.uint64)


def mask_of(value: Any, shape: tuple[int, int, int, int]) -> Array | None:
    """Returns a mask as float32 of this shape, its last axis dense: False becomes -infinity, True
    0. Raises ArgumentError, ArgumentTypeError."""
    if value is None:
        return None
    given = np.asarray(value)
    if given.dtype.kind == "b":
        mask = np.where(given, np.float32(0), np.float32(-np.inf))
    elif given.dtype.kind == "f" or given.dtype.name == "bfloat16":
        mask = given.astype(np.float32, copy=False)
    else:
        raise errors.ArgumentTypeError(
            f"mask is of {given.dtype}; it must be of bool (True: is seen) or of a type of floats, "
            f"which are added to the scores."
        )
    mask = np.asarray(mask)
    if not mask.ndim or mask.shape[-1] != shape[-1] or not _is_dense(mask):
        try:
            wide = np.broadcast_to(mask, (*mask.shape[:-1], shape[-1]))
        except ValueError:
            raise _no_mask(given, shape) from None
        mask = np.ascontiguousarray(wide)
    try:
        return np.broadcast_to(mask, shape)
    except ValueError:
        raise _no_mask(given, shape) from None


def _no_mask(given: Array, shape: tuple[int, ...]) -> errors.ArgumentError:
    return errors.ArgumentError(
        f"mask has shape {given.shape}, which cannot be broadcast to {shape}: sequences, query "
        f"heads, rows, tokens (evicted ones among them)."
    )


def sinks_of(value: Any, heads: int) -> npt.NDArray[np.float32] | None:
    """Returns a float32 for each query head. Raises ArgumentError, ArgumentTypeError."""
    if value is None:
        return None
    given = np.asarray(value)
    if given.dtype.kind not in "fiu" and given.dtype.name != "bfloat16":
        raise errors.ArgumentTypeError(f"sinks is of {given.dtype}; it must hold numbers.")
    if given.shape != (heads,):
        raise errors.ArgumentError(
            f"sinks has shape {given.shape}; it must have shape ({heads},), a score for each query "
            f"head."
        )
    return np.ascontiguousarray(given, np.float32)
