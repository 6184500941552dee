# SPDX-License-Identifier: Apache-2.0
"""Products with an encrypted matrix: torch's functions of matrices, and F.linear."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .._linear import AnyMatrix, columns, rows, rows_of_one_type
from .._results import as_type
from .._tensor import (
    EncryptedTensor,
    asks_wiping,
    ciphertext,
    layout,
    opened,
    path_of,
    stored_of,
    trace_refused,
    whole,
)
from ..dtypes import FLOATING
from ..path import is_transpose, window
from ..registry import implements, overrides
from .common import default, open_all, plain, transformed
from .gradients import asks_gradient

__all__: list[str] = []

aten = torch.ops.aten

_is_grad_enabled = torch.is_grad_enabled
_is_autocast_enabled = torch.is_autocast_enabled


def _matrix_of(tensor: Any) -> tuple[AnyMatrix, bool, torch.dtype] | None:
    """Returns the encrypted matrix that a tensor is, with False, or of which it is the transpose,
    with True, and the type of its elements; None for any other tensor."""
    if not isinstance(tensor, EncryptedTensor):
        return None
    stored = stored_of(tensor)
    if stored is None or stored.dtype not in FLOATING:
        return None
    core = stored.core
    part = window(core.shape, path_of(tensor))
    turned = False
    if part.path:
        if len(part.path) != 1 or not is_transpose(part.path[0]):
            return None
        turned = True
    matrix = stored.matrix_at(part.first, part.shape)
    return None if matrix is None else (matrix, turned, stored.dtype)


@implements(aten.mm.default)
def _mm(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Computes mm(x, W): by tiles if the right operand is encrypted."""
    return _product(function, args, kwargs, args[0], args[1], None)


@implements(aten.addmm.default)
def _addmm(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    if kwargs.get("beta", 1) != 1 or kwargs.get("alpha", 1) != 1:
        return open_all(function, args, kwargs)
    return _product(function, args, kwargs, args[1], args[2], args[0])


@implements(aten.mv.default)
def _mv(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Computes mv(W, x) as mm(x, W^T)."""
    weight, x = args
    found = _matrix_of(weight)
    if found is None or isinstance(x, EncryptedTensor) or x.dtype != weight.dtype:
        return open_all(function, args, kwargs)
    if x.dim() != 1 or x.shape[0] != weight.shape[1]:
        return open_all(function, args, kwargs)
    matrix, turned, _ = found
    wipe = asks_wiping(weight)
    return (columns if turned else rows)(x, matrix, None, x.dtype, wipe=wipe)


def _product(
    function: Any,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    x: Any,
    weight: Any,
    bias: Any,
) -> Any:
    if torch.compiler.is_compiling() or _is_traced(weight):
        return _traced_product(function, args, kwargs, x, weight, bias)
    if torch._C._get_dispatch_mode(torch._C._TorchDispatchModeKey.PROXY) is not None:
        trace_refused()
    found = _matrix_of(weight)
    if found is None:
        return open_all(function, args, kwargs)
    wipe = any(isinstance(t, EncryptedTensor) and asks_wiping(t) for t in (x, weight, bias))
    x, bias = plain(x), plain(bias)
    matrix, turned, kind = found
    inputs, outputs = (matrix.cols, matrix.rows) if turned else (matrix.rows, matrix.cols)
    if (
        x.dim() != 2
        or x.shape[1] != inputs
        or x.dtype != kind
        or (bias is not None and (bias.shape != (outputs,) or bias.dtype != x.dtype))
    ):
        return open_all(function, args, kwargs)
    return (rows if turned else columns)(x, matrix, bias, x.dtype, wipe=wipe)


def _is_traced(tensor: Any) -> bool:
    return isinstance(tensor, EncryptedTensor) and stored_of(tensor) is None


def _traced_product(
    function: Any,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    x: Any,
    weight: Any,
    bias: Any,
) -> Any:
    """Returns the product as an operator of pyccmem in the program that is traced."""
    if not _is_traced(weight):
        return open_all(function, args, kwargs)
    form = layout(weight)
    part = window(form.shape, path_of(weight))
    turned = len(part.path) == 1 and is_transpose(part.path[0])
    all_of_it = not part.first and (turned or not part.path)
    if not all_of_it or len(part.shape) != 2 or form.dtype not in FLOATING:
        return open_all(function, args, kwargs)
    bias = plain(bias)
    outputs = part.shape[0] if turned else part.shape[1]
    if bias is not None and tuple(bias.shape) != (outputs,):
        return open_all(function, args, kwargs)
    product = torch.ops.pyccmem.linear if turned else torch.ops.pyccmem.linear_columns
    return product(plain(x), ciphertext(weight), form.offset, list(part.shape), form.dtype, bias)


# ---- F.linear ------------------------------------------------------------------------------------


@overrides(F.linear)
def _linear(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    if transformed():
        return default(function, args, kwargs)
    return _linear_of(*args, **kwargs)


def _linear_of(input: Any, weight: Any, bias: Any = None) -> Any:
    """Computes F.linear, with torch's names of the arguments."""
    x = input
    if type(x) is Tensor and isinstance(weight, EncryptedTensor):
        needs_grad = _is_grad_enabled() and (
            x.requires_grad or asks_gradient(weight) or asks_gradient(bias)
        )
        stored = whole(weight)
        if not (needs_grad or stored is None or _is_autocast_enabled("cpu")):
            encrypted = type(bias) is EncryptedTensor
            added = whole(bias) if encrypted else bias
            if added is not None or not encrypted:
                product = rows_of_one_type(x, (stored,), added)
                if product is not None:
                    return product
        found = None if needs_grad else _matrix_of(weight)
        if found is not None and not found[1]:
            matrix, _, own = found
            wipe = asks_wiping(weight)
            kind = x.dtype
            cast = _is_autocast_enabled("cpu") and kind in FLOATING and kind is not torch.float64
            if cast:
                kind = torch.get_autocast_dtype("cpu")
            if (
                (cast or kind is own)
                and x.dim()
                and x.shape[-1] == matrix.cols
                and x.device.type == "cpu"
                and x.layout is torch.strided
                and not x.is_neg()
            ):
                if bias is None:
                    return rows(x, matrix, None, kind, wipe=wipe)
                if isinstance(bias, EncryptedTensor):
                    wipe = wipe or asks_wiping(bias)
                    bias = opened(bias)
                if (
                    bias.dim() == 1
                    and bias.shape[0] == matrix.rows
                    and (cast or bias.dtype is kind)
                    and bias.device.type == "cpu"
                ):
                    return rows(as_type(x, kind, wipe), matrix, bias, kind, wipe=wipe)
    return _checked_linear(x, weight, bias)


def _checked_linear(x: Any, weight: Any, bias: Any) -> Any:
    """Returns F.linear for all other arguments. First lets torch say what is wrong with them,
    before anything is opened."""
    with torch._C.DisableTorchFunctionSubclass():
        if all(isinstance(t, Tensor) for t in (x, weight)) and not _is_autocast_enabled("cpu"):
            with torch.no_grad():
                F.linear(*(_shadow(t) for t in (x, weight, bias)))  # shapes
                F.linear(_tiny(x), _tiny(weight), None if bias is None else _tiny(bias)[0])  # types
        return F.linear(x, weight, bias)


def _shadow(tensor: Any) -> Any:
    """Returns a tensor without data of the same form."""
    if not isinstance(tensor, Tensor) or tensor.device.type != "cpu":
        return tensor
    return torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")


def _tiny(tensor: Tensor) -> Tensor:
    return torch.zeros((1, 1), dtype=tensor.dtype)
