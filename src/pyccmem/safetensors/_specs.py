# SPDX-License-Identifier: Apache-2.0
"""TensorSpec: a tensor that is described by the address of its plain bytes."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .. import errors
from ..binding import ffi
from ..core.dtypes import DTYPES
from ..files.safetensors_header import shown, tensor_bytes
from ._sources import ArraySource, Source, checked_name

__all__ = ["TensorSpec", "specs_of"]

#: The format's names of dtypes, by those of NumPy and torch. Of two elements to a byte, torch's
#: last axis counts bytes and the format's counts elements.
_NAMES = {dtype.name: dtype.safetensors for dtype in DTYPES.values() if dtype.safetensors}
_PAIRS = "float4_e2m1fn_x2"


class TensorSpec:
    """Describes one tensor for serialize() and serialize_file(). The bytes at `data_ptr` are the
    caller's, who keeps them there until those return.

    `dtype` is named as in NumPy, ml_dtypes and torch ("float32", "bfloat16"); the property gives
    the format's name for it ("F32", "BF16"). `shape` counts elements.
    """

    __slots__ = ("_address", "_dtype", "_nbytes", "_shape")

    def __init__(self, *, dtype: str, shape: Sequence[int], data_ptr: int, data_len: int) -> None:
        """Raises FileRequestError for a dtype that the format does not have, ArgumentTypeError."""
        name = "F4" if dtype == _PAIRS else _NAMES.get(dtype) if isinstance(dtype, str) else None
        if name is None:
            raise errors.FileRequestError(
                f"dtype is {shown(dtype)}, and safetensors files have {', '.join(_NAMES)}; convert "
                f"the tensor to one of these."
            )
        try:
            extents = tuple(operator.index(n) for n in shape)
            address, nbytes = operator.index(data_ptr), operator.index(data_len)
        except TypeError as error:
            raise errors.ArgumentTypeError(
                f"shape must be whole numbers, and data_ptr and data_len one each: {error}."
            ) from None
        if min((*extents, address, nbytes)) < 0:
            raise errors.FileRequestError("shape, data_ptr and data_len must be at least 0.")
        if name == "F4" and extents:
            extents = (*extents[:-1], extents[-1] * 2)
        self._dtype, self._shape, self._address, self._nbytes = name, extents, address, nbytes

    @property
    def dtype(self) -> str:
        """The dtype in the spelling of safetensors."""
        return self._dtype

    @property
    def shape(self) -> list[int]:
        """The elements along each axis."""
        return list(self._shape)

    @property
    def data_ptr(self) -> int:
        """The address of the first byte."""
        return self._address

    @property
    def data_len(self) -> int:
        """The number of bytes."""
        return self._nbytes

    def __repr__(self) -> str:
        return (
            f"TensorSpec(dtype={self._dtype!r}, shape={list(self._shape)}, "
            f"data_ptr={self._address}, data_len={self._nbytes})"
        )


def specs_of(tensors: Any) -> list[Source]:
    """Returns a source for each TensorSpec by name. Raises ArgumentTypeError, FileRequestError,
    ArgumentError for a name that no file can have."""
    if not isinstance(tensors, Mapping):
        raise errors.ArgumentTypeError(
            f"tensor_dict must be a dict of TensorSpec by name, not {type(tensors).__name__}."
        )
    return [_source(checked_name(name), spec) for name, spec in tensors.items()]


def _source(name: str, spec: Any) -> Source:
    # Those of safetensors have the same properties, and need no copy.
    if not isinstance(spec, TensorSpec) and type(spec).__name__ != "TensorSpec":
        raise errors.ArgumentTypeError(
            f"Tensor {name!a} is described by a {type(spec).__name__}; use TensorSpec(dtype=..., "
            f"shape=..., data_ptr=..., data_len=...), or save() for arrays."
        )
    dtype, shape = str(spec.dtype), tuple(spec.shape)
    needed = tensor_bytes(dtype, shape, shown(name), errors.FileRequestError)
    address, nbytes = int(spec.data_ptr), int(spec.data_len)
    if nbytes != needed or (nbytes and not address):
        raise errors.FileRequestError(
            f"Tensor {name!a} has {nbytes} bytes at address {address}; dtype {dtype} and shape "
            f"{list(shape)} need {needed}."
        )
    if not nbytes:
        return ArraySource(name, dtype, shape, np.empty(0, np.uint8))
    memory = ffi.buffer(ffi.cast("uint8_t *", address), nbytes)
    return ArraySource(name, dtype, shape, np.frombuffer(memory, np.uint8))
