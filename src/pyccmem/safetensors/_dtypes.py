# SPDX-License-Identifier: Apache-2.0
"""The dtypes of the safetensors format and NumPy's, from one to the other."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np

from .. import errors
from .._safetensors_header import Entry

__all__ = ["dtype_of", "name_of", "numpy_dtype"]

_NUMPY = {
    "BOOL": "?",
    "U8": "u1",
    "I8": "i1",
    "U16": "<u2",
    "I16": "<i2",
    "U32": "<u4",
    "I32": "<i4",
    "U64": "<u8",
    "I64": "<i8",
    "F16": "<f2",
    "F32": "<f4",
    "F64": "<f8",
    "C64": "<c8",
}

_ML_DTYPES = {
    "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E5M2FNUZ": "float8_e5m2fnuz",
    "F8_E8M0": "float8_e8m0fnu",
}

_NAMES = {np.dtype(code).name: name for name, code in _NUMPY.items()} | {
    numpy_name: name for name, numpy_name in _ML_DTYPES.items()
}


def dtype_of(entry: Entry) -> np.dtype[Any]:
    """The dtype of an entry. Raises MissingPackageError, ArgumentTypeError."""
    return numpy_dtype(entry.dtype, entry.name)


def numpy_dtype(dtype: str, tensor: str) -> np.dtype[Any]:
    """NumPy's dtype for one of the format, which `tensor` has. Raises MissingPackageError,
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
    """The format's name for a dtype of NumPy, which `tensor` has. Raises ArgumentTypeError."""
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
