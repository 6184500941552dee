# SPDX-License-Identifier: Apache-2.0
"""Memory for the plaintext that pyccmem returns: wiped when its last user releases it.

A block comes from the native pool, is left out of core dumps and reads as zeros in a forked child.
It is wiped and kept for reuse as soon as no array, view or memoryview refers to it any more.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from .. import errors
from .native import OK, ffi, lib
from .status import Call, check

__all__ = ["block", "empty", "stats", "wipe", "wipe_at", "wipe_bytes"]

_VOID = ffi.typeof("void *")

# Looked up once, because these lookups are most of the cost of one small read.
_buffer = ffi.buffer
_BYTES = ffi.typeof("uint8_t[]")

#: Takes a block and makes its owner in one call, so that no interrupt can come in between.
_new = ffi.new_allocator(lib.ccmem_plain_take, lib.ccmem_plain_free, should_clear_after_alloc=False)


def block(nbytes: int) -> tuple[Any, Any]:
    """Returns a block of `nbytes` zero bytes, at least 1, aligned to 64, as a native array and as a
    writable buffer. Either keeps the block alive. Raises OutOfMemoryError, PlaintextBudgetError."""
    try:
        pointer = _new(_BYTES, nbytes)
    except MemoryError:
        pointer = None
    if pointer is None:
        check(_refusal(), Call(f"{nbytes} bytes of plaintext"))
    return pointer, _buffer(pointer, nbytes)


def _refusal() -> int:
    """Returns the status by which this thread got no block: the budget's refusal if there was one,
    else the system's."""
    status: int = lib.ccmem_plain_refusal()
    return status if status != OK else int(lib.CCMEM_ERR_NOMEM)


def empty(shape: int | tuple[int, ...], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    """Returns a C-contiguous array of zeros in a block of its own. Zero-size arrays need no block.

    Raises OutOfMemoryError; ArgumentTypeError for a dtype that holds Python objects.
    """
    kind: np.dtype[Any] = np.dtype(dtype)
    if kind.hasobject:
        raise errors.ArgumentTypeError(
            f"dtype {kind} holds references to Python objects, not data; use one of fixed size."
        )
    nbytes = kind.itemsize * (math.prod(shape) if isinstance(shape, tuple) else shape)
    if not kind.itemsize:  # which numpy makes 1, except of a field
        field: npt.NDArray[Any] = np.zeros(shape, [("field", kind)])["field"]
        return field
    if nbytes <= 0:
        return np.zeros(shape, kind)
    if nbytes >= 2**63:
        check(lib.CCMEM_ERR_NOMEM, Call(f"{nbytes} bytes of plaintext"))
    array: npt.NDArray[Any] = np.ndarray(shape, kind, block(nbytes)[1])
    return array


def wipe(buffer: Any) -> None:
    """Overwrites a block with zeros now, even if other references keep it alive."""
    lib.ccmem_wipe(ffi.from_buffer(buffer), len(buffer))


def wipe_at(address: int, nbytes: int) -> None:
    """Overwrites memory that the caller keeps alive."""
    lib.ccmem_wipe(ffi.cast(_VOID, address), nbytes)


def wipe_bytes(data: bytes) -> None:
    """Overwrites a bytes object that the package made and that nothing else refers to.

    Python has no call to clear bytes, so this reaches their memory through the buffer protocol. The
    interpreter shares the empty object and those of one byte; they are left as they are.
    """
    if len(data) > 1:
        lib.ccmem_wipe(ffi.from_buffer(data), len(data))


def stats() -> dict[str, int]:
    """Returns the state of the pool: `plain_blocks`, blocks in use; `plain_in_use`, their bytes;
    `plain_peak`, the most bytes ever in use at once; `plain_kept`, bytes of wiped blocks kept for
    reuse. Raises OutOfMemoryError."""
    found = ffi.new("ccmem_plain_stats *")
    check(lib.ccmem_plain_get_stats(found), Call("the pool of plaintext blocks"))
    return {f"plain_{name}": int(getattr(found, name)) for name in dir(found)}
