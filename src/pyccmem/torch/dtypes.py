# SPDX-License-Identifier: Apache-2.0
"""Converts between torch's element types and numpy's, by the table of element types."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from .. import errors
from ..core import dtypes

__all__ = ["FLOATING", "NATIVE", "PAIRS", "numpy_dtype", "torch_dtype"]

#: The types by their names, which are the same in numpy, ml_dtypes and torch.
_TORCH_BY_NAME: dict[str, torch.dtype] = {
    name: getattr(torch, name) for name in dtypes.DTYPES if hasattr(torch, name)
}
_NAMES = {kind: name for name, kind in _TORCH_BY_NAME.items()}

#: torch's pairs of elements of four bits, which numpy has as bytes; None in an earlier torch.
PAIRS: torch.dtype | None = getattr(torch, "float4_e2m1fn_x2", None)

#: Types that torch multiplies.
FLOATING = frozenset((torch.float32, torch.float64, torch.float16, torch.bfloat16))

#: The numbers of the types that the native kernels of products take.
NATIVE: dict[torch.dtype, int] = {
    _TORCH_BY_NAME[name]: number
    for name, number in dtypes.NATIVE.items()
    if _TORCH_BY_NAME[name] in FLOATING
}


def numpy_dtype(kind: torch.dtype) -> np.dtype[Any]:
    """Returns numpy's dtype for a dtype of torch. Raises ArgumentTypeError if there is none,
    MissingPackageError if it needs ml_dtypes."""
    if kind == PAIRS and PAIRS is not None:
        return np.dtype(np.uint8)
    name = _NAMES.get(kind)
    if name is None:
        raise errors.ArgumentTypeError(
            f"A tensor of {kind} cannot be encrypted; convert it to one of "
            f"{', '.join(map(str, _NAMES))}."
        )
    found: np.dtype[Any]
    if dtypes.DTYPES[name].code is not None:
        found = np.dtype(name)
        return found
    try:
        import ml_dtypes

        found = np.dtype(getattr(ml_dtypes, name))
        return found
    except (ImportError, AttributeError):
        raise errors.MissingPackageError(
            f"A tensor of {kind} needs the package ml_dtypes, in a version that has {name}; "
            f"pip install 'pyccmem[torch]'."
        ) from None


def torch_dtype(kind: np.dtype[Any]) -> torch.dtype:
    """Returns torch's dtype for a dtype of numpy. Raises ArgumentTypeError."""
    found = _TORCH_BY_NAME.get(kind.name)
    if found is None or not kind.isnative:
        raise errors.ArgumentTypeError(
            f"torch has no type for elements of {kind}; use one of {', '.join(_TORCH_BY_NAME)}."
        )
    return found
