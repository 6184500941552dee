# SPDX-License-Identifier: Apache-2.0
"""Products of a mixture of experts: rows of x, in groups, with a matrix each of an encrypted stack.

transformers' experts call torch.nn.functional.grouped_mm, of x that is sorted by experts. Each
matrix that has rows is multiplied as any other, so that experts nobody asks for stay closed.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from .._linear import columns, rows
from .._results import new_result
from .._stored import Stored
from .._tensor import EncryptedTensor, asks_wiping, path_of, stored_of
from ..dtypes import FLOATING
from ..path import Step, window
from ..registry import implements
from .common import open_all, plain

__all__: list[str] = []

aten = torch.ops.aten


def _exchanges_last(step: Step) -> bool:
    """Returns True for a step that exchanges the last two of three dimensions."""
    if step.function is aten.transpose.int:
        return sorted(at % 3 for at in step.args if -3 <= at < 3) == [1, 2]
    return step.function is aten.permute.default and [at % 3 for at in step.args[0]] == [0, 2, 1]


def _stack_of(tensor: Any) -> tuple[Stored, int, tuple[int, ...], bool] | None:
    """Returns what is stored, the first element and the shape of a stack of matrices in it, and
    True if the tensor has them transposed; None for any other tensor."""
    if not isinstance(tensor, EncryptedTensor):
        return None
    stored = stored_of(tensor)
    if stored is None or stored.dtype not in FLOATING:
        return None
    part = window(stored.core.shape, path_of(tensor))
    if len(part.shape) != 3 or not all(_exchanges_last(step) for step in part.path):
        return None
    return stored, part.first, part.shape, len(part.path) % 2 == 1


@implements(aten._grouped_mm.default)
def _grouped_mm(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Computes rows ends[e - 1] to ends[e] of x with the e-th matrix of a stack. Rows behind the
    last end, of which torch says nothing, are zeros."""
    x, weight, ends, bias, out_dtype = (*args, None, None, None)[:5]
    ends, bias = kwargs.get("offs", ends), kwargs.get("bias", bias)
    out_dtype = kwargs.get("out_dtype", out_dtype)
    found = _stack_of(weight)
    if (
        found is None
        or not isinstance(ends, Tensor)
        or ends.dim() != 1
        or bias is not None
        or x.dim() != 2
        or x.dtype is not weight.dtype
        or out_dtype not in (None, x.dtype)
    ):
        return open_all(function, args, kwargs)
    stored, first, shape, turned = found
    count, inputs, outputs = weight.shape
    bounds = [0, *plain(ends).tolist()]
    fits = x.shape[1] == inputs and len(bounds) == count + 1
    if not fits or bounds != sorted(bounds) or bounds[-1] > len(x):
        return open_all(function, args, kwargs)  # torch says what is wrong
    wipe = asks_wiping(weight) or (isinstance(x, EncryptedTensor) and asks_wiping(x))
    x = plain(x)
    out = new_result((len(x), outputs), x.dtype, wipe)
    out[bounds[-1] :].zero_()
    size = math.prod(shape[1:])
    for number in range(count):
        begin, end = bounds[number], bounds[number + 1]
        if begin == end:
            continue
        matrix = stored.matrix_at(first + number * size, shape[1:])
        if matrix is None:
            return open_all(function, args, kwargs)
        multiply = rows if turned else columns
        out[begin:end] = multiply(x[begin:end], matrix, None, x.dtype, wipe=wipe)
    return out
