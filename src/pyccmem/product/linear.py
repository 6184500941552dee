# SPDX-License-Identifier: Apache-2.0
"""linear() and matmul(): check the operands and choose the product."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from .. import errors
from ..binding import wiped
from ..binding.arguments import plain_array
from ..core.block_matrix import BlockMatrix, BlockOperand, block_matrix_of
from ..core.dtypes import NATIVE, name_of
from ..core.matrix import Matrix
from ..core.operand import Operand, matrix_of
from .arrays import columns, multiplied, rows

if TYPE_CHECKING:
    from ..quantized import QuantizedTensor
    from ..tensor import EncryptedTensor

__all__ = ["linear", "matmul"]

Array = npt.NDArray[Any]

_ENCRYPTED = (Operand, BlockOperand)
_FLOAT32 = np.dtype(np.float32)

#: The types of x for which products are float32; for other types numpy's rules hold.
_SINGLE = frozenset(("float32", "float16", "bfloat16"))


def linear(
    x: npt.ArrayLike,
    weight: EncryptedTensor | QuantizedTensor,
    bias: npt.ArrayLike | EncryptedTensor | None = None,
    *,
    scale: npt.ArrayLike | EncryptedTensor | None = None,
) -> Array:
    """Returns x · weightᵀ + bias, an array of shape (..., out_features), for x of shape (...,
    in_features) and an encrypted weight of shape (out_features, in_features).

    The weight may be of float32, float16, bfloat16 (ml_dtypes) or int8. An int8 weight may have a
    `scale`, one factor for each row: weight[i] then stands for scale[i] * weight[i]. `bias` and
    `scale` have shape (out_features,) and may be encrypted too. For x of float32 (or float16,
    bfloat16) the products are summed in float32 and the result is float32; each of its elements
    differs from the exact one by at most (n + 10) * 2**-24 * (sum_i |x_i * w_i * scale| + |bias|),
    n = in_features, to first order. The same arguments give the same bits on every call, with any
    number of threads; a row of x may give other bits together with more rows than alone. For x of
    float64 the result is float64, and its bits may depend on the number of threads.

    The weight may also be a QuantizedTensor of two dimensions, without a `scale`. For x of float32
    (or float16, bfloat16) x is then quantised to 8 bits, 32 or 256 elements of a row at a time, for
    "int8_row" a row, and multiplied with the blocks' whole numbers: the same bits with any number
    of rows and threads, and docs/design/quantized-products.md has the bound. For x of float64 the
    blocks become what dequantize() gives, a tile at a time.

    The weight is opened a tile at a time. Each tile is wiped, and so is what the BLAS keeps of it,
    at the end of the call or of a batched_products() block. A changed page raises IntegrityError,
    and no part of the result is returned.

    Raises ArgumentError for shapes that do not fit, ArgumentTypeError for other types than these;
    IntegrityError, ClosedError, ForkError, OutOfMemoryError.
    """
    if not isinstance(weight, (Operand, BlockOperand)):
        raise errors.ArgumentTypeError(
            f"weight must be an EncryptedTensor or a QuantizedTensor, not "
            f"{type(weight).__name__}; for a plain one use x @ weight.T."
        )
    if weight.ndim != 2:
        raise errors.ArgumentError(
            f"weight has shape {weight.shape}; it must have two dimensions, (out_features, "
            f"in_features)."
        )
    name = name_of(_kind(weight))
    if name not in NATIVE and name != "float64":
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
    if scale is not None and (isinstance(weight, BlockOperand) or weight.dtype != np.int8):
        raise errors.ArgumentError(
            f"scale is for weights of int8, and this one is of {weight.dtype}; leave it out."
        )
    kind = _floating(plain, weight)
    return rows(
        plain,
        _matrix(weight),
        kind,
        _vector("bias", bias, outputs, kind),
        _vector("scale", scale, outputs, kind),
        secret=isinstance(x, _ENCRYPTED),
    )


def matmul(a: Any, b: Any) -> Array:
    """Returns np.matmul(a, b) of which at least one is encrypted: an EncryptedTensor, or a
    QuantizedTensor. Opens a matrix a tile at a time. Of two encrypted operands one is opened as a
    whole, and so is a tensor that is not a matrix.

    Raises ArgumentError for shapes that do not fit; IntegrityError, ClosedError, ForkError,
    OutOfMemoryError.
    """
    if isinstance(a, _ENCRYPTED) and a.ndim == 2:
        plain = _operand("The right operand", b)
        _check_shapes(a.shape, plain.shape, a.shape[1], plain.shape[-2:][:1])
        kind = _result_type(plain, a)
        secret = isinstance(b, _ENCRYPTED)
        if plain.ndim == 1:
            return rows(plain, _matrix(a), kind, secret=secret)
        turned = rows(plain.swapaxes(-1, -2), _matrix(a), kind, secret=secret)
        product: Array = turned.swapaxes(-1, -2)
        return product
    if isinstance(b, _ENCRYPTED) and b.ndim == 2:
        plain = _operand("The left operand", a)
        _check_shapes(plain.shape, b.shape, b.shape[0], plain.shape[-1:])
        secret = isinstance(a, _ENCRYPTED)
        return columns(plain, _matrix(b), _result_type(plain, b), secret=secret)
    left, right = _operand("An operand", a), _operand("An operand", b)
    try:
        return multiplied(left, right)
    except ValueError as error:
        raise errors.ArgumentError(f"The operands do not fit: {str(error).rstrip('.')}.") from None


# ---- arguments -----------------------------------------------------------------------------------


def _operand(name: str, value: Any) -> Array:
    """Returns `value` as a plain array of numbers; an encrypted one is opened."""
    array = plain_array(name, value)
    if array.dtype.kind not in "biufc" and name_of(array.dtype) != "bfloat16":
        raise errors.ArgumentTypeError(f"{name} is of {array.dtype}; it must hold numbers.")
    return array


def _matrix(tensor: Operand | BlockOperand) -> Matrix | BlockMatrix:
    return block_matrix_of(tensor) if isinstance(tensor, BlockOperand) else matrix_of(tensor)


def _kind(tensor: Operand | BlockOperand) -> np.dtype[Any]:
    """Returns the type of a tensor's elements; of blocks, that of what they stand for."""
    return _FLOAT32 if isinstance(tensor, BlockOperand) else tensor.dtype


def _vector(
    name: str, value: npt.ArrayLike | Operand | None, length: int, kind: np.dtype[Any]
) -> Array | None:
    """Returns a bias or scale as a C-contiguous vector of the result's type, in wiped memory if it
    was encrypted."""
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
    vector = wiped.empty(length, kind)
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


def _floating(plain: Array, weight: Operand | BlockOperand) -> np.dtype[Any]:
    """Returns the type of linear()'s result: at least float32, because scale and bias are not
    integers."""
    return _floating_of(plain.dtype, _kind(weight))


@cache
def _floating_of(plain: np.dtype[Any], weight: np.dtype[Any]) -> np.dtype[Any]:
    kinds = (d for d in (plain, weight) if d.name != "bfloat16")
    return np.result_type(_FLOAT32, *(_FLOAT32 if d == np.float16 else d for d in kinds))


def _result_type(plain: Array, weight: Operand | BlockOperand) -> np.dtype[Any]:
    kind = _kind(weight)
    if name_of(plain.dtype) in _SINGLE and name_of(kind) in NATIVE:
        return _FLOAT32
    return np.result_type(plain.dtype, kind)
