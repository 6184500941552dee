# SPDX-License-Identifier: Apache-2.0
"""Products with an encrypted matrix that never lies in memory in the clear.

Few rows of x are multiplied by a native kernel, which opens a page at a time into a tile in L1.
Many rows go to the BLAS that numpy uses, a tile of the matrix at a time, since there the arithmetic
takes the time and a BLAS does it best.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt

from . import _plain, errors
from ._lib import OK, ffi, lib
from .tensor import EncryptedTensor

__all__ = ["batched_products", "linear", "matmul", "rowwise"]

Array = npt.NDArray[Any]

#: Element types that the native kernel takes.
_NATIVE = {
    "float32": lib.CCMEM_F32,
    "float16": lib.CCMEM_F16,
    "bfloat16": lib.CCMEM_BF16,
    "int8": lib.CCMEM_I8,
}

#: The types of x whose products are float32; with others numpy's rules for the result hold.
_SINGLE = frozenset(("float32", "float16", "bfloat16"))

#: From this many rows of x on, the tiles go to numpy's BLAS. Measured on Zen 3, 4096 x 4096 float32,
#: in times the plain product's speed, one thread: 8 rows 1.07 natively and 1.03 by tiles, 12 rows
#: 0.78 and 0.96; two threads: 8 rows 0.80 and 0.66, 12 rows 0.56 and 0.62.
BLAS_ROWS = 10

#: Bytes of the matrix in the clear at a time and thread on that way, in the type that is multiplied
#: (with two threads, tiles of 1 MiB reach 0.70 for 16 rows of x, of 2 MiB 0.81); and with
#: MANY_ROWS of x or more in all: a BLAS copies all of x anew for each tile (512 rows of x: tiles of 1 MiB
#: are multiplied at 0.79 of the plain product's speed, of 4 MiB at 0.92).
TILE_BYTES = 1 << 20
MANY_ROWS = 256
LARGE_TILE_BYTES = 4 << 20

#: How much of the common dimension a product of zeros needs to overwrite a BLAS's buffers: more
#: than the block of it that any packs at a time (OpenBLAS: at most 640).
_BLAS_DEPTH = 1024
_CLEARING_ROWS = 4

#: The zeros of that product, by type, as many as were needed yet: fresh memory would cost more than
#: the product.
_zeros: dict[np.dtype[Any], Array] = {}


def linear(
    x: npt.ArrayLike,
    weight: EncryptedTensor,
    bias: npt.ArrayLike | EncryptedTensor | None = None,
    *,
    scale: npt.ArrayLike | EncryptedTensor | None = None,
) -> Array:
    """x · weightᵀ + bias, for x of shape (..., in_features) and an encrypted weight of shape
    (out_features, in_features): an array of shape (..., out_features).

    The weight may be of float32, float16, bfloat16 (ml_dtypes) or int8, the last with `scale`, one
    factor for each row: weight[i] stands for scale[i] * weight[i]. `bias` and `scale` have shape
    (out_features,) and may be encrypted too. For x of float32 (or float16, bfloat16) the products
    are summed in float32 and the result is float32; each of its elements differs from the exact one
    by at most (n + 8) * 2**-24 * sum_i |x_i * w_i|, n = in_features, to first order. The same
    arguments give the same bits on every call, with any number of threads. For x of float64 the
    result is float64.

    The weight is opened a tile at a time, which is wiped; so is what the BLAS keeps of it, at the end
    of the call or of a batched_products() block. A changed page raises IntegrityError, and
    no part of the result is handed out.

    Raises ArgumentError for shapes that do not fit, ArgumentTypeError for types that are not those
    above; IntegrityError, ClosedError, ForkError, OutOfMemoryError.
    """
    if not isinstance(weight, EncryptedTensor):
        raise errors.ArgumentTypeError(
            f"weight must be an EncryptedTensor, not {type(weight).__name__}; for a plain one use "
            f"x @ weight.T."
        )
    if weight.ndim != 2:
        raise errors.ArgumentError(
            f"weight has shape {weight.shape}; it must have two dimensions, (out_features, "
            f"in_features)."
        )
    if weight.dtype.name not in _NATIVE and weight.dtype.name != "float64":
        raise errors.ArgumentTypeError(
            f"weight is of {weight.dtype}; it must be float32, float16, bfloat16, int8 or float64."
        )
    plain = _operand("x", x)
    outputs, inputs = weight.shape
    if plain.ndim == 0 or plain.shape[-1] != inputs:
        raise errors.ArgumentError(
            f"x has shape {plain.shape}; its last dimension must be {inputs}, the in_features of "
            f"a weight of shape {weight.shape}."
        )
    if scale is not None and weight.dtype != np.int8:
        raise errors.ArgumentError(
            f"scale is for weights of int8, and this one is of {weight.dtype}; leave it out."
        )
    kind = _result_type(plain, weight)
    return _rows(
        plain,
        weight,
        kind,
        _vector("bias", bias, outputs, kind),
        _vector("scale", scale, outputs, kind),
    )


def matmul(a: Any, b: Any) -> Array:
    """np.matmul(a, b) where one of them, or both, is an EncryptedTensor. A matrix is opened a tile
    at a time; of two, and of a tensor that is no matrix, one is opened as a whole.

    Raises ArgumentError for shapes that do not fit; IntegrityError, ClosedError, ForkError,
    OutOfMemoryError.
    """
    if isinstance(a, EncryptedTensor) and a.ndim == 2:
        plain = _operand("The right operand", b)
        _check_shapes(a.shape, plain.shape, a.shape[1], plain.shape[-2:][:1])
        kind = _result_type(plain, a)
        if plain.ndim == 1:
            return _rows(plain, a, kind)
        columns: Array = _rows(plain.swapaxes(-1, -2), a, kind).swapaxes(-1, -2)
        return columns
    if isinstance(b, EncryptedTensor) and b.ndim == 2:
        plain = _operand("The left operand", a)
        _check_shapes(plain.shape, b.shape, b.shape[0], plain.shape[-1:])
        return _columns(plain, b, _result_type(plain, b))
    try:
        product: Array = np.matmul(_operand("An operand", a), _operand("An operand", b))
    except ValueError as error:
        raise errors.ArgumentError(f"The operands do not fit: {str(error).rstrip('.')}.") from None
    return product


# ---- arguments -----------------------------------------------------------------------------------


def _operand(name: str, value: Any) -> Array:
    """A plain array of numbers; an encrypted one is opened."""
    try:
        array: Array = np.asarray(value)
    except (TypeError, ValueError) as error:
        raise errors.ArgumentTypeError(
            f"{name} is not an array of numbers: {str(error).rstrip('.')}."
        ) from None
    if array.dtype.kind not in "biufc" and array.dtype.name != "bfloat16":
        raise errors.ArgumentTypeError(f"{name} is of {array.dtype}; it must hold numbers.")
    return array


def _vector(
    name: str, value: npt.ArrayLike | EncryptedTensor | None, length: int, kind: np.dtype[Any]
) -> Array | None:
    """A bias or scale as a C-contiguous vector of the result's type, in wiped memory where it was
    encrypted."""
    if value is None:
        return None
    given = _operand(name, value)
    if given.shape != (length,):
        raise errors.ArgumentError(
            f"{name} has shape {given.shape}; it must have shape ({length},), one number for each "
            f"of the out_features."
        )
    if given.dtype == kind and given.flags.c_contiguous:
        return given
    vector = _plain.empty(length, kind)
    np.copyto(vector, given, casting="unsafe")
    return vector


def _check_shapes(
    left: tuple[int, ...], right: tuple[int, ...], wanted: int, got: tuple[int, ...]
) -> None:
    if got != (wanted,):
        raise errors.ArgumentError(
            f"Shapes {left} and {right} do not fit: the last dimension of the left operand must "
            f"be the first of the right one's last two."
        )


def _result_type(plain: Array, weight: EncryptedTensor) -> np.dtype[Any]:
    if plain.dtype.name in _SINGLE and weight.dtype.name in _NATIVE:
        return np.dtype(np.float32)
    return np.result_type(plain.dtype, weight.dtype)


# ---- by rows of the matrix: x · Wᵀ ---------------------------------------------------------------


def _rows(
    x: Array,
    weight: EncryptedTensor,
    kind: np.dtype[Any],
    bias: Array | None = None,
    scale: Array | None = None,
) -> Array:
    outputs, inputs = weight.shape
    rows = np.ascontiguousarray(x.reshape(-1, inputs) if x.size else np.empty((_lines(x), inputs)))
    rows = rows.astype(kind, copy=False)
    out = np.empty((len(rows), outputs), kind)
    store = weight._opened()
    if not inputs:
        out[...] = 0
    if kind == np.float32 and len(rows) < BLAS_ROWS and weight.dtype.name in _NATIVE:
        _native(store, rows, weight, bias, scale, out)
    elif out.size:
        try:
            for at, tile in _tiles(weight, kind, len(rows)):
                np.matmul(rows, tile.T, out=out[:, at : at + len(tile)])
        except BaseException:
            out[...] = 0
            raise
        finally:
            _used_blas(_tile_rows(weight, kind, len(rows)), inputs, kind)
        for operation, vector in ((np.multiply, scale), (np.add, bias)):
            if vector is not None:
                rowwise(operation, out, vector)
    return out.reshape(*x.shape[:-1], outputs)


def _lines(x: Array) -> int:
    """How many vectors an array without elements has along its last axis."""
    n = 1
    for length in x.shape[:-1]:
        n *= length
    return n


def _native(
    store: Any,
    rows: Array,
    weight: EncryptedTensor,
    bias: Array | None,
    scale: Array | None,
    out: Array,
) -> None:
    outputs, inputs = weight.shape
    status = lib.ccmem_store_linear(
        store,
        weight._offset,
        _NATIVE[weight.dtype.name],
        outputs,
        inputs,
        _floats(scale),
        _floats(rows),
        len(rows),
        inputs,
        _floats(bias),
        _floats(out),
        outputs,
    )
    if status != OK:
        weight.buffer._fail(status, weight._offset, weight.nbytes)


def _floats(array: Array | None) -> Any:
    return ffi.NULL if array is None else ffi.from_buffer("float[]", array.reshape(-1))


# ---- by tiles ------------------------------------------------------------------------------------


def _tile_rows(weight: EncryptedTensor, kind: np.dtype[Any], lines: int) -> int:
    """How many rows of the matrix are opened at a time for `lines` rows of x: as many in each tile,
    but for the last."""
    height = max(1, weight.shape[0])
    nbytes = LARGE_TILE_BYTES if lines >= MANY_ROWS else TILE_BYTES * lib.ccmem_threads()
    most = max(1, nbytes // max(1, weight.shape[1] * kind.itemsize))
    return -(-height // -(-height // most))


def _tiles(
    weight: EncryptedTensor, kind: np.dtype[Any], lines: int
) -> Iterator[tuple[int, Array]]:
    """The rows of the matrix in order, some at a time, as an array of `kind`: the number of the
    first, and a tile that is overwritten by the next and wiped in the end."""
    outputs, inputs = weight.shape
    step = _tile_rows(weight, kind, lines)
    row_bytes = inputs * weight.itemsize
    same = weight.dtype == kind
    if not row_bytes:
        return
    pointer, memory = _plain.block(step * row_bytes)
    stored: Array = np.ndarray((step, inputs), weight.dtype, memory)
    converted = stored if same else _plain.empty((step, inputs), kind)
    for at in range(0, outputs, step):
        n = min(step, outputs - at)
        offset = weight._offset + at * row_bytes
        status = lib.ccmem_store_read(weight._opened(), offset, pointer, n * row_bytes)
        if status != OK:
            weight.buffer._fail(status, offset, n * row_bytes)
        if not same:
            np.copyto(converted[:n], stored[:n], casting="unsafe")
        yield at, converted[:n]


class _Unclear(threading.local):
    """What this thread has yet to overwrite in its BLAS: the most rows and columns of a tile, by
    type; and how many batched_products() blocks it is in."""

    def __init__(self) -> None:
        self.blocks = 0
        self.sizes: dict[np.dtype[Any], tuple[int, int]] = {}


_unclear = _Unclear()


@contextmanager
def batched_products() -> Iterator[None]:
    """A block in which what a BLAS keeps of encrypted matrices is overwritten once, when it ends,
    instead of after each product: for a forward pass of many layers. Blocks may be nested; each
    thread has its own.
    """
    _unclear.blocks += 1
    try:
        yield
    finally:
        _unclear.blocks -= 1
        if not _unclear.blocks:
            _clear_blas()


def _used_blas(height: int, width: int, kind: np.dtype[Any]) -> None:
    """Notes that tiles of this size went through the BLAS, and overwrites its buffers unless that
    is to be done later."""
    most = _unclear.sizes.get(kind, (0, 0))
    _unclear.sizes[kind] = max(height, most[0]), max(min(width, _BLAS_DEPTH), most[1])
    if not _unclear.blocks:
        _clear_blas()


def _clear_blas() -> None:
    """Overwrites what a BLAS keeps of the tiles that it multiplied.

    A BLAS copies blocks of each matrix into buffers of its own and leaves them there (OpenBLAS: some
    700 KB a thread). A product of zeros with a tile's number of rows goes the same way through the
    same buffers; few rows of x will do, but more than one, which would not be copied.
    """
    for kind, (height, width) in _unclear.sizes.items():
        size = height * width
        zeros = _zeros.get(kind)
        if zeros is None or len(zeros) < size:
            zeros = _zeros[kind] = np.zeros(size, kind)
            zeros.flags.writeable = False
        matrix = zeros[:size].reshape(height, width)
        np.matmul(np.zeros((_CLEARING_ROWS, width), kind), matrix.T)
    _unclear.sizes.clear()


def rowwise(operation: np.ufunc, x: Array, values: Array) -> None:
    """x = operation(x, values) in place: values of shape (width,), x (..., width) C-contiguous.

    Not by broadcasting: NumPy may then repeat the values in a buffer of its own on the heap, which
    nobody wipes. Here they are repeated in memory that is.
    """
    width = x.shape[-1]
    rows = x.reshape(-1, width)
    tile = _plain.empty((max(1, min(len(rows), _ROWWISE_ITEMS // max(width, 1))), width), x.dtype)
    tile[...] = values
    for start in range(0, len(rows), len(tile)):
        part = rows[start : start + len(tile)]
        operation(part, tile[: len(part)], out=part)


#: Elements of the repeated values: they stay in L2.
_ROWWISE_ITEMS = 1 << 15


def _columns(x: Array, weight: EncryptedTensor, kind: np.dtype[Any]) -> Array:
    """x · W: the rows of W in order, each tile's product added to what is there."""
    inputs, outputs = weight.shape
    rows = np.ascontiguousarray(x.reshape(-1, inputs) if x.size else np.empty((_lines(x), inputs)))
    rows = rows.astype(kind, copy=False)
    out = np.zeros((len(rows), outputs), kind)
    weight._opened()
    if out.size:
        part = np.empty_like(out)
        try:
            for at, tile in _tiles(weight, kind, len(rows)):
                np.matmul(rows[:, at : at + len(tile)], tile, out=part)
                out += part
        except BaseException:
            out[...] = 0
            raise
        finally:
            _used_blas(_tile_rows(weight, kind, len(rows)), outputs, kind)
    return out.reshape(*x.shape[:-1], outputs)
