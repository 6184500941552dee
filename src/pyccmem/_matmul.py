# SPDX-License-Identifier: Apache-2.0
"""Products with an encrypted matrix that never lies in memory in the clear.

float32 products with the matrix's rows are native: a few pages at a time are opened into a cache
and multiplied there. Those of other types, and with its columns, go to the BLAS that numpy uses, a
tile of the matrix at a time.
"""

from __future__ import annotations

import math
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

#: Element types that the native kernel takes, in this processor's byte order.
_NATIVE = {
    "float32": lib.CCMEM_F32,
    "float16": lib.CCMEM_F16,
    "bfloat16": lib.CCMEM_BF16,
    "int8": lib.CCMEM_I8,
}

#: The types of x whose products are float32; with others numpy's rules for the result hold.
_SINGLE = frozenset(("float32", "float16", "bfloat16"))

#: Bytes of the matrix in the clear at a time on the BLAS's way, in the type that is multiplied:
#: TILE_BYTES for one thread and fewer than MANY_ROWS of x in all, else LARGE_TILE_BYTES a thread,
#: up to four. A BLAS copies all of x anew for each tile, and its threads wait for each other at the
#: end of each. In times the plain product's speed, one thread: 64 rows of x, tiles of 1 / 2 / 4 MiB
#: 0.87 / 0.91 / 0.88, 512 rows 0.77 / 0.83 / 0.98; two threads: 64 rows, 2 / 4 / 8 / 16 MiB 0.55 /
#: 0.71 / 0.76 / 0.82.
TILE_BYTES = 2 << 20
MANY_ROWS = 256
LARGE_TILE_BYTES = 4 << 20

#: The product of zeros that overwrites a BLAS's buffers may be smaller than the one that filled
#: them: along the common dimension, twice the block of it that any packs at a time (OpenBLAS: at
#: most 640), and in rows of x; but it must not make fewer multiplications than a BLAS makes in one
#: thread (OpenBLAS: 2**18), as the buffers of the others would not be overwritten.
_BLAS_DEPTH = 1280
_BLAS_ROWS = 512
_CLEARING_PRODUCTS = 1 << 22

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
    by at most (n + 10) * 2**-24 * (sum_i |x_i * w_i * scale| + |bias|), n = in_features, to first
    order. The same arguments give the same bits on every call, with any number of threads; a row of
    x may give others beside more rows than alone. For x of float64 the result is float64, and its
    bits may depend on the number of threads.

    The weight is opened a tile at a time, which is wiped; so is what the BLAS keeps of it, at the
    end of the call or of a batched_products() block. A changed page raises IntegrityError, and no
    part of the result is handed out.

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
    kind = _floating(plain, weight)
    return _rows(
        plain,
        weight,
        kind,
        _vector("bias", bias, outputs, kind),
        _vector("scale", scale, outputs, kind),
        secret=isinstance(x, EncryptedTensor),
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
        secret = isinstance(b, EncryptedTensor)
        if plain.ndim == 1:
            return _rows(plain, a, kind, secret=secret)
        columns: Array = _rows(plain.swapaxes(-1, -2), a, kind, secret=secret).swapaxes(-1, -2)
        return columns
    if isinstance(b, EncryptedTensor) and b.ndim == 2:
        plain = _operand("The left operand", a)
        _check_shapes(plain.shape, b.shape, b.shape[0], plain.shape[-1:])
        secret = isinstance(a, EncryptedTensor)
        return _columns(plain, b, _result_type(plain, b), secret=secret)
    left, right = _operand("An operand", a), _operand("An operand", b)
    try:
        product: Array = np.matmul(left, right)
    except ValueError as error:
        raise errors.ArgumentError(f"The operands do not fit: {str(error).rstrip('.')}.") from None
    if left.ndim > 1 and right.ndim > 1:
        _used_blas(left.shape[-2], right.shape[-2:], product.dtype)
    return product


# ---- arguments -----------------------------------------------------------------------------------


def _operand(name: str, value: Any) -> Array:
    """A plain array of numbers; an encrypted one is opened."""
    try:
        array: Array = np.asarray(value)
    except errors.PyccmemError:  # of an encrypted one; some are a ValueError as well
        raise
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
    if given.dtype.kind == "c" and kind.kind != "c":
        raise errors.ArgumentTypeError(
            f"{name} is of {given.dtype}, and the result of {kind}; it must hold real numbers."
        )
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


def _floating(plain: Array, weight: EncryptedTensor) -> np.dtype[Any]:
    """The type of linear()'s result: at least float32, since scale and bias are no integers."""
    single = np.dtype(np.float32)
    kinds = (d for d in (plain.dtype, weight.dtype) if d.name != "bfloat16")
    return np.result_type(single, *(single if d == np.float16 else d for d in kinds))


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
    *,
    secret: bool,
) -> Array:
    """x · Wᵀ * scale + bias; `secret`: x was encrypted."""
    outputs, inputs = weight.shape
    rows = _lines(x, inputs, kind)
    out = np.empty((len(rows), outputs), kind)
    store = weight._opened()
    if not inputs:
        out[...] = 0
    if kind == np.float32 and weight.dtype.name in _NATIVE and weight.dtype.isnative:
        _native(store, rows, weight, bias, scale, out)
    elif out.size:
        try:
            for at, tile in _tiles(weight, kind, len(rows)):
                np.matmul(rows, tile.T, out=out[:, at : at + len(tile)])
        except BaseException:
            out[...] = 0
            raise
        finally:
            height = _tile_rows(weight, kind, len(rows))
            _used_blas(_telling(rows, secret), (inputs, height), kind, turned=True)
        for operation, vector in ((np.multiply, scale), (np.add, bias)):
            if vector is not None:
                rowwise(operation, out, vector)
    return out.reshape(*x.shape[:-1], outputs)


def _lines(x: Array, width: int, kind: np.dtype[Any]) -> Array:
    """x as a C-contiguous matrix of `kind` of `width` columns: x itself where it is one, or a copy
    in memory that is wiped, as x may be what an encrypted tensor was opened to."""
    shape = (math.prod(x.shape[:-1]), width)
    if x.flags.c_contiguous and x.dtype == kind:
        return x.reshape(shape)
    rows = _plain.empty(shape, kind)
    np.copyto(rows.reshape(x.shape), x, casting="unsafe")
    return rows


def _native(
    store: Any,
    rows: Array,
    weight: EncryptedTensor,
    bias: Array | None,
    scale: Array | None,
    out: Array,
) -> None:
    outputs, inputs = weight.shape
    # The buffers are arguments alone: no traceback keeps one.
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


def tile_bytes(lines: int) -> int:
    """The most bytes of a tile for `lines` rows of x, in the type that is multiplied."""
    threads: int = min(lib.ccmem_threads(), 4)
    return LARGE_TILE_BYTES * threads if lines >= MANY_ROWS or threads > 1 else TILE_BYTES


def _tile_rows(weight: EncryptedTensor, kind: np.dtype[Any], lines: int) -> int:
    """How many rows of the matrix are opened at a time for `lines` rows of x: as many in each tile,
    but for the last."""
    height = max(1, weight.shape[0])
    nbytes = tile_bytes(lines)
    most = max(1, nbytes // max(1, weight.shape[1] * kind.itemsize))
    return -(-height // -(-height // most))


def _tiles(weight: EncryptedTensor, kind: np.dtype[Any], lines: int) -> Iterator[tuple[int, Array]]:
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


def _telling(rows: Array, secret: bool) -> int:
    """How many rows of x a product of zeros needs."""
    return len(rows) if secret else min(len(rows), _BLAS_ROWS)


class _Unclear(threading.local):
    """What this thread has yet to overwrite in its BLAS: the most rows of x and the largest right
    operand, by type and whether this is a transposed one; and how many batched_products() blocks
    it is in."""

    def __init__(self) -> None:
        self.blocks = 0
        self.products: dict[tuple[np.dtype[Any], bool], tuple[int, int, int]] = {}


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


def _used_blas(
    rows: int, shape: tuple[int, ...], kind: np.dtype[Any], *, turned: bool = False
) -> None:
    """Notes that a matrix of this shape, `turned`: a transposed one, was multiplied by that many
    rows, and overwrites the BLAS's buffers unless that is to be done later."""
    if rows and all(shape):
        old = _unclear.products.get((kind, turned), (0, 0, 0))
        new = (max(pair) for pair in zip((rows, *shape), old, strict=True))
        _unclear.products[kind, turned] = tuple(new)  # type: ignore[assignment]
    if not _unclear.blocks:
        _clear_blas()


def _clear_blas() -> None:
    """Overwrites what a BLAS keeps of the matrices that it multiplied.

    A BLAS copies blocks of each matrix into buffers of its own, one in each of its threads, and
    leaves them there (OpenBLAS: some 700 KB a thread). A product of zeros of the size of the
    largest goes the same way through the same buffers.
    """
    for (kind, turned), (rows, inputs, outputs) in _unclear.products.items():
        inputs = min(inputs, max(_BLAS_DEPTH, -(-_CLEARING_PRODUCTS // (rows * outputs))))
        left, right = rows * inputs, inputs * outputs
        zeros = _zeros.get(kind)
        if zeros is None or len(zeros) < left + right:
            zeros = _zeros[kind] = np.zeros(left + right, kind)
            zeros.flags.writeable = False
        matrix = zeros[left : left + right]
        np.matmul(
            zeros[:left].reshape(rows, inputs),
            matrix.reshape(outputs, inputs).T if turned else matrix.reshape(inputs, outputs),
        )
    _unclear.products.clear()


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


def _columns(x: Array, weight: EncryptedTensor, kind: np.dtype[Any], *, secret: bool) -> Array:
    """x · W: the rows of W in order, each tile's product added to what is there; `secret`: x was
    encrypted."""
    inputs, outputs = weight.shape
    rows = _lines(x, inputs, kind)
    out = np.zeros((len(rows), outputs), kind)
    weight._opened()
    if out.size:
        part = np.empty_like(out)
        try:
            for at, tile in _tiles(weight, kind, len(rows)):
                np.matmul(rows[:, at : at + len(tile)], tile, out=part)
                out += part
        except BaseException:
            out[...] = part[...] = 0
            raise
        finally:
            height = _tile_rows(weight, kind, len(rows))
            _used_blas(_telling(rows, secret), (height, outputs), kind)
    return out.reshape(*x.shape[:-1], outputs)
