# SPDX-License-Identifier: Apache-2.0
"""Converts between the dtypes of the safetensors format and NumPy's."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np

from .. import errors
from ..core.dtypes import DTYPES
from ..files.safetensors_header import Entry

__all__ = ["dtype_of", "name_of", "numpy_dtype"]

_NAMED = {dtype.safetensors: dtype for dtype in DTYPES.values() if dtype.safetensors is not None}

#: The dtypes by their names in the format: NumPy's own, those of ml_dtypes; and the names by dtype.
_NUMPY = {name: dtype.code for name, dtype in _NAMED.items() if dtype.code is not None}
_ML_DTYPES = {name: dtype.name for name, dtype in _NAMED.items() if dtype.code is None}
_NAMES = {dtype.name: name for name, dtype in _NAMED.items()}


def dtype_of(entry: Entry) -> np.dtype[Any]:
    """Returns the dtype of an entry. Raises MissingPackageError, ArgumentTypeError."""
    return numpy_dtype(entry.dtype, entry.name)


def numpy_dtype(dtype: str, tensor: str) -> np.dtype[Any]:
    """Returns NumPy's dtype for a dtype of the format; `tensor` has it. Raises MissingPackageError,
    ArgumentTypeError."""
    if dtype in _NUMPY:
        return np.dtype(_NUMPY[dtype])
    if dtype not in _ML_DTYPES:
        raise errors.ArgumentTypeError(
            f"Tensor {tensor!a} is of dtype {dtype}, whose elements are smaller than a "
            f"byte, and NumPy has no such type; convert it to one of "
            f"{', '.join([*_NUMPY, *_ML_DTYPES])}."
        )
    name = _ML_DTYPES[dtype]
    try:
        found: np.dtype[Any] = np.dtype(getattr(importlib.import_module("ml_dtypes"), name))
        return found
    except ImportError:
        why = "which is not installed"
    except AttributeError:
        why = "and the version installed is too old for it"
    raise errors.MissingPackageError(
        f"Tensor {tensor!a} is of dtype {dtype}, which NumPy has from the package "
        f"ml_dtypes, {why}; pip install --upgrade ml_dtypes, or pip install 'pyccmem[ml_dtypes]'."
    )


def name_of(dtype: np.dtype[Any], tensor: str) -> str:
    """Returns the format's name for a dtype of NumPy; `tensor` has it. Raises ArgumentTypeError."""
    name = _NAMES.get(dtype.name)
    if name is None:
        raise errors.ArgumentTypeError(
            f"Tensor {tensor!a} is of dtype {dtype}, which safetensors files do not have; convert "
            f"it to one of {', '.join(_NAMES)}."
        )
    if dtype.str.startswith(">"):  # byteorder would be "=" on a big-endian processor
        raise errors.ArgumentTypeError(
            f"Tensor {tensor!a} is big-endian, and safetensors files are little-endian; convert it "
            f"with astype({dtype.newbyteorder('<').str!r})."
        )
    return name
