# SPDX-License-Identifier: Apache-2.0
"""Puts tensors of blocks one after the other, as they lie: nothing is dequantised."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from .. import errors
from ..binding.arguments import integer
from ..keys import Key
from ..tensor import EncryptedTensor
from .tensor import QuantizedTensor

__all__ = ["concatenate"]

#: Bytes of blocks that are in the clear at a time.
_BLOCK = 1 << 20


def concatenate(
    tensors: Sequence[QuantizedTensor],
    axis: int = 0,
    *,
    key: Key | None = None,
    name: str | None = None,
) -> QuantizedTensor:
    """Returns the blocks of tensors of one format, joined along an axis as np.concatenate() does,
    in a new tensor, which is frozen. `key` is for that; by default a random one that is kept
    nowhere. The tensors stay as they are. At most 1 MiB of blocks is in the clear at a time.

    Raises ArgumentError for none, for other formats and shapes, and for the last axis, along which
    blocks lie; ArgumentTypeError; IntegrityError, ClosedError, ForkError, OutOfMemoryError.
    """
    shape, at = _joined_shape(tensors, axis)
    kind = tensors[0].format
    made: list[EncryptedTensor] = []
    own = Key.generate() if key is None else key
    try:
        raw = EncryptedTensor.empty(kind.packed_shape(shape), np.uint8, key=own, name=name)
        made.append(raw)
        _move([tensor.raw for tensor in tensors], _runs(tensors, at), raw)
        scale = None
        if kind.scaled_rows:
            called = None if name is None else f"{name}.scale"
            scale = EncryptedTensor.empty(raw.shape[0], np.float32, key=own, name=called)
            made.append(scale)
            _move([tensor.scale for tensor in tensors], _runs(tensors, at), scale)
        for part in made:
            part.freeze()
        return QuantizedTensor.from_blocks(raw, kind, shape, scale)
    except BaseException:
        for part in made:
            part.close()
        raise
    finally:
        if own is not key:
            own.close()


def _joined_shape(tensors: Any, axis: Any) -> tuple[tuple[int, ...], int]:
    """Returns the shape of the result, and the axis, from 0. Raises as concatenate() does."""
    axis = integer("axis", axis)
    if not isinstance(tensors, (list, tuple)) or not tensors:
        raise errors.ArgumentError("tensors must be a list of at least one QuantizedTensor.")
    for tensor in tensors:
        if not isinstance(tensor, QuantizedTensor):
            raise errors.ArgumentTypeError(
                f"tensors must be QuantizedTensors, and one is a {type(tensor).__name__}."
            )
    first = tensors[0]
    at = axis + first.ndim if axis < 0 else axis
    if not 0 <= at < first.ndim - 1:
        raise errors.ArgumentError(
            f"axis is {axis}; tensors of shape {first.shape} can be joined along the first "
            f"{first.ndim - 1} axes, because blocks lie along the last."
        )
    rest = first.shape[:at], first.shape[at + 1 :]
    for tensor in tensors[1:]:
        if tensor.format != first.format:
            raise errors.ArgumentError(
                f"The tensors are of {first.format} and of {tensor.format}; they must be of one "
                f"format."
            )
        if tensor.ndim != first.ndim or (tensor.shape[:at], tensor.shape[at + 1 :]) != rest:
            raise errors.ArgumentError(
                f"The shapes {first.shape} and {tensor.shape} differ in more than axis {at}."
            )
    length = sum(tensor.shape[at] for tensor in tensors)
    return (*rest[0], length, *rest[1]), at


def _runs(tensors: Sequence[QuantizedTensor], at: int) -> list[tuple[int, int, int]]:
    """Returns, in the order of the result, which tensor the next rows come from, and the first and
    the last (excluded) of them."""
    each = [math.prod(tensor.shape[at:-1]) for tensor in tensors]
    times = math.prod(tensors[0].shape[:at])
    return [
        (number, turn * rows, (turn + 1) * rows)
        for turn in range(times)
        for number, rows in enumerate(each)
        if rows
    ]


def _move(sources: Sequence[Any], runs: list[tuple[int, int, int]], target: Any) -> None:
    """Writes rows of the sources one after the other."""
    place = 0
    row = target.nbytes // max(target.shape[0], 1)
    step = max(_BLOCK // max(row, 1), 1)
    for number, first, end in runs:
        for begin in range(first, end, step):
            part = sources[number][begin : min(begin + step, end)]
            try:
                target[place : place + len(part)] = part
            finally:
                part.fill(0)
            place += len(part)
